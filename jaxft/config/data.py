"""The `data` section: the rows of a run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from jaxft.config.fields import Section, key

Scalar = str | int | float | bool


class MixedSource(Section):
    """One source of a mixture."""

    source: str = key(..., "a source string, as in data.train", resume="fixed", min_length=1)
    weight: float = key(
        1.0,
        "weight of the source; its share of the examples is its weight over the sum of all",
        resume="fixed",
        gt=0,
    )


class DataSection(Section):
    """The rows of a run, and how they become batches."""

    train: list[MixedSource] | str = key(
        ...,
        "rows to train on, or a list of sources, each with a weight: csv:, jsonl:, conll:, "
        "parquet:, arrow:PATH, hf:DIR:SPLIT, tfds:NAME:SPLIT, images:DIR; [a:b], :ordered",
        resume="fixed",
    )
    eval: str = key(..., "rows that select the best checkpoint", resume="fixed")
    test: str | None = key(
        None, "rows scored once, with the best checkpoint, at the end", resume="may change"
    )
    where: dict[str, Scalar | list[Scalar]] = Field(
        default_factory=dict,
        description="column: value, or list of values; only rows that have it are used",
        json_schema_extra={"resume": "fixed"},
    )
    on_bad_row: Literal["error", "skip"] = key(
        "error",
        "a row with a missing or invalid label, text or image: stop and name the row, or skip it "
        "and report how many were skipped",
        resume="fixed",
    )
    balance: bool = key(
        False, "sample every class equally often, whatever its number of rows", resume="fixed"
    )
    batch_size: int = key(
        32, "examples per optimizer step, over all devices", resume="fixed", unit="examples", ge=1
    )
    max_length: int | None = key(
        None,
        "truncate examples to this length; null is the longest that the model takes",
        resume="fixed",
        unit="tokens",
        ge=3,
    )
    pack: bool | Literal["auto"] = key(
        "auto", "pack several examples into one row; auto does so if the task can", resume="fixed"
    )
    row_length: int | None = key(
        None,
        "length of a row; null is the smallest multiple of 32 that fits the longest example",
        resume="fixed",
        unit="tokens",
        ge=8,
    )
    workers: int = key(
        0, "processes that prepare batches; 0 uses threads", resume="may change", ge=0
    )
    prefetch: int = key(2, "batches prepared in advance", resume="may change", unit="batches", ge=1)
    cache: str | None = key(
        None, "folder for tokenized rows; null is the user's cache folder", resume="may change"
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
