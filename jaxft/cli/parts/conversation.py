"""A conversation at the terminal: each typed line is answered as the text is generated."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from jaxft.cli.parts.terminal import echo

if TYPE_CHECKING:
    from jaxft.inference.generate import Message, Writer


def talk(writer: Writer) -> None:
    """Answer typed lines; with a chat template, each with the conversation so far."""
    echo("Type a text; Ctrl-D ends.", err=True)
    conversation: list[Message] = []
    while True:
        try:
            conversation.append({"role": "user", "content": input("> ")})
        except EOFError:
            print(file=sys.stderr)
            return
        conversation.append({"role": "assistant", "content": print_answer(writer, conversation)})


def print_answer(writer: Writer, conversation: list[Message]) -> str:
    """Print the text as it comes, and return it."""
    from jaxft.inference.generate import write

    pieces = []
    for piece in write(writer, conversation):
        pieces.append(piece)
        echo(piece, end="")
    print()
    return "".join(pieces)
