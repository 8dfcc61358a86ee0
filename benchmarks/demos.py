"""One table of all that the configs do: the task, its rows, and what jaxft makes of them.

`python -m benchmarks.demos [NAME...]` (`make demos`) trains each config on few rows, at most five
minutes a row of the table on two quiet cores; `--full` (`make demos-full`) on all of theirs. Beside
it stand, on the same rows, the checkpoint frozen (logistic regression on its features, its head
trained alone, or as it is) and the same architecture from scratch. The table is printed, and
written as markdown and as JSON into the folder of the runs. What is there, of the same config, is
read and not trained again; a run that was cut off goes on.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.baseline import best_regression, recipe
from benchmarks.demos_rows import DEMOS, Demo
from benchmarks.scratch import write_scratch
from benchmarks.tables import table_scores
from jaxft.config.load import Config, load_config
from jaxft.demo import main as assets
from jaxft.engine.setup import make_task
from jaxft.errors import UserError, did_you_mean
from jaxft.numbers import score, span
from jaxft.storage.files import write_atomic

HEAD = "{name: head, match: 'head/.*', lr_mult: 5}"
HEAD_ALONE = f"groups=[{HEAD}, {{name: frozen, match: '.*', freeze: true}}]"
# One step at a rate of zero: the checkpoint as it is, through the same code.
AS_IT_IS = ("optimizer.lr=0", "train.length=1 steps", "train.evaluate_every=1 steps")
# What a config is held against is scored, and not shown.
UNSEEN = "report.before=false"
COLUMNS = ("task", "data", "rows", "metric", "frozen", "scratch", "jaxft", "time", "")


def make_row(demo: Demo, folder: Path, full: bool) -> dict[str, Any]:
    """A row of the table, of what the folder has already and of what is trained for it.

    Args:
        demo: what to train.
        folder: of the runs.
        full: train on all rows.

    Returns:
        `name`, `data`, `metric`, `lower_is_better`, `rows` (of each split), `pixels` (None without
        images), `scores` (by who reached them), `seconds` and `cpu_seconds` of the training that is
        the config's own.

    Raises:
        UserError: an asset cannot be brought, or a run fails.
    """
    for name in demo.assets:
        assets.ASSETS[name]()
    quick = [] if full else list(demo.quick)
    parts = Parts(folder / f"{demo.name}.json", recipe(_config(demo, quick)))
    ours = parts.get("jaxft", lambda: _train(demo, folder, "jaxft", quick))
    scores = {"jaxft": ours["metrics"][demo.metric]}
    frozen = parts.get("frozen", lambda: _frozen(demo, folder, quick))
    scores["frozen"] = frozen["metrics"][demo.metric]
    if demo.table:
        found = parts.get("table", lambda: {"metrics": table_scores(_config(demo, quick))})
        scores |= {name: one[demo.metric] for name, one in found["metrics"].items()}
    scratch = parts.get("scratch", lambda: _scratch(demo, folder, quick))
    scores["scratch"] = scratch["metrics"][demo.metric]
    return {
        "name": demo.name,
        "data": demo.data,
        "metric": demo.metric,
        "lower_is_better": make_task(_config(demo, quick)).metrics[demo.metric].lower_is_better,
        "rows": ours["rows"],
        "pixels": ours["pixels"],
        "frozen_by": frozen.get("name", demo.frozen),
        "scores": scores,
        "seconds": ours["seconds"],
        "cpu_seconds": ours["cpu_seconds"],
    }


class Parts:
    """What has been measured for a row, in a file; another recipe starts it anew."""

    def __init__(self, file: Path, recipe: str):
        self.file = file
        self.content: dict[str, Any] = {"recipe": recipe, "parts": {}}
        if file.exists():
            found = json.loads(file.read_text())
            self.content = found if found.get("recipe") == recipe else self.content

    def get(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The part of that name, measured if it is not there, with the seconds that it took."""
        parts = self.content["parts"]
        if name not in parts:
            print(f"  {name}", file=sys.stderr, flush=True)
            with _clock() as took:
                found = measure()
            parts[name] = {**took, **found}
            write_atomic(self.file, json.dumps(self.content, indent=2) + "\n")
        return parts[name]


@contextmanager
def _clock() -> Iterator[dict[str, float]]:
    """`seconds` and `cpu_seconds` of this process and of those that it started and has seen end."""
    took: dict[str, float] = {}
    began, used = time.perf_counter(), _cpu_seconds()
    yield took
    took |= {"seconds": time.perf_counter() - began, "cpu_seconds": _cpu_seconds() - used}


def _cpu_seconds() -> float:
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, who))


def _config(demo: Demo, overrides: Sequence[str]) -> Config:
    return load_config(Path("configs") / f"{demo.name}.yaml", overrides)


def _train(demo: Demo, folder: Path, name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Train a config as the command line does; go on where it was cut off.

    Returns:
        `metrics` of the test rows, `rows` of each split, and `pixels`.
    """
    run = folder / demo.name / name
    given = [*overrides, f"run.dir={run.parent}", f"run.name={name}"]
    words = ["train", f"configs/{demo.name}.yaml", *given, "--quiet"]
    if _is_same(run, _config(demo, given)):
        words.append("--resume")
    elif (run / "run.json").exists():
        words.append("--overwrite")
    done = subprocess.run(
        [sys.executable, "-m", "jaxft", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        said = (done.stderr.strip() or "it said nothing").splitlines()[-1]
        raise UserError(f"jaxft {' '.join(words)} failed: {said.removeprefix('jaxft: ')}")
    about = json.loads((run / "run.json").read_text())
    return {
        "metrics": json.loads((run / "result.json").read_text())["metrics"],
        "rows": {split["split"]: split["examples"] for split in about["data"]},
        "pixels": _config(demo, given).model.image_size,
    }


def _is_same(run: Path, config: Config) -> bool:
    """Whether a run folder was begun with a config, so that it can go on."""
    if not (run / "run.json").exists() or not (run / "config.yaml").exists():
        return False
    try:
        return recipe(load_config(run / "config.yaml")) == recipe(config)
    except UserError:
        return False


def _frozen(demo: Demo, folder: Path, quick: Sequence[str]) -> dict[str, Any]:
    """What the checkpoint reaches that is not fine-tuned."""
    if demo.frozen == "features":
        name, metrics = best_regression(_config(demo, quick))
        return {"name": name, "metrics": metrics}
    more = [HEAD_ALONE] if demo.frozen == "head" else [*AS_IT_IS]
    return _train(demo, folder, "frozen", [*quick, *more, UNSEEN])


def _scratch(demo: Demo, folder: Path, quick: Sequence[str]) -> dict[str, Any]:
    """What the same architecture reaches that was not pretrained."""
    checkpoint = folder / demo.name / "drawn"
    drawn = write_scratch(_config(demo, quick).model.checkpoint, checkpoint)
    return _train(demo, folder, "scratch", [*quick, *drawn, *demo.scratch, UNSEEN])


# ---------------------------------------------------------------------------------------- the table


def cells(row: dict[str, Any]) -> list[str]:
    """A row as text, in the order of `COLUMNS`."""
    scores = row["scores"]
    rows = " / ".join(f"{row['rows'][name]:,}" for name in ("train", "test"))
    best = min if row["lower_is_better"] else max
    rivals = {"frozen": f"the frozen checkpoint ({row['frozen_by']})", "scratch": "scratch"}
    others = [name for name in scores if name not in ("jaxft", *rivals)]
    remarks = [
        f"does not beat {rivals.get(name, name)}"
        for name in ("scratch", "frozen", *others)
        if best(scores["jaxft"], scores[name]) != scores["jaxft"] or scores["jaxft"] == scores[name]
    ]
    remarks += [f"{name}: {score(scores[name])}" for name in others]
    return [
        row["name"],
        row["data"],
        rows + (f", {row['pixels']} px" if row["pixels"] else ""),
        row["metric"].replace("_", " "),
        score(scores["frozen"]),
        score(scores["scratch"]),
        score(scores["jaxft"]),
        f"{span(row['seconds'])} ({row['cpu_seconds']:,.0f} CPU s)",
        "; ".join(remarks),
    ]


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table as markdown."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *map(cells, rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table(title="test rows; frozen and scratch on the same rows", title_justify="left")
    for place, name in enumerate(COLUMNS):
        table.add_column(name, justify="right" if 4 <= place < 8 else "left")
    for row in rows:
        table.add_row(*cells(row))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the rows that were named, or all; print and write the table; 1 where a row failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="configs; all without one")
    parser.add_argument("--full", action="store_true", help="train on all rows")
    parser.add_argument("--dir", type=Path, help="folder of the runs")
    given = parser.parse_args(arguments)
    known = {demo.name: demo for demo in DEMOS}
    folder = given.dir or Path("runs") / ("demos-full" if given.full else "demos")
    rows, failed = [], False
    try:
        for name in given.names:
            if name not in known:
                raise UserError(f"There is no demo '{name}'.", did_you_mean(name, known))
        assets.link(Path("assets"))
    except UserError as error:
        print(f"benchmarks.demos: {error}", file=sys.stderr)
        return 2
    for name in given.names or known:
        print(name, file=sys.stderr, flush=True)
        try:
            rows.append(make_row(known[name], folder, given.full))
        except UserError as error:  # the others have their row all the same
            print(f"  {error}", file=sys.stderr)
            failed = True
        if rows:
            write_atomic(folder / "table.md", markdown(rows))
            write_atomic(folder / "table.json", json.dumps(rows, indent=2) + "\n")
    if rows:
        show(rows)
        print(f"{folder}/table.md")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
