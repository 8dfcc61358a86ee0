"""The kinds of the `task` section: one for each folder of `jaxft/tasks/` that has a `section.py`.

A task's section lives beside the task, and this module finds it by the name of its folder: a new
task is a new folder and nothing else. A `section.py` imports no jax, as no config needs it.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from jaxft.config.fields import TaskSection

FOLDER = Path(__file__).parent.parent / "tasks"


def task_sections() -> dict[str, type[TaskSection]]:
    """Every kind of task and its section, in alphabetical order."""
    kinds = sorted(path.parent.name for path in FOLDER.glob("*/section.py"))
    return {kind: _section(kind) for kind in kinds}


def _section(kind: str) -> type[TaskSection]:
    """The section that a task's folder defines.

    Raises:
        TypeError: it defines none, or several.
    """
    module = importlib.import_module(f"jaxft.tasks.{kind}.section")
    own = [value for value in vars(module).values() if _is_section(value, module.__name__)]
    if len(own) != 1:
        raise TypeError(f"{module.__name__} defines {len(own)} subclasses of TaskSection, not one")
    return own[0]


def _is_section(value: Any, module: str) -> bool:
    return isinstance(value, type) and issubclass(value, TaskSection) and value.__module__ == module


if TYPE_CHECKING:
    AnyTask = TaskSection
else:
    AnyTask = Union[tuple(task_sections().values())]  # noqa: UP007  # its members are data
