"""Text from tokens as they are generated: whole characters only, and no stop string."""

from __future__ import annotations

from collections.abc import Sequence

from jaxft.data.text.tokenizer import Tokenizer


class TextStream:
    """One text that grows by a token at a time.

    Args:
        tokenizer: the model's.
        stops: strings before which the text ends.

    Attributes:
        text: the text emitted so far.
        stopped: whether a stop string was generated.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()):
        self._tokenizer, self._stops = tokenizer, stops
        self._step = tokenizer.stream()
        self._ids: list[int] = []
        self._pending = ""  # what may be the start of a stop string
        self.text = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """Add a token and return the text that is final now; empty within a character."""
        self._ids.append(token)
        return self._settle(self._step(token) or "")

    def end(self) -> str:
        """Return the pending text, an incomplete character included."""
        if self.stopped:
            return ""
        whole = self._tokenizer.decode(self._ids)
        emitted = self.text + self._pending
        rest = whole[len(emitted) :] if whole.startswith(emitted) else ""
        settled = self._settle(rest)
        if self.stopped:
            return settled
        last, self._pending = self._pending, ""
        self.text += last
        return settled + last

    def _settle(self, new: str) -> str:
        pending = self._pending + new
        starts = [start for stop in self._stops if (start := pending.find(stop)) >= 0]
        if starts:
            self.stopped = True
            settled, self._pending = pending[: min(starts)], ""
        else:
            end = len(pending) - max((_overlap(pending, stop) for stop in self._stops), default=0)
            settled, self._pending = pending[:end], pending[end:]
        self.text += settled
        return settled


def _overlap(text: str, stop: str) -> int:
    """Return the most characters that end `text` and start `stop`."""
    return next((n for n in range(min(len(text), len(stop)), 0, -1) if text.endswith(stop[:n])), 0)
