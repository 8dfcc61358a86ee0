"""An ImageGPT for demos: made on the spot, out of nothing but digits, since no package has one."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxft.demo.assets import once
from jaxft.demo.images import digits
from jaxft.demo.pretrain import pretrain
from jaxft.demo.rows import write_json

if TYPE_CHECKING:
    from jaxft.models.model import Model

SIDE, GREYS = 14, 8  # pixels of an image, and levels that a pixel has
WIDTH, BLOCKS, HEADS = 64, 4, 4
PRETRAINED_ON = [str(digit) for digit in range(9)]  # all but the nine
RECIPE: dict[str, Any] = {
    "task": {"kind": "image_generation", "samples": 0},
    "optimizer": {"lr": 3e-3, "weight_decay": 0.01},
    "schedule": {"kind": "cosine", "warmup": "5%"},
    "train": {"length": "6 epochs", "evaluate_every": "2 epochs"},
    "report": {"tensorboard": False},
}


def imagegpt() -> Path:
    """Return the folder of an ImageGPT of 4 blocks, 64 wide, that draws digits of 14 x 14 pixels.

    It is trained from scratch on the digits 0 to 8 of `digits`, in a few minutes on two cores; it
    has never seen a nine.
    """
    folder = digits()
    return once("imagegpt", (), lambda to: _pretrain(folder, to), RECIPE)


def blank(
    folder: Path, side: int, levels: int, width: int, blocks: int, heads: int, seed: int = 0
) -> Path:
    """Return a Hugging Face folder of an ImageGPT of drawn weights, whose colours are levels of
    grey.

    Args:
        folder: where; made where it is not there.
        side: pixels a side of its images.
        levels: of grey, from black to white.
        width, blocks, heads: of the model.
        seed: of the weights.
    """
    fields = {
        "model_type": "imagegpt",
        "architectures": ["ImageGPTForCausalImageModeling"],
        "vocab_size": levels + 1,
        "n_positions": side * side,
        "n_embd": width,
        "n_layer": blocks,
        "n_head": heads,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    }
    processor = {
        "image_processor_type": "ImageGPTImageProcessor",
        "size": {"height": side, "width": side},
        "clusters": [[2 * level / (levels - 1) - 1] * 3 for level in range(levels)],
    }
    from jaxft.models.load import describe  # jax: most assets take none

    write_json(folder / "config.json", fields)
    write_json(folder / "preprocessor_config.json", processor)
    model, drawn = fresh_values(describe(str(folder), weights=False), seed)
    return model.save(folder, drawn, overwrite=True)  # beside its own config.json


def fresh_values(model: Model, seed: int) -> tuple[Model, dict[str, Any]]:
    """Return a model of which no weight is stored, and values drawn for all of its parameters."""
    from jaxft.models.weights.leaves import fresh_leaf

    model = replace(model, matching=replace(model.matching, loaded={}))  # there is nothing to read
    drawn = {
        name: fresh_leaf(name, leaf, "float32", seed, None) for name, leaf in model.leaves.items()
    }
    return model, drawn


def _pretrain(digits: Path, to: Path) -> None:
    """Write the checkpoint after training; what else the run wrote is thrown away.

    Raises:
        UserError: the training failed.
    """
    print(
        f"training an ImageGPT on the digits 0 to 8 ({RECIPE['train']['length']})", file=sys.stderr
    )
    with tempfile.TemporaryDirectory() as scratch:
        start = blank(Path(scratch, "blank"), SIDE, GREYS, WIDTH, BLOCKS, HEADS)
        config = RECIPE | {
            "model": {"checkpoint": str(start)},
            "data": {
                "train": f"images:{digits}/train[:95%]",
                "eval": f"images:{digits}/train[95%:]",
                "where": {"label": PRETRAINED_ON},
                "batch_size": 32,
            },
        }
        pretrain(config, Path(scratch), to)
