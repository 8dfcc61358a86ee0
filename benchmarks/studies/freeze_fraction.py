"""How much of MiniLM has to train: 0 to 7 of its depths frozen, against score, cost and drift.

`python -m benchmarks.studies.freeze_fraction` trains on 400 reviews of Rotten Tomatoes, once for
each number of frozen depths, rate and seed. Rates are chosen on 427 validation reviews, and the 854
test reviews are scored once. It writes docs/studies/freeze_fraction.md's figure and table.

Source: Lee, Tang and Lin (2019), https://arxiv.org/abs/1911.03090.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import jaxft
from benchmarks.studies.page import (
    SEEDS,
    chosen,
    drift_of,
    markdown,
    of_difference,
    run_study,
    scores_by_setting,
    with_interval,
    write_page,
)

BLOCKS = 6
RATES = [2e-4, 8e-4, 3.2e-3]
HEAD = {"name": "head", "match": "(head|pooler)/.*", "lr_mult": 5}
OVERRIDES = [
    "run.dir=runs/studies",
    "run.name=freeze_fraction",
    "data.train=csv:assets/reviews/train.csv[:400]",
    "data.eval=csv:assets/reviews/train.csv[1000:1427]",
    "layer_decay.rate=1.0",
    "train.length=3 epochs",
    "train.evaluate_every=3 epochs",
]


def groups_of(frozen: int) -> list[dict[str, Any]]:
    """Groups that freeze the lowest so many depths: the embeddings, then blocks from below."""
    trunk = {"name": "trunk", "depth": [0, frozen - 1], "freeze": True}
    return [HEAD, *([trunk] if frozen else [])]


def main() -> None:
    """Train all, and write the page."""
    config = jaxft.load_config("configs/sentiment.yaml", OVERRIDES)
    counts = [0, 2, 4, 5, 6, 7]
    vary = {
        "groups": [groups_of(count) for count in counts],
        "optimizer.lr": RATES,
        "run.seed.init": list(SEEDS),
    }
    study = run_study(config, vary)
    settings, drift = scores_by_setting(study), drift_of(study)
    found = []
    for count in counts:
        best = chosen([s for s in settings if len_frozen(s["values"]["groups"]) == count])
        moved = np.array([drift[m] for m in best["members"]], float)  # [seeds, depths]
        own = jaxft.parse_config(config.dump() | {"groups": groups_of(count)})
        flops = jaxft.plan(own).flops
        found.append(best | {"frozen": count, "flops": flops, "drift": np.nanmean(moved, axis=0)})
    print(table := as_table(found))
    write_page("freeze_fraction", table, lambda figure: draw(figure, found), size=(7.2, 3.0))


def len_frozen(groups: list[dict[str, Any]]) -> int:
    """How many depths groups freeze."""
    return groups[1]["depth"][1] + 1 if len(groups) > 1 else 0


def as_table(found: list[dict[str, Any]]) -> str:
    """One row a number of frozen depths."""
    full = found[0]
    rows = [
        [
            "nothing" if not one["frozen"] else what_is_frozen(one["frozen"]),
            f"{one['values']['optimizer.lr']:g}",
            with_interval(one["test"]),
            of_difference(one["test"], full["test"]) if one["frozen"] else "",
            f"{one['flops']['step'] / one['flops']['full']:.2f}",
            f"{one['flops'].get('cached', one['flops']['step']) / one['flops']['full']:.2f}",
            f"{np.nanmax(one['drift'][:-1], initial=0):.3f}",
        ]
        for one in found
    ]
    header = [
        "frozen",
        "rate",
        "test accuracy",
        "against nothing frozen",
        "a step's FLOPs",
        "with the trunk's output kept",
        "most a block moved",
    ]
    return markdown(header, rows)


def what_is_frozen(count: int) -> str:
    """A number of frozen depths in words."""
    return "embeddings" + (f" and {count - 1} of {BLOCKS} blocks" if count > 1 else "")


def draw(figure: Any, found: list[dict[str, Any]]) -> None:
    """Score against the share of a step's FLOPs, and drift by depth."""
    left, right = figure.subplots(1, 2)
    cost = [one["flops"]["step"] / one["flops"]["full"] for one in found]
    for place, one in zip(cost, found, strict=True):
        left.plot([place] * len(SEEDS), one["test"], ".", color="tab:blue", alpha=0.4)
        left.annotate(str(one["frozen"]), (place, np.mean(one["test"])), xytext=(4, 4),
                      textcoords="offset points", fontsize=8)  # fmt: skip
    left.plot(cost, [np.mean(one["test"]) for one in found], color="tab:blue")
    left.set(xlabel="FLOPs of a step, of one with nothing frozen", ylabel="test accuracy")
    left.set_title("depths frozen, a dot a seed", fontsize=9)
    for one in found[:-1]:
        right.plot(one["drift"][:-1], marker=".", label=f"{one['frozen']} frozen")
    right.set(xlabel="depth", ylabel="|w - w0| / |w0|")
    right.set_title("how far each depth below the head moved", fontsize=9)
    right.legend(fontsize=8)


if __name__ == "__main__":
    main()
