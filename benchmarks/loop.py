"""What the training loop costs: `jaxft.train` against the bare jitted step on ready batches.

`python -m benchmarks.loop` lets the two take turns in one process, on the demo's config. The
loop makes its batches, logs, and reads its metrics as in any run; the bare step gets batches that
lie on the device already. Both are timed between the same two steps, after what is compiled, in
wall time and in CPU seconds; the wanted overhead is one of wall time on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax

import jaxft
from benchmarks.measure import CpuClock, median, record
from jaxft.config.load import Config
from jaxft.data.batching.loader import batches
from jaxft.device.mesh import batch_sharding, place_batch
from jaxft.device.process import prepare_process
from jaxft.engine.initial_state import frozen_params, initial_state, load_params
from jaxft.engine.remat import phase_setups
from jaxft.engine.setup import Setup, build
from jaxft.engine.step import StepInputs
from jaxft.training.phase import make_step

CONFIG = "configs/sentiment.yaml"
FIRST, AFTER = 10, 10  # steps before and after the timed ones: warm-up, and the run's end
MOST_OVERHEAD = 0.03
MEASURES = ("second", "cpu_second")


def loop_seconds(config: Config, last: int) -> dict[str, float]:
    """What a step of `jaxft.train` takes, from the times in its metrics.jsonl."""
    with tempfile.TemporaryDirectory() as scratch, CpuClock() as clock:
        moved = config.model_copy(update={"run": config.run.model_copy(update={"dir": scratch})})
        run = jaxft.train(moved, quiet=True)
        lines = (Path(run.folder) / "metrics.jsonl").read_text().splitlines()
    times = {
        line["step"]: line["time"] for line in map(json.loads, lines) if line["kind"] == "train"
    }
    return step_costs(clock, times[FIRST], times[last], last - FIRST)


def step_costs(clock: CpuClock, start: float, end: float, steps: int) -> dict[str, float]:
    """Seconds and CPU seconds a step, between two times."""
    costs = (end - start, clock.between(start, end))
    return {measure: cost / steps for measure, cost in zip(MEASURES, costs, strict=True)}


def bare_step(
    built: Setup, last: int, first: int = FIRST, params: dict[str, jax.Array] | None = None
) -> Callable[[], dict[str, float]]:
    """A function that runs the compiled step on ready batches and gives its costs.

    Args:
        built: the run.
        last: steps that are run.
        first: of them, how many are not timed.
        params: its parameters; the checkpoint's when None.
    """
    params = load_params(built).params if params is None else params
    now = phase_setups(built)[0]
    frozen = frozen_params(built, now, params)
    step = make_step(built, now, frozen)
    make = built.splits["train"].examples.collate
    sharding = batch_sharding(built.mesh)
    ready = [place_batch(batch, sharding) for batch in batches(built.plan, make, 0, last)]
    decay, multipliers = now.table.weight_decays(), now.table.multipliers()

    def costs() -> dict[str, float]:
        state = initial_state(built, now, params)
        started = 0.0
        with CpuClock() as clock:
            for number, batch in enumerate(ready):
                if number == first:
                    jax.block_until_ready(state)
                    started = time.time()
                rates = StepInputs(now.rates[number], multipliers, decay)
                state, metrics = step(state, frozen, batch, rates)
            jax.block_until_ready((state, metrics))
            ended = time.time()
        return step_costs(clock, started, ended, last - first)

    return costs


def main() -> int:
    """Let loop and bare step take turns, record the overhead, and say whether it holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=9, help="turns each takes")
    parser.add_argument("--steps", type=int, default=50, help="timed steps a turn, by tens")
    given = parser.parse_args()
    prepare_process()  # as `jaxft.train` does first of all, so that both have its memory
    last, length = FIRST + given.steps, FIRST + given.steps + AFTER
    steps = [f"train.length={length}", f"train.evaluate_every={length}", "train.log_every=10"]
    few = ["data.eval=csv:assets/reviews/train.csv[98%:]", "data.test=null"]
    config = jaxft.load_config(CONFIG, [*steps, *few, f"checkpoint.every={length}"])
    bare = bare_step(build(config), last)
    bare()  # compiles
    turns: dict[str, Callable[[], dict[str, float]]]
    turns = {"loop": partial(loop_seconds, config, last), "bare": bare}
    ratios: dict[str, list[float]] = {measure: [] for measure in MEASURES}
    for turn in range(given.pairs):
        order = list(turns)[:: -1 if turn % 2 else 1]
        spent = {name: turns[name]() for name in order}
        for measure, taken in ratios.items():
            loop, plain = spent["loop"][measure], spent["bare"][measure]
            taken.append(loop / plain)
            print(f"{turn + 1} of {given.pairs}: {loop:.4f}, bare {plain:.4f} {measure}s a step")
    found = {measure: median(taken) for measure, taken in ratios.items()}
    for measure, ratio in found.items():
        print(f"loop / bare step, {measure}s = {ratio}; at most {1 + MOST_OVERHEAD} wanted")
    kept = {measure: vars(ratio) for measure, ratio in found.items()}
    record("loop", {"load": os.getloadavg()[1], "ratios": kept})
    return 1 if found["second"].median > 1 + MOST_OVERHEAD else 0


if __name__ == "__main__":
    sys.exit(main())
