"""Does layer decay widen the range of usable rates: MiniLM, 3 decays x 5 rates x 5 seeds.

`python -m benchmarks.studies.layer_decay` trains on 200 reviews of Rotten Tomatoes with nothing
frozen. The range of a decay is the rates, interpolated on a logarithmic scale, whose validation
accuracy is within 2 points of that decay's best; the rate with the best validation accuracy is
scored on the 854 test reviews. It writes docs/studies/layer_decay.md's figure and table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

import jaxft
from benchmarks.studies.page import (
    SEEDS,
    chosen,
    markdown,
    run_study,
    scores_by_setting,
    with_interval,
    write_page,
)

DECAYS = [1.0, 0.8, 0.65]
RATES = [2e-5, 1e-4, 4e-4, 1.6e-3, 6e-3]
WITHIN = 0.02
OVERRIDES = [
    "run.dir=runs/studies",
    "run.name=layer_decay",
    "data.train=csv:assets/reviews/train.csv[:200]",
    "data.eval=csv:assets/reviews/train.csv[1000:1427]",
    'groups=[{name: head, match: "(head|pooler)/.*"}]',
    "train.length=3 epochs",
    "train.evaluate_every=3 epochs",
]


def usable(rates: Sequence[float], scores: Sequence[float]) -> float:
    """How many tens the range spans in which scores are within `WITHIN` of the best.

    Args:
        rates: ascending.
        scores: one a rate.
    """
    fine = np.linspace(np.log10(rates[0]), np.log10(rates[-1]), 1001)
    between = np.interp(fine, np.log10(rates), scores)
    good = between >= np.max(scores) - WITHIN
    return float(good.mean() * (fine[-1] - fine[0]))


def main() -> None:
    """Train all, and write the page."""
    config = jaxft.load_config("configs/sentiment.yaml", OVERRIDES)
    vary = {
        "layer_decay.rate": DECAYS,
        "optimizer.lr": RATES,
        "run.seed.init": list(SEEDS),
    }
    settings = scores_by_setting(run_study(config, vary))
    found = {decay: of_decay(settings, decay) for decay in DECAYS}
    print(table := as_table(found))
    write_page("layer_decay", table, lambda figure: draw(figure, found))


def of_decay(settings: Sequence[dict[str, Any]], decay: float) -> list[dict[str, Any]]:
    """The settings of a decay, by ascending rate."""
    own = [setting for setting in settings if setting["values"]["layer_decay.rate"] == decay]
    return sorted(own, key=lambda setting: setting["values"]["optimizer.lr"])


def ranges(settings: Sequence[dict[str, Any]]) -> list[float]:
    """The usable range of each seed by itself."""
    return [usable(RATES, [setting["eval"][seed] for setting in settings]) for seed in SEEDS]


def as_table(found: dict[float, list[dict[str, Any]]]) -> str:
    """One row a decay."""
    rows = []
    for decay, settings in found.items():
        best = chosen(settings)
        rows.append(
            [
                f"{decay:g}",
                f"{best['values']['optimizer.lr']:g}",
                with_interval(best["test"]),
                with_interval(ranges(settings)),
            ]
        )
    header = ["decay a layer", "best rate", "test accuracy there", "usable range, in tens"]
    return markdown(header, rows)


def draw(figure: Any, found: dict[float, list[dict[str, Any]]]) -> None:
    """Validation accuracy against rate, one line a decay with its seeds' spread."""
    axes = figure.subplots()
    for decay, settings in found.items():
        scores = np.array([setting["eval"] for setting in settings])  # [rates, seeds]
        (line,) = axes.plot(RATES, scores.mean(1), marker=".", label=f"decay {decay:g}")
        axes.fill_between(RATES, scores.min(1), scores.max(1), color=line.get_color(), alpha=0.12)
    axes.set(xscale="log", xlabel="peak rate of the head", ylabel="validation accuracy")
    axes.legend(fontsize=8)


if __name__ == "__main__":
    main()
