"""Tables of the criteria of a model's matrices, each no wider than 80 columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from jaxft.numbers import count, size

# The columns behind block and kind.
WEIGHTS = ("alpha", "hill", "above_noise", "spectrum")
COSTS = ("flops", "optimizer_bytes")
BLOCKS = "blocks/"
BATCHES = ("relative_gradient", "gradient_signal", "fisher", "layer_card")
STATES = ("outliers", "residual", "cosine", "cls_cosine")


@contextmanager
def measuring_bar(
    console: Console,
) -> Iterator[tuple[Callable[[int], None], Callable[[str], None]]]:
    """Show a bar while criteria are measured.

    Args:
        console: the terminal.

    Yields:
        `begin(total)`, called with the number of measurements to come, and `advance(what)`, called
        after each with what was measured.
    """
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("loading", total=None)

        def begin(total: int) -> None:
            bar.update(task, total=total, description="measuring layers")

        def advance(what: str) -> None:
            bar.update(task, advance=1, description=what)

        yield begin, advance


def criteria_tables(content: Mapping[str, Any]) -> RenderableType:
    """Return the criteria as tables: of weights, batches and costs, and how far they agree.

    Args:
        content: what `jaxft layers --json` prints.
    """
    examples = f"{content['batches']:,} training batches, {content['examples']:,.0f} examples"
    return Group(
        _matrix_table(f"weights of {content['checkpoint']}", content, WEIGHTS),
        _matrix_table(f"gradients on {examples}", content, BATCHES),
        _matrix_table(f"states on {examples}", content, STATES),
        _matrix_table("cost of a step in which the matrix trains", content, COSTS),
        _correlations(content),
    )


def _matrix_table(title: str, content: Mapping[str, Any], names: Sequence[str]) -> Table:
    columns = [content["criteria"][name]["title"] for name in names]
    table = _table(title, ["block", "kind", *columns], left=2)
    before = None
    for row in content["matrices"]:
        cells = [value_text(name, row) or "-" for name in names]
        block = row["block"].replace(BLOCKS, "")  # `3`, behind a tower's prefix `vision/3`
        table.add_row(block if row["block"] != before else "", row["kind"], *cells)
        before = row["block"]
    return table


def value_text(name: str, row: Mapping[str, Any]) -> str:
    """Format the value of a criterion for a matrix; empty where it has none.

    Args:
        name: of the criterion.
        row: of the matrix, in what `jaxft layers --json` prints.
    """
    value = row.get(name)
    if value is None:
        return ""
    if name == "alpha":
        low, high = row["alpha_interval"]
        return f"{value:.2f} ± {(high - low) / 2:.2f}"
    if name == "flops":
        return count(value)
    if name == "optimizer_bytes":
        return size(value)
    return significant(value)


def significant(value: float) -> str:
    """Format a number with three significant digits, in at most eight characters."""
    return f"{value:.3g}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.1e}"


def _correlations(content: Mapping[str, Any]) -> Table:
    table_of = content["rank_correlations"]
    titles = {name: content["criteria"][name]["title"] for name in table_of}
    numbers = [str(index + 1) for index in range(len(titles))]
    title = "rank correlations over depth, within each kind"
    table = _table(title, ["", "criterion", *numbers], left=2)
    for number, (name, row) in zip(numbers, table_of.items(), strict=True):
        cells = [_short(row[other]) for other in table_of]
        table.add_row(number, titles[name], *cells)
    return table


def _short(value: float | None) -> str:
    """Format a correlation in three characters: `.3`, `-.3`, `1`."""
    if value is None:
        return "-"
    return f"{value:.1f}".replace("0.", ".", 1).replace("1.0", "1").replace("-.0", ".0")


def _table(title: str, columns: Sequence[str], left: int) -> Table:
    table = Table(
        title=Text(title, "bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < left else "right", no_wrap=True)
    return table
