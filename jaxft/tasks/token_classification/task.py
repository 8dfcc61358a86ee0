"""Entities in a text: a tag for each word, read at its first token."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxft.data.sources.open import Source
from jaxft.data.text.tags import OUTSIDE, join_words, words_of
from jaxft.data.text.tokenizer import Tokenizer
from jaxft.metrics.entities import entities, entity_scores
from jaxft.models.layers.loss import UNSCORED
from jaxft.tasks.parts.contract import (
    HIGHER,
    LOWER,
    Batch,
    BoundTask,
    Card,
    Outcomes,
    Outputs,
    Sum,
    Sums,
    Task,
)
from jaxft.tasks.parts.token_examples import of_segments
from jaxft.tasks.parts.tools import Tools
from jaxft.tasks.token_classification.section import TokenClassificationSection as Section
from jaxft.tasks.token_classification.sentences import Sentences
from jaxft.tasks.token_classification.tagged import (
    check_sentence,
    check_words,
    sentence_tags,
    tag_ids,
    tag_names,
)

NO_WORD = -1  # in place of the number of a word, where none begins
METRICS = {"loss": LOWER, **dict.fromkeys(("accuracy", "f1", "precision", "recall"), HIGHER)}


def make(section: Section) -> TokenClassification:
    """The task as the config's `task` section describes it."""
    return TokenClassification(section)


@dataclass(frozen=True)
class TokenClassification(Task):
    """Entities in a text: a tag for each word, read at its first token."""

    section: Section

    kind = "token_classification"
    head = "token_classification"
    card = Card("token-classification", "AutoModelForTokenClassification")
    view = "entities"
    metrics = METRICS
    primary = "f1"
    packs = True

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.section.tokens, self.section.tags)

    def label_names(self, source: Source) -> tuple[str, ...]:
        return tag_names(source, self.section)

    @property
    def text_columns(self) -> tuple[str, ...]:
        return (self.section.tokens,)

    @property
    def label_column(self) -> str | None:
        return self.section.tags

    def bind(self, tools: Tools, label_names: Sequence[str]) -> BoundTokenClassification:
        return BoundTokenClassification(self, tools, label_names)


class BoundTokenClassification(BoundTask[TokenClassification, Sentences]):
    """`TokenClassification` on a model."""

    def check_row(self, source: Source, number: int, row: Mapping[str, Any]) -> None:
        """Raise what is wrong with a row: its words or its tags."""
        where, own = source.place(number), self.task.section
        check_sentence(where, row[own.tokens], own.tokens)
        sentence_tags(where, row[own.tokens], row[own.tags], own, self.label_names)

    def examples(self, source: Source, *, labelled: bool = True) -> Sentences:
        if labelled:
            check_words(source, self.task.section.tokens)
        tokens = self.tools.once(
            partial(self._encode, source, self.tools.tokenizer, self.tools.max_length),
            kind="words",
            source=source.fingerprint,
            tokenizer=self.tools.tokenizer.fingerprint,
            max_length=self.tools.max_length,
            columns=(self.task.section.tokens,),
        )
        return Sentences(
            tokens, None if not labelled else tag_ids(source, self.task.section, self.label_names)
        )

    def _texts(self, source: Source) -> Iterator[tuple[str, list[tuple[int, int]]]]:
        """Each row's text, and where its words begin and end in it."""
        for _, row in source.each((self.task.section.tokens,)):
            words = row[self.task.section.tokens]
            yield (words, words_of(words)) if isinstance(words, str) else join_words(words)

    def _encode(
        self, source: Source, tokenizer: Tokenizer, max_length: int
    ) -> tuple[list[dict[str, np.ndarray]], dict[str, Any]]:
        """Every row's token ids and which word each begins; of the whole, counts and cuts."""
        texts, words = zip(*self._texts(source), strict=True)
        encoded = tokenizer.encode(list(texts), max_length=max_length, placed=True)
        begun = [_begun(*one) for one in zip(texts, words, encoded.spans, strict=True)]
        examples = [
            {"input_ids": ids, "token_type_ids": types, "words": own}
            for ids, types, own in zip(encoded.ids, encoded.type_ids, begun, strict=True)
        ]
        said = sum(int((own >= 0).sum()) for own in begun)
        counts = {**encoded.counts, "words": sum(map(len, words))}
        counts["words_without_a_token"] = counts["words"] - said
        return examples, {"counts": counts, "cut": encoded.cut}

    def loss(self, outputs: Outputs, batch: Batch) -> Sum:
        return jnp.sum(_losses(outputs, batch)), _scored(batch).sum(dtype=jnp.float32)

    def metrics(self, outputs: Outputs, batch: Batch) -> Sums:
        right = (jnp.argmax(outputs["logits"], axis=-1) == batch["targets"]) & _scored(batch)
        weight = _scored(batch).sum(dtype=jnp.float32)
        return {"accuracy": (right.sum(dtype=jnp.float32), weight)}

    def outcomes(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
        """Of each example's tokens [R, S, T] the tag and how sure it is; and its loss, its words.

        An example begins at its own first token, whatever stands before it in its row.
        """
        shares = jax.nn.softmax(outputs["logits"].astype(jnp.float32), axis=-1)  # [R, T, C]
        length = shares.shape[1]
        places = batch["read_positions"][..., None] + jnp.arange(length)  # [R, S, T]
        places = jnp.minimum(places, length - 1)  # beyond its end an example is read by no one

        def own(values: jax.Array) -> jax.Array:
            """[R, T] -> [R, S, T]."""
            return jnp.take_along_axis(values[:, None, :], places, axis=-1)

        kept = {"tags": own(jnp.argmax(shares, axis=-1)), "sure": own(jnp.max(shares, axis=-1))}
        if "targets" not in batch:
            return kept
        inside = of_segments(batch["segment_ids"], batch["weights"].shape[1])  # [R, S, T]
        losses, scored = _losses(outputs, batch), _scored(batch)
        return kept | {
            "loss": jnp.where(inside, losses[:, None, :], 0.0).sum(-1),
            "scored": (inside & scored[:, None, :]).sum(-1),
        }

    def summarise(self, outcomes: Outcomes, examples: Sentences) -> dict[str, float]:
        if examples.tags is None:
            return {}
        true = [[self.label_names[tag] for tag in tags] for tags in examples.tags]
        said = [
            [self.label_names[tag] for tag in self._said(number, outcomes, examples, len(tags))]
            for number, tags in enumerate(true)
        ]
        return entity_scores(true, said)

    def _said(
        self,
        number: int,
        outcomes: Outcomes,
        examples: Sentences,
        count: int,
    ) -> list[int]:
        """The tag that each word of a sentence is given; a word without a token is outside."""
        return examples.by_word(
            number, outcomes["tags"][number], count, self.label_names.index(OUTSIDE)
        )

    def describe(
        self, source: Source, outcomes: Outcomes, examples: Sentences
    ) -> Iterator[dict[str, Any]]:
        """Each text with the entities that are found in it and, with tags, those that are there."""
        for number, (text, words) in enumerate(self._texts(source)):
            said = self._said(number, outcomes, examples, len(words))
            sure = examples.by_word(number, outcomes["sure"][number], len(words), 0.0)
            found = list(_spans(text, words, [self.label_names[tag] for tag in said], sure))
            if examples.tags is None:
                yield {"text": text, "entities": found}
                continue
            true = [self.label_names[tag] for tag in examples.tags[number]]
            yield {
                "text": text,
                "entities": found,
                "gold": list(_spans(text, words, true)),
                "loss": float(outcomes["loss"][number] / max(outcomes["scored"][number], 1)),
            }

    def rows_from_input(self, inputs: Iterable[str]) -> Iterator[dict[str, Any]]:
        for text in inputs:
            yield {self.task.section.tokens: text}


def _begun(text: str, words: Sequence[tuple[int, int]], spans: np.ndarray) -> np.ndarray:
    """The number of the word that begins in each token, -1 where none does: [tokens] int32."""
    found = np.full(len(spans), NO_WORD, np.int32)
    starts = np.array([start for start, _ in words], np.int64)
    before = -1
    for token, (start, end) in enumerate(spans.tolist()):
        while start < end and text[start].isspace():  # some tokens hold the space before a word
            start += 1
        if start < end:
            word = int(np.searchsorted(starts, start, side="right")) - 1
            if word > before:
                found[token] = before = word
    return found


def _spans(
    text: str,
    words: Sequence[tuple[int, int]],
    tags: Sequence[str],
    sure: Sequence[float] | None = None,
) -> Iterator[dict[str, Any]]:
    """The entities of a text by their characters; `score` is the mean of their words'."""
    for kind, first, last in entities(tags):
        start, end = words[first][0], words[last][1]
        found = {"type": kind, "text": text[start:end], "start": start, "end": end}
        if sure is not None:
            found["score"] = round(float(np.mean(sure[first : last + 1])), 6)
        yield found


def _scored(batch: Batch) -> jax.Array:
    """Where a token begins a word: [R, T] bool."""
    return batch["targets"] != UNSCORED


def _losses(outputs: Mapping[str, jax.Array], batch: Batch) -> jax.Array:
    """Cross-entropy at each token that begins a word, 0 elsewhere: [R, T]."""
    logits, scored = outputs["logits"].astype(jnp.float32), _scored(batch)
    targets = jnp.where(scored, batch["targets"], 0)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return jnp.where(scored, losses, 0.0)
