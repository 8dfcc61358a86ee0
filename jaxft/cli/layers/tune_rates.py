"""`jaxft tune-rates`: learning rates by depth that gradient descent finds.

The story is imported when it is called, as in `cli/main.py`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from jaxft.cli.parts.process import prepare_computation
from jaxft.cli.parts.terminal import ConfigFile, Overrides, announce, echo
from jaxft.errors import UserError
from jaxft.report.terminal.console import EscapingConsole

if TYPE_CHECKING:
    from jaxft.config.load import Config
    from jaxft.studies.tuning.problem import Problem
    from jaxft.studies.tuning.tune import Tuned

BAR = 24  # characters of the bar of the largest multiplier


def tune_rates(
    config: ConfigFile,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(metavar="N", help="Steps of training per round.")] = 20,
    rounds: Annotated[int, typer.Option(metavar="N", help="Moves of the multipliers.")] = 8,
    draws: Annotated[
        int, typer.Option(metavar="N", help="Repetitions with other training rows.")
    ] = 3,
    eval_batches: Annotated[
        int, typer.Option(min=1, metavar="N", help="Batches of the eval rows to score.")
    ] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    write: Annotated[
        Path | None,
        typer.Option(metavar="NEW.yaml", help="Also write the config with the learned rates."),
    ] = None,
) -> None:
    """Learn a learning rate for each depth by gradient descent on the eval loss.

    Each round trains from the checkpoint and differentiates the loss on the eval rows by every
    depth's multiplier, through all steps and the optimizer.
    """
    from jaxft.config.load import load_config

    checked = load_config(config, overrides or ())
    announce(f"rates of {config}")
    if write is not None and write.exists():
        raise UserError(f"--write: {write} exists.", "Name a new file.")
    from jaxft.studies.tuning.problem import open_problem
    from jaxft.studies.tuning.tune import check_tunable, tune, untrained_loss

    check_tunable(checked, steps, rounds, draws)
    prepare_computation()
    problem = open_problem(checked, steps, eval_batches)
    echo(_cost(problem, steps, rounds, draws), err=True)
    untrained = untrained_loss(problem)
    echo(f"before training: eval loss {untrained:.4f}", err=True)
    progress = partial(_print_round, rounds, untrained)
    tuned = tune(problem, steps=steps, rounds=rounds, draws=draws, progress=progress)
    if write is not None:
        _write(write, checked, problem, tuned)
    if as_json:
        echo(tuned.to_json())
    else:
        EscapingConsole().print(rates_table(tuned))


def _cost(problem: Problem, steps: int, rounds: int, draws: int) -> str:
    """Tell what the search costs, in steps of training."""
    depths = len(problem.depths)
    trainings = draws * (rounds + 1)
    return (
        f"{trainings} trainings of {steps} steps, each with {depths} derivatives: the work of "
        f"about {2 * depths * trainings * steps:,} steps, and the memory of {depths + 1} states"
    )


def _print_round(rounds: int, untrained: float, draw: int, done: int, loss: float) -> None:
    echo(f"draw {draw + 1}, round {done} of {rounds}: eval loss {loss:.4f}", err=True)
    if draw == done == 0 and loss >= untrained:
        echo(
            "note: the config's own rates do not lower the eval loss in these steps; what is "
            "learned may then follow noise. Lower optimizer.lr, or train longer (--steps).",
            err=True,
        )


def _write(path: Path, config: Config, problem: Problem, tuned: Tuned) -> None:
    """Write the config with the learned rates in place of its groups and its layer decay."""
    from jaxft.config.load import to_yaml
    from jaxft.storage.files import place, write_atomic
    from jaxft.studies.tuning.groups import tuned_config

    written = tuned_config(config, problem.now.table.leaves, tuned)
    comment = (
        f"# Learning rates that `jaxft tune-rates` found in {tuned.steps} steps: eval loss "
        f"{tuned.loss_before:.4f} before, {tuned.loss_after:.4f} after.\n"
    )
    write_atomic(place(str(path)), comment + to_yaml(written))


def rates_table(tuned: Tuned) -> Table:
    """Lay out the multiplier of each depth, from the top down, with its interval."""
    table = Table(
        title=f"learned rates: eval loss after {tuned.steps} steps {tuned.loss_before:.4f} "
        f"before, {tuned.loss_after:.4f} after"
    )
    for column in ("depth", "config", "learned", "95% interval"):
        table.add_column(column, justify="right")
    table.add_column("")
    highest = max(tuned.multipliers)
    rows = zip(tuned.depths, tuned.base, tuned.multipliers, tuned.low, tuned.high, strict=True)
    for depth, base, learned, low, high in reversed(list(rows)):
        bar = "█" * max(round(BAR * learned / highest), 1)
        table.add_row(str(depth), f"{base:.3g}", f"{learned:.3g}", f"{low:.3g} to {high:.3g}", bar)
    return table
