"""Folders that a person named on the command line."""

from __future__ import annotations

from pathlib import Path

from jaxft.errors import UserError


def folder_named(text: str) -> Path:
    """A folder or file on this machine or in a bucket (`gs://bucket/runs/sentiment`).

    Raises:
        UserError: the name is empty, as a shell's variable that is not set is.
    """
    if not text:
        raise UserError(
            "An option or argument that takes a path is empty: ''.",
            "Name one, as in --out my-model; is a variable of the shell's not set?",
        )
    from jaxft.storage.files import place

    return place(text)
