"""Sums over all pairs of a batch's rows, which lie on several devices, without a matrix of them.

R rows, the left ones of a device and C right ones that visit it. What is computed of a pair exists
for R / devices x C pairs at a time, in the forward and in the backward pass: the right rows go
around the devices, with what has been summed of them, and come home.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from jaxft.models.layers.kernels import ROWS

MOST_PAIRS = 2**24  # of a device at once, in float32 64 MiB for each term


class Terms(NamedTuple):
    """Terms of some pairs, [left rows, right rows] float32 each; a right row may have several.

    Args:
        by_left: whose exponentials are summed over all right rows; the results are logarithms.
        by_right: the same over all left rows; right rows have one column each.
        plain: which are summed over all right rows as they are.
    """

    by_left: tuple[jax.Array, ...] = ()
    by_right: tuple[jax.Array, ...] = ()
    plain: tuple[jax.Array, ...] = ()


class Sides(NamedTuple):
    """Arrays that the terms of a batch depend on; those of both sides have its rows first.

    Args:
        left, right: float arrays, with gradients.
        shared: float arrays that all pairs share, with gradients.
        marks: arrays of both sides without gradients.
        known: arrays that all pairs share, without gradients.
    """

    left: Any
    right: Any
    shared: Any
    marks: Any
    known: Any = ()


# left, right, shared, the left rows' marks, the right rows' marks, known
Block = Callable[[Any, Any, Any, Any, Any, Any], Terms]


@dataclass(frozen=True)
class Pairs:
    """Static part of sums over pairs.

    Args:
        block: computes the terms of some pairs.
        mesh: the devices that rows are cut over; None for one.
    """

    block: Block
    mesh: Mesh | None

    def run(self, local: Callable[..., Any], specs: Any, results: Any, *arrays: Any) -> Any:
        """Run a function of each device's rows."""
        if self.mesh is None:
            return local(*arrays)
        # Without the check a scan's carry may begin equal on all devices, and not end so.
        options = {"mesh": self.mesh, "in_specs": specs, "out_specs": results, "check_vma": False}
        return jax.shard_map(local, **options)(*arrays)

    @property
    def devices(self) -> int:
        """Return how many devices the rows go around."""
        return 1 if self.mesh is None else row_devices(self.mesh)

    def moved(self, arrays: Any) -> Any:
        """Return arrays of the device before this one."""
        if self.devices == 1:
            return arrays
        ring = [(n, (n + 1) % self.devices) for n in range(self.devices)]
        return jax.tree.map(lambda x: lax.ppermute(x, ROWS, ring), arrays)

    def summed(self, arrays: Any) -> Any:
        """Sum arrays over the devices."""
        return arrays if self.devices == 1 else jax.tree.map(lambda x: lax.psum(x, ROWS), arrays)


def pair_sums(block: Block, sides: Sides, mesh: Mesh | None) -> Terms:
    """Sum the terms of all pairs of rows: each result is `[R]` float32.

    Args:
        block: computes the terms of some pairs, independently of all others.
        sides: R rows on both sides.
        mesh: the devices; where they do not divide the rows, each computes all pairs.
    """
    rows = len(jax.tree.leaves(sides.left)[0])
    if mesh is not None and (row_devices(mesh) == 1 or rows % row_devices(mesh)):
        mesh = None
    sides = sides._replace(known=jax.tree.map(lax.stop_gradient, sides.known))
    return _summed(*sides, Pairs(block, mesh))


def row_devices(mesh: Mesh) -> int:
    """Return the number of devices that rows are cut over."""
    size = 1
    for axis in ROWS:
        size *= mesh.shape.get(axis, 1)
    return size


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _summed(left: Any, right: Any, shared: Any, marks: Any, known: Any, pairs: Pairs) -> Terms:
    return _forward(left, right, shared, marks, known, pairs)[0]


CUT, WHOLE = PartitionSpec(ROWS), PartitionSpec()


def _forward(*inputs: Any) -> tuple[Terms, Any]:
    *sides, pairs = inputs
    specs = (CUT, CUT, WHOLE, CUT, WHOLE)
    sums = pairs.run(partial(_forward_here, pairs), specs, CUT, *sides)
    return sums, (sides, sums)


def _backward(pairs: Pairs, residuals: Any, slopes: Terms) -> tuple[Any, ...]:
    sides, sums = residuals
    specs = (CUT, CUT, WHOLE, CUT, WHOLE, CUT, CUT)
    results = (CUT, CUT, WHOLE)
    gradients = pairs.run(partial(_backward_here, pairs), specs, results, *sides, sums, slopes)
    return (*gradients, None, None)


_summed.defvjp(_forward, _backward)


def _forward_here(
    pairs: Pairs, left: Any, right: Any, shared: Any, marks: Any, known: Any
) -> Terms:
    """Sum the terms of a device's left rows, and those of its right ones."""
    count = _parts(left)
    shapes = jax.eval_shape(pairs.block, left, right, shared, marks, marks, known)
    rows = len(jax.tree.leaves(left)[0])

    def start(terms: Any, value: float) -> tuple[jax.Array, ...]:
        return tuple(jnp.full(rows, value, jnp.float32) for _ in terms)

    def meet(sums: Any, part: Any) -> tuple[Any, Any]:
        (right, theirs), by_right = part
        terms = pairs.block(left, right, shared, marks, theirs, known)
        by_left = _each(_log_added, sums[0], terms.by_left, axis=1)
        plain = _each(lambda so_far, one: so_far + one.sum(1), sums[1], terms.plain)
        return (by_left, plain), _each(_log_added, by_right, terms.by_right, axis=0)

    def turn(state: Any, _: None) -> tuple[Any, None]:
        sums, visitors, by_right = state
        sums, by_right = lax.scan(meet, sums, (visitors, by_right))
        return (sums, pairs.moved(visitors), pairs.moved(by_right)), None

    sums = start(shapes.by_left, -jnp.inf), start(shapes.plain, 0.0)
    visitors, by_right = _cut(((right, marks), start(shapes.by_right, -jnp.inf)), count)
    (sums, _, by_right), _ = lax.scan(turn, (sums, visitors, by_right), None, pairs.devices)
    return Terms(sums[0], _joined(by_right), sums[1])


def _backward_here(
    pairs: Pairs,
    left: Any,
    right: Any,
    shared: Any,
    marks: Any,
    known: Any,
    sums: Terms,
    slopes: Terms,
) -> tuple[Any, Any, Any]:
    """Compute the gradients of a device's rows, and of what all pairs share."""

    def meet(gains: Any, part: Any) -> tuple[Any, Any]:
        (right, theirs, own_sums, own_slopes), gain = part

        def values(left: Any, right: Any, shared: Any) -> Terms:
            return pairs.block(left, right, shared, marks, theirs, known)

        terms, pull = jax.vjp(values, left, right, shared)
        shares = Terms(
            _each(_share, terms.by_left, sums.by_left, slopes.by_left, axis=1),
            _each(_share, terms.by_right, own_sums, own_slopes, axis=0),
            _each(_spread, terms.plain, slopes.plain),
        )
        of_left, of_right, of_shared = pull(shares)
        return _added(gains, (of_left, of_shared)), _added(gain, of_right)

    def turn(state: Any, _: None) -> tuple[Any, None]:
        gains, visitors, gain = state
        gains, gain = lax.scan(meet, gains, (visitors, gain))
        return (gains, pairs.moved(visitors), pairs.moved(gain)), None

    none = jax.tree.map(jnp.zeros_like, (left, shared))
    visitors = right, marks, sums.by_right, slopes.by_right
    parts = _cut((visitors, jax.tree.map(jnp.zeros_like, right)), _parts(left))
    (gains, _, gain), _ = lax.scan(turn, (none, *parts), None, pairs.devices)
    of_left, of_shared = gains
    return of_left, _joined(gain), pairs.summed(of_shared)


def _each(function: Callable[..., jax.Array], *terms: Any, **options: Any) -> tuple[Any, ...]:
    return tuple(function(*one, **options) for one in zip(*terms, strict=True))


def _log_added(so_far: jax.Array, term: jax.Array, axis: int) -> jax.Array:
    return jnp.logaddexp(so_far, jax.nn.logsumexp(term, axis=axis))


def _share(term: jax.Array, total: jax.Array, slope: jax.Array, axis: int) -> jax.Array:
    """Return the gradient of each term of a logarithm of summed exponentials."""
    return jnp.exp(term - jnp.expand_dims(total, axis)) * jnp.expand_dims(slope, axis)


def _spread(term: jax.Array, slope: jax.Array) -> jax.Array:
    return jnp.broadcast_to(slope[:, None], term.shape)


def _added(some: Any, others: Any) -> Any:
    return jax.tree.map(jnp.add, some, others)


def _parts(left: Any) -> int:
    """Return into how many parts a device cuts its right rows: a divisor of their number."""
    rows = len(jax.tree.leaves(left)[0])
    least = -(-(rows * rows) // MOST_PAIRS)
    return next(count for count in range(max(least, 1), rows + 1) if rows % count == 0)


def _cut(arrays: Any, count: int) -> Any:
    return jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), arrays)


def _joined(arrays: Any) -> Any:
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), arrays)
