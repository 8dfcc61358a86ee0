"""A DiT for demos: made on the spot, out of nothing but emoji, since no package has one."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jaxft.demo.assets import once
from jaxft.demo.drawing.emoji_drawings import GROUPS, HELD_OUT, emoji_drawings
from jaxft.demo.drawing.imagegpt import fresh_values
from jaxft.demo.pretrain import pretrain
from jaxft.demo.rows import write_json

RECIPE: dict[str, Any] = {
    "task": {
        "kind": "diffusion",
        "image": "image",
        "label": "name",
        "timesteps": "logit_normal",
        "samples": 0,
    },
    "optimizer": {"lr": 2e-3, "weight_decay": 0.0},
    "schedule": {"kind": "cosine", "warmup": "5%"},
    "train": {"length": "3000 steps", "evaluate_every": "1500 steps", "ema": 0.99},
    "checkpoint": {"every": "500 steps", "keep": 1},
    "report": {"tensorboard": False},
}


@dataclass(frozen=True)
class Size:
    """The size of a DiT: pixels a side of its images and patches, its width, blocks, heads and
    classes."""

    side: int = 24
    patch: int = 3
    width: int = 128
    blocks: int = 4
    heads: int = 4
    classes: int = 1636  # names of emoji that are no flags


def emoji_dit() -> Path:
    """Return the folder of a pipeline whose DiT draws emoji of 24 x 24 pixels, by name.

    It is trained from scratch on all emoji but the flags, in about 20 minutes on two cores, by flow
    matching on pixels; it has never seen a flag.
    """
    folder = emoji_drawings()
    return once("emoji_dit", (), lambda to: _pretrain(folder, to), RECIPE | asdict(Size()))


def blank(folder: Path, size: Size, seed: int = 0) -> Path:
    """Return a pipeline's folder with a DiT of drawn weights over pixels, and a flow's schedule.

    Args:
        folder: where; made where it is not there.
        size: of the model.
        seed: of the weights.
    """
    scheduler: dict[str, Any] = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 1.0}
    parts = {
        "transformer": ["diffusers", "DiTTransformer2DModel"],
        "scheduler": ["diffusers", scheduler["_class_name"]],
    }
    config = {
        "_class_name": "DiTTransformer2DModel",
        "num_attention_heads": size.heads,
        "attention_head_dim": size.width // size.heads,
        "in_channels": 3,
        "num_layers": size.blocks,
        "sample_size": size.side,
        "patch_size": size.patch,
        "num_embeds_ada_norm": size.classes,
    }
    contents = {
        "model_index.json": {"_class_name": "DiTPipeline", **parts},
        "scheduler/scheduler_config.json": scheduler,
        "transformer/config.json": config,
    }
    for name, content in contents.items():
        write_json(folder / name, content)
    from jaxft.models.load import describe  # jax: most assets take none

    model, drawn = fresh_values(describe(str(folder), weights=False), seed)
    return model.save(folder, drawn, overwrite=True)  # beside its own config.json


def _pretrain(drawings: Path, to: Path) -> None:
    """Write the pipeline after training; what else the run wrote is thrown away.

    Raises:
        UserError: the training failed.
    """
    print(f"training a DiT on emoji ({RECIPE['train']['length']})", file=sys.stderr)
    with tempfile.TemporaryDirectory() as scratch:
        start = blank(Path(scratch, "blank"), Size())
        config = RECIPE | {
            "model": {"checkpoint": str(start)},
            "data": {
                "train": f"csv:{drawings / 'train.csv'}",
                "eval": f"csv:{drawings / 'train.csv'}[:5%]",
                "where": {"group": [name for name in GROUPS.values() if name != HELD_OUT]},
                "batch_size": 64,
                "cache": str(Path(scratch, "cache")),
            },
        }
        pretrain(config, Path(scratch), to)
