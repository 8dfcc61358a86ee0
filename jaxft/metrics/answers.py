"""Exact match and F1 of answers, as SQuAD defines them.

Source: Rajpurkar et al. (2016), https://arxiv.org/abs/1606.05250, section 6.1, and Rajpurkar et al.
(2018), https://arxiv.org/abs/1806.03822, for questions without an answer.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(answer: str) -> str:
    """Return an answer in small letters, without ASCII punctuation, articles and spare spaces."""
    return " ".join(ARTICLES.sub(" ", answer.lower().translate(PUNCTUATION)).split())


def exact_match(answer: str, true: str) -> float:
    """Return 1 if two answers are the same when normalized, else 0."""
    return float(normalized(answer) == normalized(true))


def f1(answer: str, true: str) -> float:
    """Return the F1 of the words that two normalized answers share; of no answer, exact match."""
    words, wanted = normalized(answer).split(), normalized(true).split()
    if not words or not wanted:
        return float(words == wanted)
    same = (Counter(words) & Counter(wanted)).total()
    return 2 * same / (len(words) + len(wanted))  # 2 P R / (P + R)


def answer_scores(
    answers: Sequence[str], true: Sequence[Sequence[str]], no_answer: bool
) -> dict[str, float]:
    """Score the answers of a split, each against the true one that suits it best.

    Args:
        answers: an answer a question; empty for none.
        true: the true answers of each question; none where it has no answer.
        no_answer: whether questions may have none.

    Returns:
        `exact_match` and `f1`; with `no_answer` also `has_answer_f1` and `no_answer_f1`, of the
        questions with and without an answer, as far as there are any.
    """
    wanted = [[one for one in each if normalized(one)] or [""] for each in true]
    pairs = list(zip(answers, wanted, strict=True))
    overlaps = np.array([max(f1(answer, one) for one in each) for answer, each in pairs])
    same = [max(exact_match(answer, one) for one in each) for answer, each in pairs]
    scores = {"exact_match": float(np.mean(same)), "f1": float(np.mean(overlaps))}
    if not no_answer:
        return scores
    answered = np.array([each != [""] for each in wanted])
    for name, own in (("has_answer_f1", answered), ("no_answer_f1", ~answered)):
        scores |= {name: float(np.mean(overlaps[own]))} if own.any() else {}
    return scores
