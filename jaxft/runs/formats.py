"""Types of what a run's JSON files hold; a run folder may be another person's, or damaged."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jaxft.errors import UserError

RUN_FILE = "run.json"


class _Format(BaseModel):
    """Fields that are checked where they are there; further ones are their readers'."""

    model_config = ConfigDict(strict=True, extra="ignore")


class Base(_Format):
    """Copy of the initial weights, or where they are."""

    kind: str = ""
    sha256: str | None = None
    new: list[str] = []
    grown: bool = False


class Checkpoint(_Format):
    """Checkpoint that a run started from."""

    asked: str = ""
    revision: str | None = None
    sha256: str | None = None


class Data(_Format):
    """Split of a run's data."""

    split: str = ""
    source: str = ""
    fingerprint: str = ""
    examples: int = 0
    tokens: int = 0
    labels: dict[str, int] = {}
    warnings: list[str] = []


class Resumed(_Format):
    """Start of a run that continued from a checkpoint."""

    step: int = 0
    changed: dict[str, Annotated[list[Any], Field(min_length=2, max_length=2)]] = {}


class Time(_Format):
    """Time of a start of the run, by its parts, and the work of its steps."""

    seconds: dict[str, Annotated[float, Field(ge=0)]]
    steps: int
    flops: Annotated[float, Field(ge=0)]
    peak: float | None


class RunFacts(_Format):
    """Content of run.json."""

    name: str = ""
    state: str = ""
    started: str = ""
    versions: dict[str, str | None] = {}
    command: list[str] = []
    checkpoint: Checkpoint = Checkpoint()
    data: list[Data] = []
    labels: list[str] | None = None
    fitted: dict[str, bool | float | str | dict[str, str | dict[str, str]]] = {}
    layout: dict[str, float | list[float] | None] = {}
    best_metric: str = ""
    base: Base = Base()
    resumed: list[Resumed] = []
    time: Time | None = None


class Result(_Format):
    """Content of result.json."""

    split: str = ""
    step: int = 0
    metrics: dict[str, float | None] = {}
    examples: int = 0
    warnings: list[str] = []


class Group(_Format):
    """Group of parameters with the rates that it trained with."""

    name: str
    peak_rate: float
    lowest_peak_rate: float


class EarlierGroups(_Format):
    """Groups as they were until a resume changed them."""

    stop: int
    groups: list[Group]


class Table(_Format):
    """Content of table.json, as far as a resume, a model card and a page's warnings read it."""

    groups: list[dict[str, Any]]
    earlier: list[EarlierGroups] = []
    warnings: list[str] = []


class Rates(_Format):
    """Content of rates.json."""

    groups: list[str]
    steps: list[int]
    rates: list[list[float]]
    depths: list[int] = []
    by_depth: list[list[float]] = []


_FORMATS: dict[str, type[BaseModel]] = {
    RUN_FILE: RunFacts,
    "result.json": Result,
    "table.json": Table,
    "rates.json": Rates,
}


def check_format(name: str, content: Any, file: str) -> None:
    """Raise a UserError if a file of a run has a value of another type than jaxft writes.

    Args:
        name: the file's name; files without a format here are their readers' to check.
        content: the parsed JSON.
        file: its path, for the message.
    """
    if name not in _FORMATS:
        return
    try:
        _FORMATS[name].model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "its content"
        raise UserError(
            f"{file} does not have the format that jaxft writes: {key}: {first['msg']}.",
            "Restore the file.",
        ) from None
