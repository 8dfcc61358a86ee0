"""The sections that say what trains when: phases, recipes that freeze, sampling of blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ModelWrapValidatorHandler, model_validator

from jaxft.config.durations import DurationKey, LengthKey
from jaxft.config.fields import Section, fixed, may_change, with_defaults
from jaxft.config.recipe import ScheduleSection, as_pair
from jaxft.durations import Duration


class PhaseSection(Section):
    """A part of training in which only some parameters train."""

    until: LengthKey = fixed(..., "end of the phase, counted from the start of the run")
    unfreeze: Literal["all"] | list[str] = fixed(
        "all", "patterns of the parameters that train; groups with freeze stay frozen"
    )
    depth: Annotated[tuple[int, int], BeforeValidator(as_pair)] | None = fixed(
        None, "[lowest, highest] depth that trains, in place of unfreeze"
    )
    lr: float | None = may_change(None, "peak learning rate in place of optimizer.lr", ge=0)
    schedule: ScheduleSection | None = may_change(
        None,
        "a schedule over the phase's own steps, in place of those of the whole run and of groups",
    )
    rewarm: DurationKey = may_change(
        Duration(0, "steps"), "length of a new warmup at the start of the phase"
    )

    @model_validator(mode="after")
    def _chosen_one_way(self) -> PhaseSection:
        if self.depth is not None and self.unfreeze != "all":
            raise ValueError("a phase selects parameters by 'unfreeze' or by 'depth', not by both")
        if self.unfreeze == []:
            raise ValueError("'unfreeze' is empty, so nothing would train")
        if self.depth is not None and not 0 <= self.depth[0] <= self.depth[1]:
            low, high = self.depth
            raise ValueError(f"depth [{low}, {high}] is not [lowest, highest]")
        return self


PhaseRecipe = Literal[
    "linear_probe",
    "lp_ft",
    "gradual_unfreezing",
    "freeze_out",
    "auto_freeze",
    "pipe_transformer",
    "grades",
]
SELF_FREEZING = ("auto_freeze", "grades")  # recipes that decide during the run


class FreezingSection(Section):
    """Settings of the recipes that freeze layers during training."""

    first: float = fixed(
        0.8,
        "when the embeddings freeze, before the power is applied (freeze_out only)",
        unit="fraction of the run",
        gt=0,
        le=1,
    )
    power: Literal[1, 2, 3] = fixed(
        3, "exponent of the freezing times, which are linear in depth before (freeze_out only)"
    )
    scaled: bool = fixed(
        True, "raise the learning rate of layers that freeze early in proportion (freeze_out only)"
    )
    every: LengthKey = fixed(
        Duration(10, "percent"),
        "interval between comparisons of gradient norms (auto_freeze, grades)",
    )
    percentile: float = fixed(
        50.0,
        "freeze all layers below the first whose gradient-norm change reaches this percentile "
        "(auto_freeze only)",
        gt=0,
        le=100,
    )
    threshold: float = fixed(
        0.0,
        "freeze a linear map of a block once the norm of its gradient is below this (grades only)",
        ge=0,
    )
    grace: float = fixed(
        0.5,
        "start of the run in which nothing is frozen (grades only)",
        unit="fraction of the run",
        ge=0,
        lt=1,
    )
    share: float = fixed(
        1 / 3,
        "fraction of the remaining blocks that each epoch freezes (pipe_transformer only)",
        unit="fraction",
        gt=0,
        lt=1,
    )


FREEZING_READERS = {
    "first": ("freeze_out",),
    "power": ("freeze_out",),
    "scaled": ("freeze_out",),
    "every": SELF_FREEZING,
    "percentile": ("auto_freeze",),
    "threshold": ("grades",),
    "grace": ("grades",),
    "share": ("pipe_transformer",),
}


def check_freezing(
    phases: Any, freezing: FreezingSection, schedules: Sequence[ScheduleSection]
) -> None:
    """Raise a ValueError if a key would do nothing, or two keys would lower one learning rate.

    Args:
        phases, freezing: the config's sections.
        schedules: the run's, and those that groups have of their own.
    """
    for name, readers in FREEZING_READERS.items():
        is_set = getattr(freezing, name) != FreezingSection.model_fields[name].default
        if is_set and phases not in readers:
            raise ValueError(f"'freezing.{name}' applies to 'phases: {' or '.join(readers)}' only")
    if phases == "grades" and not freezing.threshold:
        raise ValueError(
            "'phases: grades' needs freezing.threshold, a gradient norm: see 'Gradient norm' in "
            "the report of a run without it"
        )
    if phases == "freeze_out" and any(one.kind != "constant" for one in schedules):
        raise ValueError(
            "'phases: freeze_out' lowers each layer's learning rate to zero itself: "
            "set schedule.kind to constant"
        )


SamplingMethod = Literal["lisa", "ows", "misa", "badam", "hift"]
IN_TURN = ("badam", "hift")  # methods that go through the blocks in an order
# Blocks that train at once, and steps until others do, as each method's authors have them.
PERIODS: Mapping[str, tuple[int, int]] = {
    "lisa": (2, 20),
    "ows": (2, 20),
    "misa": (1, 50),
    "badam": (1, 100),
    "hift": (1, 1),
}


class SamplingSection(Section):
    """Blocks that train in turns, a few at a time."""

    method: SamplingMethod | None = fixed(
        None,
        "how blocks are chosen: at random (lisa), the more often the more outliers (ows), in turn "
        "(badam, hift), or each linear map by itself, the more often the larger its gradients "
        "(misa); embeddings train under lisa and ows, a new head always; null trains all blocks",
    )
    blocks: int = fixed(
        2,
        "blocks of each tower that train (badam, hift: 1), or each linear map of them (misa: 1)",
        unit="blocks",
        ge=1,
    )
    every: LengthKey = fixed(
        Duration(20, "steps"), "interval between choices of blocks (badam: 100, hift: 1, misa: 50)"
    )
    order: Literal["random", "ascending", "descending"] = fixed(
        "ascending", "order of the blocks, from the input (badam, hift)"
    )
    moments: Literal["reset", "keep"] = fixed(
        "reset",
        "optimizer state of a block that is chosen again: fresh, or as it was, stored on the host",
    )
    weights: dict[str, float] | None = fixed(
        None,
        "block -> how often it is chosen, relative to the others (ows); null measures the "
        "outliers of each block before the first step",
    )

    @model_validator(mode="wrap")
    @classmethod
    def _periods_of_the_method(
        cls, written: Any, handler: ModelWrapValidatorHandler[SamplingSection]
    ) -> SamplingSection:
        """Take a method's own numbers where none are written."""
        method = written.get("method") if isinstance(written, dict) else None
        period = zip(("blocks", "every"), PERIODS.get(str(method), ()), strict=False)
        return with_defaults(written, handler, dict(period))

    @model_validator(mode="after")
    def _only_what_the_method_reads(self) -> SamplingSection:
        """Reject a key that would silently do nothing."""
        if self.method is None:
            for name in self.model_fields_set - {"method"}:
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"'{name}' needs sampling.method")
        if self.order != "ascending" and self.method not in IN_TURN:
            raise ValueError(f"'order' applies to {' and '.join(IN_TURN)} only")
        if self.moments == "keep" and self.method == "misa":
            raise ValueError("'moments: keep' is for whole blocks, and misa chooses linear maps")
        if self.weights is not None and self.method != "ows":
            raise ValueError("'weights' applies to ows only")
        return self


def check_sampling(config: Any) -> None:
    """Raise a ValueError for what cannot be combined with sampled blocks.

    Args:
        config: the whole config.
    """
    if config.sampling.method is None:
        return
    others = {
        "phases": bool(config.phases),
        "adapter": config.adapter.kind is not None,
        "layer_decay.preset": config.layer_decay.preset in ("auto_rgn", "heavy_tail"),
        "regularise.l2_sp": bool(config.regularise.l2_sp),
        "train.ema": config.train.ema is not None,
        "optimizer.moments": config.optimizer.moments != "float32",
        "optimizer.offload": config.optimizer.offload,
    }
    for key, is_set in others.items():
        if is_set:
            raise ValueError(f"'sampling' and '{key}' cannot be combined: remove one of the two")
