"""A study against as many runs: `jaxft study` of 8 beside 8 `jaxft train` commands.

`python -m benchmarks.study` trains MiniLM, 4 of 6 blocks frozen, on 1,000 reviews for an epoch, at
2 layer decays x 4 rates. Commands are timed from start to end, each in a process of its own, and
each contestant begins with empty caches: the first run compiles, and those after it find its
programs. With `--trains N` only N of the 8 runs are made, and the mean of all but the first stands
for the rest. Then the compiled steps take turns in one process, on the same batches, in wall time
and in CPU seconds; their ratio is held against that of their FLOPs. The wanted ratios are those of
wall time on a quiet machine.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax

import jaxft
from benchmarks.measure import median, record
from jaxft.device.mesh import batch_sharding, place_batch
from jaxft.device.process import prepare_process
from jaxft.engine.cost import count_flops
from jaxft.engine.initial_state import initial_state, load_params
from jaxft.engine.remat import phase_setups
from jaxft.studies.members import make_members
from jaxft.studies.parts import make_parts
from jaxft.studies.program.phase import Programs, begin, phases_of
from jaxft.training.phase import make_phase_step

CONFIG = "configs/sentiment.yaml"
RECIPE = [
    "groups=[{name: trunk, depth: [0, 4], freeze: true}]",
    "data.train=csv:assets/reviews/train.csv[:1000]",
    "data.eval=csv:assets/reviews/train.csv[90%:]",
    "data.test=null",
    "train.length=1 epoch",
    "train.evaluate_every=1 epoch",
]
VARY = {"layer_decay.rate": [1.0, 0.8], "optimizer.lr": [3e-5, 1e-4, 2e-4, 4e-4]}
MOST_OF_COMMANDS, MOST_OF_FLOPS = 0.6, 1.1
MEASURES = ("second", "cpu_second")
Cost = dict[str, float]


def command(words: list[str], home: str) -> Cost:
    """What one command costs from start to end, its caches under `home`."""
    env = {**os.environ, "JAXFT_CACHE": home}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
    done = subprocess.run(
        [sys.executable, "-m", "jaxft", *words], env=env, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}\n{done.stdout}{done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"second": time.time() - began, "cpu_second": used}


def run_study() -> Cost:
    """The study, from nothing."""
    with tempfile.TemporaryDirectory() as home:
        vary = [f"--vary={key}={','.join(map(str, values))}" for key, values in VARY.items()]
        where = [f"run.dir={home}/runs", f"data.cache={home}/data"]
        return command(["study", CONFIG, *vary, *RECIPE, *where], home)


def run_trains(count: int, members: int) -> list[Cost]:
    """The first `count` of the members' runs one after another, the first from nothing."""
    pairs = [(decay, lr) for decay in VARY["layer_decay.rate"] for lr in VARY["optimizer.lr"]]
    costs = []
    with tempfile.TemporaryDirectory() as home:
        for number, (decay, lr) in enumerate(pairs[: min(count, members)]):
            own = [f"layer_decay.rate={decay}", f"optimizer.lr={lr}", f"run.name=run-{number}"]
            where = [f"run.dir={home}/runs", f"data.cache={home}/data"]
            costs.append(command(["train", CONFIG, *RECIPE, *own, *where], home))
            print(f"train {number + 1}: {costs[-1]['second']:.1f} s", flush=True)
    return costs


def compare_commands(count: int) -> dict[str, Any]:
    """The study's cost over that of the runs, the load told."""
    members = len(VARY["layer_decay.rate"]) * len(VARY["optimizer.lr"])
    study, trains = run_study(), run_trains(count, members)
    print(f"study: {study['second']:.1f} s", flush=True)
    found: dict[str, Any] = {"trains_run": len(trains)}
    for measure in MEASURES:
        first, later = trains[0][measure], [cost[measure] for cost in trains[1:]]
        whole = first + (members - 1) * sum(later) / len(later)
        ratio = study[measure] / whole
        found[measure] = {"study": study[measure], "trains": whole, "ratio": ratio}
        print(f"study / {members} runs, {measure}s = {ratio:.3f}; {MOST_OF_COMMANDS} wanted")
    return found


def compare_steps(pairs: int, steps: int) -> dict[str, Any]:
    """The compiled steps in turns: time over time, over FLOPs over FLOPs."""
    members = make_members(jaxft.load_config(CONFIG, RECIPE), VARY)
    (part,), _ = make_parts(members)
    built = part.setups[0]
    rows = built.splits["train"].examples
    batches = [
        place_batch(
            rows.collate(built.plan.batch(step), built.layout.row_length),
            batch_sharding(built.mesh),
        )
        for step in range(steps)
    ]
    params = load_params(built).params
    phases = phase_setups(built)
    alone = make_phase_step(built, phases, phases[0], params)
    together = begin(part.setups, phases_of(part.setups, 0), Programs())
    states = {"alone": initial_state(built, phases[0], params), "together": together[1]}
    stages: dict[str, Any] = {"alone": alone, "together": together[0]}
    flops = {
        name: count_flops(stage.step, states[name], stage.frozen, batches[0], stage.inputs(0))
        for name, stage in stages.items()
    }

    def turn(name: str) -> Cost:
        stage = stages[name]
        began, cpu = time.time(), time.process_time()
        for step, batch in enumerate(batches):
            states[name], metrics = stage.step(
                states[name], stage.frozen, batch, stage.inputs(step)
            )
        jax.block_until_ready((states[name], metrics))
        return {"second": time.time() - began, "cpu_second": time.process_time() - cpu}

    return {"flops": flops["together"] / flops["alone"], **_in_turns(turn, pairs, flops)}


def _in_turns(turn: Callable[[str], Cost], pairs: int, flops: dict[str, int]) -> dict[str, Any]:
    ratio = flops["together"] / flops["alone"]
    taken: dict[str, list[float]] = {measure: [] for measure in MEASURES}
    for name in ("alone", "together"):
        turn(name)  # compiles
    for number in range(pairs):
        order = ("alone", "together")[:: -1 if number % 2 else 1]
        costs = {name: turn(name) for name in order}
        for measure in MEASURES:
            taken[measure].append(costs["together"][measure] / costs["alone"][measure] / ratio)
        print(f"{number + 1} of {pairs}: {taken['second'][-1]:.3f}", flush=True)
    found = {measure: median(values) for measure, values in taken.items()}
    for measure, value in found.items():
        said = f"step of 8 / step / FLOPs ({ratio:.2f}), {measure}s = {value}"
        print(f"{said}; at most {MOST_OF_FLOPS} wanted")
    return {measure: vars(value) for measure, value in found.items()}


def main() -> int:
    """Compare commands and steps, record the ratios, and say whether they hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trains", type=int, default=8, help="runs that are made, of the 8")
    parser.add_argument("--pairs", type=int, default=9, help="turns that each step takes")
    parser.add_argument("--steps", type=int, default=4, help="steps a turn")
    given = parser.parse_args()
    commands = compare_commands(given.trains)
    prepare_process()
    steps = compare_steps(given.pairs, given.steps)
    record("study", {"load": os.getloadavg()[1], "commands": commands, "steps": steps})
    held = commands["second"]["ratio"] <= MOST_OF_COMMANDS
    return 0 if held and steps["second"]["median"] <= MOST_OF_FLOPS else 1


if __name__ == "__main__":
    sys.exit(main())
