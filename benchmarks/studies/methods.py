"""Methods that choose, rate, sample or replace layers, side by side on three tasks.

`python -m benchmarks.studies.methods` fine-tunes MiniLM on reviews and on tweets' entities, and a
ViT-S on photographs of digits, by every method of `METHODS`: at three rates with one seed, and at
the one that is best on the eval rows with four more. Every run is stored in
docs/studies/methods.json as it ends, so that the command goes on where it was stopped; `--task`
and `--method` choose rows, `--minutes` ends it in time. The table is made of what is stored.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

import jaxft
from benchmarks.studies.learned_rates import groups_of, load_learned
from benchmarks.studies.methods_rows import METHODS, REFERENCE, TASKS, TUNED, Task
from benchmarks.studies.page import DOCS, markdown, of_difference, with_interval, write_page
from jaxft.device.process import prepare_process
from jaxft.errors import UserError
from jaxft.numbers import size
from jaxft.report.events import read_events
from jaxft.storage.files import write_atomic
from jaxft.training.story import train

RESULTS = DOCS / "methods.json"
SEEDS = range(5)


def run_once(task: Task, overrides: Sequence[str], rate: float, seed: int) -> dict[str, Any]:
    """Train once; return its scores and what it cost."""
    with tempfile.TemporaryDirectory() as folder:
        config = jaxft.load_config(
            task.config,
            [
                *task.for_all(),
                *overrides,
                f"optimizer.lr={rate}",
                *(f"run.seed.{name}={seed}" for name in ("init", "data", "dropout")),
                f"run.dir={folder}",
            ],
        )
        run = train(config, quiet=True)
        about, table = (
            json.loads((run.folder / name).read_text()) for name in ("run.json", "table.json")
        )
        events = read_events(run.folder)
        scores = [one for one in events if one["kind"] == "eval"][-1]
        drifts = [one["drift"] for one in events if one["kind"] == "drift"][-1]
        trained = [group for group in table["groups"] if group["trainable"]]
        return {
            "eval": scores[task.metric],
            "test": run.metrics[task.metric],
            "flops": about["time"]["flops"] / about["time"]["steps"],
            "trained": sum(group["parameters"] for group in trained),
            "moments": sum(group["optimizer_bytes"] for group in trained),
            "drift": float(np.mean([one for one in drifts.values() if one is not None])),
        }


Stored = dict[str, dict[str, dict[str, dict[str, Any]]]]  # task, method, rate, seed


def load_results() -> Stored:
    """Read what earlier calls measured."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def cells(task: str, method: str, done: Stored) -> Iterator[tuple[float, int]]:
    """Yield the rates and seeds that are to be measured: all rates, then the best one's seeds."""
    own = done.setdefault(task, {}).setdefault(method, {})
    rates = METHODS[method].rates
    for rate in rates:
        if "0" not in own.setdefault(f"{rate:g}", {}):
            yield rate, 0
    best = best_rate(own)
    for seed in SEEDS:
        if str(seed) not in own[f"{best:g}"]:
            yield best, seed


def best_rate(own: dict[str, dict[str, Any]]) -> float:
    """Choose the rate whose first seed scores best on the eval rows."""
    scored = {float(rate): seeds["0"]["eval"] for rate, seeds in own.items() if "0" in seeds}
    return max(scored, key=lambda rate: scored[rate])


def overrides_of(task: str, method: str) -> list[str]:
    """Return what makes a method of the config."""
    if method == TUNED:
        return [groups_of(load_learned()[task])]
    return METHODS[method].for_blocks(TASKS[task].blocks)


def measure(tasks: Sequence[str], methods: Sequence[str], until: float) -> None:
    """Run what is missing, a row at a time, and store each run as it ends."""
    done = load_results()
    for method in methods:
        for task in tasks:
            if method == TUNED and task not in load_learned():
                continue
            for rate, seed in cells(task, method, done):
                if time.time() > until:
                    return
                began = time.time()
                try:
                    cell = run_once(TASKS[task], overrides_of(task, method), rate, seed)
                except UserError as error:
                    cell = {"error": str(error), "eval": -1.0}
                done[task][method][f"{rate:g}"][str(seed)] = cell
                write_atomic(RESULTS, json.dumps(done, indent=1).encode())
                print(f"{task}, {method}, {rate:g}, seed {seed}: {cell['eval']:.3f} on the eval "
                      f"rows, {time.time() - began:.0f} s", flush=True)  # fmt: skip


def scores_of(own: dict[str, dict[str, Any]], key: str) -> list[float]:
    """List the scores of a method's best rate, seed by seed."""
    seeds = own[f"{best_rate(own):g}"]
    return [seeds[str(seed)][key] for seed in SEEDS if key in seeds.get(str(seed), {})]


def table_of(task: str, done: Stored) -> str:
    """Return a task's table in Markdown: a row a method, by test score."""
    own = _measured(task, done)
    if not own:
        return "Not measured yet."
    full = scores_of(own[REFERENCE], "test") if REFERENCE in own else None
    ranked = sorted(own, key=lambda name: -float(np.mean(scores_of(own[name], "test"))))
    rows = []
    for name in ranked:
        rates, test = own[name], scores_of(own[name], "test")
        first = [seeds["0"]["test"] for seeds in rates.values() if "test" in seeds.get("0", {})]
        cost = rates[f"{best_rate(rates):g}"]["0"]
        rows.append(
            [
                name,
                f"{best_rate(rates):g}",
                with_interval(test),
                "" if full is None or name == REFERENCE else of_difference(test, full),
                f"{min(first):.3f}",
                f"{cost['flops'] / 1e9:.1f}",
                f"{cost['trained'] / 1e6:.2f}",
                size(cost["moments"]),
                f"{np.mean(scores_of(rates, 'drift')):.3f}",
            ]
        )
    header = ["", "rate", TASKS[task].metric, "against full", "worst rate",
              "GFLOP a step", "million trained", "moments", "drift"]  # fmt: skip
    missing = [name for name in METHODS if name not in own]
    note = f"\n\nNot measured: {', '.join(missing)}." if missing else ""
    return markdown(header, rows) + _learned_against_decay(own) + note


def _learned_against_decay(own: dict[str, dict[str, Any]]) -> str:
    """Compare the learned rates with the decay that is best on the eval rows, seed by seed."""
    decays = [name for name in own if name.startswith("decay")]
    if TUNED not in own or not decays:
        return ""
    best = max(decays, key=lambda name: float(np.mean(scores_of(own[name], "eval"))))
    difference = of_difference(scores_of(own[TUNED], "test"), scores_of(own[best], "test"))
    return (
        f"\n\nLearned rates against the decay that is best on the eval rows ({best}): {difference}."
    )


def _measured(task: str, done: Stored) -> dict[str, dict[str, Any]]:
    """Return the methods of which every run was made."""
    return {name: rates for name, rates in done.get(task, {}).items() if _complete(rates)}


def _complete(rates: dict[str, dict[str, Any]]) -> bool:
    if len(rates) < 3 or any("0" not in seeds for seeds in rates.values()):
        return False
    return len(scores_of(rates, "test")) == len(SEEDS)


def draw(figure: Any, done: Stored) -> None:
    """Draw the test score of each method with its seeds, a panel a task."""
    shown = {task: own for task in TASKS if (own := _measured(task, done))}
    panels = figure.subplots(1, max(len(shown), 1), squeeze=False)[0]
    for axes, (task, own) in zip(panels, shown.items(), strict=False):
        names = sorted(own, key=lambda name: float(np.mean(scores_of(own[name], "test"))))
        for height, name in enumerate(names):
            test = scores_of(own[name], "test")
            axes.plot(test, [height] * len(test), "o", color="C0", alpha=0.35, markersize=3)
            axes.plot(np.mean(test), height, "D", color="C0", markersize=4)
        axes.set_yticks(range(len(names)), names, fontsize=7)
        axes.set(title=task, xlabel=f"test {TASKS[task].metric}")
        axes.xaxis.get_major_locator().set_params(nbins=4)


def main() -> None:
    """Measure what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--task", choices=list(TASKS), action="append")
    parser.add_argument("--method", choices=list(METHODS), action="append")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so many")
    given = parser.parse_args()
    prepare_process()
    until = time.time() + 60 * given.minutes
    measure(given.task or list(TASKS), given.method or list(METHODS), until)
    done = load_results()
    parts = [f"### {task}\n\n{table_of(task, done)}" for task in TASKS]
    write_page("methods", "\n\n".join(parts), lambda figure: draw(figure, done), size=(9, 3.8))


if __name__ == "__main__":
    main()
