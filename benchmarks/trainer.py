"""Examples a second over epochs of the demo's rows: jaxft against `transformers.Trainer`.

`python -m benchmarks.trainer` lets three contestants take turns, each in a process of its own:
jaxft, the Trainer as it comes (`default`: padded to the longest of each batch) and at its best
(`grouped`: `train_sampling_strategy="group_by_length"`). Each trains one epoch of the demo's
training rows, 32 examples a step, AdamW, clip 1, dropout on, float32. Full fine-tuning, and with
the embeddings and 4 of 6 blocks frozen. No evaluation and no save falls in the measured time;
the first steps, in which things are compiled and allocated, are left out on both sides. Speeds
are given a second of wall time and a CPU second; the wanted ratios are those of wall time on a
quiet machine, and on a busy one only the CPU seconds say something.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import CpuClock, Median, median, record, run_apart

CONFIG = "configs/sentiment.yaml"
LOG_EVERY = 5  # steps; what comes before the first log is warm-up
FROZEN_BLOCKS = 4
CONTESTANTS = {"full": ("jaxft", "default", "grouped"), "frozen": ("jaxft", "default")}
MEASURES = ("second", "cpu_second")
LEAST = {("full", "default"): 1.2, ("full", "grouped"): 1.0, ("frozen", "default"): 1.2}


def recipe(frozen: bool, rows: str) -> list[str]:
    """Config overrides that make the demo's config the plain recipe of this comparison."""
    trunk = f"{{name: trunk, depth: [0, {FROZEN_BLOCKS}], freeze: true}}"
    return [
        f"groups=[{trunk}]" if frozen else "groups=[]",
        f"data.train=csv:assets/reviews/train.csv[:{rows}]",
        "data.eval=csv:assets/reviews/train.csv[98%:]",  # scored after the measured time
        "data.test=null",
        "layer_decay.rate=1.0",
        "train.length=1 epoch",
        "train.evaluate_every=1 epoch",
        "checkpoint.every=1 epoch",
        f"train.log_every={LOG_EVERY}",
    ]


def run_jaxft(frozen: bool, rows: str) -> dict[str, float]:
    """The speeds of `jaxft train`, from the times in its metrics.jsonl."""
    import jaxft
    from jaxft.device.process import prepare_process

    prepare_process()  # before the clock's thread: glibc gives threads memory of their own
    with tempfile.TemporaryDirectory() as scratch, CpuClock() as clock:
        config = jaxft.load_config(CONFIG, [*recipe(frozen, rows), f"run.dir={scratch}"])
        run = jaxft.train(config, quiet=True)
        lines = (Path(run.folder) / "metrics.jsonl").read_text().splitlines()
    logged = [line for line in map(json.loads, lines) if line["kind"] == "train"]
    first, last = logged[0], logged[-1]
    examples = (last["epoch"] - first["epoch"]) * rows_in(rows)
    return speeds(examples, clock, first["time"], last["time"])


def speeds(examples: float, clock: CpuClock, start: float, end: float) -> dict[str, float]:
    """Examples a second and a CPU second, of those trained on between two times."""
    return {"second": examples / (end - start), "cpu_second": examples / clock.between(start, end)}


def run_trainer(frozen: bool, rows: str, grouped: bool) -> dict[str, float]:
    """The speeds of `transformers.Trainer`, from a callback at the end of each step."""
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    texts, labels = training_rows(rows)
    tokenizer = AutoTokenizer.from_pretrained("assets/minilm")
    encoded = tokenizer(texts, truncation=True, max_length=128)
    data = [
        {**{name: encoded[name][i] for name in encoded}, "label": label}
        for i, label in enumerate(labels)
    ]
    model = AutoModelForSequenceClassification.from_pretrained("assets/minilm", num_labels=2)
    if frozen:
        for part in (model.bert.embeddings, *model.bert.encoder.layer[:FROZEN_BLOCKS]):
            part.requires_grad_(False)
    times: list[float] = []

    class Times(TrainerCallback):
        def on_step_end(self, *_args, **_more):
            times.append(time.time())

    with tempfile.TemporaryDirectory() as scratch, CpuClock() as clock:
        arguments = TrainingArguments(
            output_dir=scratch,
            use_cpu=True,
            num_train_epochs=1,
            per_device_train_batch_size=32,
            learning_rate=5e-5,
            weight_decay=0.01,
            logging_steps=LOG_EVERY,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            train_sampling_strategy="group_by_length" if grouped else "random",
        )
        collator = DataCollatorWithPadding(tokenizer)
        Trainer(model, arguments, collator, data, callbacks=[Times()]).train()
    whole = len(times) - 1 if len(data) % 32 else len(times)  # the last batch may be smaller
    return speeds(32 * (whole - LOG_EVERY), clock, times[LOG_EVERY - 1], times[whole - 1])


def training_rows(rows: str) -> tuple[list[str], list[int]]:
    """The texts and labels (0 negative, 1 positive) that jaxft trains on."""
    from jaxft.data.sources.open import open_source

    source = open_source(f"csv:assets/reviews/train.csv[:{rows}]")
    found = source.rows(range(len(source)))
    return [row["text"] for row in found], [int(row["label"] == "positive") for row in found]


def rows_in(rows: str) -> int:
    """How many rows a share such as `90%` is."""
    return len(training_rows(rows)[0])


def one(contestant: str, mode: str, rows: str) -> dict[str, float]:
    """One turn of a contestant, in a process of its own."""
    return run_apart("trainer", "--one", contestant, "--mode", mode, "--rows", rows)


def compare(mode: str, pairs: int, rows: str) -> dict[str, Any]:
    """Let the contestants of a mode take turns; print and return their speeds and ratios."""
    names = CONTESTANTS[mode]
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for turn in range(pairs):
        # Every other turn runs backwards, so that a drifting machine favours nobody.
        for name in names[:: -1 if turn % 2 else 1]:
            turns[name].append(one(name, mode, rows))
        for measure in MEASURES:
            now = ", ".join(f"{name} {turns[name][-1][measure]:.1f}" for name in names)
            print(f"{mode}, {turn + 1} of {pairs}: {now} examples a {measure}", flush=True)
    results = {measure: summary(turns, measure) for measure in MEASURES}
    for measure, result in results.items():
        for other, ratio in result["ratios"].items():
            wanted = f"; at least {LEAST[mode, other]} wanted" if measure == "second" else ""
            said = f"{mode}: jaxft / Trainer ({other}), examples a {measure} = "
            print(f"{said}{Median(**ratio)}{wanted}")
    return results


def summary(turns: dict[str, list[dict[str, float]]], measure: str) -> dict[str, Any]:
    """The median speed of each contestant, and the ratios of jaxft's to the others'."""
    values = {name: [turn[measure] for turn in taken] for name, taken in turns.items()}
    ours = values["jaxft"]
    return {
        "examples": {name: median(taken).median for name, taken in values.items()},
        "ratios": {
            name: vars(median([a / b for a, b in zip(ours, taken, strict=True)]))
            for name, taken in values.items()
            if name != "jaxft"
        },
    }


def main() -> int:
    """Compare both modes, record the ratios, and say whether they are as wanted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=9, help="turns a contestant takes")
    parser.add_argument("--rows", default="90%", help="share of train.csv; less is quicker")
    parser.add_argument("--mode", choices=CONTESTANTS, help="one mode only")
    parser.add_argument("--one", choices=CONTESTANTS["full"], help="one turn, here: its speeds")
    given = parser.parse_args()
    if given.one:
        frozen = given.mode == "frozen"
        if given.one == "jaxft":
            speed = run_jaxft(frozen, given.rows)
        else:
            speed = run_trainer(frozen, given.rows, given.one == "grouped")
        print(json.dumps(speed))
        return 0
    modes = [given.mode] if given.mode else list(CONTESTANTS)
    results = {mode: compare(mode, given.pairs, given.rows) for mode in modes}
    record("trainer", {"rows": given.rows, "load": os.getloadavg()[1], **results})
    short = [
        (mode, other)
        for mode in modes
        for other, ratio in results[mode]["second"]["ratios"].items()
        if ratio["median"] < LEAST[mode, other]
    ]
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
