"""What the studies share: scores over seeds, and the table and figure of a page in `docs/studies`.

A page is written by hand but for what lies between its two markers, which a study writes anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from jaxft.config.load import Config
from jaxft.studies.rank import summarise_seeds
from jaxft.studies.study import Study, study

matplotlib.use("Agg")

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs" / "studies"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
SEEDS = range(5)


def run_study(config: Config, vary: dict[str, Any]) -> Study:
    """A study, gone on with where the command ended before: it takes long."""
    folder = Path(config.run.dir, f"{config.run.name}-study")
    return study(config, vary, resume=(folder / "study.json").exists())


def with_interval(scores: Sequence[float]) -> str:
    """`0.812 (0.801 to 0.823)`: the mean, and the 95% bootstrap interval of the mean."""
    found = summarise_seeds(scores)
    return f"{found['mean']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def of_difference(first: Sequence[float], second: Sequence[float]) -> str:
    """The mean of `first - second`, seed by seed, with its interval."""
    found = summarise_seeds(list(np.subtract(first, second)))
    return f"{found['mean']:+.3f} ({found['low']:+.3f} to {found['high']:+.3f})"


def scores_by_setting(study: Study, metric: str = "accuracy") -> list[dict[str, Any]]:
    """The study's settings with each seed's scores at the end of training.

    Returns:
        `values` (without seeds), and `eval` and `test`: `[seeds]`, in the order of the seeds.
    """
    parts = [json.loads(p.read_text()) for p in sorted((study.folder / "parts").glob("*.json"))]
    last: dict[int, float] = {}
    test: dict[int, float] = {}
    for part in parts:
        last |= {row["member"]: row["scores"][metric] for row in part["rows"]}
        test |= {m: s[metric] for m, s in zip(part["members"], part["test"], strict=True)}
    return [
        {
            "values": entry["values"],
            "members": entry["members"],
            "eval": [last[member] for member in sorted(entry["members"])],
            "test": [test[member] for member in sorted(entry["members"])],
        }
        for entry in study.ranking
    ]


def drift_of(study: Study) -> dict[int, tuple[float | None, ...]]:
    """Member -> how far each depth moved, |w - w0| / |w0|."""
    found: dict[int, tuple[float | None, ...]] = {}
    for path in sorted((study.folder / "parts").glob("*.json")):
        part = json.loads(path.read_text())
        found |= dict(zip(part["members"], zip(*part["drift"].values(), strict=True), strict=True))
    return found


def chosen(settings: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The setting with the highest mean on the validation rows."""
    return max(settings, key=lambda setting: np.mean(setting["eval"]))


def markdown(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def write_page(name: str, measured: str, draw: Callable[[Any], None], size=(6.4, 3.6)) -> None:
    """Put a study's figure and table into its page.

    Args:
        name: of `docs/studies/<name>.md`, whose two markers are there already.
        measured: Markdown.
        draw: draws on a figure, which becomes `<name>.svg`.
        size: in inches.
    """
    from matplotlib import pyplot

    with pyplot.rc_context({"svg.hashsalt": "jaxft", "font.size": 9}):
        figure = pyplot.figure(figsize=size, layout="constrained")
        draw(figure)
        figure.savefig(DOCS / f"{name}.svg", metadata={"Date": None})
        pyplot.close(figure)
    page = DOCS / f"{name}.md"
    before, rest = page.read_text().split(BEGIN)
    after = rest.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n\n![{name}]({name}.svg)\n\n{measured}\n\n{END}{after}")
