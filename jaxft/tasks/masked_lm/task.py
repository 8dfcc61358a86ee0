"""Masked language modeling: the hidden tokens of a text, predicted from their context."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.data.cache import InMemory
from jaxft.data.sources.source import Source
from jaxft.data.text.tokenizer import Tokenizer
from jaxft.errors import UserError
from jaxft.models.layers.loss import scored_losses
from jaxft.tasks.masked_lm.masked_texts import Blanks, MaskedTexts, ScoredTexts, mask_of
from jaxft.tasks.masked_lm.section import MaskedLmSection as Section
from jaxft.tasks.parts.card import APPLY, Card
from jaxft.tasks.parts.contract import Batch, BoundTask, Outcomes, Outputs, Sum, Sums, Task
from jaxft.tasks.parts.examples import Examples
from jaxft.tasks.parts.labels import FILL, column_of, read_rows, text_in
from jaxft.tasks.parts.metric import HIGHER, LOWER, exponential
from jaxft.tasks.parts.token_examples import is_scored, of_segments

FILLS = 5  # predicted tokens listed for a blank, the likeliest first
AROUND = 100  # characters shown before and after a blank
METRICS = {"loss": LOWER, "accuracy": HIGHER, "pseudo_perplexity": LOWER}


class BoundMaskedLm(BoundTask["MaskedLm", Examples]):
    """`MaskedLm` on a model."""

    def check_row(self, source: Source, number: int, row: Mapping[str, Any]) -> None:
        text_in(self.task.text_column)(row)

    def examples(self, source: Source, *, labelled: bool = True) -> MaskedTexts | Blanks:
        tokenizer = self.tools.tokenizer
        mask = mask_of(tokenizer)
        if not labelled:
            return Blanks(InMemory(*self._blanks(source, mask)), tokenizer)
        tokens = self.tools.encoded_by_row(
            self._encode, source, kind="texts with words", columns=self.task.columns
        )
        own = self.task.section
        return MaskedTexts(tokens, tokenizer, own.mask, own.whole_words, own.scored_at_once)

    def _encode(self, source: Source) -> tuple[list[dict[str, np.ndarray]], dict[str, Any]]:
        """Encode every text, a long one as several examples; the metadata are counts and rows."""
        texts = read_rows(source, self.task.columns, text_in(self.task.text_column))
        encoded = self.tools.tokenizer.encode(texts, placed=True)
        examples, rows = [], []
        fields = zip(encoded.ids, encoded.type_ids, encoded.words, encoded.spans, strict=True)
        for number, whole in enumerate(fields):
            if not (whole[2] >= 0).any():
                raise UserError(f"{source.place(number)} has a text without any token.", FILL)
            for piece in _pieces(whole[2], self.tools.max_length):
                names = ("input_ids", "token_type_ids", "words", "spans")
                examples.append(dict(zip(names, (field[piece] for field in whole), strict=True)))
                rows.append(number)
        counts = {**encoded.counts, "tokens": sum(len(one["words"]) for one in examples)}
        return examples, {"counts": counts, "rows": rows}

    def _blanks(
        self, source: Source, mask: int
    ) -> tuple[list[dict[str, np.ndarray]], dict[str, Any]]:
        """Encode input texts, each of which has at least one mask token."""
        tokenizer, length = self.tools.tokenizer, self.tools.max_length
        texts = [str(text) for text in column_of(source, self.task.section.text)]
        encoded = tokenizer.encode(texts, max_length=length)
        for text, ids in zip(texts, encoded.ids, strict=True):
            if not (ids == mask).any():
                token = tokenizer.piece(mask)
                raise UserError(
                    f"'{text[:AROUND]}' has no {token} among its first {length} tokens.",
                    f'For example "the movie was {token} ."',
                )
        pairs = zip(encoded.ids, encoded.type_ids, strict=True)
        rows = [{"input_ids": ids, "token_type_ids": types} for ids, types in pairs]
        return rows, {"counts": encoded.counts, "cut": encoded.cut}

    def loss(self, outputs: Outputs, batch: Batch) -> Sum:
        losses, _ = scored_losses(outputs["logits"], batch["targets"])
        return jnp.sum(losses), is_scored(batch).sum(dtype=jnp.float32)

    def metrics(self, outputs: Outputs, batch: Batch) -> Sums:
        _, hits = scored_losses(outputs["logits"], batch["targets"])
        weight = is_scored(batch).sum(dtype=jnp.float32)
        return {"accuracy": (hits.sum(dtype=jnp.float32), weight)}

    def outcomes(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
        """Return each example's summed `loss` and the likeliest tokens of its first blank.

        Returns:
            `loss`, `scored` (the number of tokens) `[R, S]`, `fills` (token ids) and `shares`
            `[R, S, 5]`; without targets, `fills` and `shares` `[R, S, M, 5]`, an example's own
            blanks first.
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
        own &= is_scored(batch)[:, None, :]
        first = jnp.argmax(own, axis=-1)[..., None]  # [R, S, 1]
        losses, _ = scored_losses(outputs["logits"], batch["targets"])
        return {
            "loss": jnp.where(own, losses[:, None, :], 0.0).sum(-1),
            "scored": own.sum(-1),
            "fills": jnp.take_along_axis(fills, first, axis=1),
            "shares": jnp.take_along_axis(shares, first, axis=1),
        }

    def summarise(self, outcomes: Outcomes, examples: Examples) -> dict[str, float]:
        """Compute the pseudo-perplexity over all tokens of the texts.

        Source: Salazar et al. (2020), https://arxiv.org/abs/1910.14659, equation 4.
        """
        del examples
        mean = float(outcomes["loss"].sum(dtype=np.float64) / outcomes["scored"].sum())
        return {"pseudo_perplexity": exponential(mean)}

    def describe(
        self, source: Source, outcomes: Outcomes, examples: Examples
    ) -> Iterator[dict[str, Any]]:
        """Yield each text with a blank and its likeliest tokens; if scored, also the hidden one."""
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
            one, positions = examples.tokens[text], examples.first_positions(text)
            turn = _shown_token(one, positions)
            shown = texts[examples.tokens.meta["rows"][text]]
            start, stop = one["spans"][positions[turn]].tolist()
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
            blanks = [(number, blank) for blank in range(len(examples.positions(number)))]
            fills = [_fills(outcomes, blank, examples.tokenizer) for blank in blanks]
            yield {"text": text, "fills": fills}

    def rows_from_input(self, inputs: Iterable[str]) -> Iterator[dict[str, Any]]:
        return ({self.task.text_column: text} for text in inputs)


def _pieces(words: np.ndarray, length: int) -> Iterator[np.ndarray]:
    """Yield the token positions of each example of a text, with special tokens at its ends.

    Args:
        words: the word of each token, `[tokens]`; -1 for special tokens.
        length: the most tokens of an example.
    """
    inner = np.flatnonzero(words >= 0)
    head, tail = np.arange(inner[0]), np.arange(inner[-1] + 1, len(words))
    inner = np.arange(inner[0], inner[-1] + 1)
    room = length - len(head) - len(tail)
    if room < 1:
        raise UserError(
            f"data.max_length {length} leaves no room for text beside {len(head) + len(tail)} "
            "special tokens.",
            "Raise it.",
        )
    for start in range(0, len(inner), room):
        yield np.concatenate([head, inner[start : start + room], tail])


def _shown_token(one: Mapping[str, np.ndarray], positions: np.ndarray) -> int:
    """Choose the token shown as a blank: the longest that is a whole word; the last of equals."""
    words, spans = one["words"], one["spans"]
    alone = np.array([(words == words[position]).sum() == 1 for position in positions])
    lengths = (spans[positions, 1] - spans[positions, 0]) * np.where(alone, 1, 0)
    return len(positions) - 1 - int(np.argmax(lengths[::-1]))


def _fills(outcomes: Mapping[str, np.ndarray], at: Any, tokenizer: Tokenizer) -> list[dict]:
    """Return the likeliest tokens of a blank and their probabilities."""
    pairs = zip(outcomes["fills"][at], outcomes["shares"][at], strict=True)
    return [
        {"token": tokenizer.piece(int(one)), "probability": round(float(share), 6)}
        for one, share in pairs
    ]


def _before(text: str, start: int) -> str:
    return ("..." if start > AROUND else "") + text[max(start - AROUND, 0) : start]


def _after(text: str, stop: int) -> str:
    return text[stop : stop + AROUND] + ("..." if len(text) > stop + AROUND else "")


class MaskedLm(Task):
    """Masked language modeling: the hidden tokens of a text, predicted from their context."""

    section: Section

    bound = BoundMaskedLm
    card = Card(
        "fill-mask",
        "AutoModelForMaskedLM",
        (
            'inputs = tokenizer("A text with one [MASK].", truncation=True, return_tensors="pt")',
            APPLY,
            "print(outputs.logits)",
        ),
    )
    metrics = METRICS
    primary = "pseudo_perplexity"
    view = "blanks"
    packs = True

    @property
    def columns(self) -> tuple[str]:
        return (self.section.text,)

    @property
    def text_column(self) -> str:
        return self.section.text


make = MaskedLm
