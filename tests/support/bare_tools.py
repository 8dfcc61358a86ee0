"""Tools of a model that says nothing about its texts, for tests that bind a task without one."""

from pathlib import Path
from types import SimpleNamespace


def bare_tools(folder: Path) -> SimpleNamespace:
    """Return tools of a checkpoint folder without prompts, pooling or weights."""
    return SimpleNamespace(model=SimpleNamespace(source=SimpleNamespace(folder=folder)))
