"""What saving in the background costs the steps that run meanwhile.

`python -m benchmarks.async_save` trains the demo's model in full and saves its state (parameters
and two moments, 273 MB) again and again, as a run does. A step is timed from its start to its end,
with the part of a save that has to come first (the copy to the host begins). Wanted is that nine in
ten of the steps beside a save take at most 1.5 times the median of the others, at the demo's batch
of 32, a step of which takes less than a save's own work, and at 256. On a busy machine the others'
own ninth tenth says how much of it is the neighbours'.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

import jaxft
from benchmarks.measure import record
from jaxft.device.mesh import batch_sharding, place_batch
from jaxft.device.process import prepare_process
from jaxft.engine.initial_state import initial_state, load_params
from jaxft.engine.remat import phase_setups
from jaxft.engine.setup import Setup, build
from jaxft.runs.checkpoint import Checkpoints
from jaxft.training.phase import make_phase_step

CONFIG = "configs/sentiment.yaml"
BETWEEN = 3  # steps from the end of a save to the next one
WARM_UP = 3  # saves not told: checksums compile, and most of the heap's growth is over
MOST = 1.5
BATCHES = (256, 32)


def step_times(built: Setup, saves: int, folder: Path) -> Iterator[tuple[float, bool]]:
    """Seconds of each step, and whether a save was under way beside it.

    Args:
        built: the run.
        saves: how many are told, after `WARM_UP` that are not.
        folder: where they go; the last is kept.
    """
    params = load_params(built).params
    phases = phase_setups(built)
    stage = make_phase_step(built, phases, phases[0], params)
    state = initial_state(built, phases[0], params)
    make, rows = built.splits["train"].examples.collate, batch_sharding(built.mesh)
    first = [make(built.plan.batch(number), built.layout.row_length) for number in range(8)]
    ready = itertools.cycle([place_batch(batch, rows) for batch in first])
    rates = stage.inputs(0)
    state, _ = stage.step(state, stage.frozen, next(ready), rates)
    with Checkpoints(folder, keep=1) as checkpoints:
        for save in range(WARM_UP + saves):
            since, quiet = 0, 0
            while quiet < BETWEEN:
                start = time.perf_counter()
                starts = since == 0
                if starts:
                    checkpoints.save(save, state)
                state, _ = stage.step(state, stage.frozen, next(ready), rates)
                jax.block_until_ready(state)
                beside = starts or checkpoints.is_saving()
                since, quiet = since + 1, quiet + (not beside)
                if save >= WARM_UP:
                    yield time.perf_counter() - start, beside


def main() -> int:
    """Time the steps, record the ratio, and say whether it holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--saves", type=int, default=20, help="how often the state is saved")
    given = parser.parse_args()
    prepare_process()
    found = {str(batch): ratios(batch, given.saves) for batch in BATCHES}
    record("async_save", {"load": os.getloadavg()[1], "saves": given.saves, **found})
    return 1 if any(ratio["p90_beside"] > MOST for ratio in found.values()) else 0


def ratios(batch: int, saves: int) -> dict[str, float]:
    """The times of the steps beside saves, by the others' median."""
    changed = ["groups=[]", "data.eval=csv:assets/reviews/train.csv[98%:]"]
    config = jaxft.load_config(CONFIG, [*changed, f"data.batch_size={batch}"])
    with tempfile.TemporaryDirectory() as scratch:
        times = list(step_times(build(config), saves, Path(scratch) / "saved"))
    beside = np.array([seconds for seconds, saving in times if saving])
    others = np.array([seconds for seconds, saving in times if not saving])
    usual = float(np.median(others))
    found = {
        "median": usual,
        "p90_of_others": float(np.quantile(others, 0.9)) / usual,
        "median_beside": float(np.median(beside)) / usual,
        "p90_beside": float(np.quantile(beside, 0.9)) / usual,
    }
    print(
        f"batch {batch}: {len(beside)} steps beside {saves} saves, {len(others)} of {usual:.3f} s"
    )
    print(f"  others, p90:    {found['p90_of_others']:.2f} of their median")
    print(f"  beside, median: {found['median_beside']:.2f}")
    print(f"  beside, p90:    {found['p90_beside']:.2f}; at most {MOST} wanted")
    return found


if __name__ == "__main__":
    sys.exit(main())
