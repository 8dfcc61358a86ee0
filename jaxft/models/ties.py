"""Tied tensors of which a file has both, with other values, or the second alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxft.errors import UserError
from jaxft.models.family import Family
from jaxft.models.weights.tensor import Tensor
from jaxft.models.weights.tensor_names import TIED


def with_ties(
    family: Family,
    head: str | None,
    fields: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    ignore: Sequence[str],
) -> tuple[dict[str, Any], dict[str, Sequence[str]]]:
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
    names, changed, aliases = family.tensors, dict(fields), dict[str, Sequence[str]]()
    if not (names.tied and tensors):
        return changed, aliases
    stored = {names.canonical(name): tensor for name, tensor in tensors.items()}
    for name, copy in names.ties(head, family.config.from_hf(fields, ignore)):
        aliases[name] = (*aliases.get(name, ()), copy)
        if copy in ignore or copy not in stored:
            continue
        if stored.setdefault(name, stored[copy]).equals(stored[copy]):
            continue
        if all(line.hf != copy for line in names.table(head, fields["model_type"])):
            raise UserError(
                f"The checkpoint's '{copy}' differs from '{name}'; a {fields['model_type']} is "
                "supported with one for both.",
                f"To use '{name}' for both, set model.ignore=[{copy}].",
            )
        part = names.tied_part
        own = {TIED: False} if part is None else {part: {**fields[part], TIED: False}}
        return changed | own, {}
    return changed, aliases
