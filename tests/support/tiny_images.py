"""A tiny run on images in a folder: a random ViT, pictures of three colours, and a config."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from jaxft.config.load import Config, parse_config

SIDE, PATCH = 16, 4
FIELDS = {
    "model_type": "vit",
    "architectures": ["ViTModel"],
    "image_size": SIDE,
    "patch_size": PATCH,
    "num_channels": 3,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "layer_norm_eps": 1e-6,
    "initializer_range": 0.02,
    "qkv_bias": True,
}
PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "size": {"height": SIDE, "width": SIDE},
    "resample": 2,
}
COLOURS = {"blue": (40, 60, 200), "green": (50, 180, 60), "red": (200, 40, 50)}


def tiny_vit(folder: Path, seed: int = 0) -> Path:
    """A Hugging Face folder of a `ViTModel` of 2 blocks, 16 wide, for images of 16 x 16."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(FIELDS))
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    save_file(_weights(seed), folder / "model.safetensors", {"format": "pt"})
    return folder


def _weights(seed: int) -> dict[str, np.ndarray]:
    """Every tensor of a `ViTModel` but the pooler's, in PyTorch's layout."""
    draw = np.random.default_rng(seed)
    width, inner = FIELDS["hidden_size"], FIELDS["intermediate_size"]
    tensors = {
        "embeddings.cls_token": draw.normal(0, 0.3, (1, 1, width)),
        "embeddings.position_embeddings": draw.normal(0, 0.3, (1, 1 + (SIDE // PATCH) ** 2, width)),
    }

    def dense(name: str, *shape: int) -> None:
        tensors[f"{name}.weight"] = draw.normal(0, 0.15, shape)
        tensors[f"{name}.bias"] = draw.normal(0, 0.05, shape[0])

    def norm(name: str) -> None:
        tensors[f"{name}.weight"] = draw.normal(1, 0.05, width)
        tensors[f"{name}.bias"] = draw.normal(0, 0.05, width)

    dense("embeddings.patch_embeddings.projection", width, 3, PATCH, PATCH)
    for index in range(FIELDS["num_hidden_layers"]):
        layer = f"encoder.layer.{index}"
        norm(f"{layer}.layernorm_before")
        for name in ("query", "key", "value"):
            dense(f"{layer}.attention.attention.{name}", width, width)
        dense(f"{layer}.attention.output.dense", width, width)
        norm(f"{layer}.layernorm_after")
        dense(f"{layer}.intermediate.dense", inner, width)
        dense(f"{layer}.output.dense", width, inner)
    norm("layernorm")
    return {name: value.astype(np.float32) for name, value in tensors.items()}


def tiny_pictures(folder: Path, each: int = 16, seed: int = 0) -> Path:
    """A folder of images of differing sizes, one sub-folder for each of three colours."""
    draw = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(each):
            height, width = draw.integers(10, 30, 2)
            noise = draw.normal(colour, 30, (height, width, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(noise).save(folder / name / f"{number:02d}.png")
    return folder


def tiny_image_config(folder: Path, **sections: dict[str, Any]) -> Config:
    """The config of a run in `folder` on the tiny ViT and pictures, made where missing.

    Args:
        folder: for everything: `checkpoint`, `pictures`, and `runs`.
        sections: keys of a section in place of those here.
    """
    if not (folder / "checkpoint").exists():
        tiny_vit(folder / "checkpoint")
        tiny_pictures(folder / "pictures")
    pictures = f"images:{folder / 'pictures'}"
    given: dict[str, Any] = {
        "run": {"name": "tiny", "dir": str(folder / "runs")},
        "model": {"checkpoint": str(folder / "checkpoint")},
        "task": {"kind": "image_classification"},
        "data": {
            "train": f"{pictures}[:50%]",
            "eval": f"{pictures}[50%:75%]",
            "test": f"{pictures}[75%:]",
            "batch_size": 8,
        },
        "optimizer": {"lr": 3e-3},
        "train": {"length": "12 steps", "evaluate_every": "6 steps", "log_every": 1},
        "checkpoint": {"every": "6 steps"},
        "report": {"tensorboard": False},
    }
    for name, keys in sections.items():
        given[name] = given[name] | keys if isinstance(keys, dict) and name in given else keys
    return parse_config(given)
