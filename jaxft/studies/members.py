"""The members of a study: the grid over what is varied, and which of them share a program."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxft.config.load import Config, override_config
from jaxft.errors import UserError

SEEDS = "run.seed"  # keys under it repeat a setting and make no new one
# What a study has once for all of its members.
SHARED = ("run.name", "run.dir", "checkpoint", "report")
# What a bucket's program is told as numbers: (section, keys; None for the whole section).
TOLD: Mapping[str, Sequence[str] | None] = {
    "run": ("name", "dir"),
    "optimizer": ("lr", "adam_lr", "scale", "reference_batch", "weight_decay"),
    "schedule": None,
    "layer_decay": None,
    "checkpoint": None,
    "report": None,
}
TOLD_OF_A_GROUP = ("lr", "lr_mult", "weight_decay", "schedule")
TOLD_OF_A_PHASE = ("lr", "schedule", "rewarm")


@dataclass(frozen=True)
class Member:
    """One run of a study.

    Attributes:
        index: its number in the study, from 0.
        values: what it has of each varied key.
        config: the whole config, as `jaxft train` would take it.
    """

    index: int
    values: Mapping[str, Any]
    config: Config

    @property
    def setting(self) -> dict[str, Any]:
        """Its values but for seeds: members of one setting are repeats of it."""
        return {key: value for key, value in self.values.items() if not is_seed(key)}


def is_seed(key: str) -> bool:
    """Whether a varied key is a seed, so that its values are repeats."""
    return key == SEEDS or key.startswith(f"{SEEDS}.")


def make_members(config: Config, vary: Mapping[str, Sequence[Any]]) -> tuple[Member, ...]:
    """Every combination of the varied values, the last key quickest.

    Args:
        config: what the members have in common.
        vary: config key -> its values; a list item is reached by its number.

    Raises:
        UserError: an unknown key, a value that the config does not take, or one given twice.
    """
    for key, values in vary.items():
        if any(key == shared or key.startswith(f"{shared}.") for shared in SHARED):
            raise UserError(f"--vary {key}: a study has one for all of its members.")
        if not values:
            raise UserError(f"--vary {key}: there is no value.", "Write key=a,b,c.")
        if len({json.dumps(value) for value in values}) < len(values):
            raise UserError(f"--vary {key}: a value is given twice.", "Give each once.")
    members = []
    for index, chosen in enumerate(itertools.product(*vary.values())):
        own = dict(zip(vary, chosen, strict=True))
        overrides = [f"{key}={json.dumps(value)}" for key, value in own.items()]
        members.append(Member(index, own, override_config(config, overrides)))
    return tuple(members)


def make_buckets(members: Sequence[Member]) -> list[list[Member]]:
    """The members by the program that trains them: those of one differ in numbers only."""
    buckets: dict[str, list[Member]] = {}
    for member in members:
        buckets.setdefault(_program(member.config), []).append(member)
    return list(buckets.values())


def _program(config: Config) -> str:
    """All of a config that its compiled step, its data or its frozen set depends on."""
    written = config.dump()
    for section, keys in TOLD.items():
        if keys is None:
            del written[section]
        else:
            written[section] = _without(written[section], keys)
    # The order of the data is one for all members of a program; the other seeds are numbers.
    written["run"]["seed"] = _without(written["run"]["seed"], ("init", "dropout"))
    written["groups"] = [_without(group, TOLD_OF_A_GROUP) for group in written["groups"]]
    if isinstance(written["phases"], list):
        written["phases"] = [_without(phase, TOLD_OF_A_PHASE) for phase in written["phases"]]
    return json.dumps(written, sort_keys=True)


def _without(section: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in section.items() if key not in keys}
