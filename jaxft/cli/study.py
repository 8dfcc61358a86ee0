"""`jaxft study`: variants of a run, trained together and ranked.

Each story is imported when it is called, as in `cli/main.py`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jaxft.cli.parts.process import prepare_computation
from jaxft.cli.parts.terminal import ConfigFile, echo
from jaxft.errors import UserError
from jaxft.launch.cluster import SUPERVISED, find_cluster
from jaxft.launch.supervise import supervise

if TYPE_CHECKING:
    from jaxft.config.load import Config

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Config keys to override in all variants, such as train.length=500.",
        show_default=False,
    ),
]
Vary = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=A,B,C",
        help="A config key and its values; several keys give every combination.",
        show_default=False,
    ),
]
Halve = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Successive halving: only the best 1 in N settings go on after each rung.",
        show_default=False,
    ),
]
MeshMembers = Annotated[
    int,
    typer.Option(
        min=1,
        metavar="N",
        help="Shares of the devices, each of which trains its own members side by side.",
    ),
]
Name = Annotated[
    str | None,
    typer.Option(help="Name of the study's folder in run.dir; NAME-study by default."),
]


Resume = Annotated[
    bool,
    typer.Option("--resume", help="Go on where a study was interrupted."),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace an existing study of this name.")
]
LrRange = Annotated[
    bool,
    typer.Option("--lr-range", help="Search for a range of learning rates in a short run instead."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only the study's folder.")]


def study(
    context: typer.Context,
    config: ConfigFile,
    overrides: Overrides = None,
    vary: Vary = None,
    halve: Halve = None,
    mesh_members: MeshMembers = 1,
    name: Name = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    lr_range: LrRange = False,
    quiet: Quiet = False,
) -> None:
    """Train variants of a run together and rank them; they share the frozen trunk."""
    if resume and overwrite:
        raise UserError(
            "--resume continues a study and --overwrite replaces it.", "Use one of them."
        )
    if lr_range:
        _check_range_flags(halve, mesh_members, resume)
    checked = _checked(config, overrides or ())
    varied = parse_vary(vary or ())
    if not varied and not lr_range:
        raise UserError("A study needs a key to vary.", "Add --vary optimizer.lr=1e-5,3e-5,1e-4.")
    if (cluster := None if SUPERVISED in os.environ else find_cluster()) is not None:
        raise typer.Exit(supervise(cluster, context.obj[1:]))
    name = name or checked.run.name + ("-lr-range" if lr_range else "-study")
    if not quiet:  # importing jax takes seconds: show at once that the command has started
        echo(f"jaxft {metadata.version('jaxft')}: {checked.run.dir}/{name}")
    prepare_computation()
    flags = {"name": name, "overwrite": overwrite, "quiet": quiet, "command": context.obj}
    if lr_range:
        from jaxft.studies.range import lr_range as find

        echo(find(checked, varied, **flags).folder)
        return
    from jaxft.studies.study import study as story

    shares: dict[str, Any] = {"halve": halve, "mesh_members": mesh_members}
    echo(story(checked, varied, resume=resume, **shares, **flags).folder)


def _check_range_flags(halve: int | None, mesh_members: int, resume: bool) -> None:
    """Raise a UserError for what a range test does not do."""
    if find_cluster() is not None:
        raise UserError("--lr-range runs in one process.", "Start it on one host.")
    if resume:
        raise UserError("--lr-range is a short run that cannot be resumed.", "Remove --resume.")
    if halve is not None:
        raise UserError("--lr-range trains no setting to the end.", "Remove --halve.")
    if mesh_members > 1:
        raise UserError("--lr-range has no members side by side.", "Remove --mesh-members.")


def _checked(config: str, overrides: Sequence[str]) -> Config:
    from jaxft.config.load import load_config

    return load_config(config, overrides)


def parse_vary(words: list[str] | tuple[str, ...]) -> dict[str, list[Any]]:
    """Parse the `--vary` options: key -> values, each read as YAML.

    Raises:
        UserError: not `KEY=A,B,C`, or a key twice.
    """
    from jaxft.config.load import read_yaml

    varied: dict[str, list[Any]] = {}
    for word in words:
        key, equals, values = word.partition("=")
        key = key.strip()
        if not equals or not key:
            raise UserError(
                f"--vary must be KEY=A,B,C, not '{word}'.",
                "Write for example optimizer.lr=1e-5,3e-5.",
            )
        if key in varied:
            raise UserError(f"--vary {key} appears twice.", "List all values once: KEY=A,B,C.")
        varied[key] = read_yaml(f"[{values}]", f"--vary {key}", whole=False)[0]
    return varied
