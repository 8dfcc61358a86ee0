"""What the file of a family gives, and what its towers hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from jaxft.errors import UserError
from jaxft.models.layers.modules import Leaf
from jaxft.models.tower.tower import Part, Tower
from jaxft.models.weights.names import Name
from jaxft.tree import natural_order

Towers = Mapping[str, Tower | Part]  # a part of no tower joins what the towers put out


class Family(Protocol):
    """What the file of a family gives: the whole of its contract with the house.

    A family of several towers gives `apply(towers, params, batch, key, compute)` too, what a
    batch is put through; one tower is run as it is.
    """

    Config: Any  # a frozen dataclass: from_hf(fields, ignore), to_hf(), with_dropout(rate)
    # model_type -> task (None: without a head) -> Hugging Face architecture
    MODEL_TYPES: Mapping[str, Mapping[str | None, str]]
    FRESH: Sequence[str]  # patterns of how parameters that a checkpoint may lack begin
    UNUSED: Sequence[str]  # patterns of tensors that may go unused
    UNREAD: Sequence[str]  # config fields that no code reads

    def names(self, head: str | None, model_type: str) -> Sequence[Name]:
        """The name table of a model type under a head."""

    def canonical(self, name: str) -> str:
        """A tensor's name as files have it -> as the table spells it."""

    def exported(self, name: str, head: str | None, model_type: str) -> str:
        """A tensor's name as the table spells it -> as the head's architecture saves it."""

    def towers(self, config: Any, head: str | None, num_labels: int | None) -> Towers:
        """The towers under a head."""


def leaves_of(towers: Towers) -> dict[str, Leaf]:
    """Every parameter's description, in natural order."""
    found = {name: leaf for part in towers.values() for name, leaf in part.leaves.items()}
    return {name: found[name] for name in natural_order(found)}


def class_labels(
    fields: Mapping[str, Any], num_labels: int | None, labels: Sequence[str] | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The checkpoint's class names, and those wanted."""
    given = fields.get("id2label") or {str(i): f"LABEL_{i}" for i in range(2)}
    own = tuple(given[key] for key in sorted(given, key=int))
    if labels is None:
        count = len(own) if num_labels is None else num_labels
        return own, own if count == len(own) else tuple(f"LABEL_{i}" for i in range(count))
    if num_labels not in (None, len(labels)):
        raise UserError(f"num_labels is {num_labels}, but {len(labels)} labels are named.")
    if len(set(labels)) != len(labels):
        raise UserError(f"A label is named twice: {', '.join(labels)}.")
    return own, tuple(labels)


def settled_fields(
    family: Family, fields: Mapping[str, Any], tensors: Iterable[str]
) -> dict[str, Any]:
    """A config.json with what only the names of the tensors say.

    Few families need those: theirs is `settled(fields, tensors)`.
    """
    settled = getattr(family, "settled", None)
    return settled(fields, tensors) if settled else dict(fields)


def refits_of(
    family: Family, config: Any, fields: Mapping[str, Any]
) -> Mapping[str, Callable[[np.ndarray], np.ndarray]]:
    """What makes the checkpoint's tensors fit a config that is not quite its own.

    Few families have any: theirs is `refits(config, fields)`, with the config that is wanted and
    the checkpoint's own config.json.
    """
    refits = getattr(family, "refits", None)
    return refits(config, fields) if refits else {}
