"""Initialization of a YOLOS from a plain ViT: detection tokens, and the ViT's weights.

A detection token begins as a patch of the mean colour at a place of its own, spread evenly over
the image: frozen blocks know such a token, and make of it what is around its place. Before the last
blocks it is told its place again, so that a head need not find out which token looks where.

DeiT's distillation token is left out. DINOv2's scales of each branch are taken into the maps
before them, which computes the same.

Source: Fang et al. (2021), https://arxiv.org/abs/2106.00666, begins with DeiT's weights.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from jaxft.errors import UserError
from jaxft.models.families.vit.config import Config
from jaxft.models.family import Content, Wanted
from jaxft.models.weights.tensor import FLOATS, Index, Tensor

DETECTION = "object_detection"
SOURCES = ("vit", "deit", "dinov2")
DETECTION_TOKENS = 100  # where none are asked for: as many as YOLOS has
KEPT = (
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_size",
    "num_channels",
    "patch_size",
    "qkv_bias",
    "hidden_act",
    "layer_norm_eps",
    "initializer_range",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
)
POSITION = "embeddings.position_embeddings"
PATCH_BIAS = "embeddings.patch_embeddings.projection.bias"
MID_POSITION = "encoder.mid_position_embeddings"
DETECTIONS = "embeddings.detection_tokens"
TOLD, LOUD = 2, 0.05  # blocks that tell detections their place, and how loud (the std of it)
# DINOv2's names -> ViT's.
RENAMED = {
    "norm1.": "layernorm_before.",
    "norm2.": "layernorm_after.",
    "mlp.fc1.": "intermediate.dense.",
    "mlp.fc2.": "output.dense.",
}
# A block's scale -> the map before it.
SCALED = {
    "layer_scale1.lambda1": "attention.output.dense",
    "layer_scale2.lambda1": "output.dense",
}


def detector(fields: dict[str, Any], tensors: dict[str, Tensor], wanted: Wanted) -> Content:
    """Return the config.json and the tensors of the detector that a ViT becomes; see `begin`.

    What has gates or registers, and is none of `SOURCES`, stays as it is.
    """
    if wanted.task != DETECTION or fields["model_type"] not in SOURCES:
        return fields, tensors
    return begin(fields, tensors, wanted.detection_tokens or DETECTION_TOKENS)


def same_detections(fields: dict[str, Any], tensors: dict[str, Tensor], wanted: Wanted) -> Content:
    """Return a detector as it is.

    Raises:
        UserError: another number of detections is wanted than it has.
    """
    own = fields.get("num_detection_tokens", fields.get("num_queries", wanted.detection_tokens))
    if wanted.task == DETECTION and wanted.detection_tokens not in (None, own):
        raise UserError(
            f"model.detection_tokens is {wanted.detection_tokens}, and the checkpoint has {own}.",
            "Leave it out: only a plain ViT gets new ones.",
        )
    return fields, tensors


def begin(
    fields: Mapping[str, Any], tensors: Mapping[str, Tensor], count: int
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the config.json and the tensors of the YOLOS that a ViT becomes.

    Args:
        fields: the ViT's config.json, of one of `SOURCES`.
        tensors: its tensors, with or without prefix.
        count: how many detection tokens the YOLOS is to have.

    Raises:
        UserError: its MLPs have gates, which YOLOS's have not.
    """
    config = Config.from_hf(fields, tuple(fields))
    own = config.fields
    if own.get("use_swiglu_ffn"):
        raise UserError(
            "config.json: use_swiglu_ffn is true, and a detector has no gated MLPs.",
            "Use a checkpoint without gates, such as DINOv2 small, base or large.",
        )
    inner = own.get("intermediate_size") or int(own["hidden_size"] * own["mlp_ratio"])
    made = {name: own[name] for name in KEPT} | {
        "model_type": "yolos",
        "intermediate_size": inner,
        "image_size": list(config.image_size),
        "num_detection_tokens": count,
        "use_mid_position_embeddings": own["num_hidden_layers"] > 1,
        "pad_token_id": fields.get("pad_token_id"),
    }
    renamed = {re.sub(r"^(vit|deit|dinov2)\.", "", name): one for name, one in tensors.items()}
    if POSITION in renamed:
        position = renamed[POSITION]
        renamed[POSITION] = _with_detections(position, config, count)
        if made["use_mid_position_embeddings"]:
            renamed[MID_POSITION] = _before_blocks(position, config, count)
    if PATCH_BIAS in renamed:
        renamed[DETECTIONS] = _repeated(renamed[PATCH_BIAS], count)
    return made, _plain(renamed) if fields["model_type"] == "dinov2" else renamed


def _with_detections(tensor: Tensor, config: Config, count: int) -> Tensor:
    """Replace the special tokens in positions [1, S + N, D] by a class token and detections."""
    _, length, width = tensor.shape

    def read(index: Index) -> np.ndarray:
        stored, own = tensor.whole(), _own(tensor, config, count)
        return np.concatenate([stored[:, :1], stored[:, config.specials :], own[None]], 1)[index]

    return replace(tensor, shape=(1, 1 + length - config.specials + count, width), read=read)


def _before_blocks(tensor: Tensor, config: Config, count: int) -> Tensor:
    """Return the positions before each block but the first, of detection tokens alone.

    They are 0 before all but the last blocks: among the first a token would be lost in its place,
    and never see what is there.
    """
    _, length, width = tensor.shape
    patches, blocks = length - config.specials, config.fields["num_hidden_layers"] - 1
    shape = (blocks, 1, 1 + patches + count, width)

    def read(index: Index) -> np.ndarray:
        own = _own(tensor, config, count).astype(np.float32)
        own -= own.mean(axis=0)
        own *= LOUD / max(float(own.std()), 1e-12)
        positions = np.zeros(shape, np.float32)
        positions[-TOLD:, :, 1 + patches :] = own
        return positions.astype(FLOATS[tensor.dtype])[index]

    return replace(tensor, shape=shape, read=read)


def _own(tensor: Tensor, config: Config, count: int) -> np.ndarray:
    """Interpolate patch positions [count, D] at the locations of the detection tokens."""
    stored = tensor.whole()
    patches = stored[0, config.specials :].reshape(*config.grid, tensor.shape[-1])
    return evenly(patches, count).astype(stored.dtype)


def evenly(grid: np.ndarray, count: int) -> np.ndarray:
    """Interpolate a grid bilinearly at `count` points spread evenly over it.

    Args:
        grid: [rows, columns, D].
        count: how many places.

    Returns:
        [count, D], in the order of `places`.
    """
    rows, columns, _ = grid.shape
    right, down = places(count, rows, columns).T
    weights = [between(down, rows), between(right, columns)]
    return np.einsum("nr,nc,rcd->nd", *weights, grid.astype(np.float32))


def places(count: int, rows: float, columns: float) -> np.ndarray:
    """Return the initial points of detection tokens: [count, 2], x and y in 0..1, row by row.

    Args:
        count: how many; they lie in about as many lines as in columns of equal distance.
        rows, columns: of the grid of patches: their proportion is that of the image.
    """
    lines = min(count, max(1, round(math.sqrt(count * rows / columns))))
    each = [len(part) for part in np.array_split(np.arange(count), lines)]
    down = np.concatenate([np.full(many, (line + 0.5) / lines) for line, many in enumerate(each)])
    right = np.concatenate([(np.arange(many) + 0.5) / many for many in each])
    return np.stack([right, down], axis=1)


def between(places: np.ndarray, cells: int) -> np.ndarray:
    """Return linear interpolation weights [places, cells] of cell centers for points in 0..1."""
    at = np.clip(places * cells - 0.5, 0, cells - 1)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(cells)))


def _repeated(bias: Tensor, count: int) -> Tensor:
    """Return the embedding of a patch of the mean color, [D], for each detection: [1, count, D]."""
    width = bias.shape[-1]
    return replace(
        bias,
        shape=(1, count, width),
        read=lambda index: np.broadcast_to(bias.whole(), (1, count, width))[index],
    )


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename DINOv2's tensors to ViT's, with each branch's scale folded into the map before it."""
    plain, scales = {}, {}
    for name, tensor in tensors.items():
        block = re.match(r"encoder\.layer\.\d+\.", name)
        rest = name[block.end() :] if block else ""
        if block and rest in SCALED:
            scales[block.group() + SCALED[rest]] = tensor
            continue
        for old, new in RENAMED.items():
            if block and rest.startswith(old):
                name = block.group() + new + rest.removeprefix(old)
        plain[name] = tensor
    for stem, scale in scales.items():
        for name in (f"{stem}.weight", f"{stem}.bias"):
            if name in plain:
                plain[name] = _scaled(plain[name], scale)
    return plain


def _scaled(tensor: Tensor, scale: Tensor) -> Tensor:
    """Multiply each output of a map's weight [O, I] or bias [O] by a scale [O]."""

    def read(index: Index) -> np.ndarray:
        stored = tensor.whole().astype(np.float32)
        by = scale.whole().astype(np.float32).reshape(-1, *[1] * (stored.ndim - 1))
        return (stored * by).astype(FLOATS[tensor.dtype])[index]

    return replace(tensor, read=read)
