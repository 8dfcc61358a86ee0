"""The sections `run`, `adapter` and what regularizes: small ones, a class each."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

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


class RegulariseSection(Section):
    """What holds a model to its checkpoint."""

    l2_sp: float = key(
        0.0,
        "decay towards where a parameter began, as weight decay is towards 0: decoupled, times its "
        "rate; what was new has none",
        resume="may change",
        ge=0,
    )


class AdapterSection(Section):
    """What is trained in place of the whole of a model; without a kind, the whole is."""

    kind: Literal["lora", "dora", "bitfit"] | None = key(
        None,
        "what alone trains, beside the head: thin matrices beside kernels (lora), these and the "
        "lengths of columns (dora), or biases (bitfit); null is everything",
        resume="fixed",
    )
    rank: int = key(8, "width of the thin matrices (lora, dora)", resume="fixed", ge=1)
    alpha: float = key(
        16.0, "their product is multiplied by alpha / rank (lora, dora)", resume="fixed", gt=0
    )
    match: Annotated[list[str], Field(min_length=1)] | None = key(
        None,
        "patterns of the blocks' kernels that they are beside; null is attention's query and value",
        resume="fixed",
    )
    dropout: float = key(
        0.0, "dropout rate of what they read (lora, dora)", resume="fixed", ge=0, lt=1
    )
    lr_ratio: float = key(
        1.0,
        "rate of lora_b, and of all that is no matrix, over that of lora_a (LoRA+ has 16)",
        resume="may change",
        gt=0,
    )
    checkpoint: str | None = key(
        None,
        "a folder of PEFT to start from, whose rank, alpha, kernels and dropout are then taken",
        resume="fixed",
        min_length=1,
    )

    @model_validator(mode="after")
    def _only_what_is_read(self) -> AdapterSection:
        """Return a key that would silently do nothing is a mistake."""
        fields = type(self).model_fields
        set_keys = [n for n in fields if n != "kind" and getattr(self, n) != fields[n].default]
        if set_keys and self.kind is None:
            raise ValueError(f"'{set_keys[0]}' is read where there is a kind: lora, dora or bitfit")
        if set_keys and self.kind == "bitfit":
            raise ValueError(f"'{set_keys[0]}' is read by lora, dora only, and kind is bitfit")
        own = [name for name in set_keys if name in ("rank", "alpha", "match", "dropout")]
        if own and self.checkpoint is not None:
            raise ValueError(f"'{own[0]}' is that of adapter.checkpoint: leave it out")
        return self


def _nothing(written: Any) -> Any:
    """Return `adapter: null` takes away what a config has."""
    return {} if written is None else written


AdapterKey = Annotated[AdapterSection, BeforeValidator(_nothing)]
