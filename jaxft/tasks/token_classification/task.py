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

from jaxft.data.batching.loader import collate_rows
from jaxft.data.sources.open import Source
from jaxft.data.text.tags import OUTSIDE, join_words, words_of
from jaxft.data.text.tokenizer import Tokenizer
from jaxft.metrics.entities import entities, entity_scores
from jaxft.models.layers.loss import UNSCORED
from jaxft.tasks.parts.contract import Batch, Sums, Tools
from jaxft.tasks.parts.token_examples import TokenExamples, of_segments, row_targets
from jaxft.tasks.token_classification.section import TokenClassificationSection as Section
from jaxft.tasks.token_classification.tagged import (
    check_sentence,
    check_words,
    sentence_tags,
    tag_ids,
    tag_names,
)

NO_WORD = -1  # in place of the number of a word, where none begins


def make(section: Section) -> TokenClassification:
    """The task as the config's `task` section describes it."""
    return TokenClassification(section)


@dataclass(frozen=True)
class Sentences(TokenExamples):
    """Token ids, each with the word that it begins; see `jaxft.tasks.parts.contract.Examples`.

    Args:
        tokens: `input_ids`, `token_type_ids` and `words`: the number of the word that begins in
            the token, -1 where none does.
        tags: each sentence's tag ids, [words] int32; None where rows have none.
    """

    tags: list[np.ndarray] | None
    labels: None = None
    random: bool = False

    def collate(self, index: np.ndarray, row_length: int) -> dict[str, np.ndarray]:
        batch = collate_rows(self.tokens, index, row_length)
        if self.tags is None:
            return batch
        return batch | {"targets": row_targets(index, row_length, self._targets)}

    def _targets(self, number: int) -> np.ndarray:
        """The tag of each token of a sentence that begins a word: [tokens] int32."""
        assert self.tags is not None
        words = self.tokens[number]["words"]
        return np.where(words >= 0, self.tags[number][words], UNSCORED).astype(np.int32)

    def by_word(self, number: int, values: np.ndarray, count: int, none: Any) -> list:
        """What is said at a sentence's tokens, word by word.

        Args:
            number: the sentence.
            values: one for each token, [tokens or more].
            count: its words.
            none: for a word without a token: one that was cut off, or that has no visible letter.
        """
        words = self.tokens[number]["words"]
        found = [none] * count
        for place in np.flatnonzero(words >= 0):
            found[words[place]] = values[place].item()
        return found


@dataclass(frozen=True)
class TokenClassification:
    """See `jaxft.tasks.parts.contract.Task`."""

    section: Section
    kind: str = "token_classification"
    primary: str = "f1"
    metric_names: tuple[str, ...] = ("loss", "accuracy", "f1", "precision", "recall")
    packs: bool = True

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.section.tokens, self.section.tags)

    def label_names(self, source: Source) -> tuple[str, ...]:
        return tag_names(source, self.section)

    def check_row(
        self, source: Source, number: int, row: Mapping[str, Any], names: Sequence[str]
    ) -> None:
        """Raise what is wrong with a row: its words or its tags."""
        where, own = source.place(number), self.section
        check_sentence(where, row[own.tokens], own.tokens)
        sentence_tags(where, row[own.tokens], row[own.tags], own, names)

    def examples(self, source: Source, names: Sequence[str] | None, tools: Tools) -> Sentences:
        if names is not None:
            check_words(source, self.section.tokens)
        tokens = tools.once(
            partial(self._encode, source, tools.tokenizer, tools.max_length),
            kind="words",
            source=source.fingerprint,
            tokenizer=tools.tokenizer.fingerprint,
            max_length=tools.max_length,
            columns=(self.section.tokens,),
        )
        return Sentences(tokens, None if names is None else tag_ids(source, self.section, names))

    def _texts(self, source: Source) -> Iterator[tuple[str, list[tuple[int, int]]]]:
        """Each row's text, and where its words begin and end in it."""
        for _, row in source.each((self.section.tokens,)):
            words = row[self.section.tokens]
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

    def loss(self, outputs: Mapping[str, jax.Array], batch: Batch) -> tuple[jax.Array, jax.Array]:
        return jnp.sum(_losses(outputs, batch)), _scored(batch).sum(dtype=jnp.float32)

    def metrics(self, outputs: Mapping[str, jax.Array], batch: Batch) -> Sums:
        right = (jnp.argmax(outputs["logits"], axis=-1) == batch["targets"]) & _scored(batch)
        weight = _scored(batch).sum(dtype=jnp.float32)
        return {"accuracy": (right.sum(dtype=jnp.float32), weight)}

    def outcomes(self, outputs: Mapping[str, jax.Array], batch: Batch) -> dict[str, jax.Array]:
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

    def summarise(
        self, outcomes: Mapping[str, np.ndarray], examples: Sentences, names: Sequence[str]
    ) -> dict[str, float]:
        if examples.tags is None:
            return {}
        true = [[names[tag] for tag in tags] for tags in examples.tags]
        said = [
            [names[tag] for tag in self._said(number, outcomes, examples, len(tags), names)]
            for number, tags in enumerate(true)
        ]
        return entity_scores(true, said)

    def _said(
        self,
        number: int,
        outcomes: Mapping[str, np.ndarray],
        examples: Sentences,
        count: int,
        names: Sequence[str],
    ) -> list[int]:
        """The tag that each word of a sentence is given; a word without a token is outside."""
        return examples.by_word(number, outcomes["tags"][number], count, names.index(OUTSIDE))

    def describe(
        self,
        source: Source,
        outcomes: Mapping[str, np.ndarray],
        examples: Sentences,
        names: Sequence[str],
    ) -> Iterator[dict[str, Any]]:
        """Each text with the entities that are found in it and, with tags, those that are there."""
        for number, (text, words) in enumerate(self._texts(source)):
            said = self._said(number, outcomes, examples, len(words), names)
            sure = examples.by_word(number, outcomes["sure"][number], len(words), 0.0)
            found = list(_spans(text, words, [names[tag] for tag in said], sure))
            if examples.tags is None:
                yield {"text": text, "entities": found}
                continue
            true = [names[tag] for tag in examples.tags[number]]
            yield {
                "text": text,
                "entities": found,
                "gold": list(_spans(text, words, true)),
                "loss": float(outcomes["loss"][number] / max(outcomes["scored"][number], 1)),
            }

    def rows_from_input(self, inputs: Iterable[str]) -> Iterator[dict[str, Any]]:
        for text in inputs:
            yield {self.section.tokens: text}


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
