"""Config of a vision transformer of timm: the name of its architecture, and changes to it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

from jaxft.data.image.timm import PROCESSING
from jaxft.errors import UserError
from jaxft.models.families.timm.fields import (
    ARCHITECTURE,
    FIXED,
    UNREAD,
    at_size,
    beside,
    read_arguments,
    to_timm,
)
from jaxft.models.families.timm.vit_architectures import DEFAULTS, architectures
from jaxft.models.layers.vision import Size, size_of
from jaxft.models.weights.config_fields import check_divides, check_sizes
from jaxft.models.weights.field_kinds import check_kind
from jaxft.models.weights.hf_config import TIMM, ImageConfig

OURS = ("act_layer", "eps", "gated")  # what `model_args` cannot name
SIZES = ("patch_size", "in_chans", "embed_dim", "num_heads")
RATES = ("pos_drop_rate", "proj_drop_rate", "attn_drop_rate")
POOLS = ("token", "avg", "map")


class Config(ImageConfig):
    """Config of a vision transformer of timm; its fields are the arguments that timm builds with.

    Beside them are the architecture's name and `pretrained_cfg`, how its images are read.
    """

    FIXED: ClassVar[Mapping[str, Any]] = FIXED
    UNREAD: ClassVar[tuple[str, ...]] = UNREAD

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any], ignore: Sequence[str] = ()) -> Self:
        settable = [argument for argument in DEFAULTS if argument not in OURS]
        changes = read_arguments(fields, settable, ignore)
        config = cls(TIMM, architectures()[fields[ARCHITECTURE]] | changes | beside(fields))
        config._check()
        return config

    def _check(self) -> None:
        own = self.fields
        check_sizes(own, SIZES)
        for name, default in DEFAULTS.items():
            if name not in SIZES:
                check_kind(name, own[name], default)
        if own["fc_norm"] not in (None, True, False):
            raise UserError("config.json: fc_norm must be true, false or null.")
        check_divides("embed_dim", own["embed_dim"], own["num_heads"], "heads")
        pool = own["global_pool"]
        if pool not in POOLS or (pool == "token" and not own["class_token"]):
            raise UserError(
                f"config.json: global_pool is '{pool}'.",
                f"Supported: {', '.join(POOLS)}; token needs a class token.",
            )
        if min(self.grid) < 1:
            raise UserError("config.json: img_size is smaller than patch_size.")

    def to_hf(self) -> dict[str, Any]:
        named = architectures()[self.fields[ARCHITECTURE]]
        changes = {name: self.fields[name] for name in named if self.fields[name] != named[name]}
        return to_timm(self.fields, changes)

    def with_dropout(self, rate: float) -> Self:
        return self.with_fields(RATES, rate)

    def with_image_size(self, size: int) -> Self:
        processing = at_size(self.fields[PROCESSING], size)
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
