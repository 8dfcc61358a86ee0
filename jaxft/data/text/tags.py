"""Tags of words: entities as B-TYPE and I-TYPE, checked and converted to IOB2.

In IOB2 an entity begins with B-. In IOB1 it begins with I-, and with B- only where it follows
another of its own type at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

OUTSIDE = "O"
BEGINS, GOES_ON = "B-", "I-"
# A word keeps what is inside it (it's 3.5, a-b, a.b/c) and an @ or # before it; what is around it
# is a word by itself, and so is the end of `it's` or `we've`. Chinese and Japanese characters have
# no spaces between words, so each is one.
CJK = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
WORD = re.compile(
    rf"[{CJK}]|['\u2019](?:s|m|d|re|ve|ll)\b|[@#]?(?:(?![{CJK}])\w)+"
    rf"(?:(?!['\u2019](?:s|m|d|re|ve|ll)\b)[^\s\w]+(?:(?![{CJK}])\w)+)*|\S",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Fault:
    """An invalid tag.

    Attributes:
        word: the number of its word, from 0.
        problem: what is wrong, as the predicate of a sentence about the word.
        hint: how to fix it.
    """

    word: int
    problem: str
    hint: str


def words_of(text: str) -> list[tuple[int, int]]:
    """Return the start and end of each word of a text, in characters."""
    return [match.span() for match in WORD.finditer(text)]


def join_words(words: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """Join words with spaces; return the text, and the start and end of each word in it."""
    spans, begin = [], 0
    for word in words:
        spans.append((begin, begin + len(word)))
        begin += len(word) + 1
    return " ".join(words), spans


def tag_names(sentences: Iterable[Iterable[str]]) -> tuple[str, ...]:
    """Return every tag that the types in some sentences may have, `O` first, then by type."""
    types = {tag[2:] for tags in sentences for tag in tags if tag[:2] in (BEGINS, GOES_ON)} - {""}
    return (OUTSIDE, *(mark + kind for kind in sorted(types) for mark in (BEGINS, GOES_ON)))


def fault_of(tags: Sequence[str], scheme: str) -> Fault | None:
    """Return the first invalid tag of a sentence; None if all are valid.

    Args:
        tags: of its words.
        scheme: `iob2` or `iob1`.
    """
    before = OUTSIDE
    for word, tag in enumerate(tags):
        if tag != OUTSIDE and (tag[:2] not in (BEGINS, GOES_ON) or not tag[2:]):
            return Fault(
                word,
                f"has the tag '{tag}', which is neither O nor B-TYPE nor I-TYPE",
                "Entities are tagged word by word: B- begins one, I- continues it, O is outside.",
            )
        if scheme == "iob2" and tag.startswith(GOES_ON) and before[2:] != tag[2:]:
            return Fault(
                word,
                f"has the tag '{tag}' after '{before}': in IOB2 an entity begins with B-",
                "Correct the tag; if entities begin with I- (IOB1), set task.scheme to iob1.",
            )
        before = tag
    return None


def to_iob2(tags: Iterable[str]) -> Iterator[str]:
    """Convert tags in IOB1 or IOB2 to IOB2: the first tag of every entity begins with B-."""
    before = OUTSIDE
    for tag in tags:
        begins = tag != OUTSIDE and before[2:] != tag[2:]
        yield BEGINS + tag[2:] if begins else tag
        before = tag
