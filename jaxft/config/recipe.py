"""The keys that say which parameters move, and how fast: schedule, decay, groups, phases."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, model_validator

from jaxft.config.durations import DurationKey, LengthKey
from jaxft.config.fields import NAME, Section, key
from jaxft.config.optimizer import RuleName
from jaxft.durations import Duration


def _as_pair(written: Any) -> Any:
    """YAML has lists only: a list of two is what a person means by a pair."""
    return tuple(written) if isinstance(written, list) else written


class ScheduleSection(Section):
    """How the learning rate moves over the steps of training."""

    kind: Literal["constant", "linear", "cosine", "wsd", "slanted_triangular", "inverse_sqrt"] = (
        key("linear", "shape of the rate after warm-up", resume="may change")
    )
    warmup: DurationKey = key(
        Duration(0, "steps"), "length of the linear rise from zero", resume="may change"
    )
    end: float = key(
        0.0,
        "rate at the last step (linear, cosine, wsd)",
        resume="may change",
        unit="fraction of the peak",
        ge=0,
        le=1,
    )
    decay: DurationKey = key(
        Duration(20, "percent"), "length of the fall at the end (wsd only)", resume="may change"
    )
    cut_frac: float = key(
        0.1,
        "where the peak is (slanted_triangular only)",
        resume="may change",
        unit="fraction of all steps",
        gt=0,
        lt=1,
    )
    ratio: float = key(
        32.0, "peak over lowest rate (slanted_triangular only)", resume="may change", ge=1
    )

    @model_validator(mode="after")
    def _only_what_the_kind_reads(self) -> ScheduleSection:
        """Return a key that would silently do nothing is a mistake."""
        readers = {
            "warmup": ("constant", "linear", "cosine", "wsd", "inverse_sqrt"),
            "end": ("linear", "cosine", "wsd"),
            "decay": ("wsd",),
            "cut_frac": ("slanted_triangular",),
            "ratio": ("slanted_triangular",),
        }
        for name, kinds in readers.items():
            is_set = getattr(self, name) != type(self).model_fields[name].default
            if is_set and self.kind not in kinds:
                raise ValueError(
                    f"'{name}' is read by {', '.join(kinds)} only, and kind is {self.kind}"
                )
        return self


class LayerDecaySection(Section):
    """Lower rates for lower layers."""

    rate: float = key(
        1.0,
        "what the rate is multiplied by, a layer down; 1 is off (ulmfit: 1/2.6 unless given)",
        resume="may change",
        gt=0,
        le=1,
    )
    preset: Literal["timm", "mae", "electra", "ulmfit", "auto_rgn"] = key(
        "mae",
        "whose way of counting layers and exponents; auto_rgn measures: each parameter's gradient "
        "over its weight, as a share of the largest",
        resume="may change",
    )
    every: LengthKey = key(
        Duration(50, "steps"),
        "how often the multipliers are measured anew (auto_rgn only)",
        resume="fixed",
    )

    @model_validator(mode="before")
    @classmethod
    def _rate_of_ulmfit(cls, written: Any) -> Any:
        if isinstance(written, dict) and written.get("preset") == "ulmfit":
            return {"rate": 1 / 2.6, **written}
        return written

    @model_validator(mode="after")
    def _only_what_the_preset_reads(self) -> LayerDecaySection:
        """Return a key that would silently do nothing is a mistake."""
        measured = self.preset == "auto_rgn"
        if measured and self.rate != 1:
            raise ValueError("'rate' and preset auto_rgn both say what lower layers get: leave one")
        if not measured and self.every != type(self).model_fields["every"].default:
            raise ValueError(f"'every' is read by auto_rgn only, and preset is {self.preset}")
        return self


class Group(Section):
    """Parameters that are trained alike, or not at all."""

    name: str = key(..., "name of the group in tables and curves", resume="fixed", pattern=NAME)
    match: str | list[str] | None = key(
        None, "regular expressions of whole parameter names", resume="fixed"
    )
    depth: Annotated[tuple[int, int], BeforeValidator(_as_pair)] | None = key(
        None,
        "[lowest, highest] depth, both in: 0 embeddings, i + 1 block i, then final norm and head",
        resume="fixed",
    )
    freeze: bool = key(False, "never differentiated, never changed", resume="fixed")
    lr_mult: float = key(1.0, "multiplies the rate of the group", resume="may change", ge=0)
    lr: float | None = key(None, "peak rate in place of optimizer.lr", resume="may change", ge=0)
    weight_decay: float | None = key(
        None, "in place of optimizer.weight_decay", resume="may change", ge=0
    )
    schedule: ScheduleSection | None = key(
        None, "a schedule of its own, in place of the run's", resume="may change"
    )
    optimizer: RuleName | None = key(
        None, "an update rule of its own, in place of optimizer.name", resume="fixed"
    )

    @model_validator(mode="after")
    def _chosen_one_way(self) -> Group:
        if (self.match is None) == (self.depth is None):
            raise ValueError(f"group '{self.name}' needs exactly one of 'match' and 'depth'")
        if self.match == []:
            raise ValueError(f"group '{self.name}' has an empty 'match'")
        if self.depth is not None and not 0 <= self.depth[0] <= self.depth[1]:
            low, high = self.depth
            raise ValueError(f"group '{self.name}': depth [{low}, {high}] is not [lowest, highest]")
        if self.name == "rest":
            raise ValueError("'rest' is the group of all parameters no other group owns")
        return self


class PhaseSection(Section):
    """A stretch of training in which only some parameters move."""

    until: LengthKey = key(..., "where the phase ends, from the start of the run", resume="fixed")
    unfreeze: Literal["all"] | list[str] = key(
        "all",
        "patterns of the parameters that train; what a group freezes never does",
        resume="fixed",
    )
    depth: Annotated[tuple[int, int], BeforeValidator(_as_pair)] | None = key(
        None, "[lowest, highest] depth that trains, in place of unfreeze", resume="fixed"
    )
    lr: float | None = key(None, "peak rate in place of optimizer.lr", resume="may change", ge=0)
    schedule: ScheduleSection | None = key(
        None,
        "a schedule over the phase's own steps, in place of those over the whole run",
        resume="may change",
    )
    rewarm: DurationKey = key(
        Duration(0, "steps"), "length of a rise from zero as the phase begins", resume="may change"
    )

    @model_validator(mode="after")
    def _chosen_one_way(self) -> PhaseSection:
        if self.depth is not None and self.unfreeze != "all":
            raise ValueError("a phase names what trains by 'unfreeze' or by 'depth', not by both")
        if self.unfreeze == []:
            raise ValueError("'unfreeze' is empty, so that nothing would train")
        if self.depth is not None and not 0 <= self.depth[0] <= self.depth[1]:
            low, high = self.depth
            raise ValueError(f"depth [{low}, {high}] is not [lowest, highest]")
        return self


PhaseRecipe = Literal[
    "linear_probe", "lp_ft", "gradual_unfreezing", "freeze_out", "auto_freeze", "pipe_transformer"
]


class FreezingSection(Section):
    """How the recipes that let layers stop decide which, and when."""

    first: float = key(
        0.8,
        "how far through the run the embeddings stop, before the power (freeze_out only)",
        resume="fixed",
        unit="fraction of the run",
        gt=0,
        le=1,
    )
    power: Literal[1, 2, 3] = key(
        3,
        "stops are spread evenly over depth, then raised to it (freeze_out only)",
        resume="fixed",
    )
    scaled: bool = key(
        True,
        "raise the rate of what stops early, so that all layers move as far (freeze_out only)",
        resume="fixed",
    )
    every: LengthKey = key(
        Duration(10, "percent"),
        "how often layers are compared with what they did before (auto_freeze only)",
        resume="fixed",
    )
    percentile: float = key(
        50.0,
        "layers below the first one that changes by this percentile of all stop (auto_freeze only)",
        resume="fixed",
        gt=0,
        le=100,
    )
    share: float = key(
        1 / 3,
        "how many of the blocks left an epoch freezes (pipe_transformer only)",
        resume="fixed",
        unit="fraction",
        gt=0,
        lt=1,
    )


FREEZING_READERS = {
    "first": "freeze_out",
    "power": "freeze_out",
    "scaled": "freeze_out",
    "every": "auto_freeze",
    "percentile": "auto_freeze",
    "share": "pipe_transformer",
}


def check_freezing(phases: Any, freezing: FreezingSection, schedule: ScheduleSection) -> None:
    """Raise a ValueError where a key would silently do nothing, or two would lower one rate."""
    for name, reader in FREEZING_READERS.items():
        is_set = getattr(freezing, name) != FreezingSection.model_fields[name].default
        if is_set and phases != reader:
            raise ValueError(f"'freezing.{name}' is read where 'phases' is {reader} only")
    if phases == "freeze_out" and schedule.kind != "constant":
        raise ValueError(
            "'phases: freeze_out' lowers each layer's rate to zero by itself: "
            "set schedule.kind to constant"
        )
