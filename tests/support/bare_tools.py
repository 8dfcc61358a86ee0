"""Tools of a model that says nothing about its texts, for tests that bind a task without one."""

from pathlib import Path
from types import SimpleNamespace

from jaxft.models.load import load
from jaxft.tasks.parts.tools import Tools
from tests.support.small_assets import write_t5


def bare_tools(folder: Path, kind: str | None = None) -> SimpleNamespace | Tools:
    """Return tools of a checkpoint folder without prompts, pooling or weights.

    Sequence to sequence measures targets in tokens as it checks a row: it has those of a small T5.
    """
    if kind == "seq2seq":
        write_t5(folder / "t5", blocks=1)
        return Tools(load(str(folder / "t5")), None, None)
    return SimpleNamespace(model=SimpleNamespace(source=SimpleNamespace(folder=folder)))
