"""The sections that say which parameters train, and how fast: schedule, decay, groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ModelWrapValidatorHandler, model_validator

from jaxft.config.durations import DurationKey, LengthKey
from jaxft.config.fields import NAME, Section, fixed, may_change, with_defaults
from jaxft.config.optimizer import RuleName
from jaxft.durations import Duration


def as_pair(written: Any) -> Any:
    """Convert a list of two to a pair: YAML has lists only."""
    return tuple(written) if isinstance(written, list) else written


class ScheduleSection(Section):
    """The learning rate over the steps of training."""

    kind: Literal["constant", "linear", "cosine", "wsd", "slanted_triangular", "inverse_sqrt"] = (
        may_change("linear", "shape of the learning rate after warmup")
    )
    warmup: DurationKey = may_change(Duration(0, "steps"), "length of the linear warmup from zero")
    end: float = may_change(
        0.0,
        "learning rate at the last step (linear, cosine, wsd)",
        unit="fraction of the peak",
        ge=0,
        le=1,
    )
    decay: DurationKey = may_change(
        Duration(20, "percent"), "length of the decay at the end (wsd only)"
    )
    cut_frac: float = may_change(
        0.1,
        "position of the peak (slanted_triangular only)",
        unit="fraction of all steps",
        gt=0,
        lt=1,
    )
    ratio: float = may_change(
        32.0, "peak learning rate over the lowest (slanted_triangular only)", ge=1
    )

    @model_validator(mode="after")
    def _only_what_the_kind_reads(self) -> ScheduleSection:
        """Reject a key that would silently do nothing."""
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
                    f"'{name}' applies to {', '.join(kinds)} only, and kind is {self.kind}"
                )
        return self


DECAY_PRESETS = ("timm", "mae", "electra", "ulmfit")  # multiply by `rate` once a layer
MEASURED_PRESETS = ("auto_rgn", "heavy_tail")
OF_PRESETS: Mapping[str, Mapping[str, Any]] = {
    "ulmfit": {"rate": 1 / 2.6},
    "heavy_tail": {"every": "1 epochs"},
}


class LayerDecaySection(Section):
    """Lower learning rates for lower layers."""

    rate: float = may_change(
        1.0,
        "factor of the learning rate per layer from the top; 1 is off (ulmfit: 1/2.6)",
        gt=0,
        le=1,
    )
    preset: Literal[
        "timm", "mae", "electra", "ulmfit", "auto_rgn", "heavy_tail", "sharpness", "fan_in"
    ] = may_change(
        "mae",
        "whose layer numbers and exponents to use; auto_rgn measures each parameter's ratio of "
        "gradient norm to weight norm, relative to the largest, and heavy_tail the power-law "
        "exponent of each matrix's spectrum; sharpness multiplies the rates of value and output "
        "by 4, of the MLP by 6, of query and key by 8 and of embeddings by 10, and fan_in divides "
        "a matrix's by its inputs, relative to the fewest",
    )
    every: LengthKey = fixed(
        Duration(50, "steps"),
        "interval between measurements of the multipliers (auto_rgn; heavy_tail: 1 epoch)",
    )

    @model_validator(mode="wrap")
    @classmethod
    def _defaults_of_the_preset(
        cls, written: Any, handler: ModelWrapValidatorHandler[LayerDecaySection]
    ) -> LayerDecaySection:
        """Take a preset's own values where none are written."""
        preset = written.get("preset") if isinstance(written, dict) else None
        return with_defaults(written, handler, OF_PRESETS.get(str(preset), {}))

    @model_validator(mode="after")
    def _only_what_the_preset_reads(self) -> LayerDecaySection:
        """Reject a key that would silently do nothing."""
        if self.preset not in DECAY_PRESETS and self.rate != 1:
            raise ValueError(
                f"'rate' and preset {self.preset} both set the multipliers of lower layers: remove "
                "one"
            )
        is_set = self.every != type(self).model_fields["every"].default
        if self.preset not in MEASURED_PRESETS and is_set:
            raise ValueError(
                f"'every' applies to {' and '.join(MEASURED_PRESETS)}, and preset is {self.preset}"
            )
        return self


class SelectSection(Section):
    """The choice of a group's parameters by a criterion of layers, made once before training."""

    by: Literal[
        "alpha",
        "hill",
        "above_noise",
        "spectrum",
        "relative_gradient",
        "gradient_signal",
        "fisher",
        "layer_card",
        "outliers",
        "residual",
        "cosine",
        "cls_cosine",
        "random",
    ] = fixed("spectrum", "criterion, a column of `jaxft layers`; random is the control")
    fraction: float = fixed(0.5, "how much is chosen", unit="fraction of the matrices", gt=0, le=1)
    per: Literal["kind", "model", "block"] = fixed(
        "kind",
        "choose among the matrices of each kind, among all of the model, or whole blocks by the "
        "mean rank of their matrices",
    )
    batches: int = fixed(8, "training batches that gradients and states are measured on", ge=1)


class Group(Section):
    """Parameters that share their training settings, or are frozen."""

    name: str = fixed(..., "name of the group in tables and curves", pattern=NAME)
    match: str | list[str] | None = fixed(
        None, "regular expressions that match whole parameter names"
    )
    depth: Annotated[tuple[int, int], BeforeValidator(as_pair)] | None = fixed(
        None,
        "[lowest, highest] depth, inclusive: 0 embeddings, i + 1 block i, then final norm and head",
    )
    select: SelectSection | None = fixed(
        None,
        "choose matrices of the blocks by a criterion when the run starts; the run's config has "
        "the choice in match, and where match is set nothing is measured again",
    )
    freeze: bool = fixed(False, "freeze the group: neither differentiated nor updated")
    lr_mult: float = may_change(1.0, "multiplier of the group's learning rate", ge=0)
    lr: float | None = may_change(None, "peak learning rate in place of optimizer.lr", ge=0)
    weight_decay: float | None = may_change(None, "in place of optimizer.weight_decay", ge=0)
    schedule: ScheduleSection | None = may_change(
        None, "the group's own schedule, in place of the run's"
    )
    optimizer: RuleName | None = fixed(
        None, "the group's own update rule, in place of optimizer.name"
    )

    @model_validator(mode="after")
    def _chosen_one_way(self) -> Group:
        # A group whose parameters are chosen has select alone before the choice, and match after.
        keys = [self.depth, self.match if self.select is None else self.select]
        if sum(key is not None for key in keys) != 1:
            raise ValueError(
                f"group '{self.name}' needs exactly one of 'match', 'depth' and 'select'"
            )
        if self.match == []:
            raise ValueError(f"group '{self.name}' has an empty 'match'")
        if self.depth is not None and not 0 <= self.depth[0] <= self.depth[1]:
            low, high = self.depth
            raise ValueError(f"group '{self.name}': depth [{low}, {high}] is not [lowest, highest]")
        if self.name == "rest":
            raise ValueError("'rest' is the name of the group of all remaining parameters")
        return self
