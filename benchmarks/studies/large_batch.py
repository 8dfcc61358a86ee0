"""Which rule scales the rate with the batch: a head on MiniLM, batches of 32 to 2,048 reviews.

`python -m benchmarks.studies.large_batch [BATCH ...]` trains the pooler and the head on 4,096
reviews of Rotten Tomatoes for 4 epochs, at 5 rates with 3 seeds for each batch size, and goes on
where it was stopped: a batch size is one study of `jaxft study`. The best rate of a seed is the
vertex of the parabola through the best validation accuracy and its neighbors, over the logarithm
of the rate. The page docs/studies/large_batch.md gets those batch sizes that are finished.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import jaxft
from benchmarks.studies.page import (
    chosen,
    markdown,
    of_difference,
    run_study,
    scores_by_setting,
    with_interval,
    write_page,
)
from jaxft.studies.rank import summarise_seeds

BATCHES = (32, 128, 256, 512, 2048)
MEASURED = (32, 256, 2048)  # without arguments
RATES = [1e-4, 4e-4, 1.6e-3, 6.4e-3, 2.56e-2]
SEEDS = range(3)
RULES = {"none": 0.0, "square root": 0.5, "linear": 1.0}
FOLDER = "runs/studies"
OVERRIDES = [
    f"run.dir={FOLDER}",
    "data.train=csv:assets/reviews/train.csv[:4096]",
    "data.eval=csv:assets/reviews/train.csv[7249:]",
    'groups=[{name: head, match: "(head|pooler)/.*"}, {name: trunk, depth: [0, 6], freeze: true}]',
    "layer_decay.rate=1",
    "schedule.warmup=10%",
    "train.length=4 epochs",
    "train.evaluate_every=4 epochs",
]
Settings = Sequence[dict[str, Any]]  # by ascending rate


def config_of(batch: int) -> jaxft.Config:
    """The config of one batch size."""
    own = [f"run.name=large_batch_{batch}", f"data.batch_size={batch}"]
    return jaxft.load_config("configs/sentiment.yaml", [*OVERRIDES, *own])


def settings_of(batch: int) -> Settings:
    """The trained settings of a batch size, by ascending rate."""
    vary = {"optimizer.lr": RATES, "run.seed.init": list(SEEDS)}
    settings = scores_by_setting(run_study(config_of(batch), vary))
    return sorted(settings, key=lambda setting: setting["values"]["optimizer.lr"])


def best_rate(scores: Sequence[float]) -> float:
    """The rate of the highest score, between the rates: the vertex of a parabola.

    Args:
        scores: one for each of `RATES`, whose logarithms are equally far apart.
    """
    middle = int(np.clip(np.argmax(scores), 1, len(scores) - 2))
    low, top, high = (float(scores[middle + offset]) for offset in (-1, 0, 1))
    bend = low - 2 * top + high
    shift = float(np.clip((low - high) / (2 * bend), -1, 1)) if bend < 0 else 0.0
    step = np.log(RATES[1] / RATES[0])
    return float(np.exp(np.log(RATES[middle]) + shift * step))


def exponents(every: Mapping[int, Settings]) -> list[float]:
    """Each seed's slope of the logarithm of its best rate over that of the batch size."""
    sizes = np.log(list(every))
    slopes = []
    for seed in SEEDS:
        rates = [best_rate([one["eval"][seed] for one in own]) for own in every.values()]
        slopes.append(float(np.polyfit(sizes, np.log(rates), 1)[0]))
    return slopes


def by_rule(every: Mapping[int, Settings], batch: int, exponent: float) -> list[float]:
    """Test accuracies at the rate that a rule gives from the smallest batch's best.

    They are interpolated over the logarithm of the rate; beyond the rates tried, those of the last.
    """
    smallest, own = min(every), every[batch]
    base = chosen(every[smallest])["values"]["optimizer.lr"]
    rate = base * (batch / smallest) ** exponent
    logs = np.log(RATES)
    return [float(np.interp(np.log(rate), logs, [s["test"][seed] for s in own])) for seed in SEEDS]


def table(every: Mapping[int, Settings]) -> str:
    """The two tables of the page: the best rates, and what each rule gives."""
    best = []
    for batch, own in every.items():
        rates = [best_rate([one["eval"][seed] for one in own]) for seed in SEEDS]
        steps = -(-4096 // batch) * 4
        span = f"{np.exp(np.mean(np.log(rates))):.1e} ({min(rates):.1e} to {max(rates):.1e})"
        best.append([f"{batch:,}", f"about {steps:,}", span, with_interval(chosen(own)["test"])])
    header = ["batch", "steps", "best rate (of the seeds)", "test accuracy at the best rate tried"]
    lines = [markdown(header, best), ""]
    if len(every) > 1:
        slope = summarise_seeds(exponents(every))
        low, high = f"{slope['low']:.2f}", f"{slope['high']:.2f}"
        lines += [f"Exponent of the batch size: {slope['mean']:.2f} ({low} to {high}).", ""]
        largest = max(every)
        rows = []
        for name, exponent in RULES.items():
            scores = by_rule(every, largest, exponent)
            gap = of_difference(scores, chosen(every[largest])["test"])
            rows.append([name, with_interval(scores), gap])
        head = ["rule", f"test accuracy at {largest:,} examples", "against the best rate tried"]
        lines += [markdown(head, rows), ""]
    if absent := [f"{batch:,}" for batch in BATCHES if batch not in every]:
        lines.append(f"Not measured yet: {', '.join(absent)} examples.")
    return "\n".join(lines).strip()


def draw(figure: Any, every: Mapping[int, Settings]) -> None:
    """Validation accuracy against rate, one line a batch size with its seeds' spread."""
    axes = figure.subplots()
    for batch, settings in every.items():
        scores = np.array([setting["eval"] for setting in settings])  # [rates, seeds]
        (line,) = axes.plot(RATES, scores.mean(1), marker=".", label=f"batch {batch:,}")
        axes.fill_between(RATES, scores.min(1), scores.max(1), color=line.get_color(), alpha=0.12)
    axes.set(xscale="log", xlabel="peak rate", ylabel="validation accuracy")
    axes.legend(fontsize=8)


def main() -> None:
    """Train the batch sizes that are named, and write the page of all that are finished."""
    for batch in [int(one) for one in sys.argv[1:]] or MEASURED:
        settings_of(batch)
        finished = [b for b in BATCHES if Path(FOLDER, f"large_batch_{b}-study/best.yaml").exists()]
        every = {one: settings_of(one) for one in finished}
        print(text := table(every))
        write_page("large_batch", text, partial(draw, every=every))


if __name__ == "__main__":
    main()
