"""The commands of jaxft: each parses, calls one story, and prints what it gave.

A story and the config's schema are imported when a command runs, so that `jaxft --help` is quick.
"""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from jaxft.cli.data import app as data
from jaxft.cli.doctor import doctor
from jaxft.cli.paths import folder_named
from jaxft.cli.plan import plan
from jaxft.cli.predict import predict
from jaxft.cli.report import report
from jaxft.cli.search import search
from jaxft.cli.study import study
from jaxft.cli.terminal import ConfigFile, Overrides, console
from jaxft.errors import UserError
from jaxft.launch.cluster import SUPERVISED, find_cluster
from jaxft.launch.platforms import leave_out_absent_tpu
from jaxft.launch.supervise import supervise

app = typer.Typer(
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    help="Fine-tune Hugging Face checkpoints in JAX, layer by layer, and back to Hugging Face.",
)

TracedSteps = Annotated[
    str | None, typer.Option(metavar="10:20", help="Trace these steps, for XProf.")
]
Coordinator = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="Where process 0 is, of several.")
]
RunName = Annotated[
    Path, typer.Argument(metavar="RUN", parser=folder_named, help="The run folder.")
]
# Wherever it happens, a person mends it, and not the program: a full disk, a folder of another's.
REFUSED_BY_THE_SYSTEM = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
# What the commands do that would be in each other's way, were they started on every host.
ALONE = {"data", "eval", "predict", "search", "study", "export", "report"}
KEYS_HELP = "Every key of a config, with its type, default and meaning: jaxft config"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: what was typed after `jaxft`; the process's own by default. `--debug` may
            stand anywhere before `--`.

    Returns:
        The exit code: 0; 1 where `doctor` finds what is wrong; 2 where what a person gave is wrong;
        3 where a plan does not fit its chips; 130 after Ctrl-C and 143 after SIGTERM.
    """
    if arguments is None:
        # Python's own answer to Ctrl-C is an exception, which an import that is under way may take
        # for its failure and a callback may swallow: end at once instead, as a signal does.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        leave_out_absent_tpu(os.environ)
    typed = list(sys.argv[1:] if arguments is None else arguments)
    end = typed.index("--") if "--" in typed else len(typed)
    debug = "--debug" in typed[:end]
    words = [word for word in typed[:end] if word != "--debug"] + typed[end:]
    try:
        code = app(args=words, obj=["jaxft", *typed], prog_name="jaxft", standalone_mode=False)
    except (UserError, typer.TyperException) as error:
        if debug:
            traceback.print_exc()
        message = str(error) if isinstance(error, UserError) else error.format_message()
        print(f"jaxft: {' '.join(message.split())}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in REFUSED_BY_THE_SYSTEM:
            raise
        if debug:
            traceback.print_exc()
        print(f"jaxft: {error.filename or 'A file'}: {error.strerror}.", file=sys.stderr)
        return 2
    return code if isinstance(code, int) else 0


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"jaxft {importlib.metadata.version('jaxft')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def jaxft(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where in jaxft a mistake was noticed.")
    ] = False,
) -> None:
    """What every command has in common; `main` takes `--debug` out, wherever it stands."""
    command = context.invoked_subcommand
    if command in ALONE and find_cluster() is not None:
        raise UserError(f"jaxft {command} runs in one process, and this is one of several.")
    if command is None:
        typer.echo(context.get_help())


@app.command(epilog=KEYS_HELP)
def train(
    context: typer.Context,
    config: ConfigFile,
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run of this name.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print the run folder only.")
    ] = False,
    profile: TracedSteps = None,
    coordinator: Coordinator = None,
    processes: Annotated[int | None, typer.Option(help="How many train together.")] = None,
    process_id: Annotated[int | None, typer.Option(help="Which one this is, from 0.")] = None,
) -> None:
    """Fine-tune, evaluate, keep the best, and score the test rows once."""
    if resume and overwrite:
        raise UserError("--resume keeps a run and --overwrite replaces it.", "Give one of them.")
    from jaxft.config.load import load_config

    checked = load_config(config, overrides or ())
    cluster = None if SUPERVISED in os.environ else find_cluster(coordinator, processes, process_id)
    if cluster is not None:
        raise typer.Exit(supervise(cluster, context.obj[1:]))
    if not quiet:  # importing jax takes seconds, and a person should not wait for a first word
        typer.echo(
            f"jaxft {importlib.metadata.version('jaxft')}: {checked.run.dir}/{checked.run.name}"
        )
    from jaxft.training.profile import parse_steps
    from jaxft.training.story import train as story

    steps = None if profile is None else parse_steps(profile)
    flags = {"resume": resume, "overwrite": overwrite, "quiet": quiet}
    typer.echo(story(checked, command=context.obj, profile=steps, **flags).folder)


@app.command("eval")
def evaluate(
    run: RunName,
    split: Annotated[
        Literal["test", "eval"], typer.Option(help="Which rows of the run's config to score.")
    ] = "test",
    data: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Other rows, such as csv:more.csv.")
    ] = None,
    interpolate: Annotated[
        str | None,
        typer.Option(
            metavar="FIRST:LAST:STEP",
            help="Score shares of the way from the start to the checkpoint too, as 0:1:0.1.",
        ),
    ] = None,
    similarity: Annotated[
        bool,
        typer.Option(
            "--similarity", help="Compare what each depth says with what it said at the start."
        ),
    ] = False,
) -> None:
    """Score a run's best checkpoint; prints JSON."""
    from jaxft.inference.score import score as story

    scores = story(run, split, data, interpolate, similarity)
    typer.echo(json.dumps(scores, indent=2, ensure_ascii=False))


app.command(epilog=KEYS_HELP)(plan)
app.command()(predict)
app.command()(search)
app.command(epilog=KEYS_HELP)(study)
app.add_typer(data, name="data")
app.command()(doctor)
app.command()(report)


@app.command()
def export(
    run: RunName,
    out: Annotated[
        Path | None,
        typer.Option(parser=folder_named, help="The folder to write; RUN/export by default."),
    ] = None,
    checkpoint: Annotated[
        str, typer.Option(metavar="best|last|STEP", help="Which checkpoint.")
    ] = "best",
    adapter: Annotated[
        bool,
        typer.Option(
            "--adapter", help="Write the adapter alone, as PEFT does; to RUN/adapter by default."
        ),
    ] = False,
) -> None:
    """Write a run as a Hugging Face folder that transformers loads; prints the folder."""
    which = int(checkpoint) if checkpoint.isdecimal() else checkpoint
    if isinstance(which, str) and which not in ("best", "last"):
        raise UserError(f"--checkpoint is best, last or a step's number, not '{checkpoint}'.")
    from jaxft.export.export import export as story

    typer.echo(story(run, out, which, adapter))


@app.command()
def config(
    config: Annotated[
        str | None, typer.Argument(metavar="CONFIG", help="Show this config with all its keys.")
    ] = None,
    overrides: Overrides = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of a config, for editors.")
    ] = False,
) -> None:
    """Explain every key of a config, or show a config complete with its defaults."""
    from jaxft.config.load import load_config, schema_text, to_yaml

    if schema and config is not None:
        raise UserError("--schema takes no config.", "It is the same for all.")
    if schema:
        typer.echo(schema_text(), nl=False)
    elif config is not None:
        typer.echo(to_yaml(load_config(config, overrides or ()).dump()), nl=False)
    else:
        console().print(_key_table())


def _key_table() -> Table:
    """Return every key: type, default, unit, meaning, and whether it may change on resume."""
    table = Table("key", "type", "default", "meaning", "on resume", box=box.SIMPLE_HEAD)
    section = None
    from jaxft.config.load import describe_keys

    for key in describe_keys():
        top = key.name.split(".")[0].removesuffix("[]")
        if top != section and section is not None:
            table.add_section()
        section = top
        kind = f"{key.type} ({key.unit})" if key.unit else key.type
        cells = (key.name, kind, key.default, key.meaning, key.resume)
        table.add_row(*map(Text, cells))  # plain: a slice such as [a:b] is no markup
    return table
