"""Travel of keys and values over the devices of a row, and which chunks meet where.

N devices along `context`. Each has one chunk of a row, or under a causal mask two, as
`ring.order` deals them; arrays have the chunks of a device first. A *visit* lets a device's queries
meet the keys that are there, and returns its sums and what those keys get: in the backward pass
their gradients, which travel with them and come home.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxft.models.layers.kernels import CONTEXT
from jaxft.models.layers.ring.chunks import EVERYTHING, Sight

Moved = Callable[[Any], Any]  # arrays of chunks -> those that come from another device


class Meeting(NamedTuple):
    """Meeting of a chunk of queries and one of keys.

    Args:
        query, key: which of the device's chunks, a number or an int32.
        sight: what the queries see of the keys, but for segments.
    """

    query: int | jax.Array
    key: int | jax.Array
    sight: Sight


# sums, keys and what meets -> sums, and what the keys get
Visit = Callable[[Any, Any, Sequence[Meeting]], tuple[Any, Any]]


@dataclass(frozen=True)
class Route:
    """Way of the keys of a row of T positions over its devices.

    Args:
        devices: N.
        length: T / N.
        causal, window: as of a mask.
    """

    devices: int
    length: int
    causal: bool
    window: int | None

    @property
    def chunks(self) -> int:
        """Return how many chunks of the row each device has."""
        return 2 if self.causal else 1

    @property
    def chunk(self) -> int:
        """Return the positions of a chunk."""
        return self.length // self.chunks

    def run(self, visit: Visit, keys: Any, sums: Any) -> tuple[Any, Any]:
        """Visit all devices whose queries see any of the keys.

        Args:
            visit: called on each.
            keys: of this device.
            sums: of its queries, before.

        Returns:
            Its sums, and what its keys got everywhere.
        """
        if self.window is None:
            return self._around(visit, keys, sums)
        return self._along(visit, keys, sums)

    def _around(self, visit: Visit, keys: Any, sums: Any) -> tuple[Any, Any]:
        """Send the keys around the ring: each device's meet all others.

        They are sent on while the queries meet them.
        """
        device = lax.axis_index(CONTEXT)
        move = self._mover(1, wraps=True)
        sums, gains = visit(sums, keys, self._at_home())

        def on(state: Any, turn: jax.Array) -> tuple[Any, None]:
            sums, keys, gains = state
            following, arrived = move(keys), move(gains)
            sums, own = visit(sums, keys, self._meetings(turn, device))
            return (sums, following, _added(arrived, own)), None

        turns = jnp.arange(1, self.devices)
        (sums, _, gains), _ = lax.scan(on, (sums, move(keys), gains), turns)
        return sums, move(gains)

    def _at_home(self) -> list[Meeting]:
        if not self.causal:
            return [Meeting(0, 0, EVERYTHING)]
        own = Sight(0, causal=True)
        return [Meeting(0, 0, own), Meeting(1, 0, EVERYTHING), Meeting(1, 1, own)]

    def _meetings(self, turn: jax.Array, device: jax.Array) -> list[Meeting]:
        """Return what meets after some turns, where the keys are of another device.

        Under a causal mask the late queries see its early keys. Of a device before this one the
        early queries see the early keys, of one behind it the late ones see the late ones.
        """
        if not self.causal:
            return [Meeting(0, 0, EVERYTHING)]
        side = jnp.where(device >= turn, 0, 1)
        return [Meeting(1, 0, EVERYTHING), Meeting(side, side, EVERYTHING)]

    def _along(self, visit: Visit, keys: Any, sums: Any) -> tuple[Any, Any]:
        """Send the keys along the row as far as the window reaches, from chunk to chunk."""
        sums, gains = visit(sums, keys, self._apart(0))
        for sign in (1,) if self.causal else (1, -1):
            # What keys got elsewhere must not be lost at a row's end: it wraps.
            there, back = self._shift(sign, wraps=True), self._shift(-sign, wraps=True)
            move = self._shift(sign, wraps=False)
            away, gone = keys, jax.tree.map(jnp.zeros_like, gains)
            for count in range(1, self.reach + 1):
                away, gone = move(away), there(gone)
                sums, own = visit(sums, away, self._apart(sign * count))
                gone = _added(gone, own)
            for _ in range(self.reach):
                gone = back(gone)
            gains = _added(gains, gone)
        return sums, gains

    @property
    def reach(self) -> int:
        """Return how many chunks away the furthest key of a window can be."""
        assert self.window is not None
        furthest = -(-(self.window - 1) // self.chunk)
        return min(furthest, self.devices * self.chunks - 1)

    def _apart(self, count: int) -> list[Meeting]:
        """Return what meets where the keys are those `count` chunks before the queries."""
        sight = Sight(count * self.chunk, self.causal, self.window)
        return [Meeting(one, one, sight) for one in range(self.chunks)]

    def _shift(self, sign: int, wraps: bool) -> Moved:
        """Return the move of every chunk to the place of the next one, or of the one before.

        What comes from beyond the row's ends is from its other end, or zero, also the segments.
        """
        if not self.causal:
            return self._mover(sign, wraps)
        ahead, behind = self._mover(1, wraps=False), self._mover(-1, wraps=False)
        last = self.devices - 1

        def folded(array: jax.Array) -> jax.Array:
            """The row turns at the last device, which has its middle; the first has its ends."""
            early, late = array[:1], array[1:]
            device = lax.axis_index(CONTEXT)
            up, down = (early, late) if sign == 1 else (late, early)  # towards the last, and back
            arrived = ahead(up)
            arrived = jnp.where(device == 0, down, arrived) if wraps else arrived
            returned = jnp.where(device == last, up, behind(down))
            return jnp.concatenate([arrived, returned] if sign == 1 else [returned, arrived])

        return lambda arrays: jax.tree.map(folded, arrays)

    def _mover(self, by: int, wraps: bool) -> Moved:
        """Return the move of arrays from each device to the one `by` further."""
        pairs = [(n, n + by) for n in range(self.devices) if wraps or 0 <= n + by < self.devices]
        pairs = [(source, to % self.devices) for source, to in pairs]
        return lambda arrays: jax.tree.map(lambda x: lax.ppermute(x, CONTEXT, pairs), arrays)


def _added(left: Any, right: Any) -> Any:
    return jax.tree.map(jnp.add, left, right)
