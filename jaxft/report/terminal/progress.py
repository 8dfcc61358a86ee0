"""The live view of a run in a terminal, and plain lines where there is none."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from itertools import pairwise
from numbers import Real
from time import monotonic
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from jaxft.numbers import count, counted, rate, score, share, span
from jaxft.report.terminal.console import EscapingConsole

PLAIN_EVERY = 10.0  # seconds between plain lines
BARS = "▁▂▃▄▅▆▇█"
# Everything else a training event holds is a metric, the task's primary one first.
NOT_METRICS = {"loss", "epoch", "grad_norm", "clip", "rates", "mfu", "noise_scale"}


class Progress:
    """Shows how far a run is: a live bar in a terminal, a line every ten seconds in a log.

    Args:
        total_steps: the step at which the run ends.
        start_step: the step it starts from; above 0 on resume.
        console: where to print; standard output when None.
        quiet: print nothing.
    """

    def __init__(
        self,
        total_steps: int,
        start_step: int = 0,
        console: Console | None = None,
        quiet: bool = False,
    ):
        self.console = console or EscapingConsole()
        self._quiet = quiet
        self._total = total_steps
        self._step = start_step
        self._doing = self._heading = ""
        self._values: dict[str, float] = {}
        self._rates: dict[str, float] = {}
        self._losses: list[float] = []
        self._first: tuple[float, int] | None = None  # time and step of the first update
        self._latest = 0.0  # the time of the last one
        self._last_line = float("-inf")
        self._spinner = Spinner("dots", style="cyan")
        self._live = None
        if self.console.is_terminal and not quiet:
            self._live = Live(console=self.console, get_renderable=self._view, refresh_per_second=5)

    def __enter__(self) -> Progress:
        self._started = monotonic()
        if self._live:
            self._live.start()
        else:
            origin = f" from step {self._step:,}" if self._step else ""
            self._line(f"training to step {self._total:,}{origin}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._doing = ""
        if self._live:
            self._live.stop()
        else:
            took = span(monotonic() - self._started)
            where = f"stopped at step {self._step:,}/{self._total:,}"
            if self._step >= self._total:
                where = f"finished {counted(self._total, 'step')}"
            self._line(f"{where} in {took}")

    def update(
        self, step: int, values: Mapping[str, Any] | None = None, ended: float | None = None
    ) -> None:
        """Show that `step` steps are done.

        Args:
            step: the number of steps done.
            values: what `EventLog.train` takes, where this step was logged; else None.
            ended: `time.monotonic()` at the step's end, if not now: steps are read late.
        """
        now = monotonic()
        self._latest = now if ended is None else ended
        self._first = self._first or (self._latest, step)
        self._step, self._doing = step, ""
        if not values:
            return
        self._values, self._rates = _scalars(values), _scalars(values.get("rates") or {})
        loss = self._values.get("loss", math.nan)
        if math.isfinite(loss):
            self._losses.append(loss)
        due = now - self._last_line >= PLAIN_EVERY or step >= self._total
        if not self._live and due:
            self._last_line = now
            self._line(self._plain())

    def doing(self, text: str) -> None:
        """Say what the run waits for, such as a compilation, until the next update."""
        self._doing = text
        if not self._live:
            self._line(text)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Take the bar away while another one shows, and bring it back."""
        if self._live:
            self._live.stop()
        try:
            yield
        finally:
            if self._live:
                self._live.start()

    def heading(self, text: str) -> None:
        """Say what the values to come are of, such as the bucket of a study."""
        self._heading = text

    def evaluation(
        self, step: int, values: Mapping[str, Any], split: str = "eval", best: bool = False
    ) -> None:
        """Leave one line above the bar with the scores of an evaluation.

        Args:
            step: the number of steps done.
            values: loss and metrics.
            split: the name of the evaluated split.
            best: whether this is the best evaluation so far.
        """
        line = Text.assemble((f"{split} ", "bold magenta"), (f"step {step:,}  ", "dim"))
        for name, value in _scalars(values).items():
            if "/" in name:  # of one class alone: the result has it
                continue
            line.append(f"{name} ", "dim").append(f"{score(value)}  ", "bold")
        if best:
            line.append("best so far", "bold green")
        self.table(line)

    def message(self, text: str) -> None:
        """Leave one line of text above the bar."""
        self.table(Text(text))

    def table(self, renderable: RenderableType) -> None:
        """Leave a table, or anything else that rich can print, above the bar."""
        if not self._quiet:
            self.console.print(renderable, soft_wrap=isinstance(renderable, Text))

    def _line(self, text: str) -> None:
        if not self._quiet:
            self.console.print(Text(text), soft_wrap=True)

    def _seconds_left(self) -> float | None:
        """From the mean pace since the first step, so that evaluations and saves count."""
        if self._first is None or self._step <= self._first[1]:
            return None
        pace = (self._latest - self._first[0]) / (self._step - self._first[1])
        left = pace * (self._total - self._step) - (monotonic() - self._latest)
        return left if left >= 1 else None

    def _fields(self) -> list[tuple[str, str]]:
        """The logged values as (name, text), those that matter most first."""
        values = self._values
        metrics = [name for name in values if name not in NOT_METRICS]
        metrics = [name for name in metrics if not name.endswith("_per_second")]
        fields = [(name, score(values[name])) for name in ["loss", *metrics[:1]] if name in values]
        if "examples_per_second" in values:
            fields += self._pace()
        rates = {name: value for name, value in self._rates.items() if value}
        if len(rates) > 3:
            fields.append(("rates", f"{rate(min(rates.values()))} to {rate(max(rates.values()))}"))
        elif rates:
            named = [f"{name} {rate(value)}" for name, value in rates.items()]
            fields.append(("rate", ", ".join(named)))
        return fields

    def _pace(self) -> list[tuple[str, str]]:
        """Return the throughput; tokens only where an example is several."""
        values = self._values
        examples, tokens = values["examples_per_second"], values.get("tokens_per_second", 0.0)
        flops = values.get("flops_per_second")
        return [
            ("examples/s", count(examples)),
            *([("tokens/s", count(tokens))] if tokens > examples else []),
            *([("model", count(flops, "FLOP/s"))] if flops else []),
            *([("MFU", share(values["mfu"]))] if "mfu" in values else []),
        ]

    def _when(self) -> list[str]:
        """The epoch and the time left, as far as they are known."""
        left = self._seconds_left()
        return [
            *([f"epoch {self._values['epoch']:.2f}"] if "epoch" in self._values else []),
            *([f"{span(left)} left"] if left else []),
        ]

    def _plain(self) -> str:
        head = [f"step {self._step:,}/{self._total:,}", *self._when()]
        head += [self._heading] if self._heading else []
        return "  ".join([*head, *(f"{name} {text}" for name, text in self._fields())])

    def _view(self) -> RenderableType:
        """The live view: the bar, and below it the last logged values."""
        head = Table.grid(padding=(0, 1), expand=True)
        for ratio in (None, 1, None):
            head.add_column(ratio=ratio, no_wrap=True)
        head.add_row(
            Text(f"{self._step:,}/{self._total:,}", "bold"),
            ProgressBar(total=max(self._total, 1), completed=self._step),
            Text("  ".join([f"{self._step / max(self._total, 1):4.0%}", *self._when()]), "cyan"),
        )
        return Group(head, self._status())

    def _status(self) -> RenderableType:
        if self._doing:
            self._spinner.update(text=Text(self._doing, "dim"))
            return self._spinner
        status = Text(no_wrap=True, overflow="ellipsis")
        status.append(f"{self._heading}  " if self._heading else "", "cyan")
        for name, text in self._fields():
            status.append(f"{name} ", "dim").append(text, "bold")
            if name == "loss":
                status.append(f" {sparkline(self._losses)}", "magenta")
            status.append("  ")
        return status


def _scalars(values: Mapping[str, Any]) -> dict[str, float]:
    """The numbers among `values`, numpy's too."""
    return {name: float(value) for name, value in values.items() if isinstance(value, Real)}


def sparkline(values: list[float], width: int = 20) -> str:
    """A row of at most `width` bars: the means of `values`, from the least to the greatest."""
    cells = min(width, len(values))
    edges = [len(values) * cell // cells for cell in range(cells + 1)] if cells else []
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    if not means:
        return ""
    low, reach = min(means), max(means) - min(means)
    return "".join(BARS[round(7 * (mean - low) / reach)] if reach else BARS[0] for mean in means)
