"""Multipliers of a layer table: by depth, as each preset's original counts, or by type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxft.layerwise.block_types import TYPE_PRESETS, type_multipliers

DEPTH_PRESETS = ("timm", "mae", "electra", "ulmfit")


def preset_multipliers(
    preset: str,
    rate: float,
    names: Sequence[str],
    shapes: Mapping[str, Any],
    depths: Mapping[str, int],
    tops: Mapping[str, int],
    final_norms: tuple[str, ...],
) -> dict[str, float]:
    """Compute the multiplier that a preset gives each parameter: name -> multiplier.

    Args:
        preset: of depth (timm, mae, electra, ulmfit) or of type (sharpness, fan_in).
        rate: decay per layer, of depth.
        names: of the parameters.
        shapes: name -> anything with `.shape`.
        depths, tops, final_norms: as `build_table` has them.
    """
    if preset in TYPE_PRESETS:
        return type_multipliers(preset, names, shapes, depths)
    return {
        name: depth_multiplier(preset, rate, depths[name], tops[name], name, final_norms)
        for name in names
    }


def depth_multiplier(
    preset: str, rate: float, depth: int, top: int, name: str, final_norms: tuple[str, ...]
) -> float:
    """Compute the layer-decay multiplier of one parameter, as the preset's original does.

    Args:
        preset: timm, mae, electra or ulmfit.
        rate: decay a layer; 1 leaves every multiplier at 1.
        depth: 0 embeddings, i + 1 block i, `top` the final norm and the head.
        top: number of blocks + 1, of the parameter's own tower.
        name: the parameter's name.
        final_norms: how the names of final norms begin.

    Source: timm `param_groups_layer_decay` (the final norm counts with the last block); MAE
        `lr_decay.py` and BEiT (the final norm at 1; what they do not know, such as register
        tokens, at 1); ELECTRA `optimization.py` (a hole below the head: the last block gets
        rate ** 2); Howard and Ruder 2018, section 3.1 (each layer 1 / 2.6 of the one above).
    """
    if preset == "timm" and depth == top and name.startswith(final_norms):
        depth = top - 1
    if preset == "mae" and name.endswith("register_tokens"):
        depth = top
    if preset == "electra" and depth < top:
        return rate ** (top + 1 - depth)
    return rate ** (top - depth)
