"""The same recipe in PyTorch: what jaxft's scores are held against.

`python -m benchmarks.twin CONFIG [key=value...]` trains `transformers`' own classifier of texts,
words or images on the same rows, frozen where the config freezes, with the same rate and weight
decay for each parameter, schedule, clip, batch size, dropout and choice of the best step, and
prints one JSON line. The mathematics is PyTorch's; so are tokens and pixels (`twin_rows`). Where
each row is an example, as of images, the batches are jaxft's to the example; where jaxft packs
texts, they are as many of a shuffle.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Iterator

import numpy as np
import torch
from transformers import get_scheduler
from transformers.utils import logging

from benchmarks.twin_rows import ROWS, Rows
from jaxft.config.load import Config, load_config, resolve_steps
from jaxft.engine.remat import phase_setups
from jaxft.engine.setup import Setup, build

SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}
SCORED = 64  # examples a batch that is only scored


class Twin:
    """A PyTorch model, its optimizer and its rows, as a jaxft config describes them."""

    def __init__(self, built: Setup):
        config = built.config
        self.config, self.plan = config, None if built.task.packs else built.plan
        torch.manual_seed(config.run.seed.init)
        kind = ROWS[config.task.kind]
        self.model = kind.architecture.from_pretrained(
            str(built.model.source.folder),
            num_labels=len(built.label_names),
            **_dropout(config.model.dropout),
        )
        self.rows: dict[str, Rows] = {
            name: kind(built, split) for name, split in built.splits.items()
        }
        self.steps_per_epoch = -(-len(self.rows["train"]) // config.data.batch_size)
        self.total = resolve_steps(config.train.length, 0, self.steps_per_epoch)
        self.optimizer = torch.optim.AdamW(
            self._parameters(built),
            betas=(config.optimizer.b1, config.optimizer.b2),
            eps=config.optimizer.eps,
        )
        warmup = resolve_steps(config.schedule.warmup, self.total, self.steps_per_epoch)
        self.schedule = get_scheduler(
            SCHEDULES[config.schedule.kind], self.optimizer, warmup, self.total
        )

    def _parameters(self, built: Setup) -> list[dict]:
        """One parameter group a leaf: the layer table's peak rate and weight decay, by HF name."""
        theirs = dict(self.model.named_parameters())
        # Of some families transformers has other names in memory than in files.
        renamed = built.model.family.tensors.in_memory
        chosen = []
        for row in phase_setups(built)[0].table.rows():
            stored = built.model.names[row["name"]]
            parameter = theirs.pop(renamed(stored, built.model.model_type))
            parameter.requires_grad_(row["trainable"])
            if row["trainable"]:
                decay = row["weight_decay"]
                chosen.append({"params": parameter, "lr": row["peak_rate"], "weight_decay": decay})
        if theirs:
            raise SystemExit(f"the layer table does not know {', '.join(theirs)}")
        return chosen

    def order(self) -> Iterator[np.ndarray]:
        """Training batches without end: jaxft's own, or of a new permutation each epoch."""
        draw = np.random.default_rng(self.config.run.seed.data)
        size, step = self.config.data.batch_size, 0
        while self.plan is not None:
            planned = self.plan.batch(step)
            yield planned[planned >= 0]
            step += 1
        while True:
            shuffled = draw.permutation(len(self.rows["train"]))
            yield from (shuffled[at : at + size] for at in range(0, len(shuffled), size))

    def score(self, split: str) -> float:
        """The metric of a split."""
        self.model.eval()
        rows, said = self.rows[split], []
        with torch.no_grad():
            for at in range(0, len(rows), SCORED):
                batch = rows.batch(range(at, min(at + SCORED, len(rows))))
                said.extend(self.model(**batch).logits.argmax(-1).numpy())
        self.model.train()
        return rows.score(said)

    def train(self) -> dict[str, float | str]:
        """Train to the end; the test score is that of the step which is best on eval."""
        every = resolve_steps(self.config.train.evaluate_every, self.total, self.steps_per_epoch)
        batches = self.order()
        best, kept, seconds = -1.0, None, 0.0
        torch.manual_seed(self.config.run.seed.dropout)
        self.model.train()
        for step in range(1, self.total + 1):
            started = time.perf_counter()
            self.step(next(batches))
            seconds += time.perf_counter() - started
            if step % every == 0 or step == self.total:
                score = self.score("eval")
                if score >= best:
                    best, kept = score, copy.deepcopy(self.model.state_dict())
        self.model.load_state_dict(kept)
        examples = self.total / self.steps_per_epoch * len(self.rows["train"])
        return {
            "metric": self.rows["test"].metric,
            "test": self.score("test"),
            "eval": best,
            "examples_per_second": examples / seconds,
        }

    def step(self, index: np.ndarray) -> float:
        """One optimizer step on some training examples; its loss before it."""
        rows = self.rows["train"]
        loss = self.model(**rows.batch(index.tolist())).loss
        loss.backward()
        if self.config.optimizer.clip is not None:
            trainable = [p for p in self.model.parameters() if p.requires_grad]
            torch.nn.utils.clip_grad_norm_(trainable, self.config.optimizer.clip)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()


def _dropout(rate: float | None) -> dict[str, float]:
    if rate is None:
        return {}
    return {"hidden_dropout_prob": rate, "attention_probs_dropout_prob": rate}


def _check(config: Config) -> None:
    """Stop where the config asks for what this twin does not do."""
    known = (
        config.task.kind in ROWS
        and config.optimizer.name == "adamw"
        and config.schedule.kind in SCHEDULES
        and config.schedule.end == 0
        and config.train.ema is None
        and not any(group.schedule or group.optimizer for group in config.groups)
    )
    if not known:
        raise SystemExit(
            "the PyTorch twin knows classes of texts, words and images, AdamW and one constant, "
            "linear or cosine schedule that ends at 0, for all groups, without an average"
        )


def main() -> None:
    """Train the twin of a config and print its scores as one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    given = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    config = load_config(given.config, given.overrides)
    _check(config)
    print(json.dumps(Twin(build(config)).train()))


if __name__ == "__main__":
    main()
