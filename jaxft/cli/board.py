"""`jaxft board`: runs and studies on a page, while they train.

The server is imported when the command is called, as in `cli/main.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jaxft.cli.parts.paths import path_named
from jaxft.cli.parts.terminal import echo


def board(
    folder: Annotated[
        Path,
        typer.Argument(metavar="[DIR]", parser=path_named, help="The folder of runs."),
    ] = Path("runs"),
    host: Annotated[
        str, typer.Option(help="The address to listen on; other machines reach 0.0.0.0 only.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")
    ] = 8420,
    token: Annotated[
        bool, typer.Option("--token/--no-token", help="Ask for a token, which is in the address.")
    ] = True,
) -> None:
    """Serve a live page of the runs and studies below a folder, and print its address."""
    from jaxft.board.folders import check_board_folder
    from jaxft.board.server import serve

    check_board_folder(folder)
    serve(folder, host, port, token, echo)
