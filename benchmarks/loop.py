"""What the training loop costs: `jaxft.train` against the bare jitted step on ready batches.

`python -m benchmarks.loop` lets the two take turns in one process, on the demo's config. The
loop makes its batches, logs, and reads its metrics as in any run; the bare step gets batches that
lie on the device already. Both are timed between the same two steps, after what is compiled.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax

import jaxft
from benchmarks.measure import median, record
from jaxft.config import Config
from jaxft.data.loader import batches
from jaxft.engine.build import Build, build
from jaxft.engine.build_state import frozen_params, initial_state, load_params, state_shardings
from jaxft.engine.inputs import collate
from jaxft.engine.mesh import batch_sharding, place_batch
from jaxft.engine.step import Rates, make_train_step

CONFIG = "configs/sentiment.yaml"
FIRST, LAST, LENGTH = 10, 60, 70  # timed between the first two; the run's end is left out
MOST_OVERHEAD = 0.03


def loop_seconds(config: Config) -> float:
    """Seconds a step of `jaxft.train`, from the times in its metrics.jsonl."""
    with tempfile.TemporaryDirectory() as scratch:
        moved = config.model_copy(update={"run": config.run.model_copy(update={"dir": scratch})})
        run = jaxft.train(moved, quiet=True)
        lines = (Path(run.folder) / "metrics.jsonl").read_text().splitlines()
    times = {
        line["step"]: line["time"] for line in map(json.loads, lines) if line["kind"] == "train"
    }
    return (times[LAST] - times[FIRST]) / (LAST - FIRST)


def bare_step(built: Build) -> Callable[[], float]:
    """A function that runs the compiled step on ready batches and gives seconds a step."""
    params = load_params(built).params
    frozen = frozen_params(built, params)
    step = make_train_step(
        built.objective,
        built.optimizer,
        accumulate=built.config.train.accumulate,
        ema=built.config.train.ema,
        state_shardings=state_shardings(built),
        frozen_shardings={name: built.shardings[name] for name in frozen},
        mesh=built.mesh,
    )
    split = built.splits["train"]
    make = partial(collate, split.examples, split.labels)
    sharding = batch_sharding(built.mesh)
    ready = [place_batch(batch, sharding) for batch in batches(built.plan, make, 0, LAST)]
    decay, multipliers = built.table.weight_decays(), built.table.multipliers()

    def seconds() -> float:
        state = initial_state(built, params)
        for number, batch in enumerate(ready):
            if number == FIRST:
                jax.block_until_ready(state)
                started = time.perf_counter()
            rates = Rates(built.rates[number], multipliers, decay)
            state, metrics = step(state, frozen, batch, rates)
        jax.block_until_ready((state, metrics))
        return (time.perf_counter() - started) / (LAST - FIRST)

    return seconds


def main() -> int:
    """Let loop and bare step take turns, record the overhead, and say whether it holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=9)
    pairs = parser.parse_args().pairs
    steps = [f"train.length={LENGTH}", f"train.evaluate_every={LENGTH}", "train.log_every=10"]
    config = jaxft.load_config(CONFIG, [*steps, f"checkpoint.every={LENGTH}"])
    bare = bare_step(build(config))
    bare()  # compiles
    ratios = []
    turns: dict[str, Callable[[], float]] = {"loop": partial(loop_seconds, config), "bare": bare}
    for turn in range(pairs):
        order = list(turns)[:: -1 if turn % 2 else 1]
        spent = {name: turns[name]() for name in order}
        ratios.append(spent["loop"] / spent["bare"])
        print(
            f"turn {turn + 1} of {pairs}: {spent['loop']:.4f} s, bare {spent['bare']:.4f} s a step"
        )
    ratio = median(ratios)
    print(f"loop / bare step = {ratio}; at most {1 + MOST_OVERHEAD} wanted")
    record("loop", {"ratio": vars(ratio)})
    return 1 if ratio.median > 1 + MOST_OVERHEAD else 0


if __name__ == "__main__":
    sys.exit(main())
