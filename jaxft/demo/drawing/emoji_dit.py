"""A DiT for demos: made on the spot, out of nothing but emoji, since no package has one."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from jaxft.demo.assets import copy_members, once, read_member
from jaxft.demo.drawing.imagegpt import fresh_values
from jaxft.demo.images import ATTRIBUTION, DRAWINGS, EMOJI
from jaxft.demo.pretrain import pretrain

SIDE, PATCH = 24, 4  # pixels of an image and of a patch
WIDTH, BLOCKS, HEADS = 96, 4, 4
# The package's categories -> the folder of their emoji.
GROUPS = {
    "Activities": "activities",
    "Animals & Nature": "animals",
    "Flags": "flags",
    "Food & Drink": "food",
    "Objects": "objects",
    "People & Body": "people",
    "Smileys & Emotion": "smileys",
    "Symbols": "symbols",
    "Travel & Places": "places",
}
CLASSES = sorted(GROUPS.values())
HELD_OUT = "flags"
RECIPE: dict[str, Any] = {
    "task": {
        "kind": "diffusion",
        "label": "label",
        "labels": CLASSES,
        "timesteps": "logit_normal",
        "samples": 0,
    },
    "optimizer": {"lr": 1e-3, "weight_decay": 0.0},
    "schedule": {"kind": "cosine", "warmup": "5%"},
    "train": {"length": "1000 steps", "evaluate_every": "500 steps", "ema": 0.99},
    "checkpoint": {"every": "500 steps", "keep": 1},
    "report": {"tensorboard": False},
}


def emoji_groups() -> Path:
    """Return the folder of emoji without a skin tone, 64-pixel PNGs in a folder for each group.

    Source: npm `emoji-datasource-twitter`; the graphics are Twemoji, CC BY 4.0 (ATTRIBUTION.txt).
    """
    return once("emoji_groups", EMOJI, write_groups)


def write_groups(tarball: Path, to: Path) -> None:
    """Write the package's images into a folder for each group."""
    for group in CLASSES:
        (to / group).mkdir()
    described = json.loads(read_member(tarball, "package/emoji.json"))
    wanted = {
        f"{DRAWINGS}/{one['image']}": to / GROUPS[one["category"]] / one["image"]
        for one in described
        if one["category"] in GROUPS
    }
    copy_members(tarball, wanted)
    (to / "ATTRIBUTION.txt").write_text(ATTRIBUTION)


def emoji_dit() -> Path:
    """Return the folder of a pipeline whose DiT draws emoji of 24 x 24 pixels, by group.

    It is trained from scratch on all groups but the flags, in some minutes on two cores, by flow
    matching on pixels; it has never seen a flag.
    """
    folder = emoji_groups()
    return once("emoji_dit", (), lambda to: _pretrain(folder, to))


def blank(folder: Path, side: int, width: int, blocks: int, heads: int, seed: int = 0) -> Path:
    """Return a pipeline's folder with a DiT of drawn weights over pixels, and a flow's schedule.

    Args:
        folder: where; made where it is not there.
        side: pixels a side of its images.
        width, blocks, heads: of the model.
        seed: of the weights.
    """
    scheduler: dict[str, Any] = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 1.0}
    parts = {
        "transformer": ["diffusers", "DiTTransformer2DModel"],
        "scheduler": ["diffusers", scheduler["_class_name"]],
    }
    config = {
        "_class_name": "DiTTransformer2DModel",
        "num_attention_heads": heads,
        "attention_head_dim": width // heads,
        "in_channels": 3,
        "num_layers": blocks,
        "sample_size": side,
        "patch_size": PATCH,
        "num_embeds_ada_norm": len(CLASSES),
    }
    contents = {
        "model_index.json": {"_class_name": "DiTPipeline", **parts},
        "scheduler/scheduler_config.json": scheduler,
        "transformer/config.json": config,
    }
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    from jaxft.models.load import describe  # jax: most assets take none

    model, drawn = fresh_values(describe(str(folder), weights=False), seed)
    return model.save(folder, drawn, overwrite=True)  # beside its own config.json


def _pretrain(groups: Path, to: Path) -> None:
    """Write the pipeline after training; what else the run wrote is thrown away.

    Raises:
        UserError: the training failed.
    """
    print(f"training a DiT on emoji ({RECIPE['train']['length']})", file=sys.stderr)
    with tempfile.TemporaryDirectory() as scratch:
        start = blank(Path(scratch, "blank"), SIDE, WIDTH, BLOCKS, HEADS)
        config = RECIPE | {
            "model": {"checkpoint": str(start)},
            "data": {
                "train": f"images:{groups}[:95%]",
                "eval": f"images:{groups}[95%:]",
                "where": {"label": [name for name in CLASSES if name != HELD_OUT]},
                "batch_size": 64,
                "cache": str(Path(scratch, "cache")),
            },
        }
        pretrain(config, Path(scratch), to)
