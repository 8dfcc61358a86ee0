"""Sequence-to-sequence learning: an encoder reads the source, a decoder learns the target.

The scores beside the loss are of texts that the model generates from every source of a split.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from jaxft.data.batching.packing import round_up
from jaxft.data.random import FIRST_EPOCH, EpochRandom
from jaxft.data.sources.source import Source
from jaxft.metrics.translation import translation_scores
from jaxft.tasks.parts.card import GENERATE, READ_TEXT, WRITE, Card
from jaxft.tasks.parts.contract import Outcomes, Task
from jaxft.tasks.parts.examples import row_marks
from jaxft.tasks.parts.labels import read_rows, text_of
from jaxft.tasks.parts.metric import loss_and
from jaxft.tasks.parts.padded_texts import pad_texts
from jaxft.tasks.parts.token_examples import CachedExamples
from jaxft.tasks.parts.written_texts import (
    STRIDE,
    BoundWriting,
    Writing,
    encode_targets,
    target_batch,
)
from jaxft.tasks.seq2seq.section import Seq2SeqSection as Section


@dataclass(frozen=True)
class Pairs(CachedExamples):
    """Pairs of source and target, one per row; see `jaxft.tasks.parts.examples.Examples`.

    Args:
        tokens: the token ids of each source and then its target (`both`), and which are
            `of_target`.
        writing: the decoder's tokenizer and special tokens.
        wanted: `[examples]` the targets' texts.
    """

    writing: Writing
    wanted: Sequence[str]

    def collate(
        self, index: np.ndarray, row_length: int, epoch_random: EpochRandom = FIRST_EPOCH
    ) -> dict[str, np.ndarray]:
        del row_length, epoch_random
        longest = self.tokens.meta["longest"]
        taken = self.tokens.take(index)
        sources: list[np.ndarray] = [np.zeros(0, np.int32)] * len(index)
        targets: list[np.ndarray | None] = [None] * len(index)
        for row in np.flatnonzero(index[:, 0] >= 0):
            pair = taken[int(index[row, 0])]
            is_target = pair["of_target"] == 1
            sources[row], targets[row] = pair["both"][~is_target], pair["both"][is_target]
        pad_id, length = self.writing.tokenizer.pad_id, round_up(longest["source"], STRIDE)
        return {
            **pad_texts(sources, length, pad_id, masked=True),
            **target_batch(targets, longest["target"], self.writing),
            **row_marks(index),
        }


class BoundSeq2Seq(BoundWriting["Seq2Seq", Pairs]):
    """`Seq2Seq` on a model."""

    def check_row(self, source: Source, number: int, row: Mapping[str, Any]) -> None:
        (_, target), own = self._pair(row), self.task.section
        encode_targets(source, [target], own.target, self.writing, own.max_target_length)

    def examples(self, source: Source, *, labelled: bool = True) -> Pairs:
        writing = self.writing
        tokens = self.tools.encoded_by_row(
            partial(self._encode, writing),
            source,
            kind="pairs of texts",
            written=writing.key,
            task=self.task.section.model_dump(),
        )
        wanted = [target for _, target in self._pairs(source)]
        return Pairs(tokens, writing, wanted)

    def _pairs(self, source: Source) -> list[tuple[str, ...]]:
        return read_rows(source, self.task.columns, self._pair)

    def _pair(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        """Read the source and the target of a row."""
        return tuple(text_of(row[column], column) for column in self.task.columns)

    def _encode(
        self, writing: Writing, source: Source
    ) -> tuple[list[dict[str, np.ndarray]], dict[str, Any]]:
        """Encode every pair; the metadata are counts and the longest length of each side."""
        own, pairs = self.task.section, self._pairs(source)
        sources = writing.tokenizer.encode(
            [own.prefix + text for text, _ in pairs], None, self.tools.max_length
        )
        wanted = [target for _, target in pairs], own.target
        targets, counts = encode_targets(source, *wanted, writing, own.max_target_length)
        sides = {"source": sources.ids, "target": targets}
        examples = [
            {
                "both": np.concatenate([ids, new]),
                "of_target": np.repeat(np.array([0, 1], np.int32), [len(ids), len(new)]),
            }
            for ids, new in zip(sources.ids, targets, strict=True)
        ]
        longest = {side: max(map(len, ids)) for side, ids in sides.items()}
        return examples, {"counts": sources.counts | counts, "longest": longest}

    def summarise(self, outcomes: Outcomes, examples: Pairs) -> dict[str, float]:
        return translation_scores(self.texts(outcomes), examples.wanted)

    def describe(
        self, source: Source, outcomes: Outcomes, examples: Pairs
    ) -> Iterator[dict[str, Any]]:
        rows = source.each(self.task.columns)
        for (_, row), generated in zip(rows, self.texts_and_losses(outcomes), strict=True):
            own = self.task.section
            yield {"source": row[own.source], "target": row[own.target], **generated}


class Seq2Seq(Task):
    """Sequence-to-sequence learning: a decoder learns the target of a source."""

    section: Section

    bound = BoundSeq2Seq
    card = Card("text2text-generation", "AutoModelForSeq2SeqLM", (READ_TEXT, GENERATE, WRITE))
    metrics = loss_and("accuracy", "bleu", "chrf", "exact_match")
    primary = "chrf"
    view = "texts"

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.section.source, self.section.target)

    @property
    def prompt_prefix(self) -> str:
        return self.section.prefix


make = Seq2Seq
