"""`jaxft plan`: what a config would train, and whether it fits chips that need not be present.

The story is imported when it is called, as in `cli/main.py`.
"""

from __future__ import annotations

import importlib.metadata
import time
from typing import TYPE_CHECKING, Annotated

import typer

from jaxft.cli.parts.terminal import ConfigFile, Overrides, announce, print_report
from jaxft.errors import UserError
from jaxft.numbers import counted
from jaxft.report.terminal.console import EscapingConsole

if TYPE_CHECKING:
    from jaxft.config.load import Config
    from jaxft.device.chips import Topology


def plan(
    config: ConfigFile,
    overrides: Overrides = None,
    topology: Annotated[
        str | None,
        typer.Option(
            metavar="TPU:SHAPE",
            help="Compile the step for a TPU slice, such as v5e:4x4, and check that it fits.",
        ),
    ] = None,
    devices: Annotated[
        int | None,
        typer.Option(min=1, help="Compile it for this many devices of this machine's kind."),
    ] = None,
    largest_batch: Annotated[
        bool, typer.Option("--largest-batch", help="Search for the largest batch that fits.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Show parameter groups, learning rates, memory and FLOPs of a config without training.

    With --topology or --devices the train step is compiled for chips that need not be present. If
    it does not fit, changes that make it fit are searched for, and the exit code is 3.
    """
    if topology is not None and devices is not None:
        raise UserError("--topology and --devices are two targets of a plan.", "Use one of them.")
    if largest_batch and topology is None and devices is None:
        raise UserError("--largest-batch needs a target.", "Add --topology or --devices.")
    from jaxft.config.load import load_config
    from jaxft.device.chips import parse_topology

    chosen = None if topology is None else parse_topology(topology)
    checked = load_config(config, overrides or ())
    if chosen is not None or devices is not None:
        raise typer.Exit(_plan_on(checked, config, chosen, devices, largest_batch, as_json))
    announce(f"plan of {config}")
    from jaxft.planning.plan import plan as story

    made = story(checked)
    print_report(made, as_json, highlight=False)


def _plan_on(
    config: Config,
    name: str,
    topology: Topology | None,
    devices: int | None,
    largest_batch: bool,
    as_json: bool,
) -> int:
    """Plan for a target, and return the exit code."""
    where = topology.name if topology else counted(devices or 1, "device")
    aside = EscapingConsole(stderr=True, highlight=False)
    version = importlib.metadata.version("jaxft")
    aside.print(f"jaxft {version}: the train step of {name} for {where}")
    from jaxft.planning.pod import DOES_NOT_FIT, plan_on

    start = time.monotonic()
    with aside.status("starting") as status:

        def tell(what: str) -> None:
            if aside.is_terminal:
                status.update(what)
            else:
                aside.print(f"{time.monotonic() - start:6.0f} s  {what}")

        made = plan_on(
            config, topology=topology, devices=devices, largest_batch=largest_batch, tell=tell
        )
    print_report(made, as_json, highlight=False)
    return 0 if made.fits else DOES_NOT_FIT
