"""What the trunk cache saves: second-epoch steps with it against the same steps without it.

`python -m benchmarks.trunk_cache` lets the two take turns in one process, on MiniLM and the
demo's reviews with the embeddings and 4, 5 and 6 of 6 blocks frozen; with 6 the head alone (and
the pooler, which is above the blocks) trains. Both make their batches as a run does: packed,
ahead of time, and from the cache where there is one. A ratio is judged by that of the FLOPs that
`jaxft plan` counts, in wall time on a quiet machine; the head alone by a ratio of its own, since
its few FLOPs are no longer what a step waits for.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable

import jax

import jaxft
from benchmarks.measure import CpuClock, median, record
from jaxft.data.batching.loader import Collate, batches
from jaxft.device.mesh import batch_sharding, place_batch
from jaxft.device.process import prepare_process
from jaxft.engine.cost import step_flops
from jaxft.engine.initial_state import initial_state, load_params
from jaxft.engine.remat import phase_setups
from jaxft.engine.setup import Setup, build
from jaxft.engine.trunk import open_trunk
from jaxft.engine.trunk_plan import plan_trunks
from jaxft.report.terminal.progress import Progress
from jaxft.training.phase import make_phase_step

CONFIG = "configs/sentiment.yaml"
BLOCKS = (4, 5, 6)
WARM = 3  # steps before the timed ones
MOST_TIMES = 20  # a cached turn takes so many times the steps of the other at most
LEAST_SHARE, LEAST_HEAD = 0.85, 8.0  # of the FLOP ratio; and where the head alone trains
MEASURES = ("second", "cpu_second")


def opened(blocks: int, rows: str, cache: str) -> Setup:
    """The demo's run with so many blocks frozen."""
    overrides = [
        f"groups=[{{name: trunk, depth: [0, {blocks}], freeze: true}}]",
        f"data.train=csv:assets/reviews/train.csv[:{rows}]",
        "data.eval=csv:assets/reviews/train.csv[98%:]",
        "data.test=null",
        f"data.cache={cache}",
        "train.trunk_cache=on",
        "train.length=10 epochs",
    ]
    return build(jaxft.load_config(CONFIG, overrides))


def turns(built: Setup) -> dict[str, Callable[[int], dict[str, float]]]:
    """For each contestant what runs so many steps of the second epoch, and gives their costs."""
    params = load_params(built).params
    phases = phase_setups(built)
    stage = make_phase_step(built, phases, phases[0], params)
    (plan,) = plan_trunks(built, phases)
    progress = Progress(built.length.total_steps)
    cached = open_trunk(built, stage.now.compute, plan, params, progress)
    sharding, first = batch_sharding(built.mesh), built.plan.steps_per_epoch

    def costs(collate: Collate, steps: int) -> dict[str, float]:
        state, started = initial_state(built, stage.now, params), 0.0
        with CpuClock() as clock:
            made = batches(built.plan, collate, first, first + WARM + steps)
            for number, batch in enumerate(made, first):
                if number == first + WARM:
                    jax.block_until_ready(state)
                    started = time.time()
                placed = place_batch(batch, sharding)
                state, metrics = stage.step(state, stage.frozen, placed, stage.inputs(number))
            jax.block_until_ready((state, metrics))
            ended = time.time()
        spent = (ended - started, clock.between(started, ended))
        return {measure: cost / steps for measure, cost in zip(MEASURES, spent, strict=True)}

    whole = built.splits["train"].examples.collate
    return {
        "plain": lambda steps: costs(whole, steps),
        "cached": lambda steps: costs(cached, steps),
    }


def compare(blocks: int, given: argparse.Namespace, cache: str) -> dict:
    """The ratios of plain to cached steps with so many blocks frozen."""
    built = opened(blocks, given.rows, cache)
    flops = step_flops(built, phase_setups(built)[0])
    wanted = flops["step"] / flops["cached"]
    steps = {"plain": given.steps, "cached": given.steps * round(min(wanted, MOST_TIMES))}
    take = turns(built)
    for name in take:
        take[name](1)  # compiles
    ratios: dict[str, list[float]] = {measure: [] for measure in MEASURES}
    for turn in range(given.pairs):
        order = list(take)[:: -1 if turn % 2 else 1]
        spent = {name: take[name](steps[name]) for name in order}
        for measure, taken in ratios.items():
            taken.append(spent["plain"][measure] / spent["cached"][measure])
        print(f"{blocks} blocks, {turn + 1} of {given.pairs}: {spent}", flush=True)
    found = {measure: median(taken) for measure, taken in ratios.items()}
    least = LEAST_HEAD if blocks == max(BLOCKS) else LEAST_SHARE * wanted
    for measure, ratio in found.items():
        print(f"{blocks} of 6 frozen, {measure}s: {ratio} of {wanted:.2f}; {least:.2f} wanted")
    return {
        "flop_ratio": wanted,
        "least": least,
        "ratios": {measure: vars(ratio) for measure, ratio in found.items()},
    }


def main() -> int:
    """Compare for each number of frozen blocks, record, and say whether it is what it should be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=9, help="turns each takes")
    parser.add_argument("--steps", type=int, default=10, help="timed steps of a turn without")
    parser.add_argument("--rows", default="90%", help="share of the rows that are trained on")
    given = parser.parse_args()
    prepare_process()  # as `jaxft train` does first of all
    with tempfile.TemporaryDirectory() as cache:
        found = {str(blocks): compare(blocks, given, cache) for blocks in BLOCKS}
    record("trunk_cache", {"load": os.getloadavg()[1], "frozen_blocks": found})
    short = [one for one in found.values() if one["ratios"]["second"]["median"] < one["least"]]
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
