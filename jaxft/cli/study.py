"""`jaxft study`: many variants of a run trained together, and ranked.

The story is imported when it is asked for, as in `cli.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jaxft.cli.terminal import ConfigFile
from jaxft.errors import UserError

if TYPE_CHECKING:
    from jaxft.config.load import Config

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Config keys to set for all members, such as train.length=2.",
        show_default=False,
    ),
]
Vary = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=A,B,C",
        help="A config key and its values; with several keys, every combination.",
        show_default=False,
    ),
]
Name = Annotated[
    str | None,
    typer.Option(help="The study's folder in run.dir; run.name with '-study' by default."),
]


def study(
    context: typer.Context,
    config: ConfigFile,
    overrides: Overrides = None,
    vary: Vary = None,
    name: Name = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Train what an earlier start did not get to.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the study of this name.")
    ] = False,
    lr_range: Annotated[
        bool, typer.Option("--lr-range", help="Find a range of rates instead, in a short run.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print the study's folder only.")
    ] = False,
) -> None:
    """Train variants of a run together, the frozen trunk once for all, and rank them."""
    if resume and overwrite:
        raise UserError("--resume keeps a study and --overwrite replaces it.", "Give one of them.")
    checked = _checked(config, overrides or ())
    varied = parse_vary(vary or ())
    if not varied and not lr_range:
        raise UserError("There is nothing to vary.", "Add --vary optimizer.lr=1e-5,3e-5,1e-4.")
    name = name or checked.run.name + ("-lr-range" if lr_range else "-study")
    if not quiet:  # importing jax takes seconds, and a person should not wait for a first word
        typer.echo(f"jaxft {metadata.version('jaxft')}: {checked.run.dir}/{name}")
    flags = {"name": name, "overwrite": overwrite, "quiet": quiet, "command": context.obj}
    if lr_range:
        if resume:
            raise UserError("--lr-range is short: it cannot be resumed.", "Leave out --resume.")
        from jaxft.studies.range import lr_range as find

        typer.echo(find(checked, varied, **flags).folder)
        return
    from jaxft.studies.study import study as story

    typer.echo(story(checked, varied, resume=resume, **flags).folder)


def _checked(config: str, overrides: Sequence[str]) -> Config:
    from jaxft.config.load import load_config

    return load_config(config, overrides)


def parse_vary(words: list[str] | tuple[str, ...]) -> dict[str, list[Any]]:
    """Return what `--vary` asks for: key -> values, each read as YAML.

    Raises:
        UserError: not `key=a,b,c`, or a key twice.
    """
    from jaxft.config.load import read_yaml

    varied: dict[str, list[Any]] = {}
    for word in words:
        key, equals, values = word.partition("=")
        key = key.strip()
        if not equals or not key:
            raise UserError(
                f"--vary {word}: it is not key=a,b,c.", "Such as optimizer.lr=1e-5,3e-5."
            )
        if key in varied:
            raise UserError(f"--vary {key} is given twice.", "Give all values at once: key=a,b,c.")
        varied[key] = read_yaml(f"[{values}]", f"--vary {key}", whole=False)[0]
    return varied
