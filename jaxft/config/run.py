"""The `run` section: what a run is called, where it lies, and its seeds."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from jaxft.config.fields import NAME, Section, key, section


class SeedSection(Section):
    """The seeds of a run's three sources of chance."""

    init: int = key(0, "seed of the new parameters, such as a fresh head", resume="fixed", ge=0)
    data: int = key(0, "seed of row order, slices and batches", resume="fixed", ge=0)
    dropout: int = key(0, "seed of dropout", resume="fixed", ge=0)


class RunSection(Section):
    """What the run is called and where its folder goes."""

    name: str = key(..., "name of the run, and of its folder", resume="fixed", pattern=NAME)
    dir: str = key("runs", "folder that holds the run folders", resume="may change", min_length=1)
    seed: SeedSection = section(SeedSection, "the seeds of a run's three sources of chance")
    trackers: list[Literal["wandb", "trackio"]] = Field(
        default_factory=list,
        description="who else is told the run's numbers; each is an extra of that name",
        json_schema_extra={"resume": "may change"},
    )
