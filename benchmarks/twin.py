"""The same recipe in PyTorch: what jaxft's accuracy is held against.

`python -m benchmarks.twin CONFIG [key=value...]` trains `transformers`' own
`AutoModelForSequenceClassification` on the same rows, frozen where the config freezes, with the
same rate and weight decay for each parameter, schedule, clip, batch size, dropout and choice of
the best step, and prints one JSON line. The mathematics is PyTorch's; tokens are those of
`AutoTokenizer`, padded to the longest of each batch.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_scheduler
from transformers.utils import logging

from jaxft.config import Config, load_config, resolve_steps
from jaxft.config_classes import TextClassification
from jaxft.engine.build import Build, build
from jaxft.engine.inputs import Split

SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


@dataclass(frozen=True)
class Rows:
    """One split, tokenised by `transformers`."""

    tokens: list[dict[str, list[int]]]
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.tokens)


class Twin:
    """A PyTorch model, its optimizer and its rows, as a jaxft config describes them."""

    def __init__(self, built: Build):
        config = built.config
        self.config = config
        torch.manual_seed(config.run.seed.init)
        folder = str(built.model.source.folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=len(built.label_names), **_dropout(config.model.dropout)
        )
        self.rows = {name: self._tokenised(split) for name, split in built.splits.items()}
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

    def _tokenised(self, split: Split) -> Rows:
        if not isinstance(self.config.task, TextClassification):
            raise SystemExit("the twin knows text_classification only")
        texts = [row[self.config.task.text] for row in split.source.rows(range(len(split.source)))]
        encoded = self.tokenizer(texts, truncation=True, max_length=self.config.data.max_length)
        tokens = [
            dict(zip(encoded, row, strict=True)) for row in zip(*encoded.values(), strict=True)
        ]
        return Rows(tokens, torch.from_numpy(split.examples.labels).long())

    def _parameters(self, built: Build) -> list[dict]:
        """One parameter group a leaf: the layer table's peak rate and weight decay, by HF name."""
        theirs = dict(self.model.named_parameters())
        chosen = []
        for row in built.table.rows():
            parameter = theirs.pop(built.model.names[row["name"]])
            parameter.requires_grad_(row["trainable"])
            if row["trainable"]:
                decay = row["weight_decay"]
                chosen.append({"params": parameter, "lr": row["peak_rate"], "weight_decay": decay})
        if theirs:
            raise SystemExit(f"the layer table does not know {', '.join(theirs)}")
        return chosen

    def batch(self, rows: Rows, index: Iterable[int]) -> dict[str, torch.Tensor]:
        """The examples `index` of `rows`, padded to the longest of them."""
        chosen = list(index)
        padded = self.tokenizer.pad([rows.tokens[i] for i in chosen], return_tensors="pt")
        return {**padded, "labels": rows.labels[chosen]}

    def order(self) -> Iterator[np.ndarray]:
        """Training batches without end: a new permutation each epoch."""
        draw = np.random.default_rng(self.config.run.seed.data)
        size = self.config.data.batch_size
        while True:
            shuffled = draw.permutation(len(self.rows["train"]))
            yield from (shuffled[at : at + size] for at in range(0, len(shuffled), size))

    def accuracy(self, split: str) -> float:
        """The share of a split that the model labels right."""
        self.model.eval()
        rows = self.rows[split]
        right = 0
        with torch.no_grad():
            for at in range(0, len(rows), 64):
                batch = self.batch(rows, range(at, min(at + 64, len(rows))))
                right += int((self.model(**batch).logits.argmax(-1) == batch["labels"]).sum())
        self.model.train()
        return right / len(rows)

    def train(self) -> dict[str, float]:
        """Train to the end; the test accuracy is that of the step which is best on eval."""
        every = resolve_steps(self.config.train.evaluate_every, self.total, self.steps_per_epoch)
        batches = self.order()
        best, kept, seconds = -1.0, None, 0.0
        torch.manual_seed(self.config.run.seed.dropout)
        self.model.train()
        for step in range(1, self.total + 1):
            started = time.perf_counter()
            self.step(self.batch(self.rows["train"], next(batches)))
            seconds += time.perf_counter() - started
            if step % every == 0 or step == self.total:
                score = self.accuracy("eval")
                if score >= best:
                    best, kept = score, copy.deepcopy(self.model.state_dict())
        self.model.load_state_dict(kept)
        examples = self.total / self.steps_per_epoch * len(self.rows["train"])
        return {
            "test_accuracy": self.accuracy("test"),
            "eval_accuracy": best,
            "examples_per_second": examples / seconds,
        }

    def step(self, batch: dict[str, torch.Tensor]) -> None:
        """One optimizer step."""
        self.model(**batch).loss.backward()
        if self.config.optimizer.clip is not None:
            trainable = [p for p in self.model.parameters() if p.requires_grad]
            torch.nn.utils.clip_grad_norm_(trainable, self.config.optimizer.clip)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)


def _dropout(rate: float | None) -> dict[str, float]:
    if rate is None:
        return {}
    return {"hidden_dropout_prob": rate, "attention_probs_dropout_prob": rate}


def _check(config: Config) -> None:
    """Stop where the config asks for what this twin does not do."""
    known = (
        config.optimizer.name == "adamw"
        and config.schedule.kind in SCHEDULES
        and config.schedule.end == 0
        and config.train.ema is None
        and not any(group.schedule or group.optimizer for group in config.groups)
    )
    if not known:
        raise SystemExit(
            "the PyTorch twin knows AdamW and one constant, linear or cosine schedule that ends at "
            "0, for all groups, without an average"
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
