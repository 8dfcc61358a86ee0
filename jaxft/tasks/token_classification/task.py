"""Token classification: named entities, a tag per word, predicted at its first token."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxft.data.sources.source import Source
from jaxft.data.text.tags import OUTSIDE, join_words, words_of
from jaxft.metrics.entities import entities, entity_scores
from jaxft.tasks.parts.card import APPLY, READ_TEXT, Card
from jaxft.tasks.parts.contract import Batch, BoundTask, Outcomes, Outputs, Sum, Sums, Task
from jaxft.tasks.parts.metric import loss_and
from jaxft.tasks.parts.token_examples import is_scored, of_segments
from jaxft.tasks.token_classification.section import TokenClassificationSection as Section
from jaxft.tasks.token_classification.sentences import Sentences
from jaxft.tasks.token_classification.tagged import (
    check_sentence,
    check_words,
    sentence_tags,
    tag_ids,
    tag_names,
)

NO_WORD = -1  # of a token in which no word begins


class BoundTokenClassification(BoundTask["TokenClassification", Sentences]):
    """`TokenClassification` on a model."""

    def check_row(self, source: Source, number: int, row: Mapping[str, Any]) -> None:
        where, own = source.place(number), self.task.section
        check_sentence(where, row[own.tokens], own.tokens)
        sentence_tags(where, row[own.tokens], row[own.tags], own, self.label_names)

    def examples(self, source: Source, *, labelled: bool = True) -> Sentences:
        if labelled:
            check_words(source, self.task.section.tokens)
        tokens = self.tools.encoded_by_row(
            self._encode, source, kind="words", columns=(self.task.section.tokens,)
        )
        return Sentences(
            tokens, None if not labelled else tag_ids(source, self.task.section, self.label_names)
        )

    def _texts(self, source: Source) -> Iterator[tuple[str, list[tuple[int, int]]]]:
        """Yield each row's text, and the start and end of its words."""
        for _, row in source.each((self.task.section.tokens,)):
            words = row[self.task.section.tokens]
            yield (words, words_of(words)) if isinstance(words, str) else join_words(words)

    def _encode(self, source: Source) -> tuple[list[dict[str, np.ndarray]], dict[str, Any]]:
        """Encode every row, with the word that begins in each token; counts, truncated tokens."""
        texts, words = zip(*self._texts(source), strict=True)
        encode, most = self.tools.tokenizer.encode, self.tools.max_length
        encoded = encode(list(texts), max_length=most, placed=True)
        starts = [_word_starts(*one) for one in zip(texts, words, encoded.spans, strict=True)]
        examples = [
            {"input_ids": ids, "token_type_ids": types, "words": own}
            for ids, types, own in zip(encoded.ids, encoded.type_ids, starts, strict=True)
        ]
        counts = {**encoded.counts, "words": sum(map(len, words))}
        with_token = sum(int((own >= 0).sum()) for own in starts)
        counts["words_without_a_token"] = counts["words"] - with_token
        return examples, {"counts": counts, "cut": encoded.cut}

    def loss(self, outputs: Outputs, batch: Batch) -> Sum:
        return jnp.sum(_losses(outputs, batch)), is_scored(batch).sum(dtype=jnp.float32)

    def metrics(self, outputs: Outputs, batch: Batch) -> Sums:
        right = (jnp.argmax(outputs["logits"], axis=-1) == batch["targets"]) & is_scored(batch)
        weight = is_scored(batch).sum(dtype=jnp.float32)
        return {"accuracy": (right.sum(dtype=jnp.float32), weight)}

    def outcomes(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
        """Return `tags` and their probabilities `sure` `[R, S, T]`; with targets `loss`, `scored`.

        An example's first token is at position 0, whatever precedes it in its row.
        """
        shares = jax.nn.softmax(outputs["logits"].astype(jnp.float32), axis=-1)  # [R, T, C]
        length = shares.shape[1]
        positions = batch["read_positions"][..., None] + jnp.arange(length)  # [R, S, T]
        positions = jnp.minimum(positions, length - 1)  # values beyond an example's end are unused

        def own(values: jax.Array) -> jax.Array:
            """Gather the positions of each example: `[R, T]` -> `[R, S, T]`."""
            return jnp.take_along_axis(values[:, None, :], positions, axis=-1)

        tags = {"tags": own(jnp.argmax(shares, axis=-1)), "sure": own(jnp.max(shares, axis=-1))}
        if "targets" not in batch:
            return tags
        inside = of_segments(batch["segment_ids"], batch["weights"].shape[1])  # [R, S, T]
        losses, scored = _losses(outputs, batch), is_scored(batch)
        return tags | {
            "loss": jnp.where(inside, losses[:, None, :], 0.0).sum(-1),
            "scored": (inside & scored[:, None, :]).sum(-1),
        }

    def summarise(self, outcomes: Outcomes, examples: Sentences) -> dict[str, float]:
        if examples.tags is None:
            return {}
        true = [self._names(tags.tolist()) for tags in examples.tags]
        predicted = [
            self._predicted(number, outcomes, examples, len(tags))
            for number, tags in enumerate(true)
        ]
        return entity_scores(true, predicted)

    def _names(self, tags: Iterable[int]) -> list[str]:
        return [self.label_names[tag] for tag in tags]

    def _predicted(
        self, number: int, outcomes: Outcomes, examples: Sentences, count: int
    ) -> list[str]:
        """Return the predicted tag of each word of a sentence; O for a word without a token."""
        outside = self.label_names.index(OUTSIDE)
        return self._names(examples.by_word(number, outcomes["tags"][number], count, outside))

    def describe(
        self, source: Source, outcomes: Outcomes, examples: Sentences
    ) -> Iterator[dict[str, Any]]:
        """Yield each text with its predicted entities and, with tags, the true ones."""
        for number, (text, words) in enumerate(self._texts(source)):
            tags = self._predicted(number, outcomes, examples, len(words))
            sure = examples.by_word(number, outcomes["sure"][number], len(words), 0.0)
            line = {"text": text, "entities": list(_spans(text, words, tags, sure))}
            if examples.tags is None:
                yield line
                continue
            true = self._names(examples.tags[number].tolist())
            yield line | {
                "gold": list(_spans(text, words, true)),
                "loss": float(outcomes["loss"][number] / max(outcomes["scored"][number], 1)),
            }

    def rows_from_input(self, inputs: Iterable[str]) -> Iterator[dict[str, Any]]:
        return ({self.task.section.tokens: text} for text in inputs)


def _word_starts(text: str, words: Sequence[tuple[int, int]], spans: np.ndarray) -> np.ndarray:
    """Return the number of the word that begins in each token, or -1: `[tokens]` int32."""
    numbers = np.full(len(spans), NO_WORD, np.int32)
    starts = np.array([start for start, _ in words], np.int64)
    before = -1
    for token, (start, end) in enumerate(spans.tolist()):
        while start < end and text[start].isspace():  # some tokens include the space before a word
            start += 1
        if start < end:
            word = int(np.searchsorted(starts, start, side="right")) - 1
            if word > before:
                numbers[token] = before = word
    return numbers


def _spans(
    text: str,
    words: Sequence[tuple[int, int]],
    tags: Sequence[str],
    sure: Sequence[float] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield the entities of a text by characters; `score` is the mean of their words'."""
    for kind, first, last in entities(tags):
        start, end = words[first][0], words[last][1]
        entity = {"type": kind, "text": text[start:end], "start": start, "end": end}
        if sure is not None:
            entity["score"] = round(float(np.mean(sure[first : last + 1])), 6)
        yield entity


def _losses(outputs: Outputs, batch: Batch) -> jax.Array:
    """Compute the cross-entropy at each token that begins a word, 0 elsewhere: `[R, T]`."""
    logits, scored = outputs["logits"].astype(jnp.float32), is_scored(batch)
    targets = jnp.where(scored, batch["targets"], 0)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return jnp.where(scored, losses, 0.0)


class TokenClassification(Task):
    """Token classification: named entities, a tag per word, predicted at its first token."""

    section: Section

    bound = BoundTokenClassification
    card = Card(
        "token-classification",
        "AutoModelForTokenClassification",
        (READ_TEXT, APPLY, "print(outputs.logits)"),
    )
    metrics = loss_and("accuracy", "f1", "precision", "recall")
    primary = "f1"
    view = "entities"
    packs = True
    tags_tokens = True

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


make = TokenClassification
