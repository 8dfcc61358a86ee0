"""Tokens to text as they come: whole characters only, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from jaxft.data.text.tokenizer import Tokenizer


class TextStream:
    """One text that grows by a token at a time.

    Args:
        tokenizer: whose tokens.
        stops: strings before which the text ends.

    Attributes:
        text: what was given out so far.
        stopped: whether a stop string came.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()):
        self._tokenizer, self._stops = tokenizer, stops
        self._step = tokenizer.stream()
        self._ids: list[int] = []
        self._held = ""  # what may be the start of a stop string
        self.text = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """Take a token and give out the text that it settles: none within a character."""
        self._ids.append(token)
        return self._settle(self._step(token) or "")

    def end(self) -> str:
        """Give out what was held back, a character that never became whole included."""
        if self.stopped:
            return ""
        whole = self._tokenizer.decode(self._ids)
        given = self.text + self._held
        rest = whole[len(given) :] if whole.startswith(given) else ""
        settled = self._settle(rest)
        if self.stopped:
            return settled
        last, self._held = self._held, ""
        self.text += last
        return settled + last

    def _settle(self, new: str) -> str:
        held = self._held + new
        places = [place for stop in self._stops if (place := held.find(stop)) >= 0]
        if places:
            self.stopped = True
            settled, self._held = held[: min(places)], ""
        else:
            end = len(held) - max((_overlap(held, stop) for stop in self._stops), default=0)
            settled, self._held = held[:end], held[end:]
        self.text += settled
        return settled


def _overlap(text: str, stop: str) -> int:
    """The most characters that end `text` and start `stop`."""
    return next((n for n in range(min(len(text), len(stop)), 0, -1) if text.endswith(stop[:n])), 0)
