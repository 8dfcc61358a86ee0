"""Time of a step whose trained block is the lowest, or the top one, or where all blocks train.

`python -m benchmarks.sampled_blocks` lets the three take turns in one process, on MiniLM and the
demo's reviews. The first two are one compiled program (`sampling.method: badam`), to which the
block is data; the third is the usual step. Ratios stand beside those of the FLOPs.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from typing import Any

import jax

import jaxft
from benchmarks.measure import CpuClock, median, record
from jaxft.data.batching.loader import batches
from jaxft.device.mesh import batch_sharding, place_batch
from jaxft.device.process import prepare_process
from jaxft.engine.cost import batch_shapes, gradient_flops
from jaxft.engine.initial_state import initial_state, load_params
from jaxft.engine.remat import phase_setups
from jaxft.engine.setup import Setup, build
from jaxft.layerwise.sampling import Choice
from jaxft.training.phase import Phases, PhaseStep, make_phase_step
from jaxft.training.sampling.program import Period, SampledRun, sampled_run

CONFIG = "configs/sentiment.yaml"
MEASURES = ("second", "cpu_second")
COMMON = ["groups=[]", "layer_decay.rate=1", "data.test=null", "train.length=100 steps"]
SAMPLED = ["sampling.method=badam", "optimizer.name=adamw"]


class OneBlock(Period):
    """Period of one block that is given."""

    def __init__(self, run: SampledRun, block: int):
        super().__init__(run, 0)
        self.__dict__["choice"] = Choice(((run.towers[0], (block,)),))


def stage_of(setup: Setup, period: Period | None) -> PhaseStep:
    """Make the step of a run, or that of a period."""
    phases, params = phase_setups(setup), load_params(setup).params
    now = phases[0] if period is None else period.setup
    return make_phase_step(setup, phases, now, params, period=period)


def contestants(steps: int) -> tuple[dict[str, Callable[[], dict[str, float]]], dict[str, int]]:
    """Return, by name, what runs a turn and gives its costs a step; and the FLOPs of each."""
    turns, flops = {}, {}
    sampled = build(jaxft.load_config(CONFIG, [*COMMON, *SAMPLED]))
    run = sampled_run(sampled)
    assert run is not None
    top = len(run.towers[0].names) - 1
    shared: PhaseStep | None = None
    for name, block in (("lowest", 0), ("top", top), ("all", None)):
        setup = sampled if block is not None else build(jaxft.load_config(CONFIG, COMMON))
        period = None if block is None else OneBlock(run, block)
        stage = stage_of(setup, period)
        if period is not None:  # one program for both
            shared = shared or stage
            stage = replace(stage, step=shared.step)
        flops[name] = gradient_flops(setup, stage.now.table.trainable, batch_shapes(setup))
        turns[name] = _turn(setup, stage, steps)
    return turns, flops


def _turn(setup: Setup, stage: PhaseStep, steps: int) -> Callable[[], dict[str, float]]:
    params = load_params(setup).params
    made = batches(setup.plan, setup.splits["train"].examples.collate, 0, steps + 1)
    placed = [place_batch(one, batch_sharding(setup.mesh)) for one in islice(made, steps + 1)]

    def turn() -> dict[str, float]:
        state, started = initial_state(setup, stage.now, params), 0.0
        with CpuClock() as clock, Phases(stage) as phases:
            for number, batch in enumerate(placed):
                if number == 1:
                    jax.block_until_ready(state)
                    started = time.time()
                step = phases.step(batch)
                state, metrics = step(state, stage.frozen, batch, stage.inputs(number))
            jax.block_until_ready((state, metrics))
            ended = time.time()
        spent = (ended - started, clock.between(started, ended))
        return {measure: cost / steps for measure, cost in zip(MEASURES, spent, strict=True)}

    return turn


def main() -> None:
    """Let the three take turns, and record the ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=9, help="turns each takes")
    parser.add_argument("--steps", type=int, default=8, help="timed steps of a turn")
    given = parser.parse_args()
    prepare_process()
    turns, flops = contestants(given.steps)
    for turn in turns.values():
        turn()  # compiles
    ratios: dict[str, dict[str, list[float]]] = {
        name: {measure: [] for measure in MEASURES} for name in ("lowest", "all")
    }
    for number in range(given.pairs):
        order = list(turns)[:: -1 if number % 2 else 1]
        spent = {name: turns[name]() for name in order}
        for name, of in ratios.items():
            for measure, taken in of.items():
                taken.append(spent[name][measure] / spent["top"][measure])
        print(f"{number + 1} of {given.pairs}: {spent}", flush=True)
    result: dict[str, dict[str, Any]] = {}
    for name, of in ratios.items():
        share = flops[name] / flops["top"]
        result[name] = {"flop_ratio": share}
        for measure, taken in of.items():
            ratio = median(taken)
            result[name][measure] = vars(ratio)
            print(f"{name} over top, {measure}s: {ratio}; FLOPs {share:.2f}")
    record("sampled_blocks", {"load": os.getloadavg()[1], "flops": flops, "ratios": result})


if __name__ == "__main__":
    main()
