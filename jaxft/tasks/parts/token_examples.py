"""Examples that are token ids one after the other, and what is said of each token in a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.data.cache import InMemory, Ragged, fingerprint
from jaxft.models.layers.loss import UNSCORED
from jaxft.tasks.parts.examples import Examples


@dataclass(frozen=True)
class TokenExamples(Examples):
    """Examples that are token ids: the base of all of them; see `jaxft.tasks.parts.contract`.

    Args:
        tokens: `input_ids` of each, and what else a task keeps of every token.
    """

    tokens: Ragged | InMemory

    @property
    def lengths(self) -> np.ndarray:
        return self.tokens.lengths

    @property
    def counts(self) -> Mapping[str, int]:
        return self.tokens.meta["counts"]

    @property
    def remarks(self) -> dict[int, dict[str, Any]]:
        """How many tokens were cut away, where any were."""
        cut = self.tokens.meta.get("cut", {})  # where long texts are taken apart, none are
        return {int(number): {"cut": count} for number, count in cut.items()}

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.tokens)

    def __len__(self) -> int:
        return len(self.tokens)


def row_targets(
    index: np.ndarray, row_length: int, targets: Callable[[int], np.ndarray]
) -> np.ndarray:
    """The targets of a batch whose examples have one at each token: `[R, T]` int32, -1 elsewhere.

    Args:
        index: `[rows, segments]` example numbers, -1 for none.
        row_length: T.
        targets: an example's number -> `[tokens]`.
    """
    found = np.full((len(index), row_length), UNSCORED, np.int32)
    for row, numbers in enumerate(index.tolist()):
        own = [targets(number) for number in numbers if number >= 0]
        if own:
            ends = np.concatenate(own)
            found[row, : len(ends)] = ends
    return found


def of_segments(owners: jax.Array, count: int) -> jax.Array:
    """Which positions belong to each segment of their row: `[R, S, T]` bool.

    Args:
        owners: `[R, T]` the segment of each position, from 1 on; 0 of none.
        count: S.
    """
    return owners[:, None, :] == jnp.arange(1, count + 1)[None, :, None]
