"""Answers as spans of tokens: the loss of their ends, and the likeliest span of each window.

R rows of a batch, S windows a row, T positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.tasks.parts.contract import Batch, Outputs
from jaxft.tasks.parts.token_examples import of_segments
from jaxft.tasks.question_answering.windows import Windows

HIDDEN = -1e9  # the score of what is no answer


def end_losses(outputs: Outputs, batch: Batch) -> jax.Array:
    """Return the mean cross-entropy of the first and the last token of each window: `[R, S]`.

    The candidates are the tokens of the window, its question and its special tokens included.
    """
    starts, ends = _totals(outputs, batch)
    places = batch["read_positions"][..., None] + batch["answer"]  # [R, S, 2]
    chosen = [
        jnp.take_along_axis(outputs[name], places[..., end], axis=1)
        for end, name in enumerate(("start_logits", "end_logits"))
    ]
    return (starts - chosen[0] + ends - chosen[1]) / 2


def _totals(outputs: Outputs, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Return the log of the summed exponentials of each window's scores: `[R, S]` of either end."""
    own = of_segments(batch["segment_ids"], batch["weights"].shape[1])  # [R, S, T]

    def total(scores: jax.Array) -> jax.Array:
        return jax.nn.logsumexp(jnp.where(own, scores[:, None, :], HIDDEN), axis=-1)

    return total(outputs["start_logits"]), total(outputs["end_logits"])


def best_spans(outputs: Outputs, batch: Batch, most: int) -> dict[str, jax.Array]:
    """Find the span of each window with the highest sum of its ends' scores.

    Args:
        outputs: `start_logits` and `end_logits` `[R, T]`.
        batch: of `Windows.collate`.
        most: the most tokens of a span, which lies in the context.

    Returns:
        `first` and `last` token counted from the window's first, its `score` and `probability`, and
        those of no answer, `null_score` and `null_probability`: `[R, S]` each.
    """
    scores, lengths = _best_from_each(outputs, batch, most)  # [R, T]
    own = of_segments(batch["segment_ids"], batch["weights"].shape[1])  # [R, S, T]
    within = jnp.where(own, scores[:, None, :], HIDDEN)
    position = jnp.argmax(within, axis=-1)  # [R, S]
    first = position - batch["read_positions"]
    score = jnp.max(within, axis=-1)
    ends = outputs["start_logits"] + outputs["end_logits"]
    null = jnp.take_along_axis(ends, batch["read_positions"], axis=1)
    starts_total, ends_total = _totals(outputs, batch)
    total = starts_total + ends_total
    return {
        "first": first,
        "last": first + jnp.take_along_axis(lengths, position, axis=1),
        "score": score,
        "probability": jnp.exp(score - total),
        "null_score": null,
        "null_probability": jnp.exp(null - total),
    }


def _best_from_each(outputs: Outputs, batch: Batch, most: int) -> tuple[jax.Array, jax.Array]:
    """Return the best score of a span from each token, and its length less one: `[R, T]` each."""
    start, end = outputs["start_logits"], outputs["end_logits"]
    inside, owners = batch["inside"] > 0, batch["segment_ids"]
    places = jnp.arange(start.shape[1])

    def longer(
        best: tuple[jax.Array, jax.Array], more: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        valid = inside & jnp.roll(inside, -more, axis=1) & (owners == jnp.roll(owners, -more, 1))
        valid &= (places + more < start.shape[1])[None, :]
        score = jnp.where(valid, start + jnp.roll(end, -more, axis=1), HIDDEN)
        better = score > best[0]
        return (jnp.where(better, score, best[0]), jnp.where(better, more, best[1])), None

    nothing = jnp.full_like(start, HIDDEN), jnp.zeros(start.shape, jnp.int32)
    return jax.lax.scan(longer, nothing, jnp.arange(min(most, start.shape[1]), dtype=jnp.int32))[0]


@dataclass(frozen=True)
class Chosen:
    """The answer to a question.

    Attributes:
        text: empty for none.
        start, end: the characters of the context; 0 and 0 for none.
        score: its probability in its window.
    """

    text: str
    start: int
    end: int
    score: float


def answers_of(
    outcomes: Mapping[str, np.ndarray], examples: Windows, threshold: float | None
) -> list[Chosen]:
    """Choose the answer to each question from the best spans of its windows.

    Args:
        outcomes: of `best_spans`, `[windows]` each.
        examples: the windows.
        threshold: how far the score of no answer may exceed that of the best one, where it is the
            lowest over all windows; None where there always is an answer.
    """
    rows = examples.rows
    order = np.argsort(rows, kind="stable")
    chosen = []
    for own in np.split(order, np.flatnonzero(np.diff(rows[order])) + 1):
        best = own[int(np.argmax(outcomes["score"][own]))]
        null = own[int(np.argmin(outcomes["null_score"][own]))]
        less = outcomes["null_score"][null] - outcomes["score"][best]
        if threshold is not None and less > threshold:
            chosen.append(Chosen("", 0, 0, float(outcomes["null_probability"][null])))
            continue
        spans = examples.tokens[int(best)]["spans"]
        start = int(spans[outcomes["first"][best], 0])
        end = int(spans[outcomes["last"][best], 1])
        context = examples.questions[int(rows[best])].context
        probability = float(outcomes["probability"][best])
        chosen.append(Chosen(context[start:end], start, end, probability))
    return chosen


def by_question(values: np.ndarray, examples: Windows) -> Sequence[float]:
    """Return the mean of a value of windows for each question.

    Args:
        values: `[windows]`.
        examples: the windows.
    """
    totals = np.bincount(examples.rows, values.astype(np.float64))
    return (totals / np.bincount(examples.rows)).tolist()
