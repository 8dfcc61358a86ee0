"""Report of a wait that lasts too long: for a step, a data worker or a bucket."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

LOOK_SECONDS = 0.5  # from one look at the clock to the next


def to_stderr(sentence: str) -> None:
    """Print a sentence, which holds no text of others, on standard error, at once."""
    print(f"jaxft: {sentence}", file=sys.stderr, flush=True)


class Watch:
    """Thread that reports each wait that is longer than expected, once; used in a `with` block.

    The waiting thread may be inside a call of a library that never returns, so another one looks.

    Args:
        report: receives the sentence, in the thread of the watch.
    """

    def __init__(self, report: Callable[[str], None] = to_stderr):
        self._report = report
        # Replaced as one, so that the thread sees both of one wait.
        self._expected: tuple[float, Callable[[], str | None]] | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True, name="jaxft-watch")

    def expect(self, seconds: float, sentence: Callable[[], str | None]) -> None:
        """Begin a wait, in place of the one before.

        Args:
            seconds: after which it is reported.
            sentence: makes the sentence, then; None if there is no reason to report.
        """
        self._expected = (time.monotonic() + seconds, sentence)

    def arrived(self) -> None:
        """End the wait."""
        self._expected = None

    def _look(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            expected = self._expected
            if expected is not None and time.monotonic() > expected[0]:
                if self._expected is expected:
                    self._expected = None
                if (sentence := expected[1]()) is not None:
                    self._report(sentence)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()


@contextmanager
def reported(
    seconds: float, sentence: Callable[[], str], report: Callable[[str], None] = to_stderr
) -> Iterator[None]:
    """Report that a block takes longer than `seconds`, once."""
    timer = threading.Timer(seconds, lambda: report(sentence()))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
