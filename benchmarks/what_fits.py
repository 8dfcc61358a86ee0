"""What fits where: the largest batch of known models on TPU slices, by the TPU's own compiler.

`python -m benchmarks.what_fits` writes docs/fits.md and goes on where it was stopped: each cell of
its table is two or three compilations, about ten CPU minutes, stored in docs/fits.json. Arguments
name the slices to measure (`v5e:1x1`); `--minutes 60` begins no cell after that time, and
`--minutes 0` writes the page from what is stored. It takes libtpu (Linux on x86-64), and no TPU.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.studies.page import markdown
from jaxft.config.load import Config, parse_config
from jaxft.device.chips import parse_topology
from jaxft.planning.child import Planner, devices_of
from jaxft.planning.pod import TPU_SETTINGS
from jaxft.planning.stand_in import with_tokenizer
from jaxft.planning.step import Compiled

DOCS = Path(__file__).parents[1] / "docs"
SHAPES = "benchmarks/shapes"
# A batch that is predicted to take this many times a chip's memory is not compiled.
FAR = 1.25


@dataclass(frozen=True)
class Model:
    """A row of the table.

    Attributes:
        name: as a person calls it.
        folder: of `benchmarks/shapes`, with its config.json.
        task, data: of the config.
        blocks: their number in a tower.
        each: what one of a batch is.
        guess: a batch per chip to try first.
    """

    name: str
    folder: str
    task: dict[str, Any]
    data: dict[str, Any]
    blocks: int
    each: str
    guess: int


def split(kind: str, file: str) -> dict[str, Any]:
    """The train and eval data of a file of `benchmarks/shapes`."""
    return dict.fromkeys(("train", "eval"), f"{kind}:{SHAPES}/{file}")


ROWS = split("jsonl", "rows.jsonl")
TEXTS = {"kind": "text_classification"}, {**ROWS, "max_length": 128, "pack": False}
IMAGES = {"kind": "image_classification", "image": "image", "label": "text"}
PAIRS = {"kind": "contrastive", "image": "image", "text": "text"}
TOKENS = {"kind": "causal_lm", "text": "text"}, {**ROWS, "max_length": 2048}
PIXELS = split("csv", "pairs.csv")
MODELS = (
    Model("BERT-base", "bert_base", *TEXTS, 12, "text of 128 tokens", 256),
    Model("BERT-large", "bert_large", *TEXTS, 24, "text of 128 tokens", 128),
    Model("ViT-B/16", "vit_b16", IMAGES, PIXELS, 12, "image of 224 pixels", 256),
    Model("ViT-L/16", "vit_l16", IMAGES, PIXELS, 24, "image of 224 pixels", 128),
    Model("CLIP ViT-L/14", "clip_vit_l14", PAIRS, PIXELS, 24, "image and caption", 128),
    Model("Llama 3.2 1B", "llama_1b", *TOKENS, 16, "row of 2,048 tokens", 4),
    Model("Llama 3.1 8B", "llama_8b", *TOKENS, 32, "row of 2,048 tokens", 1),
)
WAYS = ("full", "two thirds frozen", "LoRA")  # what trains
# Slices by the names of their machines.
SLICES = {
    "v5e:2x4": "v5e-8",
    "v5e:1x1": "v5e-1",
    "v6e:2x4": "v6e-8",
    "v5p:2x2x1": "v5p-8 (4 chips)",
    "v5e:4x4": "v5e-16",
}


COLUMNS = (
    "model",
    "trains",
    "one of the batch",
    "largest batch",
    "GB a chip",
    "ms a step, at least",
)
HEAD = """\
# What fits where

The largest batch of known models on slices of TPUs, as the TPU's own compiler accepts the step:
nothing here is an estimate, and nothing was run on a TPU. `jaxft plan CONFIG --topology v5e:2x4
--largest-batch` says the same of your own run.

The step is that of `jaxft train` with AdamW, float32 parameters and moments, bfloat16 compute,
`train.remat: full` and parameters over all chips (`mesh: {data: 1, fsdp: -1}`). "Two thirds
frozen" freezes the embeddings and the lower two thirds of the blocks; LoRA has rank 8. The batch
is the largest power of two per chip, times the chips; one of twice the size is refused by the
compiler, or would take more than a chip has by at least a quarter. GB a chip is the peak, of 16.9
on v5e, 33.6 on v6e and 102.8 on v5p. A step takes at least the time that its scarcest resource
needs: FLOPs, memory traffic or links at their peaks, which no program reaches.
"""


@dataclass(frozen=True)
class Cell:
    """What was measured of a model, a way to train it and a slice.

    Attributes:
        batch: the largest power of two per chip, times the chips, that fits; 0 for none.
        peak: bytes of a chip with it.
        seconds: at least, for a step with it, by the roofline.
        cpu: seconds that it took to measure.
    """

    batch: int
    peak: int | None
    seconds: float | None
    cpu: float


def config_of(model: Model, way: str) -> Config:
    """The config of a row, and of a way to train."""
    trunk = {"name": "trunk", "depth": [0, 2 * model.blocks // 3], "freeze": True}
    ways: dict[str, dict[str, Any]] = {
        "full": {},
        "two thirds frozen": {"groups": [trunk]},
        "LoRA": {"adapter": {"kind": "lora"}},
    }
    return parse_config(
        {
            "run": {"name": model.folder},
            "model": {"checkpoint": f"{SHAPES}/{model.folder}"},
            "task": model.task,
            "data": {**model.data, "batch_size": 8},
            "mesh": {"data": 1, "fsdp": -1},
            "train": {"remat": "full", "trunk_cache": "off"},
            **ways[way],
        }
    )


def largest(fits: Callable[[int], tuple[int, int] | None], guess: int, room: int) -> int:
    """Search for the largest power of two that fits; 0 for none.

    Args:
        fits: a number -> bytes that it takes, and bytes of those that grow with it; None if the
            compiler refuses it.
        guess: to try first.
        room: bytes that there are.
    """
    best, now, refused = 0, guess, math.inf
    while best < now < refused:
        taken = fits(now)
        if taken is None:
            refused, now = now, now // 2
            continue
        best, (peak, growing) = now, taken
        times = max((room - peak) / growing + 1, 1)  # that what grows has room for
        now = best * 2 ** int(math.log2(times))
        if now == best and peak + growing < FAR * room:
            now *= 2
    return best


def measure(model: Model, way: str, topology: str, guess: int) -> Cell:
    """Compile until the largest batch of a cell is known."""
    place, compiled, begin = parse_topology(topology), dict[int, Compiled](), time.process_time()
    with with_tokenizer(config_of(model, way)) as (config, _):
        planner = Planner(config, devices_of(place, None, 1), False, lambda _: None)

        def fits(each: int) -> tuple[int, int] | None:
            setup, now = planner.set_up((f"data.batch_size={each * place.chips}",))
            outcome = planner.outcome(setup, now)
            if not isinstance(outcome, Compiled):
                return None
            compiled[each] = outcome
            return outcome.memory.peak, outcome.memory.activations

        room = planner.room()
        assert room is not None  # of a TPU
        each = largest(fits, guess, room)
        step = compiled.get(each)
        best = step and planner.best_time(step)
        return Cell(
            each * place.chips,
            step.memory.peak if step else None,
            best.seconds if best else None,
            round(time.process_time() - begin, 1),
        )


def key_of(model: Model, way: str, topology: str) -> str:
    """The name of a cell."""
    return f"{model.folder}/{way}/{topology}"


def guess_of(model: Model, way: str, topology: str, known: dict[str, Cell]) -> int:
    """A batch per chip to try first: that of the same chips, or of another way to train."""
    chip = topology.partition(":")[0]
    for other, like in ((way, chip), ("full", chip), ("full", "")):
        for one in SLICES:
            cell = known.get(key_of(model, other, one))
            if cell and cell.batch and one.startswith(like):
                return max(cell.batch // parse_topology(one).chips, 1)
    return model.guess


def page(known: dict[str, Cell]) -> str:
    """The page, of the slices that have been measured."""
    lines = [HEAD, ""]
    for topology, name in SLICES.items():
        rows = [
            [model.name, way, model.each, *_shown(known[key])]
            for model in MODELS
            for way in WAYS
            if (key := key_of(model, way, topology)) in known
        ]
        if rows:
            lines += [f"## {name}", "", markdown(COLUMNS, rows), ""]
            if len(rows) < len(MODELS) * len(WAYS):
                lines += ["Rows that are not listed have not been measured on this slice.", ""]
    return "\n".join(lines).rstrip() + "\n"


def _shown(cell: Cell) -> list[str]:
    if cell.peak is None or cell.seconds is None:
        return ["does not fit", "", ""]
    return [f"{cell.batch:,}", f"{cell.peak / 1e9:.1f}", f"{1000 * cell.seconds:,.0f}"]


def main() -> int:
    """Measure what is missing, and write the page after each cell."""
    parser = argparse.ArgumentParser()
    parser.add_argument("slices", nargs="*", default=list(SLICES))
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--cell", type=int, nargs=3, help=argparse.SUPPRESS)  # model, way, guess
    chosen = parser.parse_args()
    if chosen.cell:
        model, way, guess = chosen.cell
        print(json.dumps(asdict(measure(MODELS[model], WAYS[way], chosen.slices[0], guess))))
        return 0
    store, begin = DOCS / "fits.json", time.monotonic()
    stored = json.loads(store.read_text()) if store.exists() else {}
    known = {key: Cell(**cell) for key, cell in stored.items()}
    for topology in chosen.slices:
        for number, model in enumerate(MODELS):
            for turn, way in enumerate(WAYS):
                key = key_of(model, way, topology)
                if key in known or time.monotonic() - begin >= 60 * chosen.minutes:
                    continue
                guess = guess_of(model, way, topology, known)
                known[key] = _in_child(topology, number, turn, guess)
                print(key, *_shown(known[key]), f"{known[key].cpu:.0f} CPU s", flush=True)
                store.write_text(
                    json.dumps({n: asdict(cell) for n, cell in known.items()}, indent=1) + "\n"
                )
                (DOCS / "fits.md").write_text(page(known))
    (DOCS / "fits.md").write_text(page(known))
    return 0


def _in_child(topology: str, model: int, way: int, guess: int) -> Cell:
    """Measure a cell in a process of its own: libtpu may abort it, and loads once."""
    command = [sys.executable, "-m", "benchmarks.what_fits", topology, "--cell"]
    ended = subprocess.run(
        [*command, *map(str, (model, way, guess))],
        env=os.environ | TPU_SETTINGS,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # libtpu's remarks on the TPU that is not there
        text=True,
        check=True,
    )
    return Cell(**json.loads(ended.stdout.splitlines()[-1]))


if __name__ == "__main__":
    sys.exit(main())
