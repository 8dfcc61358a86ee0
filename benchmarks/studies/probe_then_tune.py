"""Linear probing, fine-tuning, and one then the other: in and out of distribution.

`python -m benchmarks.studies.probe_then_tune` trains MiniLM on 400 reviews of Rotten Tomatoes
with the head alone (LP), with everything (FT), and with the head first and then as FT (LP-FT), at
two or three rates and with five seeds each. Rates are chosen on 427 validation reviews of the same
source; scored once are 854 test reviews of it and 1,000 of IMDB, ten times as long. It writes
docs/studies/probe_then_tune.md's figure and table.

Source: Kumar et al. (2022), https://arxiv.org/abs/2202.10054.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import jaxft
from benchmarks.studies.page import (
    SEEDS,
    chosen,
    markdown,
    of_difference,
    run_study,
    scores_by_setting,
    with_interval,
    write_page,
)

FIRST = "{until: 3 epochs, unfreeze: [head/.*], lr: 3e-2, schedule: {kind: constant}}"
SECOND = "{until: 100%, schedule: {kind: linear, warmup: 10%}}"
# Phases, epochs, and the rates of what trains last.
METHODS = {
    "LP": ("linear_probe", 3, [1e-2, 3e-2, 1e-1]),
    "FT": ("[]", 3, [5e-5, 2e-4]),
    "LP-FT": (f"[{FIRST}, {SECOND}]", 6, [5e-5, 2e-4]),
}
ELSEWHERE = "csv:assets/imdb/test.csv"
OVERRIDES = [
    "run.dir=runs/studies",
    "data.train=csv:assets/reviews/train.csv[:400]",
    "data.eval=csv:assets/reviews/train.csv[1000:1427]",
    "data.row_length=128",
    "layer_decay.rate=1.0",
    "groups=[]",
]


def main() -> None:
    """Train all, and write the page."""
    found = {method: compare(method) for method in METHODS}
    print(table := as_table(found))
    write_page("probe_then_tune", table, lambda figure: draw(figure, found), size=(5, 3.6))


def compare(method: str) -> dict[str, Any]:
    """A method's best setting: scores in distribution (`test`) and out of it (`elsewhere`)."""
    phases, epochs, rates = METHODS[method]
    overrides = [
        *OVERRIDES,
        f"run.name=probe-{method}",
        f"phases={phases}",
        f"train.length={epochs} epochs",
        f"train.evaluate_every={epochs} epochs",
    ]
    config = jaxft.load_config("configs/sentiment.yaml", overrides)
    vary = {"optimizer.lr": rates, "run.seed.init": list(SEEDS)}
    best = chosen(scores_by_setting(run_study(config, vary)))
    rate = best["values"]["optimizer.lr"]
    # The same members again, scored elsewhere: a study is the same each time.
    other = jaxft.load_config(
        "configs/sentiment.yaml",
        [
            *overrides,
            f"data.test={ELSEWHERE}",
            f"optimizer.lr={rate}",
            f"run.name=probe-{method}-elsewhere",
        ],
    )
    again = run_study(other, {"run.seed.init": list(SEEDS)})
    (elsewhere,) = scores_by_setting(again)
    return best | {"elsewhere": elsewhere["test"]}


def as_table(found: dict[str, dict[str, Any]]) -> str:
    """One row a method."""
    tuned = found["FT"]
    rows = [
        [
            method,
            f"{one['values']['optimizer.lr']:g}",
            with_interval(one["test"]),
            of_difference(one["test"], tuned["test"]) if one is not tuned else "",
            with_interval(one["elsewhere"]),
            of_difference(one["elsewhere"], tuned["elsewhere"]) if one is not tuned else "",
        ]
        for method, one in found.items()
    ]
    header = ["", "rate", "Rotten Tomatoes", "against FT", "IMDB", "against FT"]
    return markdown(header, rows)


def draw(figure: Any, found: dict[str, dict[str, Any]]) -> None:
    """Accuracy out of distribution against in distribution, a dot a seed."""
    axes = figure.subplots()
    for method, one in found.items():
        (dots,) = axes.plot(one["test"], one["elsewhere"], "o", alpha=0.4)
        axes.plot(np.mean(one["test"]), np.mean(one["elsewhere"]), "D", color=dots.get_color(),
                  label=method)  # fmt: skip
    axes.set(xlabel="Rotten Tomatoes, test accuracy", ylabel="IMDB, accuracy")
    axes.legend(fontsize=8)


if __name__ == "__main__":
    main()
