"""Growth of a vocabulary: embeddings of words that the checkpoint lacks.

The new rows are the mean of the old, so that a new word is at first as likely as words are on
average. `transformers` (`mean_resizing`) also adds a little noise of the old rows' covariance; it
is left out here, so that the result is the same whenever and however it is sharded.

Source: Hewitt (2021), https://nlp.stanford.edu/~johnhew/vocab-expansion.html.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from jaxft.errors import UserError
from jaxft.models.weights.tensor import FLOATS, Index, Tensor

ROWS = 4096  # read at a time for the mean


def grown(tensor: Tensor, count: int) -> Tensor:
    """Return a tensor with more rows than the stored one; those beyond it are the mean of its own.

    Args:
        tensor: [stored words, ...], as the file has it.
        count: the words wanted, not fewer than it has.
    """
    stored, dtype = tensor.shape[0], FLOATS[tensor.dtype]

    @cache
    def mean() -> np.ndarray:
        total = np.zeros(tensor.shape[1:], np.float64)
        rest = (slice(None),) * (len(tensor.shape) - 1)
        for first in range(0, stored, ROWS):
            rows = tensor.read((slice(first, min(first + ROWS, stored)), *rest))
            total += rows.sum(0, dtype=np.float64)
        return (total / stored).astype(dtype)

    def read(index: Index) -> np.ndarray:
        start, stop, _ = index[0].indices(count)
        new = stop - max(start, stored)
        if new <= 0:
            return tensor.read(index)
        row = mean()[index[1:]]
        rows = np.broadcast_to(row, (new, *row.shape))
        if start >= stored:
            return np.array(rows)
        return np.concatenate([tensor.read((slice(start, stored), *index[1:])), rows])

    return replace(tensor, shape=(count, *tensor.shape[1:]), read=read)


def with_vocabulary(fields: Mapping[str, Any], pieces: int) -> dict[str, Any]:
    """Return a config.json whose vocabulary has room for a tokenizer's pieces.

    Args:
        fields: config.json; the vocabulary of a text tower is in its `text_config`, and that of
            a decoder that reads an encoder in its `decoder`.
        pieces: how many the tokenizer has; where the vocabulary has as many it stays as it is.

    Raises:
        UserError: the config does not say the size of its vocabulary.
    """
    if isinstance(fields.get("vocab_size"), int):
        parts = [part for part in ("encoder", "decoder") if isinstance(fields.get(part), dict)]
        grown = {part: with_vocabulary(fields[part], pieces) for part in parts}  # T5Gemma's
        return {**fields, **grown, "vocab_size": max(fields["vocab_size"], pieces)}
    for part in ("text_config", "decoder"):
        if isinstance(fields.get(part), dict):
            return {**fields, part: with_vocabulary(fields[part], pieces)}
    raise UserError("model.resize_vocab: config.json has no vocab_size to increase.")
