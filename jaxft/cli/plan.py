"""`jaxft plan`: what would be trained, and what it takes of chips that need not be there.

The story is imported when it is asked for, as in `cli.py`.
"""

from __future__ import annotations

import importlib.metadata
import time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from jaxft.cli.terminal import ConfigFile, Overrides, print_report
from jaxft.errors import UserError

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
            help="Compile the step for a TPU slice such as v5e:4x4, and say if it fits.",
        ),
    ] = None,
    devices: Annotated[
        int | None,
        typer.Option(min=1, help="Compile it for so many devices of this machine's kind."),
    ] = None,
    largest_batch: Annotated[
        bool, typer.Option("--largest-batch", help="Find the largest batch that fits, by trying.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Show what would be trained, at what rates and cost; nothing is trained.

    With --topology or --devices the train step is compiled for chips that need not be there, and
    where it does not fit, changes are tried: the exit code is 3 then.
    """
    if topology is not None and devices is not None:
        raise UserError("--topology and --devices both say what to plan for.", "Give one of them.")
    if largest_batch and topology is None and devices is None:
        raise UserError("--largest-batch needs chips.", "Give --topology or --devices too.")
    from jaxft.config.load import load_config
    from jaxft.device.chips import parse_topology

    chosen = None if topology is None else parse_topology(topology)
    checked = load_config(config, overrides or ())
    if chosen is not None or devices is not None:
        raise typer.Exit(_plan_on(checked, config, chosen, devices, largest_batch, as_json))
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
    """Plan for chips; the exit code."""
    where = topology.name if topology else f"{devices} devices"
    aside = Console(stderr=True, highlight=False)
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
