"""Word scores of a checkpoint whose file has an output matrix beside or without the embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxft.errors import UserError
from jaxft.models.family import Family
from jaxft.models.weights.tensor import Tensor

TIED = "tie_word_embeddings"
ROWS = 4096  # that are compared at a time


def with_own_scores(
    family: Family,
    head: str | None,
    fields: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    ignore: Sequence[str],
) -> tuple[dict[str, Any], dict[str, tuple[str]]]:
    """Return a config.json that ties words as the tensors do, and aliases of those that are tied.

    As in transformers, a matrix of the file that differs from the embeddings scores the words; one
    that the file has in place of them is both.

    Args:
        family, head: the model's.
        fields: config.json.
        tensors: the checkpoint's.
        ignore: fields and tensors that the person has judged harmless (`model.ignore`).

    Raises:
        UserError: the two differ, and the model has no parameter for the second one.
    """
    names, changed = family.tensors, dict(fields)
    pairs = names.ties(head, fields) if tensors else {}
    if not pairs or not _tied(family.config.from_hf(fields, ignore), names.tied_part):
        return changed, {}
    stored = {names.canonical(name): tensor for name, tensor in tensors.items()}
    for name, copy in pairs.items():
        if copy in ignore or _same(stored.get(name), stored.get(copy)):
            continue
        if all(line.hf != copy for line in names.table(head, fields["model_type"])):
            raise UserError(
                f"The checkpoint's '{copy}' differs from '{name}'; a {fields['model_type']} is "
                "supported with one for both.",
                f"To use '{name}' for both, set model.ignore=[{copy}].",
            )
        part = names.tied_part
        return changed | (
            {TIED: False} if part is None else {part: fields[part] | {TIED: False}}
        ), {}
    return changed, {name: (copy,) for name, copy in pairs.items()}


def _tied(config: Any, part: str | None) -> bool:
    """Return whether a config ties words, or a part of it does."""
    own = config if part is None else getattr(config, part)
    return own.fields.get(TIED, True)


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    """Return whether two tensors have the same values; one that is absent is like any."""
    if one is None or other is None:
        return True
    if one.shape != other.shape:
        return False
    rest = (slice(None),) * (len(one.shape) - 1)
    parts = (slice(first, first + ROWS) for first in range(0, one.shape[0], ROWS))
    return all(np.array_equal(one.read((rows, *rest)), other.read((rows, *rest))) for rows in parts)
