"""Members of a study: the grid over the varied keys, and which members share a program."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console

from jaxft.analysis.layer_criteria.choices import make_choices, with_choices_of
from jaxft.config.load import Config, override_config
from jaxft.errors import UserError
from jaxft.training.freezing.decisions import freezes_itself
from jaxft.training.rates.multipliers import measures_rates

SEEDS = "run.seed"  # members that differ only in keys under it repeat one setting
# Keys that are common to all members of a study.
SHARED = ("run.name", "run.dir", "checkpoint", "report")
# Keys that are inputs of a program, or do not affect it: section -> keys, None for all of them.
PROGRAM_INPUTS: Mapping[str, Sequence[str] | None] = {
    "run": ("name", "dir"),
    "optimizer": ("lr", "adam_lr", "scale", "reference_batch", "weight_decay"),
    "schedule": None,
    "layer_decay": None,
    "checkpoint": None,
    "report": None,
}
GROUP_INPUTS = ("lr", "lr_mult", "weight_decay", "schedule")
PHASE_INPUTS = ("lr", "schedule", "rewarm")


@dataclass(frozen=True)
class Member:
    """Member of a study: one run.

    Attributes:
        index: its number in the study, from 0.
        values: its value of each varied key.
        config: its whole config, as for `jaxft train`.
    """

    index: int
    values: Mapping[str, Any]
    config: Config

    @property
    def setting(self) -> dict[str, Any]:
        """Its values without seeds: members of one setting are repeats of it."""
        return {key: value for key, value in self.values.items() if not is_seed(key)}


def is_seed(key: str) -> bool:
    """Return whether a varied key is a seed, so that its values are repeats."""
    return key == SEEDS or key.startswith(f"{SEEDS}.")


def make_members(config: Config, vary: Mapping[str, Sequence[Any]]) -> tuple[Member, ...]:
    """Make a member of every combination of the varied values, the last key fastest.

    Args:
        config: what the members have in common.
        vary: config key -> its values; an item of a list is addressed by its number.

    Raises:
        UserError: an unknown key, values that are no list, an invalid value, or a repeated one.
    """
    for key, values in vary.items():
        if isinstance(values, str) or not isinstance(values, Sequence):
            kind = type(values).__name__
            raise UserError(f"--vary {key}: its values are a {kind}.", "Pass a list of them.")
        if any(key == shared or key.startswith(f"{shared}.") for shared in SHARED):
            raise UserError(f"--vary {key}: a study has one for all of its members.")
        if not values:
            raise UserError(f"--vary {key}: it has no value.", "Write key=a,b,c.")
        if len({json.dumps(value) for value in values}) < len(values):
            raise UserError(f"--vary {key}: a value is given twice.", "Give each once.")
    members = []
    for index, chosen in enumerate(itertools.product(*vary.values())):
        own = dict(zip(vary, chosen, strict=True))
        overrides = [f"{key}={json.dumps(value)}" for key, value in own.items()]
        members.append(Member(index, own, override_config(config, overrides)))
    return tuple(members)


def make_members_choices(members: Sequence[Member], console: Console) -> tuple[Member, ...]:
    """Make the choices that each member leaves to criteria; alike members share them.

    Args:
        members: of the study.
        console: shows what is measured and chosen.

    Raises:
        UserError: see `make_choices`.
    """
    first: dict[tuple[str, int], Config] = {}

    def chosen(member: Member) -> Member:
        key = _program(member.config), member.config.run.seed.init
        if key not in first:
            first[key] = make_choices(member.config, console)
        return replace(member, config=with_choices_of(first[key], member.config))

    return tuple(map(chosen, members))


def make_buckets(members: Sequence[Member]) -> list[list[Member]]:
    """Group the members by program: those of one bucket differ only in its inputs.

    Members that train as runs of their own are in a bucket without the others.
    """
    buckets: dict[tuple[str, str | None], list[Member]] = {}
    for member in members:
        key = _program(member.config), solo_key(member.config)
        buckets.setdefault(key, []).append(member)
    return list(buckets.values())


def solo_key(config: Config) -> str | None:
    """Return the key for which a member needs a run of its own; None where it shares a program."""
    if config.sampling.method is not None:
        return "sampling"
    if freezes_itself(config):
        return f"phases: {config.phases}"
    if measures_rates(config):
        return f"layer_decay.preset: {config.layer_decay.preset}"
    if config.regularise.l2_sp:
        return "regularise.l2_sp"
    return None


def _program(config: Config) -> str:
    """Serialize the part of a config that its compiled step, data and frozen set depend on."""
    written = config.dump()
    for section, keys in PROGRAM_INPUTS.items():
        if keys is None:
            del written[section]
        else:
            written[section] = _without(written[section], keys)
    # All members of a program share the order of the data; the other seeds are inputs.
    written["run"]["seed"] = _without(written["run"]["seed"], ("init", "dropout"))
    written["groups"] = [_without(group, GROUP_INPUTS) for group in written["groups"]]
    if isinstance(written["phases"], list):
        written["phases"] = [_without(phase, PHASE_INPUTS) for phase in written["phases"]]
    return json.dumps(written, sort_keys=True)


def _without(section: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in section.items() if key not in keys}
