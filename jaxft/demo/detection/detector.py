"""A small RF-DETR for demos: DINOv2's ViT-S/14, and a decoder trained on scenes of emoji."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from jaxft.demo.assets import once
from jaxft.demo.detection.scenes import LABEL, SIDE, scenes
from jaxft.demo.drawing.imagegpt import fresh_values
from jaxft.demo.pretrain import pretrain
from jaxft.demo.rows import write_json
from jaxft.demo.vits import BLOCKS, COMMON, GRID, PATCH, PROCESSOR, dinov2

HEADS, POINTS = 8, 4  # of the attention to the image
OUTPUTS = [6, 9, 12]  # depths of the backbone that the decoder reads
FIELDS: dict[str, Any] = {
    "model_type": "rf_detr",
    "architectures": ["RfDetrForObjectDetection"],
    "d_model": 128,
    "c2f_num_blocks": 2,
    "decoder_layers": 2,
    "decoder_ffn_dim": 256,
    "decoder_n_points": POINTS,
    "decoder_self_attention_heads": 4,
    "decoder_cross_attention_heads": HEADS,
    "num_queries": 24,
    "group_detr": 3,
    "dropout": 0.0,
    "id2label": {"0": LABEL},
    "backbone_config": {
        **COMMON,
        "model_type": "rf_detr_dinov2",
        "image_size": GRID * PATCH,
        "num_windows": 1,
        "out_indices": OUTPUTS,
    },
}
RECIPE: dict[str, Any] = {
    "task": {"kind": "object_detection"},
    "optimizer": {"name": "adamw", "lr": 6e-4, "weight_decay": 0.01, "clip": 1.0},
    "schedule": {"kind": "cosine", "warmup": "5%"},
    "groups": [{"name": "backbone", "depth": [0, BLOCKS], "freeze": True}],
    "train": {"length": "14 epochs", "evaluate_every": "7 epochs"},
    "checkpoint": {"every": "7 epochs", "keep": 1},
    "report": {"tensorboard": False},
}
RESULT = "scores.json"  # of the run, on scenes of emoji that it has not seen


def detector() -> Path:
    """Return the folder of an RF-DETR that finds emoji, with scores.json.

    Its backbone is `dinov2` as it is; projector and decoder are trained from scratch on `scenes`,
    in about 20 minutes on two cores. On scenes of emoji that it has not seen its mAP at an IoU of
    0.5 is 0.79.
    """
    backbone, data = dinov2(), scenes()
    return once("detector", (), lambda to: _pretrain(backbone, data, to), RECIPE | FIELDS)


def untrained(backbone: Path, folder: Path, seed: int = 0) -> Path:
    """Return a Hugging Face folder of the detector before its training.

    Args:
        backbone: folder of a DINOv2 of the same sizes.
        folder: where; made where it is not there.
        seed: of projector, decoder and heads.
    """
    # With jax, which most assets do not need.
    from jaxft.models.families.rf_detr.deformable import first_offsets
    from jaxft.models.load import describe, load

    write_json(folder / "config.json", FIELDS)
    size = {"height": SIDE, "width": SIDE}
    processor = PROCESSOR | {"image_processor_type": "RfDetrImageProcessor", "size": size}
    write_json(folder / "preprocessor_config.json", processor | {"resample": 2})
    model, values = fresh_values(describe(str(folder), weights=False), seed)
    known = load(str(backbone)).params
    values |= {name: value for name, value in known.items() if not name.startswith("norm/")}
    blocks = FIELDS["backbone_config"]["num_hidden_layers"]
    for part in ("scale", "bias"):
        values[f"blocks/{blocks}/backbone_norm/{part}"] = known[f"norm/{part}"]
    for name in values:
        if name.endswith("source_attention/offset/bias"):
            values[name] = first_offsets(HEADS, POINTS)
    return model.save(folder, values, overwrite=True)


def _pretrain(backbone: Path, data: Path, to: Path) -> None:
    """Write the checkpoint after training, and its scores; the run is thrown away.

    Raises:
        UserError: the training failed.
    """
    print(f"training a detector on scenes of emoji ({RECIPE['train']['length']})", file=sys.stderr)
    with tempfile.TemporaryDirectory() as scratch:
        start = untrained(backbone, Path(scratch, "untrained"))
        config = RECIPE | {
            "model": {"checkpoint": str(start)},
            "data": {
                **{split: f"boxes:{data / split}.csv" for split in ("train", "eval", "test")},
                "cache": str(Path(scratch, "cache")),
                "batch_size": 16,
            },
        }
        run = pretrain(config, Path(scratch), to)
        (to / RESULT).write_text((run / "result.json").read_text())
