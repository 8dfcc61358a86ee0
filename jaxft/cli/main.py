"""The commands of jaxft: each parses its arguments, calls one story, and prints the result.

A story and the config's schema are imported when a command runs, so that `jaxft --help` is quick.
"""

from __future__ import annotations

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

from jaxft.cli.board import board
from jaxft.cli.config import app as configs
from jaxft.cli.config import config
from jaxft.cli.data.commands import app as data
from jaxft.cli.demo import assets, demo
from jaxft.cli.doctor import doctor
from jaxft.cli.init import init
from jaxft.cli.launch import launch
from jaxft.cli.layers.command import layers
from jaxft.cli.layers.tune_rates import tune_rates
from jaxft.cli.models import models
from jaxft.cli.parts.checkpoints import CheckpointOfRun, checkpoint_named
from jaxft.cli.parts.paths import folder_named
from jaxft.cli.parts.process import prepare_command_line, prepare_computation
from jaxft.cli.parts.terminal import ConfigFile, Overrides, announce, echo
from jaxft.cli.parts.together import join_processes
from jaxft.cli.plan import plan
from jaxft.cli.predict import predict
from jaxft.cli.push import push
from jaxft.cli.report import report
from jaxft.cli.search import search
from jaxft.cli.study import study
from jaxft.errors import Note, UserError, shortened
from jaxft.launch.cluster import SUPERVISED, find_cluster
from jaxft.launch.platforms import leave_out_absent_tpu
from jaxft.launch.supervise import supervise

app = typer.Typer(
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    help="Fine-tune Hugging Face checkpoints in JAX, layer by layer, and export to transformers.",
)

TracedSteps = Annotated[
    str | None, typer.Option(metavar="10:20", help="Profile these steps for XProf.")
]
Coordinator = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="Address of process 0 in a run of several processes."),
]
RunName = Annotated[
    Path, typer.Argument(metavar="RUN", parser=folder_named, help="The run folder.")
]
# Commands that would conflict if they were started on every host.
ALONE = {
    "board",
    "data",
    "demo",
    "layers",
    "push",
    "report",
    "tune-rates",
}
TOGETHER = {"eval", "export", "predict", "search"}  # commands that several processes run as one
KEYS_HELP = "To list every config key with its type, default and meaning: jaxft config"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the command line after `jaxft`; that of the process by default. `--debug`
            may stand anywhere before `--`.

    Returns:
        The exit code: 0; 1 if `doctor` finds a problem, or `models` a checkpoint
        that cannot be loaded; 2 after a user error; 3 if a plan does not
        fit its chips; 130 after Ctrl-C and 143 after SIGTERM.
    """
    if arguments is None:
        # Python turns Ctrl-C into an exception, which an import in progress may mistake for its own
        # failure and a callback may swallow: end at once instead, as a signal does.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        leave_out_absent_tpu(os.environ)
        prepare_command_line()
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
        message = message.replace(": Value error, ", ": ")  # pydantic's name of the fault
        _print_error(message, error)
        return 2
    except Exception as error:
        sentence = of_the_system(error)
        if sentence is None:
            raise
        if debug:
            traceback.print_exc()
        _print_error(sentence, error)
        return 2
    return code if isinstance(code, int) else 0


def _print_error(message: str, error: Exception) -> None:
    """Print an error in one line, with what was noted on its way: where a replaced run is."""
    notes = [note for note in getattr(error, "__notes__", ()) if isinstance(note, Note)]
    echo(f"jaxft: {' '.join(' '.join([message, *notes]).split())}", err=True)


def of_the_system(error: Exception) -> str | None:
    """Return the sentence for an error that the machine caused and only its user can mend.

    These are files that cannot be opened or written, such as on a full disk, and memory that ran
    out, on the host or on a device; None of anything else.
    """
    if isinstance(error, OSError) and error.strerror:
        return f"{shortened(str(error.filename or 'A file'))}: {error.strerror}."
    if isinstance(error, ValueError) and str(error) == "embedded null byte":
        return "A path holds a null byte, which no file name can."
    on_device = type(error).__name__ == "JaxRuntimeError" and "RESOURCE_EXHAUSTED" in str(error)
    if on_device or isinstance(error, MemoryError):
        memory = "device" if on_device else "host"
        return (
            f"Out of {memory} memory. Lower data.batch_size, or set train.accumulate, train.remat "
            "or more devices in mesh; `jaxft plan CONFIG` tells what a step needs."
        )
    return None


def _show_version(wanted: bool) -> None:
    if wanted:
        echo(f"jaxft {importlib.metadata.version('jaxft')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def jaxft(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show a traceback with every error.")
    ] = False,
) -> None:
    """Handle the options of every command; `main` removes `--debug`, wherever it stands."""
    command = context.invoked_subcommand
    if command in ALONE and find_cluster() is not None:
        raise UserError(
            f"jaxft {command} runs in one process, and this is one of several.",
            "Start it on one host, without the variables of a cluster.",
        )
    if command in TOGETHER:
        join_processes(context.obj[1:])
    if command is None:
        typer.echo(context.get_help())


@app.command(epilog=KEYS_HELP)
def train(
    context: typer.Context,
    config: ConfigFile,
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the run's last checkpoint.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing run of this name.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print only the run folder.")
    ] = False,
    profile: TracedSteps = None,
    coordinator: Coordinator = None,
    processes: Annotated[int | None, typer.Option(help="Number of processes of the run.")] = None,
    process_id: Annotated[int | None, typer.Option(help="Number of this process, from 0.")] = None,
) -> None:
    """Fine-tune a checkpoint, keep the best state, and score the test rows once."""
    if resume and overwrite:
        raise UserError("--resume continues a run and --overwrite replaces it.", "Use one of them.")
    from jaxft.config.load import load_config

    checked = load_config(config, overrides or ())
    cluster = None if SUPERVISED in os.environ else find_cluster(coordinator, processes, process_id)
    if cluster is not None:
        raise typer.Exit(supervise(cluster, context.obj[1:]))
    if not quiet:  # importing jax takes seconds: show at once that the command has started
        echo(f"jaxft {importlib.metadata.version('jaxft')}: {checked.run.dir}/{checked.run.name}")
    from jaxft.training.profile import parse_steps
    from jaxft.training.story import train as story

    steps = None if profile is None else parse_steps(profile)
    flags = {"resume": resume, "overwrite": overwrite, "quiet": quiet}
    prepare_computation()
    echo(story(checked, command=context.obj, profile=steps, **flags).folder)


@app.command("eval")
def evaluate(
    run: RunName,
    split: Annotated[
        Literal["test", "eval", "train"],
        typer.Option(help="The rows to score, as named in the run's config."),
    ] = "test",
    checkpoint: CheckpointOfRun = "best",
    data: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Score other rows, such as csv:more.csv.")
    ] = None,
    interpolate: Annotated[
        str | None,
        typer.Option(
            metavar="FIRST:LAST:STEP",
            help="Also score interpolations from the initial weights (0) to the checkpoint (1), "
            "such as 0:1:0.1.",
        ),
    ] = None,
    similarity: Annotated[
        bool,
        typer.Option(
            "--similarity",
            help="Also compare each layer's output with that of the initial weights.",
        ),
    ] = False,
) -> None:
    """Score a run's best checkpoint, or another, and print JSON."""
    which = checkpoint_named(checkpoint)
    announce(f"scores of {run}")
    from jaxft.inference.score import score as story

    prepare_computation()
    scores = story(run, split, data, interpolate, similarity, which=which)
    echo(json.dumps(scores, indent=2, ensure_ascii=False))


app.command(epilog=KEYS_HELP)(plan)
app.command(epilog=KEYS_HELP)(layers)
app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})(
    launch
)
app.command()(predict)
app.command()(search)
app.command(epilog=KEYS_HELP)(study)
app.command("tune-rates", epilog=KEYS_HELP)(tune_rates)
app.add_typer(data, name="data")
app.command()(doctor)
app.command()(report)
app.command()(board)


@app.command()
def export(
    run: RunName,
    out: Annotated[
        Path | None,
        typer.Option(parser=folder_named, help="The output folder; RUN/export by default."),
    ] = None,
    checkpoint: CheckpointOfRun = "best",
    adapter: Annotated[
        bool,
        typer.Option(
            "--adapter", help="Write only the adapter, in PEFT's format, to RUN/adapter by default."
        ),
    ] = False,
) -> None:
    """Export a run as a Hugging Face folder that transformers loads, and print its path."""
    which = checkpoint_named(checkpoint)
    announce(f"export of {run}")
    from jaxft.export.export import export as story

    echo(story(run, out, which, adapter))


app.command()(config)
app.add_typer(configs, name="configs")
app.command()(push)
app.command()(init)
app.command()(models)
app.command()(assets)
app.command()(demo)
