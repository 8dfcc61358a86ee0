"""Config of a vision transformer of timm: the name of its architecture, and changes to it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

from jaxft.errors import UserError, did_you_mean
from jaxft.models.families.timm_vit.architectures import DEFAULTS, arguments_of, known
from jaxft.models.layers.vision import Size, size_of
from jaxft.models.weights.config_fields import check_divides, check_fields, check_sizes
from jaxft.models.weights.field_kinds import check_kind
from jaxft.models.weights.hf_config import TIMM, ImageConfig

ARCHITECTURE, ARGUMENTS, PROCESSING = "architecture", "model_args", "pretrained_cfg"
KNOWN = (ARCHITECTURE, ARGUMENTS, PROCESSING, "num_classes", "label_names")
OURS = ("act_layer", "eps", "gated")  # what `model_args` cannot name
ELSEWHERE = ("num_classes", "dynamic_img_size")  # what it may name, and nothing here reads
SIZES = ("patch_size", "in_chans", "embed_dim", "depth", "num_heads")
RATES = ("pos_drop_rate", "proj_drop_rate", "attn_drop_rate")
POOLS = ("token", "avg")


class Config(ImageConfig):
    """Config of a vision transformer of timm; its fields are the arguments that timm builds with.

    Beside them are the architecture's name and `pretrained_cfg`, how its images are read.
    """

    FIXED: ClassVar[Mapping[str, Any]] = {"is_encoder_decoder": False}
    # What follows from the architecture, and what transformers alone reads.
    UNREAD: ClassVar[tuple[str, ...]] = (
        *("num_features", "global_pool", "label_descriptions", "do_pooling"),
    )

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any], ignore: Sequence[str] = ()) -> Self:
        check_fields(fields, known=KNOWN, fixed=cls.FIXED, ignore=(*ignore, *cls.UNREAD))
        name = str(fields.get(ARCHITECTURE))
        arguments = arguments_of(name)
        if arguments is None:
            raise UserError(
                f"config.json: the timm architecture '{name}' is not supported.",
                f"{did_you_mean(name, known())} Plain vision transformers of timm are.",
            )
        passed = (*ELSEWHERE, *ignore)
        changes = {n: v for n, v in _object(fields, ARGUMENTS).items() if n not in passed}
        settable = [argument for argument in DEFAULTS if argument not in OURS]
        for argument in changes:
            if argument not in settable:
                raise UserError(
                    f"config.json: the field '{argument}' of {ARGUMENTS} is not supported.",
                    did_you_mean(argument, settable),
                )
        config = cls(TIMM, arguments | changes | _beside(fields))
        config._check()
        return config

    def _check(self) -> None:
        own = self.fields
        check_sizes(own, SIZES)
        for name, default in DEFAULTS.items():
            if name not in (*SIZES, "img_size", "init_values", "fc_norm"):
                check_kind(name, own[name], default)
        check_divides("embed_dim", own["embed_dim"], own["num_heads"], "heads")
        if own["global_pool"] not in POOLS or not (own["class_token"] or self.averages):
            raise UserError(
                f"config.json: global_pool is '{own['global_pool']}'.",
                f"Supported: {' and '.join(POOLS)}; token needs a class token.",
            )
        if min(self.grid) < 1:
            raise UserError("config.json: img_size is smaller than patch_size.")

    def to_hf(self) -> dict[str, Any]:
        named = arguments_of(self.fields[ARCHITECTURE])
        assert named is not None  # since `from_hf`
        changes = {name: self.fields[name] for name in named if self.fields[name] != named[name]}
        beside = {name: self.fields[name] for name in (ARCHITECTURE, PROCESSING)}
        return {"model_type": TIMM, **beside, ARGUMENTS: changes}

    def with_dropout(self, rate: float) -> Self:
        return self.with_fields(RATES, rate)

    def with_image_size(self, size: int) -> Self:
        processing = self.fields[PROCESSING] | {"input_size": [3, size, size]}
        config = replace(self, fields={**self.fields, PROCESSING: processing, "img_size": size})
        config._check()
        return config

    @property
    def image_size(self) -> Size:
        return size_of(self.fields["img_size"])

    @property
    def prefix(self) -> int:
        """Return the number of tokens before the patches."""
        return int(self.fields["class_token"]) + self.fields["reg_tokens"]

    @property
    def specials(self) -> int:
        """Return the number of positions of tokens that are no patch."""
        return 0 if self.fields["no_embed_class"] else self.prefix

    @property
    def averages(self) -> bool:
        """Return whether the mean of the patches is read, and not the class token."""
        return self.fields["global_pool"] == "avg"

    @property
    def norms_pooled(self) -> bool:
        """Return whether the norm comes behind the pooling, and not before it."""
        own = self.fields["fc_norm"]
        return self.averages if own is None else own

    @property
    def positions(self) -> int:
        """Return the number of learned positions."""
        return self.specials + math.prod(self.grid)


def _beside(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {ARCHITECTURE: fields[ARCHITECTURE], PROCESSING: _object(fields, PROCESSING)}


def _object(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = fields.get(name) or {}
    if not isinstance(value, dict):
        raise UserError(f"config.json: {name} must be a JSON object.")
    return value


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
