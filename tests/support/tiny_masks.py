"""A tiny run on images with masks: a random SegFormer, pictures of squares, and a config."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

from jaxft.config.load import Config, parse_config

SIDE = 32
COLORS = {"background": (40, 160, 60), "blue": (40, 60, 200), "red": (200, 40, 50)}


def tiny_segformer(folder: Path, labels: int = 2) -> Path:
    """A Hugging Face folder of a SegFormer of two stages, for images of 32 x 32."""
    config = SegformerConfig(
        num_encoder_blocks=2,
        depths=[1, 2],
        hidden_sizes=[8, 16],
        num_attention_heads=[1, 2],
        sr_ratios=[2, 1],
        patch_sizes=[3, 3],
        strides=[2, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=16,
        num_labels=labels,
    )
    torch.manual_seed(0)
    SegformerForSemanticSegmentation(config).save_pretrained(folder)
    SegformerImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder


def tiny_scenes(folder: Path, count: int = 12, seed: int = 0) -> Path:
    """A `masks:` folder of images of differing sizes, each with a blue and a red square."""
    draw = np.random.default_rng(seed)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for number in range(count):
        height, width = draw.integers(24, 48, 2)
        mask = np.zeros((height, width), np.uint8)
        for label in (1, 2):
            top, left = draw.integers(0, height - 10), draw.integers(0, width - 10)
            mask[top : top + 10, left : left + 10] = label
        colors = np.array(list(COLORS.values()))[mask]
        image = draw.normal(colors, 10).clip(0, 255).astype(np.uint8)
        Image.fromarray(image).save(folder / "images" / f"{number:02d}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{number:02d}.png")
    (folder / "labels.txt").write_text("\n".join(COLORS) + "\n")
    return folder


def tiny_mask_fields(folder: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    """The fields of the config of a run in `folder`, whose `checkpoint` and `scenes` are made.

    Args:
        folder: for everything.
        sections: keys of a section in place of those here.
    """
    if not (folder / "checkpoint").exists():
        tiny_segformer(folder / "checkpoint")
        tiny_scenes(folder / "scenes")
    scenes = f"masks:{folder / 'scenes'}"
    given: dict[str, Any] = {
        "run": {"name": "run", "dir": str(folder / "runs")},
        "model": {"checkpoint": str(folder / "checkpoint")},
        "task": {"kind": "semantic_segmentation"},
        "data": {
            "train": f"{scenes}[:6]",
            "eval": f"{scenes}[6:9]",
            "test": f"{scenes}[9:]",
            "batch_size": 8,
        },
        "optimizer": {"lr": 3e-3},
        "train": {"length": "2 steps", "evaluate_every": "1 steps", "log_every": 1},
        "checkpoint": {"every": "2 steps"},
        "report": {"tensorboard": False},
    }
    for name, keys in sections.items():
        given[name] = given[name] | keys if isinstance(keys, dict) and name in given else keys
    return given


def tiny_mask_config(folder: Path, **sections: dict[str, Any]) -> Config:
    """The parsed config of `tiny_mask_fields`."""
    return parse_config(tiny_mask_fields(folder, **sections))
