"""A text written from another: an encoder reads the source, a decoder learns the target.

What is scored beside the loss is what the model writes by itself for every source of a split.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from jaxft.data.batching.packing import round_up
from jaxft.data.cache import InMemory, Ragged, fingerprint
from jaxft.data.random import FIRST_EPOCH, EpochRandom
from jaxft.data.sources.open import Source
from jaxft.errors import UserError
from jaxft.metrics.translation import translation_scores
from jaxft.tasks.parts.contract import (
    HIGHER,
    LOWER,
    Card,
    Outcomes,
    Task,
)
from jaxft.tasks.parts.examples import Examples, row_marks
from jaxft.tasks.parts.labels import read_rows, text_of
from jaxft.tasks.parts.tools import Tools
from jaxft.tasks.parts.written_texts import (
    STRIDE,
    BoundWriting,
    Writing,
    encode_targets,
    target_batch,
    texts_of,
    writing_of,
)
from jaxft.tasks.seq2seq.section import Seq2SeqSection as Section

METRICS = {"loss": LOWER, **dict.fromkeys(("accuracy", "bleu", "chrf", "exact_match"), HIGHER)}


def make(section: Section) -> Seq2Seq:
    """The task as the config's `task` section describes it."""
    return Seq2Seq(section)


@dataclass(frozen=True)
class Pairs(Examples):
    """Sources and targets as token ids, a pair a row; see `jaxft.tasks.parts.contract.Examples`.

    Args:
        tokens: of each pair, the source's and then the target's ids, and which are `of_target`.
        writing: how the model writes.
        wanted: `[examples]` the targets' texts.
    """

    tokens: Ragged | InMemory
    writing: Writing
    wanted: Sequence[str]

    @property
    def counts(self) -> Mapping[str, int]:
        return self.tokens.meta["counts"]

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.tokens)

    def __len__(self) -> int:
        return len(self.tokens)

    def collate(
        self, index: np.ndarray, row_length: int, epoch_random: EpochRandom = FIRST_EPOCH
    ) -> dict[str, np.ndarray]:
        del row_length, epoch_random
        most = self.tokens.meta["longest"]
        shape = len(index), round_up(most["source"], STRIDE)
        ids, read = (
            np.full(shape, self.writing.tokenizer.pad_id, np.int32),
            np.zeros(shape, np.int32),
        )
        read[:, 0] = 1  # a row without an example still attends somewhere
        targets: list[np.ndarray | None] = [None] * len(index)
        for row, number in enumerate(index[:, 0].tolist()):
            if number < 0:
                continue
            both, of_target = (self.tokens[number][name] for name in ("both", "of_target"))
            source, targets[row] = both[of_target == 0], both[of_target == 1]
            ids[row, : len(source)], read[row, : len(source)] = source, 1
        return {
            "input_ids": ids,
            "attention_mask": read,
            **target_batch(targets, most["target"], self.writing),
            **row_marks(index),
        }


@dataclass(frozen=True)
class Seq2Seq(Task):
    """A text written from another: an encoder reads the source, a decoder learns the target."""

    section: Section

    kind = "seq2seq"
    head = "seq2seq"
    card = Card("text2text-generation", "AutoModelForSeq2SeqLM")
    view = "texts"
    metrics = METRICS
    primary = "chrf"

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.section.source, self.section.target)

    @property
    def prompt_prefix(self) -> str:
        return self.section.prefix

    def bind(self, tools: Tools, label_names: Sequence[str]) -> BoundSeq2Seq:
        return BoundSeq2Seq(self, tools, label_names)


class BoundSeq2Seq(BoundWriting[Seq2Seq, Pairs]):
    """`Seq2Seq` on a model."""

    def check_row(self, source: Source, index: int, row: Mapping[str, Any]) -> None:
        """Raise what is wrong with a row: one of its two texts."""
        del source, index
        self._pair(row)

    def examples(self, source: Source, *, labelled: bool = True) -> Pairs:
        pairs, writing = read_rows(source, self.task.columns, self._pair), writing_of(self.tools)
        texts = dict(zip(self.task.columns, map(list, zip(*pairs, strict=True)), strict=True))
        tokens = self.tools.once(
            partial(self._encode, source, texts, writing, self.tools.max_length),
            kind="pairs of texts",
            source=source.fingerprint,
            tokenizer=self.tools.tokenizer.fingerprint,
            max_length=self.tools.max_length,
            written=[writing.start, writing.end, writing.positions],
            task=self.task.section.model_dump(),
        )
        return Pairs(tokens, writing, texts[self.task.section.target])

    def _pair(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(text_of(row[column], column) for column in self.task.columns)

    def _encode(
        self,
        source: Source,
        texts: Mapping[str, list[str]],
        writing: Writing,
        max_length: int,
    ) -> tuple[list[dict[str, np.ndarray]], dict[str, Any]]:
        """Every pair's tokens; of the whole, counts and the longest of each side."""
        own = self.task.section
        sources = writing.tokenizer.encode(
            [own.prefix + one for one in texts[own.source]], None, max_length
        )
        wanted = texts[own.target], own.target
        targets, counts = encode_targets(source, *wanted, writing, own.max_target_length)
        sides = {"source": sources.ids, "target": targets}
        longest = {side: max(map(len, ids)) for side, ids in sides.items()}
        pairs = zip(sources.ids, targets, strict=True)
        return [
            {
                "both": np.concatenate([ids, new]),
                "of_target": np.repeat(np.array([0, 1], np.int32), [len(ids), len(new)]),
            }
            for ids, new in pairs
        ], {
            "counts": sources.counts | counts,
            "longest": longest,
        }

    def summarise(self, outcomes: Outcomes, examples: Pairs) -> dict[str, float]:
        texts = texts_of(outcomes["written"], examples.writing.tokenizer)
        return translation_scores(texts, examples.wanted)

    def describe(
        self, source: Source, outcomes: Outcomes, examples: Pairs
    ) -> Iterator[dict[str, Any]]:
        """Each source and target, what the model wrote, and the loss of a token."""
        texts = texts_of(outcomes["written"], examples.writing.tokenizer)
        losses = outcomes["loss"] / outcomes["scored"]
        for (_, row), text, loss in zip(source.each(self.task.columns), texts, losses, strict=True):
            own = row[self.task.section.source], row[self.task.section.target]
            yield {"source": own[0], "target": own[1], "written": text, "loss": float(loss)}

    def rows_from_input(self, inputs: Iterable[str]) -> Iterator[dict[str, Any]]:
        raise UserError("This run writes texts from sources, and has no class to give one.")
