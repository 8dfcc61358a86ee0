"""The `data` section: the rows of a run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from jaxft.config.fields import Section, key

Scalar = str | int | float | bool


class MixedSource(Section):
    """One source of a mixture."""

    source: str = key(..., "rows, as data.train names them", resume="fixed", min_length=1)
    weight: float = key(
        1.0,
        "its share of the examples that are drawn, beside the others' weights",
        resume="fixed",
        gt=0,
    )


class DataSection(Section):
    """The rows to learn from, and how they become batches."""

    train: list[MixedSource] | str = key(
        ...,
        "rows to train on, or a list of sources, each with a weight: csv:, jsonl:, conll:, "
        "parquet:, arrow:PATH, hf:DIR:SPLIT, tfds:NAME:SPLIT, images:DIR; [a:b], :ordered",
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
    balance: bool = key(
        False, "draw every class as often as the others, whatever the rows hold", resume="fixed"
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
