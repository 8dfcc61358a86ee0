"""Learned rates as groups of a config."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from jaxft.config.load import Config
from jaxft.layerwise.optimizer import rule_of
from jaxft.layerwise.table import LeafRow
from jaxft.studies.tuning.tune import Tuned


def tuned_config(config: Config, table: Sequence[LeafRow], tuned: Tuned) -> dict[str, Any]:
    """Write a config with learned rates, which its groups have instead of all that multiplies them.

    Args:
        config: the run's.
        table: the leaves of its LayerTable.
        tuned: what was learned.
    """
    written = config.dump()
    written["groups"] = _groups(config, table, tuned)
    written["layer_decay"] = {"rate": 1.0}
    written["adapter"]["lr_ratio"] = 1.0
    written["optimizer"]["adam_lr"] = None
    return written


def _groups(config: Config, table: Sequence[LeafRow], tuned: Tuned) -> list[dict[str, Any]]:
    """Divide the groups of a config by depth, rate and rule.

    Each part lists its parameters by name and keeps the group's other keys. Frozen groups come
    last, because the first match owns a parameter: they have what no part names.
    """
    learned = dict(zip(tuned.depths, tuned.learned, strict=True))
    own = {one.name: one.model_dump(mode="json", exclude_none=True) for one in config.groups}
    rules = {one.name: one.optimizer or config.optimizer.name for one in config.groups}
    frozen = [fields for fields in own.values() if fields["freeze"]]
    parts: dict[tuple[str, int, float, str], list[str]] = {}
    for leaf in table:
        if leaf.trainable:
            # Muon refuses a group without a matrix: what it leaves to AdamW is a part of its own.
            rule = rule_of(leaf, rules.get(leaf.group, config.optimizer.name))
            parts.setdefault((leaf.group, leaf.depth, leaf.multiplier, rule), []).append(leaf.name)
    groups: list[dict[str, Any]] = []
    names = {fields["name"] for fields in frozen}
    for (group, depth, multiplier, rule), members in parts.items():
        fields = {k: v for k, v in own.get(group, {}).items() if k not in ("match", "depth")}
        if rule != rules.get(group, config.optimizer.name):
            fields["optimizer"] = rule
        name = base = f"{group}-{depth}"
        while name in names:
            name = f"{base}-{len(names)}"
        names.add(name)
        rate = float(f"{multiplier * learned[depth]:.4g}")
        groups.append(
            {**fields, "name": name, "match": [re.escape(one) for one in members], "lr_mult": rate}
        )
    return groups + frozen
