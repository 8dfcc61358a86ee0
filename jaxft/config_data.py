"""The `data` section: the rows of a run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from jaxft.config_fields import Section, key

Scalar = str | int | float | bool


class DataSection(Section):
    """The rows to learn from, and how they become batches."""

    train: str = key(
        ...,
        "rows to train on: csv:, jsonl:, conll:, parquet:, arrow:PATH, hf:DIR:SPLIT, "
        "tfds:NAME:SPLIT, images:DIR; [a:b], :ordered",
        resume="fixed",
    )
    eval: str = key(..., "rows that choose the best checkpoint", resume="fixed")
    test: str | None = key(
        None, "rows scored once, with the best checkpoint, at the end", resume="may change"
    )
    where: dict[str, Scalar | list[Scalar]] = Field(
        default_factory=dict,
        description="keep only rows with this value, or one of these values, in a column",
        json_schema_extra={"resume": "fixed"},
    )
    on_bad_row: Literal["error", "skip"] = key(
        "error",
        "a row without a label or a text, with one of another kind, or with a broken image: end "
        "with its place, or leave it out and say how many there were",
        resume="fixed",
    )
    batch_size: int = key(
        32, "examples in an optimizer step, over all devices", resume="fixed", unit="examples", ge=1
    )
    max_length: int | None = key(
        None,
        "cut longer examples to this; null is the longest the model takes",
        resume="fixed",
        unit="tokens",
        ge=3,
    )
    pack: bool | Literal["auto"] = key(
        "auto", "put several examples in one row; auto does where the task can", resume="fixed"
    )
    row_length: int | None = key(
        None,
        "length of a row; null is the shortest multiple of 32 that holds the longest example",
        resume="fixed",
        unit="tokens",
        ge=8,
    )
    workers: int = key(0, "processes that prepare batches; 0 is threads", resume="may change", ge=0)
    prefetch: int = key(2, "batches kept ready", resume="may change", unit="batches", ge=1)
    cache: str | None = key(
        None, "folder for tokenised rows; null is the user's cache folder", resume="may change"
    )
