"""The `data` section: the rows of a run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from jaxft.config.fields import Section, fixed, may_change

Scalar = str | int | float | bool


class MixedSource(Section):
    """One source of a mixture."""

    source: str = fixed(..., "a source string, as in data.train", min_length=1)
    weight: float = fixed(
        1.0,
        "weight of the source; its share of the examples is its weight over the sum of all",
        gt=0,
    )


class DataSection(Section):
    """The rows of a run, and how they become batches."""

    train: list[MixedSource] | str = fixed(
        ...,
        "rows to train on, or a list of sources, each with a weight: csv:, jsonl:, conll:, "
        "parquet:, arrow:PATH, hf:DIR:SPLIT, tfds:NAME:SPLIT, images:DIR, masks:DIR; [a:b], "
        ":ordered",
    )
    eval: str = fixed(..., "rows that select the best checkpoint")
    test: str | None = may_change(None, "rows scored once, with the best checkpoint, at the end")
    where: dict[str, Scalar | list[Scalar]] = Field(
        default_factory=dict,
        description="column: value, or list of values; only rows that have it are used",
        json_schema_extra={"resume": "fixed"},
    )
    image_folder: str | None = may_change(
        None,
        "folder that image paths in rows may lead into, by links too, besides the folder of their "
        "table",
    )
    on_bad_row: Literal["error", "skip"] = fixed(
        "error",
        "a row with a missing or invalid label, text or image: stop and name the row, or skip it "
        "and report how many were skipped",
    )
    balance: bool = fixed(False, "sample every class equally often, whatever its number of rows")
    batch_size: int = fixed(
        32, "examples per optimizer step, over all devices", unit="examples", ge=1
    )
    max_length: int | None = fixed(
        None,
        "truncate examples to this length; null is the longest that the model takes",
        unit="tokens",
        ge=3,
    )
    pack: bool | Literal["auto"] = fixed(
        "auto", "pack several examples into one row; auto does so if the task can"
    )
    row_length: int | None = fixed(
        None,
        "length of a row; null is the smallest multiple of 32 that fits the longest example",
        unit="tokens",
        ge=8,
    )
    workers: int = may_change(0, "processes that prepare batches; 0 uses threads", ge=0)
    prefetch: int = may_change(2, "batches prepared in advance", unit="batches", ge=1)
    cache: str | None = may_change(
        None, "folder for tokenized rows; null is the user's cache folder"
    )

    @property
    def mixture(self) -> tuple[MixedSource, ...]:
        """The sources of `train`: one of weight 1 where it names one."""
        if isinstance(self.train, str):
            return (MixedSource(source=self.train),)
        return tuple(self.train)

    @property
    def specs(self) -> dict[str, tuple[str, ...]]:
        """The source strings of each split; none where there is no such split."""
        train = tuple(one.source for one in self.mixture)
        return {"train": train, "eval": (self.eval,), "test": (self.test,) if self.test else ()}

    @model_validator(mode="after")
    def _mixes_something(self) -> DataSection:
        if not self.train:
            raise ValueError("train names no source")
        return self
