"""Warnings on how a chat template writes conversations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from jaxft.data.text.dialogue import Lesson
from jaxft.data.text.tokenizer import Tokenizer
from jaxft.numbers import share


def chat_warnings(
    lessons: Sequence[Lesson], tokenizer: Tokenizer, end_ids: frozenset[int]
) -> list[str]:
    """Return a sentence on answers that the template rewrites or hides, and on those without end.

    Args:
        lessons: the examples of conversations.
        tokenizer: the model's.
        end_ids: the tokens at which generation stops.
    """
    return [
        *_rewritten(lessons),
        *_unlocated(lessons),
        *_endless(lessons, tokenizer, end_ids),
    ]


def _rewritten(lessons: Sequence[Lesson]) -> Iterator[str]:
    own = [one for one in lessons if one.rewritten]
    if own:
        yield (
            f"the chat template rewrites earlier answers of {_part(own, lessons)} once they go "
            f"on: these {len(own):,} answers are examples of their own, as the model is asked for "
            f"them ({sum(len(one.ids) for one in own):,} tokens); task.train_on=last leaves them "
            "out"
        )


def _unlocated(lessons: Sequence[Lesson]) -> Iterator[str]:
    own = [one for one in lessons if one.unlocated]
    if own:
        yield (
            f"{sum(one.unlocated for one in own):,} answers of {_part(own, lessons)} are not "
            "scored: the text from the chat template does not begin with the text before the "
            "answer; a template that writes both alike has them scored"
        )


def _endless(
    lessons: Sequence[Lesson], tokenizer: Tokenizer, end_ids: frozenset[int]
) -> Iterator[str]:
    """Warn of answers whose last scored token does not end generation."""
    last_ids = Counter(token for one in lessons for token in one.last_ids)
    if not end_ids or not (others := last_ids - Counter(dict.fromkeys(end_ids, last_ids.total()))):
        return
    token, _ = others.most_common(1)[0]
    ends = ", ".join(f"'{tokenizer.piece(one)}' ({one})" for one in sorted(end_ids))
    # A special token has no text. Another token is an answer's own, with nothing after it.
    mend = (
        "let the template write an end token after each answer"
        if tokenizer.decode([token])
        else f"add {token} to eos_token_id in the checkpoint's generation_config.json"
    )
    yield (
        f"{share(others.total() / last_ids.total())} of the answers end with a token such as "
        f"'{tokenizer.piece(token)}' ({token}), which is no end token of the checkpoint ({ends}), "
        f"so the model does not learn to stop there: {mend}"
    )


def _part(own: Sequence[Lesson], lessons: Sequence[Lesson]) -> str:
    """Return how many of the conversations some examples are of."""
    count, total = (len({one.row for one in which}) for which in (own, lessons))
    return f"{count:,} of {total:,} conversations"
