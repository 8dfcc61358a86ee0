"""Which block to tune depends on what has shifted: digits under an input and under a label shift.

`python -m benchmarks.studies.surgical` trains a tiny ViT from scratch on 3,000 digits, then tunes
one part of it (the embeddings, one block, the head, or all) on 60 digits that are drawn otherwise
or called otherwise. Rates are chosen on 440 validation digits; the 1,500 test digits are scored
once. It writes docs/studies/surgical.md's figure and table.

Source: Lee et al. (2022), https://arxiv.org/abs/2210.11466.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

import jaxft
from benchmarks.studies.page import (
    SEEDS,
    chosen,
    markdown,
    scores_by_setting,
    with_interval,
    write_page,
)
from jaxft.demo.images import digits

WORK = Path("runs/studies/surgical")
PRETRAINING, TRAIN, VALIDATION = 3000, 60, 440  # digits; the rest are test digits
BLOCKS, WIDTH = 4, 48
SHIFTS = ("input: inverted, faint and noisy", "label: each digit d is called 9 - d")
RATES = [3e-4, 1e-3, 3e-3]
CONFIG = {
    "model_type": "vit",
    "architectures": ["ViTForImageClassification"],
    "image_size": 28,
    "patch_size": 4,
    "num_channels": 3,
    "hidden_size": WIDTH,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "intermediate_size": 2 * WIDTH,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "layer_norm_eps": 1e-6,
    "initializer_range": 0.02,
    "qkv_bias": True,
    "id2label": {str(digit): str(digit) for digit in range(10)},
    "label2id": {str(digit): digit for digit in range(10)},
}
PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "size": {"height": 28, "width": 28},
    "resample": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def main() -> None:
    """Pretrain, tune each part under each shift, and write the page."""
    shutil.rmtree(WORK, ignore_errors=True)
    write_digits(WORK / "digits")
    write_checkpoint(WORK / "blank")
    start = pretrain()
    found = {shift: tune(start, shift) for shift in SHIFTS}
    print(table := as_table(found, start))
    write_page("surgical", table, lambda figure: draw(figure, found), size=(7.2, 3.2))


# ------------------------------------------------------------------------------------- the digits
def write_digits(to: Path) -> None:
    """Folders of digits: `clean` for pretraining, and train, eval and test of each shift."""
    files = sorted(digits().glob("*/*/*.png"), key=lambda file: file.name)
    order = np.random.default_rng(0).permutation(len(files))
    noise = np.random.default_rng(1)
    for place, index in enumerate(order):
        pixels = np.asarray(Image.open(files[index]))
        digit = int(files[index].parent.name)
        if place < PRETRAINING:
            _write(to / "clean", digit, index, pixels)
            continue
        late = place - PRETRAINING
        split = "train" if late < TRAIN else "eval" if late < TRAIN + VALIDATION else "test"
        faint = 170 - 0.35 * pixels + noise.normal(0, 12, pixels.shape)
        _write(to / "0" / split, digit, index, faint.clip(0, 255).astype(np.uint8))
        _write(to / "1" / split, 9 - digit, index, pixels)


def _write(folder: Path, label: int, index: int, pixels: np.ndarray) -> None:
    (folder / str(label)).mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(folder / str(label) / f"{index:04d}.png")


# -------------------------------------------------------------------------------------- the model
def write_checkpoint(to: Path) -> None:
    """A tiny ViT of random weights."""
    draw = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {}

    def dense(name: str, *shape: int) -> None:
        tensors[f"{name}.weight"] = draw.normal(0, np.prod(shape[1:]) ** -0.5, shape)
        tensors[f"{name}.bias"] = np.zeros(shape[0])

    def norm(name: str) -> None:
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = np.ones(WIDTH), np.zeros(WIDTH)

    tensors["vit.embeddings.cls_token"] = draw.normal(0, 0.02, (1, 1, WIDTH))
    tensors["vit.embeddings.position_embeddings"] = draw.normal(0, 0.02, (1, 50, WIDTH))
    dense("vit.embeddings.patch_embeddings.projection", WIDTH, 3, 4, 4)
    for index in range(BLOCKS):
        layer = f"vit.encoder.layer.{index}"
        norm(f"{layer}.layernorm_before")
        norm(f"{layer}.layernorm_after")
        for name in ("attention.query", "attention.key", "attention.value", "output.dense"):
            dense(f"{layer}.attention.{name}", WIDTH, WIDTH)
        dense(f"{layer}.intermediate.dense", 2 * WIDTH, WIDTH)
        dense(f"{layer}.output.dense", WIDTH, 2 * WIDTH)
    norm("vit.layernorm")
    dense("classifier", 10, WIDTH)
    to.mkdir(parents=True)
    (to / "config.json").write_text(json.dumps(CONFIG))
    (to / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    arrays = {name: value.astype(np.float32) for name, value in tensors.items()}
    save_file(arrays, to / "model.safetensors", {"format": "pt"})


def pretrain() -> jaxft.Run:
    """The ViT after 24 epochs on clean digits."""
    clean = f"images:{WORK / 'digits' / 'clean'}"
    config = _config("pretrained", str(WORK / "blank"), f"{clean}[:90%]", f"{clean}[90%:]")
    config |= {
        "optimizer": {"lr": 2e-3, "weight_decay": 0.05},
        "schedule": {"kind": "cosine", "warmup": "10%"},
        "train": {"length": "24 epochs", "evaluate_every": "4 epochs"},
    }
    config["data"]["batch_size"] = 50
    run = jaxft.train(jaxft.parse_config(config))
    run.model().save(WORK / "start")
    return run


def _config(name: str, checkpoint: str, train: str, eval_: str) -> dict[str, Any]:
    return {
        "run": {"name": name, "dir": str(WORK)},
        "model": {"checkpoint": checkpoint},
        "task": {"kind": "image_classification"},
        "data": {"train": train, "eval": eval_, "batch_size": 20, "workers": 0},
        "report": {"tensorboard": False},
    }


# -------------------------------------------------------------------------------------- the tuning
def parts() -> dict[str, list[dict[str, Any]]]:
    """What is tuned -> the groups that freeze all else."""
    top = BLOCKS + 1
    names = ["embeddings", *(f"block {i}" for i in range(BLOCKS)), "head"]
    found: dict[str, list[dict[str, Any]]] = {"all": []}
    for depth, name in enumerate(names):
        below = {"name": "below", "depth": [0, depth - 1], "freeze": True}
        above = {"name": "above", "depth": [depth + 1, top], "freeze": True}
        found[name] = [below] * (depth > 0) + [above] * (depth < top)
    return found


def tune(start: jaxft.Run, shift: str) -> dict[str, dict[str, Any]]:
    """Each part's best setting under a shift: 200 steps on 60 digits, rates chosen on eval."""
    del start
    number = SHIFTS.index(shift)
    folder = f"images:{WORK / 'digits' / str(number)}"
    config = _config(
        f"shift-{number}", str(WORK / "start"), f"{folder}/train:ordered", f"{folder}/eval"
    )
    config["data"]["test"] = f"{folder}/test"
    config |= {
        "optimizer": {"weight_decay": 0.0},
        "schedule": {"kind": "constant"},
        "train": {"length": "200 steps", "evaluate_every": "200 steps"},
    }
    vary: dict[str, Sequence[Any]] = {
        "groups": list(parts().values()),
        "optimizer.lr": RATES,
        "run.seed.data": list(SEEDS),
    }
    study = jaxft.study(jaxft.parse_config(config), vary, overwrite=True)
    settings = scores_by_setting(study)
    return {
        name: chosen([s for s in settings if s["values"]["groups"] == groups])
        for name, groups in parts().items()
    }


# ---------------------------------------------------------------------------------------- the page
def as_table(found: dict[str, dict[str, Any]], start: jaxft.Run) -> str:
    """Test accuracy of each part under each shift, with the rate that was chosen."""
    rows = [
        [
            name,
            *(
                f"{with_interval(of[name]['test'])}, {of[name]['values']['optimizer.lr']:g}"
                for of in found.values()
            ),
        ]
        for name in parts()
    ]
    untouched = start.metrics["accuracy"]
    lead = (
        f"On clean digits that it was not trained on, the pretrained ViT has {untouched:.3f}.\n\n"
    )
    return lead + markdown(["tuned", *(f"{shift}: test accuracy, rate" for shift in found)], rows)


def draw(figure: Any, found: dict[str, dict[str, Any]]) -> None:
    """One panel a shift: test accuracy of each part, a dot a seed."""
    for axes, (shift, of) in zip(figure.subplots(1, 2, sharey=True), found.items(), strict=True):
        names = [name for name in of if name != "all"]
        for place, name in enumerate(names):
            axes.plot([place] * len(SEEDS), of[name]["test"], ".", color="tab:blue", alpha=0.5)
        means = [np.mean(of[name]["test"]) for name in names]
        axes.plot(range(len(names)), means, color="tab:blue", label="that part alone")
        axes.axhline(np.mean(of["all"]["test"]), color="gray", linestyle="--", label="all of it")
        axes.set_xticks(range(len(names)), names, rotation=30)
        axes.set_title(shift, fontsize=9)
        axes.set_ylabel("test accuracy")
        axes.legend(fontsize=8)


if __name__ == "__main__":
    main()
