"""Class words of an ImageGPT: an image of a class starts with the word of that class.

They stand behind the word that an image of no class begins with, so that a checkpoint with classes
is an ImageGPT of a larger vocabulary, which `transformers` loads with the same outputs: the word of
class c of C is `vocab_size - C + c`. Scores of words that are no colour come with them, since the
architecture has one for each word but the last; they are never right, and training lowers them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from jaxft.data.image.config import read_settings
from jaxft.models.family import Content, Wanted
from jaxft.models.weights.tensor import FLOATS, Index, Tensor

GENERATION = "image_generation"


def with_classes(fields: dict[str, Any], tensors: dict[str, Tensor], wanted: Wanted) -> Content:
    """Return the config.json and the tensors of an ImageGPT that generates images of classes.

    A class that the checkpoint knows keeps its word; any other begins as the image of no class.
    Its folder has the image processor with the colors.

    Raises:
        UserError: the image processor is not there, or is none.
    """
    labels = wanted.labels
    if wanted.task != GENERATION or not labels:
        return fields, tensors
    colours = len(read_settings(wanted.folder)["clusters"] or ())
    words = fields.get("vocab_size", 0)
    known = words - 1 - colours
    stored_labels = fields.get("id2label") or {}
    own = [stored_labels[key] for key in sorted(stored_labels, key=int)] if known > 0 else []
    if own == list(labels):
        return fields, tensors
    rows = [*range(colours + 1)]
    rows += [colours + 1 + own.index(name) if name in own else colours for name in labels]
    made = {
        **fields,
        "vocab_size": len(rows),
        "id2label": {str(number): name for number, name in enumerate(labels)},
        "label2id": {name: number for number, name in enumerate(labels)},
    }
    replaced = dict(tensors)
    for name, tensor in tensors.items():
        if name.endswith("wte.weight") and tensor.shape[0] == words:
            replaced[name] = _chosen(tensor, rows)
        elif name == "lm_head.weight" and tensor.shape[0] == words - 1:
            replaced[name] = _scored(tensor, colours, len(rows) - 1)
    return made, replaced


def _chosen(tensor: Tensor, rows: Sequence[int]) -> Tensor:
    """Select rows of embeddings [V, D]."""

    def read(index: Index) -> np.ndarray:
        return tensor.whole()[list(rows)][index]

    return replace(tensor, shape=(len(rows), *tensor.shape[1:]), read=read)


def _scored(tensor: Tensor, colours: int, count: int) -> Tensor:
    """Extend a head [V, D] to `count` words; those that are no color start as the colors' mean."""

    def read(index: Index) -> np.ndarray:
        own = tensor.whole()[:colours]
        mean = own.astype(np.float64).mean(0, keepdims=True).astype(FLOATS[tensor.dtype])
        return np.concatenate([own, np.repeat(mean, count - colours, axis=0)])[index]

    return replace(tensor, shape=(count, *tensor.shape[1:]), read=read)
