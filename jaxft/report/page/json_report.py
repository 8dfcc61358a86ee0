"""The page's content for scripts: each run's metadata and scores, and every figure's data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxft.report.page.page import all_figures, read_runs
from jaxft.report.page.run import Run
from jaxft.report.page.views import differences, view

# Of what the template shows of a run; the rest are its tables, texts and words.
SHOWN = ("name", "state", "task", "checkpoint", "command", "started", "groups", "notes", "warnings")
OF_A_SPLIT = ("name", "count", "wrong", "classes", "confusion")


def report_json(runs: Sequence[Path]) -> str:
    """The runs as JSON: `runs`, `differences` and `figures`, as docs/runs.md says.

    Args:
        runs: run folders.

    Raises:
        UserError: a folder is not a run, or is named twice.
    """
    read = read_runs(runs)
    differ = dict(differences([run.config for run in read]))
    content = {
        "runs": [_run(run) for run in read],
        "differences": differ if len(read) > 1 else {},
        "figures": all_figures(read).all,
    }
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)


def _run(run: Run) -> dict[str, Any]:
    shown, result = view(run, 0), run.result
    return {
        **{key: shown[key] for key in SHOWN},
        "folder": str(run.path),
        "best_metric": run.about.get("best_metric"),
        "result": None
        if result is None
        else {key: result.get(key) for key in ("split", "step", "examples", "baselines")}
        | {"metrics": shown["scores"]},
        "splits": [{key: split[key] for key in OF_A_SPLIT} for split in shown["splits"]],
        "thresholds": shown["thresholds"],
        "problems": run.problems,
        "config": run.config,
    }
