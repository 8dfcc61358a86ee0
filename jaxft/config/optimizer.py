"""The `optimizer` section: the update rule and its numbers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, get_args

from pydantic import ModelWrapValidatorHandler, model_validator

from jaxft.config.fields import Section, fixed, may_change, with_defaults

RuleName = Literal[
    "adamw", "sgd", "lion", "adafactor", "lamb", "lars", "muon", "schedule_free_adamw"
]
SCHEDULE_FREE: RuleName = "schedule_free_adamw"
MUON: RuleName = "muon"
# The numbers that each rule reads, with what its authors (Muon: optax) take for them.
NUMBERS: Mapping[str, Mapping[str, float]] = {
    "adamw": {"b1": 0.9, "b2": 0.999, "eps": 1e-8},
    "sgd": {"momentum": 0.9},
    "lion": {"b1": 0.9, "b2": 0.99},
    "adafactor": {},
    "lamb": {"b1": 0.9, "b2": 0.999, "eps": 1e-6},
    "lars": {"momentum": 0.9},
    "muon": {"momentum": 0.95, "b1": 0.9, "b2": 0.999, "eps": 1e-8},
    SCHEDULE_FREE: {"b1": 0.9, "b2": 0.999, "eps": 1e-8},
}


class OptimizerSection(Section):
    """The update rule."""

    name: RuleName = fixed("adamw", "update rule")
    lr: float = may_change(5e-5, "peak learning rate, before multipliers", ge=0)
    adam_lr: float | None = may_change(
        None,
        "peak learning rate of the parameters that muon leaves to adamw: all but the matrices of "
        "blocks; null is lr",
        ge=0,
    )
    scale: Literal["linear", "sqrt"] | None = may_change(
        None,
        "scale all learning rates from reference_batch to data.batch_size, by their ratio "
        "(linear) or its root (sqrt); null does not scale",
    )
    reference_batch: int | None = may_change(
        None,
        "the batch size for which the learning rates were tuned (scale only)",
        unit="examples",
        ge=1,
    )
    b1: float = fixed(
        0.9, "decay of the average gradient (all but sgd, lars, adafactor)", ge=0, lt=1
    )
    b2: float = fixed(
        0.999,
        "decay of the average squared gradient, or lion's momentum decay (lion: 0.99)",
        ge=0,
        lt=1,
    )
    eps: float = fixed(1e-8, "added to the denominator (lamb: 1e-6)", gt=0)
    momentum: float = fixed(0.9, "momentum (sgd, lars, muon; muon: 0.95)", ge=0, lt=1)
    moments: Literal["float32", "bfloat16", "int8"] = fixed(
        "float32",
        "storage of the moments of matrices: float32; bfloat16, rounded stochastically; or int8, "
        "the first moment in blocks of 32 int8 with a scale and the second in bfloat16 (all but "
        "adafactor and schedule_free_adamw)",
    )
    offload: bool = may_change(
        False,
        "keep the moments of matrices in the host's memory, and move them to the device for each "
        "update (TPU and GPU)",
    )
    fused: bool = may_change(
        False,
        "update the parameters of blocks in the backward pass, so that only one piece of a tower "
        "has gradients at a time (LOMO, for any rule); with clip, a second forward and backward "
        "pass measures the norm first",
    )
    weight_decay: float = may_change(0.01, "decoupled weight decay", ge=0)
    clip: float | None = fixed(
        1.0, "maximum global gradient norm, over trainable parameters; null does not clip", gt=0
    )
    no_decay: Literal["auto"] | list[str] = fixed(
        "auto",
        "patterns of parameters without weight decay; auto: biases, norms, positions, scalars",
    )

    @model_validator(mode="wrap")
    @classmethod
    def _numbers_of_the_rule(
        cls, written: Any, handler: ModelWrapValidatorHandler[OptimizerSection]
    ) -> OptimizerSection:
        """Take a rule's own numbers where none are written."""
        name = written.get("name", "adamw") if isinstance(written, dict) else None
        return with_defaults(written, handler, NUMBERS.get(str(name), {}))

    @model_validator(mode="after")
    def _only_what_is_read(self) -> OptimizerSection:
        """Return a key that would silently do nothing is a mistake."""
        if (self.scale is None) != (self.reference_batch is None):
            raise ValueError("'scale' and 'reference_batch' go together: set both or neither")
        if self.name == SCHEDULE_FREE and self.b1 == 0:
            raise ValueError(
                f"'b1' must be above 0 for {SCHEDULE_FREE}, which weights its average by it"
            )
        return self

    def numbers(self, rule: str) -> dict[str, float]:
        """Return what a rule's numbers are, be it the section's own or that of a group.

        A number that the section's own rule reads is that rule's; a group's other rule has it from
        `NUMBERS`. Of a number that it does not read, the section's default is no rule's own.
        """
        own, fields = NUMBERS[self.name], type(self).model_fields
        ours = rule == self.name or (rule, self.name) == ("adamw", MUON)  # muon uses both rules
        taken = {
            name
            for name in NUMBERS[rule]
            if ours or (name not in own and getattr(self, name) != fields[name].default)
        }
        return {n: getattr(self, n) if n in taken else v for n, v in NUMBERS[rule].items()}

    @property
    def adam(self) -> tuple[float, float, float]:
        """AdamW's b1, b2 and eps, of the run's groups that it moves."""
        numbers = self.numbers("adamw")
        return numbers["b1"], numbers["b2"], numbers["eps"]

    def batch_factor(self, batch_size: int) -> float:
        """Return what all rates are multiplied by at a batch size: k, or its root, at k references.

        Source: linear, Goyal et al. (2017), https://arxiv.org/abs/1706.02677, for SGD; the root,
        Malladi et al. (2022), https://arxiv.org/abs/2205.10287, for Adam.
        """
        if self.reference_batch is None:
            return 1.0
        share = batch_size / self.reference_batch
        return share if self.scale == "linear" else share**0.5


def check_optimizer(
    optimizer: OptimizerSection, groups: Sequence[Any], phases: Any, schedule: Any, ema: Any
) -> None:
    """Raise a ValueError where a rule would not do what a person means by it.

    Args:
        optimizer, groups, phases, schedule: the config's sections; phases may be a recipe's name.
        ema: its `train.ema`.
    """
    own = [group for group in groups if not group.freeze]
    rules = [(optimizer.name, schedule)]
    rules += [
        (group.optimizer or optimizer.name, group.schedule or schedule)
        for group in own
        if group.optimizer or group.schedule
    ]
    named = {rule for rule, _ in rules}
    _check_numbers(optimizer, named | {group.optimizer for group in groups if group.optimizer})
    if not isinstance(phases, str):
        rules += [(rule, one.schedule) for rule in named for one in phases if one.schedule]
    if optimizer.adam_lr is not None and MUON not in named:
        raise ValueError("'optimizer.adam_lr' applies to muon only")
    if any(rule == SCHEDULE_FREE and moves.kind != "constant" for rule, moves in rules):
        raise ValueError(
            f"{SCHEDULE_FREE} replaces learning rate decay: set schedule.kind to constant"
        )
    if optimizer.moments != "float32" and (whole := named & {"adafactor", SCHEDULE_FREE}):
        raise ValueError(
            f"'optimizer.moments' is {optimizer.moments}, which {min(whole)} does not support: "
            "set it to float32"
        )
    if SCHEDULE_FREE in named and ema is not None:
        raise ValueError(f"{SCHEDULE_FREE} already evaluates an average: remove train.ema")


def _check_numbers(optimizer: OptimizerSection, rules: Collection[str]) -> None:
    """Raise a ValueError for a number that is set and that no rule of the run reads."""
    fields = type(optimizer).model_fields
    for number in sorted({name for numbers in NUMBERS.values() for name in numbers}):
        readers = [rule for rule, numbers in NUMBERS.items() if number in numbers]
        is_set = getattr(optimizer, number) != fields[number].default
        if is_set and not set(readers) & set(rules):
            raise ValueError(
                f"'optimizer.{number}' applies to {', '.join(readers)} only, and no group has one "
                "of these: remove it"
            )


def check_fused(config: Any) -> None:
    """Raise a ValueError where updates cannot be part of the backward pass.

    Args:
        config: the whole config.
    """
    if not config.optimizer.fused:
        return
    if config.optimizer.moments == "int8":
        raise ValueError("'optimizer.fused' does not support optimizer.moments int8: use bfloat16")
    if config.train.accumulate > 1:
        raise ValueError(
            "'optimizer.fused' updates in the backward pass, and train.accumulate "
            f"{config.train.accumulate} sums the gradients of several: set it to 1"
        )
    if config.sampling.method is not None:
        raise ValueError(
            "'optimizer.fused' and 'sampling' both choose what is updated when: leave one out"
        )


assert set(NUMBERS) == set(get_args(RuleName))
