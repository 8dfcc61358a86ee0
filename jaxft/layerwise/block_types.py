"""Rates by the type of a parameter instead of its depth: norms, attention, MLP, embeddings.

A type is read off a parameter's name, which all families form alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxft.layerwise.defaults import is_matrix

SHARPNESS, FAN_IN = "sharpness", "fan_in"
TYPE_PRESETS = (SHARPNESS, FAN_IN)
NORM, VALUE_OUTPUT, MLP, QUERY_KEY, EMBEDDING, OTHER = (
    "norm",
    "value_output",
    "mlp",
    "query_key",
    "embedding",
    "other",
)
# The flatter the loss along a type's parameters, the higher their rate.
SHARPNESS_MULTIPLIERS = {
    NORM: 1.0,
    VALUE_OUTPUT: 4.0,
    MLP: 6.0,
    QUERY_KEY: 8.0,
    EMBEDDING: 10.0,
    OTHER: 1.0,
}
QUERIES_AND_KEYS = ("query", "key", "distance_query", "distance_key")


def block_type(name: str, depth: int) -> str:
    """Return the type of a parameter; `other` is a head, a pooler or a projection of states.

    Args:
        name: the parameter's name.
        depth: its depth; 0 is the embeddings.
    """
    parts = name.split("/")
    if any(part == "norm" or part.endswith("_norm") for part in parts):
        return NORM
    if "blocks" not in parts:
        return EMBEDDING if depth == 0 else OTHER
    inside = parts[parts.index("blocks") + 2 :]
    if inside[0] in ("attention", "cross"):
        return QUERY_KEY if inside[1] in QUERIES_AND_KEYS else VALUE_OUTPUT
    return EMBEDDING if inside[0] == "position" else MLP


def type_multipliers(
    preset: str, names: Sequence[str], shapes: Mapping[str, Any], depths: Mapping[str, int]
) -> dict[str, float]:
    """Compute each parameter's multiplier by its type: name -> multiplier.

    Args:
        preset: `sharpness`, which multiplies the rates of norms, value and output, MLP, query and
            key, and embeddings by 1, 4, 6, 8 and 10; or `fan_in`, which divides the rate of a
            block's matrix by its number of inputs, relative to the matrix that has the fewest.
        names: of the parameters.
        shapes: name -> anything with `.shape`.
        depths: name -> depth in its tower.

    Source: Wang et al. (2025), https://arxiv.org/abs/2502.19002, whose multipliers are those of
        https://github.com/Wongboo/BlockwiseLearningRate; Yang et al. (2022),
        https://arxiv.org/abs/2203.03466, table 3, for Adam.
    """
    if preset == SHARPNESS:
        return {name: SHARPNESS_MULTIPLIERS[block_type(name, depths[name])] for name in names}
    inputs = {
        name: int(shapes[name].shape[-2])
        for name in names
        if name.endswith("/kernel") and _maps(name, tuple(shapes[name].shape))
    }
    fewest = min(inputs.values(), default=1)
    return {name: fewest / inputs.get(name, fewest) for name in names}


def _maps(name: str, shape: tuple[int, ...]) -> bool:
    """Return whether a kernel is a block's matrix, or one for each expert, [E, I, O]."""
    return is_matrix(name, shape) or (len(shape) == 3 and "/experts/" in name)
