"""Whether images are ready in time: the input pipeline alone against the step alone.

`python -m benchmarks.images` lets them take turns in one process, on the config of the digits:
the pipeline reads, decodes and processes batches, with no workers and with one and two, and
nothing eats them; the compiled step eats batches that lie on the device already. Workers are
started before they are timed. The pipeline shall give at least twice what the step eats.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from functools import partial

import jax

import jaxft
from benchmarks.loop import bare_step
from benchmarks.measure import median, record
from jaxft.data.batching.loader import batches
from jaxft.data.image.images import decode
from jaxft.device.process import prepare_process
from jaxft.engine.setup import Setup, build

CONFIG = "configs/digits.yaml"
WANTED = 2.0  # times what the step eats
STARTED = 4  # batches before the timed ones: workers come up, and the queues fill


def pipeline_rate(built: Setup, workers: int, steps: int) -> float:
    """Examples a second of the input alone."""
    collate = built.splits["train"].examples.collate
    made = batches(built.plan, collate, 0, STARTED + steps, workers=workers)
    for _ in range(STARTED):
        next(made)
    started = time.perf_counter()
    for _ in range(steps):
        next(made)
    return steps * built.layout.rows / (time.perf_counter() - started)


def shares(built: Setup, count: int = 200) -> dict[str, float]:
    """Where an image's time goes, in milliseconds: decoding its file, and the processor's work."""
    examples = built.splits["train"].examples
    source, processor = examples.source, examples.processor  # type: ignore[attr-defined]
    paths = [source.folder / row["image"] for row in source.rows(range(count), ["image"])]
    started = time.perf_counter()
    images = [decode(path) for path in paths]
    decoded = time.perf_counter()
    for image in images:
        processor(image)
    ended = time.perf_counter()
    return {
        "decode": 1e3 * (decoded - started) / count,
        "process": 1e3 * (ended - decoded) / count,
    }


def main() -> int:
    """Let pipeline and step take turns, record their rates, and say whether images keep up."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=9, help="turns that each takes")
    parser.add_argument("--steps", type=int, default=60, help="batches a turn of the pipeline")
    parser.add_argument("--eaten", type=int, default=3, help="timed steps a turn")
    given = parser.parse_args()
    prepare_process()
    built = build(jaxft.load_config(CONFIG))
    step = bare_step(built, 1 + given.eaten, first=1)
    turns: dict[str, Callable[[], float]] = {
        "step": lambda: built.layout.rows / step()["second"],
        **{
            f"workers {number}": partial(pipeline_rate, built, number, given.steps)
            for number in (0, 1, 2)
        },
    }
    turns["step"]()  # compiles
    rates: dict[str, list[float]] = {name: [] for name in turns}
    for turn in range(given.pairs):
        for name in list(turns)[:: -1 if turn % 2 else 1]:
            rates[name].append(turns[name]())
        said = ", ".join(f"{name} {taken[-1]:,.0f}" for name, taken in rates.items())
        print(f"{turn + 1} of {given.pairs}, examples/s: {said}", flush=True)
    ratios = {
        name: median([one / eaten for one, eaten in zip(taken, rates["step"], strict=True)])
        for name, taken in rates.items()
        if name != "step"
    }
    parts = shares(built)
    for name, ratio in ratios.items():
        print(f"{name}: {median(rates[name]).median:,.0f} examples/s, {ratio} times the step's")
    print(", ".join(f"{name} {spent:.3f} ms an image" for name, spent in parts.items()))
    kept = {
        "load": os.getloadavg()[1],
        "device": jax.devices()[0].device_kind,
        "examples_per_second": {name: vars(median(taken)) for name, taken in rates.items()},
        "times_the_step": {name: vars(ratio) for name, ratio in ratios.items()},
        "milliseconds_an_image": parts,
    }
    record("images", kept)
    return 0 if ratios["workers 0"].median >= WANTED else 1


if __name__ == "__main__":
    sys.exit(main())
