"""Folders that a person named on the command line."""

from __future__ import annotations

from pathlib import Path


def folder_named(text: str) -> Path:
    """A folder on this machine or in a bucket (`gs://bucket/runs/sentiment`)."""
    from jaxft.storage.files import place

    return place(text)
