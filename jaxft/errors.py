"""Mistakes of the user: one sentence each, with a hint how to fix it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in user input: a config, a file, a checkpoint.

    The command line prints it as one line and exits with code 2, without a traceback.

        Args:
            message: one plain sentence: what is wrong and where (file, line, key).
            hint: how to fix it, unless the message already says so.
    """

    def __init__(self, message: str, hint: str = ""):
        self.message = message
        self.hint = hint
        super().__init__(f"{message} {hint}".strip())


def nearest(word: str, candidates: Iterable[str], count: int = 1) -> list[str]:
    """Return the candidates spelled most like `word`, best first; empty if none is close."""
    return difflib.get_close_matches(word, list(candidates), n=count, cutoff=0.5)


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """Return `Did you mean 'x'?`, or the whole list if nothing is close."""
    known = list(candidates)
    close = nearest(word, known)
    if close:
        return f"Did you mean '{close[0]}'?"
    return f"Known: {', '.join(sorted(known))}." if known else ""
