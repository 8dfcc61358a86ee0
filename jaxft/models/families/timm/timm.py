"""Models of timm by the architecture that their config.json names: `timm/...` of the hub."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxft.errors import UserError, nearest
from jaxft.models.families.timm import vit
from jaxft.models.families.timm.fields import ARCHITECTURE, MODEL_TYPES
from jaxft.models.families.timm.pyramids import (
    CONVNEXTS,
    RESNETS,
    convnext_family,
    resnet_family,
)
from jaxft.models.families.timm.vit_architectures import architectures
from jaxft.models.families.timm.vit_config import Config
from jaxft.models.family import ComposedFamily, Family


def compose(fields: Mapping[str, Any], families: Mapping[str, Any], from_two: bool) -> Family:
    """Build the family of the architecture that a config.json names.

    Raises:
        UserError: it is not supported.
    """
    del families, from_two
    name = str(fields.get(ARCHITECTURE))
    if name in RESNETS:
        return resnet_family(fields)
    if name in CONVNEXTS:
        return convnext_family(fields)
    if name in architectures():
        return vit.family()
    known = [*architectures(), *CONVNEXTS, *RESNETS]
    close = [f"Did you mean '{one}'? " for one in nearest(name, known)]
    raise UserError(
        f"config.json: the timm architecture '{name[:80]}' is not supported.",
        f"{''.join(close)}docs/models.md says which are.",
    )


FAMILY = ComposedFamily("timm", Config, MODEL_TYPES, compose)
