"""`jaxft layers`: the published criteria of layers, measured in one pass without training.

The story is imported when it is called, as in `cli/main.py`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jaxft.cli.parts.process import prepare_computation
from jaxft.cli.parts.terminal import ConfigFile, Overrides, announce, print_report
from jaxft.errors import UserError, nearest
from jaxft.report.terminal.console import EscapingConsole

if TYPE_CHECKING:
    from jaxft.analysis.layer_criteria.story import LayerCriteria
    from jaxft.config.load import Config

BATCHES = 8
BY, TRAIN = "spectrum", "50%"


Batches = Annotated[int, typer.Option(min=1, metavar="N", help="Training batches to read.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the criteria as JSON.")]
Out = Annotated[
    Path | None,
    typer.Option(metavar="PAGE.html", help="Also write a page with a heat map per criterion."),
]
Write = Annotated[
    Path | None,
    typer.Option(
        metavar="GROUPS.yaml", help="Also write groups in which the chosen matrices train."
    ),
]
By = Annotated[
    str | None,
    typer.Option(metavar="CRITERION", help=f"What --write chooses by; {BY} by default."),
]
Train = Annotated[
    str | None,
    typer.Option(
        metavar="SHARE",
        help=f"The share of the matrices of each kind that trains; {TRAIN} by default.",
    ),
]


def layers(
    config: ConfigFile,
    overrides: Overrides = None,
    batches: Batches = BATCHES,
    as_json: AsJson = False,
    out: Out = None,
    write: Write = None,
    by: By = None,
    train: Train = None,
) -> None:
    """Measure how every matrix of a model scores by the published criteria of layers.

    One pass over a few training batches, without training: weight spectra, gradients, states and
    costs, of each block and each kind of matrix in it.
    """
    if write is None and (by is not None or train is not None):
        raise UserError("--by and --train are for --write.", "Add --write groups.yaml.")
    fraction = parse_share(TRAIN if train is None else train)
    from jaxft.config.load import load_config

    checked = load_config(config, overrides or ())
    announce(f"layers of {config}")
    from jaxft.storage.outputs import HTML_MARK, check_output, write_output

    chosen = _criterion(BY if by is None else by)
    prepare_computation()
    from jaxft.analysis.layer_criteria.story import GROUPS_MARK

    for path, mark, option in ((out, HTML_MARK, "--out"), (write, GROUPS_MARK, "--write")):
        if path is not None:
            check_output(path, mark, option)
    report = _measured(checked, batches)
    if write is not None:
        write_output(write, report.groups(chosen, fraction), GROUPS_MARK, "--write")
    if out is not None:
        from jaxft.report.page.criteria import render_criteria

        write_output(out, render_criteria(report.content()), HTML_MARK, "--out")
    print_report(report, as_json, highlight=False)


def _criterion(name: str) -> str:
    """Return the name of a criterion to choose by.

    Raises:
        UserError: there is none of this name.
    """
    from jaxft.layerwise.criteria.choose import CHOICES

    if name not in CHOICES:
        close = nearest(name, CHOICES, 1)
        raise UserError(
            f"--by: there is no criterion '{name}'.",
            f"Did you mean '{close[0]}'?" if close else f"Choose one of {', '.join(CHOICES)}.",
        )
    return name


def _measured(config: Config, batches: int) -> LayerCriteria:
    """Measure with a bar on standard error, so that standard output is the report alone."""
    from jaxft.analysis.layer_criteria.story import layer_criteria
    from jaxft.report.terminal.criteria import measuring_bar

    with measuring_bar(EscapingConsole(stderr=True)) as (begin, advance):
        return layer_criteria(config, batches, begin, advance)


def parse_share(text: str) -> float:
    """Parse `--train`: a percentage such as `50%`, or a fraction such as `0.5`.

    Raises:
        UserError: anything else, or not above 0 and at most 100%.
    """
    number, percent, rest = text.strip().partition("%")
    try:
        value = float(number) / (100 if percent else 1)
    except ValueError:
        value = math.nan
    if rest or not 0 < value <= 1:
        raise UserError(
            f"--train must be a share above 0% and at most 100%, not '{text}'.",
            "Write for example --train 50%.",
        )
    return value
