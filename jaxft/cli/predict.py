"""`jaxft predict`: labels as JSON lines, and text as it comes.

A story is imported when it is asked for, as in `cli.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jaxft.cli.paths import folder_named
from jaxft.cli.tagged import print_in_colour
from jaxft.cli.terminal import print_json_lines
from jaxft.errors import UserError

if TYPE_CHECKING:
    from jaxft.inference.generate import Message, Writer

TABLES = ("csv", "jsonl", "parquet")  # endings of files that hold rows, and kinds of sources
# What a person may say of how text is written.
WRITING: Any = {"rich_help_panel": "For models that write text", "show_default": False}
Chat = Annotated[
    bool | None,
    typer.Option("--chat/--no-chat", help="Write through the chat template.", **WRITING),
]
Most = Annotated[int | None, typer.Option(help="The most tokens of an answer.", **WRITING)]
Temperature = Annotated[
    float | None, typer.Option(help="Draw tokens; 0 takes the most likely.", **WRITING)
]
TopK = Annotated[int | None, typer.Option(help="Draw from so many of the most likely.", **WRITING)]
TopP = Annotated[
    float | None, typer.Option(help="Draw from the most likely with this probability.", **WRITING)
]
MinP = Annotated[
    float | None, typer.Option(help="Draw from those with this share of the best's.", **WRITING)
]
Beams = Annotated[int | None, typer.Option(help="Follow so many, and give the best.", **WRITING)]
Seed = Annotated[int | None, typer.Option(help="Of what is drawn.", **WRITING)]
Stop = Annotated[
    list[str] | None, typer.Option(help="End before this text; may be repeated.", **WRITING)
]
Run = Annotated[
    str, typer.Argument(metavar="RUN", help="The run folder; or a checkpoint that writes text.")
]
Texts = Annotated[
    list[str] | None,
    typer.Argument(metavar="TEXT", help="Texts to label or answer.", show_default=False),
]
OneFile = Annotated[
    Path | None,
    typer.Option(
        "--file", "-f", help="A file with one input a line; or .csv, .jsonl, .parquet: rows."
    ),
]
Draw = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        parser=folder_named,
        help="A folder for copies of the images, what is found drawn into them; of a model that "
        "draws images, for those (RUN/drawn without it).",
    ),
]
DRAWING: Any = {"rich_help_panel": "For models that draw images", "show_default": False}
Samples = Annotated[
    int | None,
    typer.Option(min=1, help="Draw so many from nothing, of each class if it has any.", **DRAWING),
]
Class = Annotated[
    str | None, typer.Option("--class", help="The class of what is drawn.", **DRAWING)
]
AsJson = Annotated[
    bool, typer.Option("--json", help="JSON lines, as where the output is no terminal.")
]


def predict(
    run: Run,
    texts: Texts = None,
    file: OneFile = None,
    as_json: AsJson = False,
    draw: Draw = None,
    chat: Chat = None,
    max_new_tokens: Most = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    beams: Beams = None,
    seed: Seed = None,
    stop: Stop = None,
    samples: Samples = None,
    label: Class = None,
) -> None:
    """Label texts or images, or answer them: arguments, a file, or standard input a line each.

    A model that writes text shows it as it comes, for images too (files, or folders of them); all
    else is printed as JSON lines. One that draws images draws --samples from nothing, or
    completes images from their upper half.
    """
    inputs = _inputs(texts, file)
    asked = _drawing(temperature) | {
        "max_new_tokens": max_new_tokens,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "num_beams": beams,
        "seed": seed,
        "stop_strings": tuple(stop) if stop else None,
    }
    asked = {name: value for name, value in asked.items() if value is not None}
    from jaxft.inference.generate import writes
    from jaxft.inference.generate_images import draws

    if draws(run) or samples or label:
        _print_images(run, inputs, samples, label, draw, asked, chat)
    elif writes(run):
        _print_texts(run, inputs, chat=chat, asked=asked, as_json=as_json)
    elif asked or chat is not None:
        raise UserError(f"'{run}' writes no text: it takes texts and --file alone.")
    else:
        _print_labels(folder_named(run), inputs, file, as_json, draw)


def _print_images(
    name: str,
    inputs: Iterable[str] | None,
    samples: int | None,
    label: str | None,
    draw: Path | None,
    asked: Mapping[str, Any],
    chat: bool | None,
) -> None:
    """Draw images, or complete those that were named, and print where each is."""
    from jaxft.inference.generate_images import complete, open_artist, sample

    odd = [o for o in ("max_new_tokens", "num_beams", "stop_strings") if o in asked]
    if odd or chat is not None:
        raise UserError(f"'{name}' draws images and writes no text.", "Leave those options out.")
    artist, to = open_artist(name, asked), draw or folder_named(name) / "drawn"
    if samples:
        print_json_lines(sample(artist, samples, label, to))
    elif inputs:
        print_json_lines(complete(artist, inputs, label, to))
    else:
        raise UserError("There is nothing to draw.", "Give --samples 16, or images to complete.")


def _drawing(temperature: float | None) -> dict[str, Any]:
    """Return what a temperature says; 0 is no temperature, but the limit where nothing is drawn."""
    if temperature is None or temperature == 0:
        return {"do_sample": None if temperature is None else False}
    return {"do_sample": True, "temperature": temperature}


def _inputs(texts: list[str] | None, file: Path | None) -> Iterable[str] | None:
    """Return what a person gave, read when it is asked for; None where they are to be asked.

    Raises:
        UserError: it comes from two places.
    """
    if texts and file:
        raise UserError("Texts come from arguments or from --file, not both.", "Give one of them.")
    return texts or (_lines_of(file) if file else _typed())


def _typed() -> Iterator[str] | None:
    """Return the lines of standard input; None where a person sits there."""
    return None if sys.stdin.isatty() else _decoded(sys.stdin.buffer, "standard input")


def _print_labels(
    run: Path, inputs: Iterable[str] | None, file: Path | None, as_json: bool, draw: Path | None
) -> None:
    """Print what a run says of each input: in colour what has a text to show it in."""
    if inputs is None:
        print("Type a text a line; Ctrl-D ends.", file=sys.stderr)
        inputs = _decoded(sys.stdin.buffer, "standard input")
    kind = file.suffix.lower().removeprefix(".") if file else None
    if draw is not None and kind not in TABLES:
        from jaxft.storage.outputs import check_apart

        inputs = list(inputs)
        check_apart(draw, inputs, "--draw")  # before anything is computed
    if kind in TABLES:
        from jaxft.inference.predict import predict_rows

        predictions = predict_rows(run, f"{kind}:{file}:ordered")
    else:
        from jaxft.inference.predict import predict as story

        predictions = story(run, inputs)
    if draw is not None:
        from jaxft.data.image.annotate import drawn_into

        predictions = drawn_into(draw, predictions)
    if as_json or not sys.stdout.isatty():
        print_json_lines(predictions)
    else:
        print_in_colour(predictions)


def _print_texts(
    name: str,
    prompts: Iterable[str] | None,
    *,
    chat: bool | None,
    asked: Mapping[str, Any],
    as_json: bool,
) -> None:
    """Go on with each prompt and print what is written.

    Args:
        name: the run or the checkpoint.
        prompts: one text each, or images; None to talk with the person at the terminal.
        chat, asked: see `open_writer`.
        as_json: print JSON lines, as is done wherever the output is no terminal.

    Raises:
        UserError: the model writes no text, or a prompt or a setting is not as it has to be.
    """
    from jaxft.inference.generate import complete, open_writer, prompts_of

    writer = open_writer(name, chat, asked)
    for note in writer.notes:
        print(f"jaxft: {note}", file=sys.stderr)
    if prompts is None:
        _talk(writer)
    elif as_json or not sys.stdout.isatty():
        print_json_lines(complete(writer, prompts))
    else:
        for prompt in prompts_of(writer, prompts):
            if writer.images is not None:
                print(f"{prompt}: ", end="")
            _print(writer, [{"role": "user", "content": prompt}])


def _talk(writer: Writer) -> None:
    """Answer what is typed, a line at a time; with a chat template, all that was said before."""
    print("Type a text; Ctrl-D ends.", file=sys.stderr)
    conversation: list[Message] = []
    while True:
        try:
            conversation.append({"role": "user", "content": input("> ")})
        except EOFError:
            print(file=sys.stderr)
            return
        conversation.append({"role": "assistant", "content": _print(writer, conversation)})


def _print(writer: Writer, conversation: list[Message]) -> str:
    """Print the text as it comes, and give it back whole."""
    from jaxft.inference.generate import write

    pieces = []
    for piece in write(writer, conversation):
        pieces.append(piece)
        print(piece, end="", flush=True)
    print()
    return "".join(pieces)


def _lines_of(file: Path) -> Iterator[str]:
    try:
        with file.open("rb") as lines:
            yield from _decoded(lines, str(file))
    except OSError as error:
        raise UserError(f"Cannot read '{file}': {error.strerror}.") from None


def _decoded(lines: Iterable[bytes], name: str) -> Iterator[str]:
    """Yield each line as text, without its end."""
    for number, line in enumerate(lines, 1):
        try:
            yield line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            raise UserError(f"{name}, line {number} is not UTF-8 text.") from None
