"""Fields of config.json that every model of timm has, and the names of its tensors.

A config.json of timm names an architecture, `model_args` with what differs from it, the classes,
and in `pretrained_cfg` how images are read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from jaxft.data.image.timm import PROCESSING
from jaxft.errors import UserError, did_you_mean
from jaxft.models.family import architectures
from jaxft.models.weights.config_fields import check_fields
from jaxft.models.weights.field_kinds import check_kind
from jaxft.models.weights.hf_config import TIMM
from jaxft.models.weights.tensor_names import TensorNames

HEAD = "image_classification"
MODEL_TYPES = {TIMM: architectures("TimmWrapper", HEAD)}
ARCHITECTURE, ARGUMENTS = "architecture", "model_args"
KNOWN = (ARCHITECTURE, ARGUMENTS, PROCESSING, "num_classes", "label_names")
FIXED = {"is_encoder_decoder": False}
# What follows from the architecture, and what transformers alone reads.
UNREAD = ("num_features", "global_pool", "label_descriptions", "do_pooling")
ELSEWHERE = ("num_classes", "dynamic_img_size")  # what `model_args` may name, and nothing reads
PREFIX = "timm_model."


class TimmNames(TensorNames):
    """Tensor names of a model of timm, which transformers puts behind a prefix when it saves."""

    def canonical(self, name: str) -> str:
        return name.removeprefix(PREFIX)

    def in_memory(self, name: str, model_type: str) -> str:
        return PREFIX + name


def read_arguments(
    fields: Mapping[str, Any],
    settable: Iterable[str],
    ignore: Sequence[str],
    fixed: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """Return the arguments by which a config.json changes its architecture, of checked fields.

    Args:
        fields: config.json.
        settable: the arguments that may be changed.
        ignore: fields and arguments that the person has judged harmless.
        fixed: arguments that may be named with one value only.

    Raises:
        UserError: a field or an argument is not known.
    """
    check_fields(fields, known=KNOWN, fixed=FIXED, ignore=(*ignore, *UNREAD))
    passed, known = (*ELSEWHERE, *ignore), list(settable)
    changes = {n: v for n, v in _object_of(fields, ARGUMENTS).items() if n not in passed}
    for argument, value in fixed.items():
        if changes.pop(argument, value) != value:
            raise UserError(
                f"config.json: {argument} of {ARGUMENTS} must be {json.dumps(value)} for a "
                f"{fields[ARCHITECTURE]}."
            )
    for argument in changes:
        if argument not in known:
            raise UserError(
                f"config.json: the field '{argument}' of {ARGUMENTS} is not supported.",
                did_you_mean(argument, known),
            )
    return changes


def beside(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the architecture's name, and how images are read."""
    return {ARCHITECTURE: fields[ARCHITECTURE], PROCESSING: _object_of(fields, PROCESSING)}


def _object_of(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a field that is a JSON object; an empty one where there is none."""
    value = fields.get(name) or {}
    if not isinstance(value, dict):
        raise UserError(f"config.json: {name} must be a JSON object.")
    return value


def at_size(processing: Mapping[str, Any], size: int) -> dict[str, Any]:
    """Return how images are read, made square with so many pixels a side."""
    return {**processing, "input_size": [3, size, size]}


def to_timm(fields: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of config.json, of an architecture with changes."""
    own = {name: fields[name] for name in (ARCHITECTURE, PROCESSING)}
    return {"model_type": TIMM, **own, ARGUMENTS: dict(changes)}


def named_classes(labels: Sequence[str]) -> dict[str, Any]:
    """Return the fields of config.json that name the classes, as timm has them."""
    return {"num_classes": len(labels), "label_names": list(labels)}


def with_classes(fields: Mapping[str, Any], tensors: Iterable[str]) -> dict[str, Any]:
    """Return a config.json with its classes and its class under transformers' names."""
    del tensors
    count, names = fields.get("num_classes") or 0, fields.get("label_names")
    check_kind("num_classes", count, 0)
    if not isinstance(names, list | None):
        raise UserError("config.json: label_names must be a list.")
    classes: dict[str, Any] = {}
    if names:
        classes["id2label"] = {str(number): str(name) for number, name in enumerate(names)}
    elif count:
        classes["num_labels"] = count
    ending = "ForImageClassification" if count else "Model"
    return {"architectures": [f"TimmWrapper{ending}"], **fields, **classes}
