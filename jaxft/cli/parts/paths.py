"""Folders that a person named on the command line."""

from __future__ import annotations

from pathlib import Path

from jaxft.errors import UserError


def folder_named(text: str) -> Path:
    """Return a local path or one in a bucket (`gs://bucket/runs/sentiment`).

    Raises:
        UserError: the text is empty, as an unset shell variable is, or buckets are out of reach.
    """
    from jaxft.storage.buckets import check_network

    path = path_named(text)
    check_network(text)
    return path


def path_named(text: str) -> Path:
    """Return the path of a folder, as `folder_named` does, without reaching for its bucket."""
    if not text:
        raise UserError(
            "An option or argument that takes a path is empty: ''.",
            "Name one, as in --out my-model, or check that the shell variable is set.",
        )
    from jaxft.storage.files import is_bucket, place

    path = place(text)
    return path if is_bucket(text) else path.expanduser()
