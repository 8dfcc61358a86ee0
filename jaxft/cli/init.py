"""`jaxft init`: from a data set to a config.

The story is imported when it is called, as in `cli/main.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from jaxft.cli.parts.paths import folder_named
from jaxft.cli.parts.terminal import console, echo
from jaxft.errors import UserError

if TYPE_CHECKING:
    from jaxft.analysis.first_config.questions import Question
    from jaxft.analysis.first_config.story import FirstConfig

PARTS: Any = {"show_default": False}


SourceName = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="A CSV, TSV, JSON lines, COCO, Parquet or Arrow file; a folder of images (with COCO's "
        "annotations too), of a TFDS or `datasets` data set, or of train and test files; a TFDS "
        "name; or a source string.",
    ),
]
Task = Annotated[str | None, typer.Option(metavar="KIND", help="The task.kind to learn.", **PARTS)]
TextColumn = Annotated[
    str | None, typer.Option(metavar="COLUMN", help="The column of the texts.", **PARTS)
]
ImageColumn = Annotated[
    str | None, typer.Option(metavar="COLUMN", help="The column of the images.", **PARTS)
]
LabelColumn = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMN", help="The column of the labels; A,B,C for one per label.", **PARTS
    ),
]
Problem = Annotated[
    str | None,
    typer.Option(help="Whether the labels are classes or numbers.", metavar="KIND", **PARTS),
]
OtherColumns = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=COLUMN", help="A column of another task, as in prompt=question.", **PARTS
    ),
]
CheckpointName = Annotated[
    str | None,
    typer.Option(
        help="The checkpoint to start from; assets/NAME is downloaded if it is not there.", **PARTS
    ),
]
Freeze = Annotated[
    str | None,
    typer.Option(
        metavar="PART",
        help="What to freeze: none, embeddings, third, half, two-thirds (of the blocks), "
        "head-only, or lora.",
        **PARTS,
    ),
]
EvalSource = Annotated[
    str | None, typer.Option("--eval", metavar="SOURCE", help="The eval rows.", **PARTS)
]
TestSource = Annotated[
    str | None, typer.Option("--test", metavar="SOURCE", help="The test rows.", **PARTS)
]
RunName = Annotated[str | None, typer.Option(help="The name of the run.", **PARTS)]
OutFile = Annotated[
    Path | None,
    typer.Option(parser=folder_named, help="The config to write; NAME.yaml by default.", **PARTS),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Take every default without asking.")]


def init(
    source: SourceName,
    task: Task = None,
    text: TextColumn = None,
    image: ImageColumn = None,
    label: LabelColumn = None,
    problem: Problem = None,
    column: OtherColumns = None,
    checkpoint: CheckpointName = None,
    freeze: Freeze = None,
    eval_source: EvalSource = None,
    test_source: TestSource = None,
    name: RunName = None,
    out: OutFile = None,
    yes: Yes = False,
) -> None:
    """Write a config for a data set: look at some of its rows, and ask what they leave open.

    What is ambiguous is asked at a terminal, and otherwise is an error that names the option.
    """
    from jaxft.analysis.first_config.questions import Answers
    from jaxft.analysis.first_config.story import first_config

    named = {
        "--task": task,
        "--text": text,
        "--image": image,
        "--label": label,
        "--problem": problem,
        "--checkpoint": checkpoint,
        "--freeze": freeze,
    }
    options = {option: value for option, value in named.items() if value is not None}
    options |= {f"--column {key}": value for key, value in map(_pair, column or ())}
    if checkpoint is not None:
        _bring(checkpoint)
    ask = _ask if sys.stdin.isatty() and not yes else None
    made = first_config(source, Answers(options, ask, yes), out, name, eval_source, test_source)
    _show(made)


def _show(made: FirstConfig) -> None:
    """Print what was decided and why, and the next commands."""
    table = Table("key", "value", "why", box=box.SIMPLE_HEAD)
    for row in made.decisions:
        table.add_row(*map(Text, row))
    console(highlight=False).print(table)
    echo(f"Wrote {made.path}. Next:\n  jaxft train {made.path}")
    echo(f"and then, for instance:\n  jaxft predict runs/{made.name} ...")


def _pair(written: str) -> tuple[str, str]:
    key, equals, value = written.partition("=")
    if not equals or not key or not value:
        raise UserError(f"--column: '{written}' is not of the form KEY=COLUMN.")
    return key, value


def _bring(checkpoint: str) -> None:
    """Download `assets/NAME` if it is the checkpoint of an example and not there."""
    from jaxft.demo.main import ASSETS, bring

    folder, _, name = checkpoint.rpartition("/")
    if folder == "assets" and name in ASSETS and not Path(checkpoint).exists():
        echo(bring([name]), err=True)


def _ask(question: Question) -> str:
    """Ask a question at the terminal; an empty answer is the default."""
    choices = f" ({', '.join(question.choices[:12])})" if question.choices else ""
    echo(f"{question.why[:1].upper()}{question.why[1:]}", err=True)
    while True:
        answer: str = typer.prompt(f"{question.text}{choices}", default=question.default, err=True)
        if not question.choices or answer in question.choices:
            return answer
        echo(f"'{answer}' is not one of them.", err=True)
