"""Mistakes of the user: one sentence each, with a hint how to fix it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

NEAR = 0.75
LONGEST = 1000  # characters of a message
LONGEST_HINT = 900


class UserError(Exception):
    """A mistake in user input: a config, a file, a checkpoint.

    The command line prints it as one line and exits with code 2, without a traceback. The middle of
    a very long one is left out: it may quote a value of any length.

    Args:
        message: one plain sentence: what is wrong and where (file, line, key).
        hint: how to fix it, unless the message already says so.
    """

    def __init__(self, message: str, hint: str = ""):
        self.message = shortened(message)
        self.hint = shortened(hint, LONGEST_HINT)
        super().__init__(f"{self.message} {self.hint}".strip())


def shortened(text: str, most: int = LONGEST) -> str:
    """Return a text of at most `most` characters, without its middle where it is longer."""
    if len(text) <= most:
        return text
    end = most // 4
    return f"{text[: most - end - 5]} ... {text[-end:]}"


class Note(str):
    """Sentence for the person, added to an error on its way (`add_note`).

    The command line prints it after the error; libraries add notes of their own, which it leaves.
    """


def opening(text: str) -> str:
    """Return a text as the beginning of a sentence; names in it keep their spelling."""
    return text[:1].upper() + text[1:]


def nearest(word: str, candidates: Iterable[str], count: int = 1, cutoff: float = 0.5) -> list[str]:
    """Return the candidates spelled most like `word`, best first; empty if none is close.

    Args:
        word: as it was written.
        candidates: what there is.
        count: the most that are returned.
        cutoff: the least similarity, from 0 to 1; names of files take `NEAR`, since there is
            always some file.
    """
    return difflib.get_close_matches(word, list(candidates), n=count, cutoff=cutoff)


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """Return `Did you mean 'x'?`, or the whole list if nothing is close."""
    known = list(candidates)
    close = nearest(word, known)
    if close:
        return f"Did you mean '{close[0]}'?"
    return f"Known: {', '.join(sorted(known))}." if known else ""
