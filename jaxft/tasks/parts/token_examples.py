"""Examples of cached token ids, and arrays of targets and scores per token."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.data.batching.loader import collate_rows
from jaxft.data.cache import ExampleArrays, fingerprint
from jaxft.models.layers.loss import UNSCORED
from jaxft.tasks.parts.contract import Batch, Outputs, Sum, Sums
from jaxft.tasks.parts.examples import Examples, row_marks


@dataclass(frozen=True)
class CachedExamples(Examples):
    """Examples that are arrays in the data cache; see `jaxft.tasks.parts.examples.Examples`.

    Args:
        tokens: the arrays of each example, such as `input_ids`.
    """

    tokens: ExampleArrays

    @property
    def counts(self) -> Mapping[str, int]:
        return self.tokens.meta.get("counts", {})

    @property
    def warnings(self) -> Sequence[str]:
        return self.tokens.meta.get("warnings", ())

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.tokens)

    def __len__(self) -> int:
        return len(self.tokens)


class TokenExamples(CachedExamples):
    """Examples that are token sequences, several of which may share a row."""

    @property
    def lengths(self) -> np.ndarray:
        return self.tokens.lengths

    @property
    def remarks(self) -> dict[int, dict[str, Any]]:
        """The number of truncated tokens, where there are any."""
        cut = self.tokens.meta.get("cut", {})  # texts split into several examples lose none
        return {int(number): {"cut": count} for number, count in cut.items()}


class GroupedExamples(CachedExamples):
    """Examples of K token sequences each, side by side in a row, where none attends to another.

    The cache holds the sequences, those of the first example first.
    """

    @property
    @abstractmethod
    def count(self) -> int:
        """K, the sequences of an example."""

    @property
    def lengths(self) -> np.ndarray:
        return self.tokens.lengths.reshape(-1, self.count).sum(axis=1)

    def __len__(self) -> int:
        return len(self.tokens) // self.count

    def sequences(self, index: np.ndarray) -> np.ndarray:
        """Return the sequence numbers `[R, S K]` of the examples `[R, S]` of a batch."""
        own = np.where(index >= 0, index, 0)[..., None] * self.count + np.arange(self.count)
        return np.where(index[..., None] >= 0, own, -1).reshape(len(index), -1)

    def rows_of(self, index: np.ndarray, row_length: int) -> dict[str, np.ndarray]:
        """Collate examples `[R, S]`; `read_positions` are those of each one's first sequence."""
        sequences = self.sequences(index)
        batch = collate_rows(self.tokens.take(sequences), sequences, row_length)
        first = batch["read_positions"][:, :: self.count]
        return batch | {"read_positions": first, **row_marks(index)}


def row_targets(
    index: np.ndarray, row_length: int, targets: Callable[[int], np.ndarray]
) -> np.ndarray:
    """Return the targets of a batch with one target per token: `[R, T]` int32, -1 elsewhere.

    Args:
        index: `[rows, segments]` example numbers, -1 for none.
        row_length: T.
        targets: an example's number -> `[tokens]`.
    """
    rows = np.full((len(index), row_length), UNSCORED, np.int32)
    for row, numbers in enumerate(index.tolist()):
        own = [targets(number) for number in numbers if number >= 0]
        if own:
            joined = np.concatenate(own)
            rows[row, : len(joined)] = joined
    return rows


def of_segments(owners: jax.Array, count: int) -> jax.Array:
    """Return which positions belong to each segment of their row: `[R, S, T]` bool.

    Args:
        owners: `[R, T]` the segment of each position, from 1 on; 0 for none.
        count: S.
    """
    return owners[:, None, :] == jnp.arange(1, count + 1)[None, :, None]


def is_scored(batch: Batch) -> jax.Array:
    """Return where a batch has a target: `[R, T]` bool."""
    return batch["targets"] != UNSCORED


def summed_losses(outputs: Outputs, batch: Batch) -> Sum:
    """Return the sum of the tokens' `losses` `[R, T]`, and the number of scored tokens."""
    return jnp.sum(outputs["losses"]), is_scored(batch).astype(jnp.float32).sum()


def token_accuracy(outputs: Outputs, batch: Batch) -> Sums:
    """Return `accuracy`, the sum of the tokens' `hits` `[R, T]` and the number of scored tokens."""
    hits = jnp.sum(outputs["hits"], dtype=jnp.float32)
    return {"accuracy": (hits, is_scored(batch).astype(jnp.float32).sum())}
