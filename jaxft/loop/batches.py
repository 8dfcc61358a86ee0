"""Batches of texts for a loop of one's own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from jaxft.data.batching.packing import round_up
from jaxft.data.batching.plans import ROW_STEP, TrainPlan
from jaxft.data.text.tokenizer import Encoded, load_tokenizer
from jaxft.errors import UserError
from jaxft.models.model import Model


@dataclass(frozen=True)
class TextBatches:
    """Batches of tokenized texts, in a new order each epoch; iterate over it as often as needed.

    Attributes:
        encoded: the texts.
        labels: `[examples]` or `[examples, ...]`; None without any.
        plan: which examples make each batch.
        epochs: passes over the texts.
        row_length: positions a row.
        pad_id: fills a row.
        typed: add `token_type_ids`, which are 0 throughout otherwise.
    """

    encoded: Encoded
    labels: np.ndarray | None
    plan: TrainPlan
    epochs: float
    row_length: int
    pad_id: int
    typed: bool

    def __len__(self) -> int:
        """Count the batches: the steps of the loop."""
        return self.plan.steps(self.epochs)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        for step in range(len(self)):
            yield self.batch(step)

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Make the batch of a step, a pure function of its number."""
        numbers = self.plan.batch(step)[:, 0]  # [B]
        shape = (len(numbers), self.row_length)
        ids, mask = np.full(shape, self.pad_id, np.int32), np.zeros(shape, np.int32)
        types = np.zeros(shape, np.int32)
        for row, number in enumerate(numbers):
            if number >= 0:
                span = slice(0, len(self.encoded.ids[number]))
                ids[row, span], mask[row, span] = self.encoded.ids[number], 1
                types[row, span] = self.encoded.type_ids[number]
        batch = {"input_ids": ids, "attention_mask": mask}
        if self.typed:
            batch["token_type_ids"] = types
        batch["weights"] = (numbers >= 0).astype(np.float32)
        if self.labels is not None:
            batch["labels"] = self.labels[np.maximum(numbers, 0)]
        return batch


def batches(
    model: Model,
    texts: Sequence[str],
    labels: Sequence[int] | Sequence[float] | np.ndarray | None = None,
    *,
    batch_size: int,
    epochs: float = 1,
    max_length: int | None = None,
    pairs: Sequence[str] | None = None,
    seed: int = 0,
) -> TextBatches:
    """Tokenize texts with a model's own tokenizer and cut them into shuffled batches.

    Each batch is a dict of numpy arrays: `input_ids`, `attention_mask` and, of pairs,
    `token_type_ids` `[B, T]` int32; `weights` `[B]` float32, 1 for an example and 0 for a
    row that fills the last batch; and `labels` `[B]`, int32 or float32. All have one shape.

    Args:
        model: loaded.
        texts: one an example.
        labels: one an example.
        batch_size: rows a batch; over all processes, and a multiple of the devices that share it.
        epochs: passes over the texts.
        max_length: the most tokens of an example; None for as many as the model takes.
        pairs: a second text for each example.
        seed: of the order.

    Raises:
        UserError: there is no text, there are fewer labels than texts, or a text is no string.
    """
    if isinstance(texts, str):
        raise UserError("batches: the texts are one text, not several.", "Put it into a list.")
    if not len(texts):
        raise UserError("batches: there is no text.")
    if batch_size < 1:
        raise UserError(f"batches: batch_size is {batch_size}, and must be 1 or more.")
    if not 0 <= epochs < math.inf:
        raise UserError(f"batches: epochs is {epochs}, and must be 0 or more.")
    for name, column in (("labels", labels), ("pairs", pairs)):
        if column is not None and len(column) != len(texts):
            raise UserError(f"batches: {len(texts)} texts and {len(column)} {name}.")
    tokenizer = load_tokenizer(model.tokenizer_folder)
    most = model.max_positions if max_length is None else min(max_length, model.max_positions)
    encoded = tokenizer.encode(texts, pairs, most)
    longest = max(len(ids) for ids in encoded.ids)
    plan = TrainPlan(np.ones(len(texts), np.int64), seed, batch_size, 1, 1)
    values = None if labels is None else _as_labels(labels)
    typed = any(types.any() for types in encoded.type_ids)
    row_length = min(round_up(longest, ROW_STEP), model.max_positions)
    return TextBatches(encoded, values, plan, epochs, row_length, tokenizer.pad_id, typed)


def _as_labels(labels: Sequence[int] | Sequence[float] | np.ndarray) -> np.ndarray:
    """Return labels as int32 or float32."""
    values = np.asarray(labels)
    if values.dtype.kind not in "biuf":
        wrong = next((one for one in values.flat if not isinstance(one, int | float)), values)
        raise UserError(
            f"batches: a label is {wrong!r}, which is no number.",
            "Pass the number of its class: names.index(label).",
        )
    if values.dtype.kind == "f":
        return values.astype(np.float32)
    integers = values.astype(np.int32)
    if (integers != values).any():
        raise UserError(
            f"batches: a label is {values[integers != values][0]}, more than int32 holds."
        )
    return integers
