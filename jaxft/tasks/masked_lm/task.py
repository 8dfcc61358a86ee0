"""Hidden tokens of a text, told from what stands around them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.data.cache import InMemory
from jaxft.data.sources.open import Source
from jaxft.data.text.masking import UNSCORED
from jaxft.data.text.tokenizer import Tokenizer
from jaxft.errors import UserError
from jaxft.models.layers.loss import scored_losses
from jaxft.tasks.masked_lm.masked_texts import Blanks, MaskedTexts, ScoredTexts, mask_of
from jaxft.tasks.masked_lm.section import MaskedLmSection as Section
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
from jaxft.tasks.parts.examples import Examples
from jaxft.tasks.parts.labels import FILL, column_of, read_rows, text_of
from jaxft.tasks.parts.token_examples import of_segments
from jaxft.tasks.parts.tools import Tools

FILLS = 5  # tokens that are named for a blank, the likeliest first
AROUND = 100  # characters that a person is shown before and after a blank
MOST_EXPONENT = 700  # beyond it e to that has no float
METRICS = {"loss": LOWER, "accuracy": HIGHER, "pseudo_perplexity": LOWER}


def make(section: Section) -> MaskedLm:
    """The task as the config's `task` section describes it."""
    return MaskedLm(section)


@dataclass(frozen=True)
class MaskedLm(Task):
    """Hidden tokens of a text, told from what stands around them."""

    section: Section

    kind = "masked_lm"
    head = "masked_lm"
    card = Card("fill-mask", "AutoModelForMaskedLM")
    view = "blanks"
    metrics = METRICS
    primary = "pseudo_perplexity"
    packs = True

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.section.text,)

    @property
    def text_columns(self) -> tuple[str, ...]:
        return (self.section.text,)

    @property
    def plain_text_column(self) -> str:
        return self.section.text

    def bind(self, tools: Tools, label_names: Sequence[str]) -> BoundMaskedLm:
        return BoundMaskedLm(self, tools, label_names)


class BoundMaskedLm(BoundTask[MaskedLm, Examples]):
    """`MaskedLm` on a model."""

    def check_row(self, source: Source, number: int, row: Mapping[str, Any]) -> None:
        """Raise what is wrong with a row's text."""
        del source, number
        text_of(row[self.task.section.text], self.task.section.text)

    def examples(self, source: Source, *, labelled: bool = True) -> MaskedTexts | Blanks:
        tokenizer = self.tools.tokenizer
        mask = mask_of(tokenizer)
        if not labelled:
            return Blanks(
                InMemory(*self._blanks(source, tokenizer, mask, self.tools.max_length)), tokenizer
            )
        tokens = self.tools.once(
            partial(self._encode, source, tokenizer, self.tools.max_length),
            kind="texts with words",
            source=source.fingerprint,
            tokenizer=tokenizer.fingerprint,
            max_length=self.tools.max_length,
            columns=self.task.columns,
        )
        own = self.task.section
        return MaskedTexts(tokens, tokenizer, own.mask, own.whole_words, own.scored_at_once)

    def _encode(
        self, source: Source, tokenizer: Tokenizer, length: int
    ) -> tuple[list[dict[str, np.ndarray]], dict[str, Any]]:
        """Every text's tokens, those of a long one in several examples; of the whole, counts."""
        column = self.task.section.text
        texts = read_rows(source, (column,), lambda row: text_of(row[column], column))
        encoded = tokenizer.encode(texts, placed=True)
        examples, rows = [], []
        fields = zip(encoded.ids, encoded.type_ids, encoded.words, encoded.spans, strict=True)
        for number, whole in enumerate(fields):
            if not (whole[2] >= 0).any():
                raise UserError(f"{source.place(number)} has a text without a token.", FILL)
            for piece in _pieces(whole[2], length):
                names = ("input_ids", "token_type_ids", "words", "spans")
                examples.append(dict(zip(names, (field[piece] for field in whole), strict=True)))
                rows.append(number)
        counts = {**encoded.counts, "tokens": sum(len(one["words"]) for one in examples)}
        return examples, {"counts": counts, "rows": rows}

    def _blanks(
        self, source: Source, tokenizer: Tokenizer, mask: int, length: int
    ) -> tuple[list[dict[str, np.ndarray]], dict[str, Any]]:
        """What a person typed: at least one mask token in each text."""
        texts = [str(text) for text in column_of(source, self.task.section.text)]
        encoded = tokenizer.encode(texts, max_length=length)
        for text, ids in zip(texts, encoded.ids, strict=True):
            if not (ids == mask).any():
                token = tokenizer.piece(mask)
                raise UserError(
                    f"'{text[:AROUND]}' has no {token} among its first {length} tokens.",
                    f'Such as "the movie was {token} ."',
                )
        pairs = zip(encoded.ids, encoded.type_ids, strict=True)
        rows = [{"input_ids": ids, "token_type_ids": types} for ids, types in pairs]
        return rows, {"counts": encoded.counts, "cut": encoded.cut}

    def loss(self, outputs: Outputs, batch: Batch) -> Sum:
        losses, _ = scored_losses(outputs["logits"], batch["targets"])
        return jnp.sum(losses), _scored(batch).sum(dtype=jnp.float32)

    def metrics(self, outputs: Outputs, batch: Batch) -> Sums:
        _, hits = scored_losses(outputs["logits"], batch["targets"])
        weight = _scored(batch).sum(dtype=jnp.float32)
        return {"accuracy": (hits.sum(dtype=jnp.float32), weight)}

    def outcomes(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
        """Of each example the summed `loss` of `scored` tokens, and what its first blank may hold.

        Returns:
            `loss`, `scored` [R, S], `fills` (ids) and `shares` [R, S, 5]; of a batch without
            targets `fills` and `shares` [R, S, M, 5], an example's own blanks first.
        """
        shares, fills = jax.lax.top_k(jax.nn.softmax(outputs["logits"], axis=-1), FILLS)
        owners = jnp.take_along_axis(batch["segment_ids"], batch["masked_positions"], axis=1)
        own = of_segments(owners, batch["read_positions"].shape[1])  # [R, S, M]
        if "targets" not in batch:
            order = jnp.argsort(~own, axis=-1, stable=True)[..., None]
            return {
                "fills": jnp.take_along_axis(fills[:, None], order, axis=2),
                "shares": jnp.take_along_axis(shares[:, None], order, axis=2),
            }
        own &= _scored(batch)[:, None, :]
        first = jnp.argmax(own, axis=-1)[..., None]  # [R, S, 1]
        losses, _ = scored_losses(outputs["logits"], batch["targets"])
        return {
            "loss": jnp.where(own, losses[:, None, :], 0.0).sum(-1),
            "scored": own.sum(-1),
            "fills": jnp.take_along_axis(fills, first, axis=1),
            "shares": jnp.take_along_axis(shares, first, axis=1),
        }

    def summarise(self, outcomes: Outcomes, examples: Examples) -> dict[str, float]:
        """The pseudo-perplexity, of all tokens of the texts.

        Source: Salazar et al. (2020), https://arxiv.org/abs/1910.14659, equation 4.
        """
        del examples
        mean = float(outcomes["loss"].sum(dtype=np.float64) / outcomes["scored"].sum())
        found = math.exp(mean) if mean < MOST_EXPONENT else math.inf
        return {"pseudo_perplexity": found}

    def describe(
        self, source: Source, outcomes: Outcomes, examples: Examples
    ) -> Iterator[dict[str, Any]]:
        """Each text with a blank and what fills it; of a scored one what stood there too."""
        texts = list(column_of(source, self.task.section.text))
        if isinstance(examples, Blanks):
            yield from self._filled(texts, outcomes, examples)
            return
        assert isinstance(examples, ScoredTexts)
        tokenizer = examples.tokenizer
        mask = tokenizer.piece(mask_of(tokenizer))
        first = np.searchsorted(examples.texts, np.arange(len(examples.tokens)))
        ends = np.append(first[1:], len(examples.texts))
        for text, (begin, end) in enumerate(zip(first, ends, strict=True)):
            one, places = examples.tokens[text], examples.first_places(text)
            turn = _telling(one, places)
            shown = texts[examples.tokens.meta["rows"][text]]
            start, stop = one["spans"][places[turn]].tolist()
            loss, scored = (float(outcomes[n][begin:end].sum()) for n in ("loss", "scored"))
            before = _before(shown, start)
            yield {
                "text": f"{before}{mask}{_after(shown, stop)}",
                "blank": [len(before), len(before) + len(mask)],
                "hidden": shown[start:stop],
                "fills": _fills(outcomes, begin + turn, tokenizer),
                "tokens": int(scored),
                "loss": loss / scored,
            }

    def _filled(
        self, texts: Sequence[str], outcomes: Outcomes, examples: Blanks
    ) -> Iterator[dict[str, Any]]:
        for number, text in enumerate(texts):
            blanks = [(number, blank) for blank in range(len(examples.places(number)))]
            fills = [_fills(outcomes, blank, examples.tokenizer) for blank in blanks]
            yield {"text": text, "fills": fills}

    def rows_from_input(self, inputs: Iterable[str]) -> Iterator[dict[str, Any]]:
        for text in inputs:
            yield {self.task.section.text: text}


def _scored(batch: Batch) -> jax.Array:
    """Where a token is hidden: [R, M] bool."""
    return batch["targets"] != UNSCORED


def _pieces(words: np.ndarray, length: int) -> Iterator[np.ndarray]:
    """The tokens of each example of a text: all, or what fits beside the special ones at its ends.

    Args:
        words: the word of each token, [tokens]; -1 of a special one.
        length: the most tokens of an example.
    """
    inner = np.flatnonzero(words >= 0)
    head, tail = np.arange(inner[0]), np.arange(inner[-1] + 1, len(words))
    inner = np.arange(inner[0], inner[-1] + 1)
    room = length - len(head) - len(tail)
    if room < 1:
        raise UserError(
            f"data.max_length {length} has no room for text beside {len(head) + len(tail)} special "
            "tokens."
        )
    for start in range(0, len(inner), room):
        yield np.concatenate([head, inner[start : start + room], tail])


def _telling(one: Mapping[str, np.ndarray], places: np.ndarray) -> int:
    """Which of some tokens is shown as a blank: the longest that is a word by itself, the last."""
    words, spans = one["words"], one["spans"]
    alone = np.array([(words == words[place]).sum() == 1 for place in places])
    lengths = (spans[places, 1] - spans[places, 0]) * np.where(alone, 1, 0)
    return len(places) - 1 - int(np.argmax(lengths[::-1]))


def _fills(outcomes: Mapping[str, np.ndarray], at: Any, tokenizer: Tokenizer) -> list[dict]:
    """The likeliest tokens of a blank, and how likely each is."""
    pairs = zip(outcomes["fills"][at], outcomes["shares"][at], strict=True)
    return [
        {"token": tokenizer.piece(int(one)), "probability": round(float(share), 6)}
        for one, share in pairs
    ]


def _before(text: str, start: int) -> str:
    return ("..." if start > AROUND else "") + text[max(start - AROUND, 0) : start]


def _after(text: str, stop: int) -> str:
    return text[stop : stop + AROUND] + ("..." if len(text) > stop + AROUND else "")
