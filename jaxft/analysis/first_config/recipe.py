"""The recipe of a first config: what is frozen, rates, batch size, length, and the splits."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxft.analysis.first_config.checkpoints import Described
from jaxft.analysis.first_config.locate import Located
from jaxft.analysis.first_config.questions import Answers, Question
from jaxft.analysis.first_config.sample import Sample
from jaxft.data.sources.open import open_source
from jaxft.data.sources.source import Source
from jaxft.errors import UserError
from jaxft.numbers import count, counted

# Answers to --freeze: the share of the blocks, counted from below, that is frozen.
FREEZE: Mapping[str, Callable[[int], int | None]] = {
    "none": lambda blocks: None,
    "embeddings": lambda blocks: 0,
    "third": lambda blocks: blocks // 3,
    "half": lambda blocks: blocks // 2,
    "two-thirds": lambda blocks: 2 * blocks // 3,
    "head-only": lambda blocks: blocks,
    "lora": lambda blocks: None,
}
HEAD = "(head|pooler)/.*"
GENERATING = ("causal_lm", "dpo", "seq2seq")
LEAST_ROWS = 20
STEPS = 300  # of a run on few rows, about
MOST_EPOCHS = 12
ONE_EPOCH = 1000  # steps per epoch, from which one is enough
SEEDS = 8  # that are tried for splits with all classes
FEW = 1000  # rows, up to which 8 times as many are tried
LACKS = 1e6  # as bad as any deviation
MOST_TRIED = 20_000  # rows of a source that seeds are tried on


@dataclass(frozen=True)
class Recipe:
    """Sections of the config besides model, task and data.

    Attributes:
        groups: of the layer table.
        adapter: the `adapter` section; empty without one.
        lr: the peak learning rate.
        decay: of the learning rate, a layer.
        batch_size: examples of a step.
        epochs: passes over the training rows.
        why: key -> reason.
    """

    groups: list[dict[str, Any]]
    adapter: dict[str, Any]
    lr: float
    decay: float
    batch_size: int
    epochs: int
    why: Mapping[str, str]


def make_recipe(task: str, checkpoint: Described, rows: int, answers: Answers) -> Recipe:
    """Choose what trains, at which rates, and for how long.

    Args:
        task: `task.kind`.
        checkpoint: the model.
        rows: training rows, about.
        answers: of the person, for `--freeze`.
    """
    blocks, generates = checkpoint.blocks, task in GENERATING
    default = "lora" if task in ("causal_lm", "dpo") else "third"
    reason = (
        "low-rank matrices need little memory"
        if default == "lora"
        else "the lower layers are general; freezing them saves their backward pass"
    )
    question = Question("--freeze", "Freeze", tuple(FREEZE), default, reason, certain=True)
    frozen, why = answers.to(question)
    depth = FREEZE[frozen](blocks)
    groups: list[dict[str, Any]] = []
    if any(re.fullmatch(HEAD, name) for name in checkpoint.model.leaves) and not generates:
        groups.append({"name": "head", "match": HEAD, "lr_mult": 5})
    if depth is not None:
        groups.append({"name": "trunk", "depth": [0, depth], "freeze": True})
    adapter = {"kind": "lora", "rank": 8} if frozen == "lora" else {}
    lr = _rate(checkpoint.parameters, bool(adapter))
    batch = 8 if generates or rows < 300 else 16 if rows < 2000 else 32
    steps = max(1, rows // batch)
    least = 1 if steps >= ONE_EPOCH or generates else 2
    epochs = 1 if generates else min(MOST_EPOCHS, max(least, math.ceil(STEPS / steps)))
    return Recipe(
        groups,
        adapter,
        lr,
        0.9 if not adapter and blocks > 1 and frozen != "head-only" else 1.0,
        batch,
        epochs,
        {
            "groups": f"--freeze {frozen}: {why}" + (f" ({blocks} blocks)" if blocks else ""),
            "optimizer.lr": f"usual for {count(checkpoint.parameters)} parameters",
            "data.batch_size": f"for about {rows:,} training rows",
            "train.length": f"{counted(epochs * steps, 'step')} of {steps:,} per epoch",
        },
    )


def _rate(parameters: int, adapter: bool) -> float:
    """Return the usual peak learning rate of a model of this size."""
    if adapter:
        return 2e-4
    return 1e-4 if parameters < 50e6 else 5e-5 if parameters < 200e6 else 2e-5


@dataclass(frozen=True)
class Splits:
    """Source strings of the splits, with the seed that shuffles the rows.

    Attributes:
        train, eval, test: source strings; no test rows where None.
        seed: `run.seed.data`.
        rows: training rows, about.
        why: the reason.
    """

    train: str
    eval: str
    test: str | None
    seed: int
    rows: int
    why: str


def make_splits(located: Located, sample: Sample, label: str | None) -> Splits:
    """Hold rows out for eval and test where the data have no such splits.

    Rows are shuffled by a seed before they are cut. Where the data have classes, the seed is that
    of `SEEDS` whose held-out rows have each class most nearly at its share in all rows.

    Args:
        located: the splits that there are.
        sample: of the training rows.
        label: the column of the classes, if there is one.

    Raises:
        UserError: there are fewer than `LEAST_ROWS` rows.
    """
    total, train = sample.total, located.train
    if total < LEAST_ROWS:
        raise UserError(
            f"{train} has {total} rows, of which none can be held out.",
            f"At least {LEAST_ROWS} are needed.",
        )
    if located.eval is not None:
        return Splits(train, located.eval, located.test, 0, total, "the data have these splits")
    if located.test is not None:
        cuts = {"train": "[:90%]", "eval": "[90%:]"}
        share, text = 0.9, "a tenth of the rows is held out for eval"
    else:
        cuts = {"train": "[:80%]", "eval": "[80%:90%]", "test": "[90%:]"}
        share, text = 0.8, "two tenths of the rows are held out, for eval and test"
    cuts_out = [cut for split, cut in cuts.items() if split != "train"]
    seed = _stratifying_seed(train, cuts_out, sample, label)
    why = f"{text}; rows are shuffled by run.seed.data"
    if seed is not None:
        why += f" = {seed}, chosen to keep the share of each class close"
    test = located.test or (f"{train}{cuts['test']}" if "test" in cuts else None)
    spec = f"{train}{cuts['train']}"
    return Splits(spec, f"{train}{cuts['eval']}", test, seed or 0, int(total * share), why)


def _stratifying_seed(
    train: str, cuts_out: list[str], sample: Sample, label: str | None
) -> int | None:
    """Return the seed whose held-out rows have the classes most nearly as all rows have them."""
    if label is None or sample.source is None or len(sample.source) > MOST_TRIED:
        return None
    whole = _shares(sample.source, label)
    many = SEEDS if len(sample.source) > FEW else 8 * SEEDS
    worst = {
        seed: max(_deviation(open_source(train + cut, seed=seed), label, whole) for cut in cuts_out)
        for seed in range(many)
    }
    return min(worst, key=lambda seed: (worst[seed], seed))


def _shares(source: Source, label: str) -> dict[str, float]:
    counts = Counter(str(row[label]) for _, row in source.each([label]))
    return {name: many / len(source) for name, many in counts.items()}


def _deviation(source: Source, label: str, whole: Mapping[str, float]) -> float:
    """Return the largest relative deviation of a class's share; far more if classes are missing."""
    shares = _shares(source, label)
    missing = len(whole.keys() - shares.keys())
    return LACKS * missing + max(
        abs(shares.get(n, 0) - share) / share for n, share in whole.items()
    )
