"""Learned rates as groups of a config."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from jaxft.config.load import Config
from jaxft.layerwise.table import LeafRow
from jaxft.studies.tuning.tune import Tuned


def tuned_groups(config: Config, table: Sequence[LeafRow], tuned: Tuned) -> list[dict[str, Any]]:
    """Write learned multipliers as groups of a config without layer decay.

    A group of the config is divided by depth: each part lists its parameters by name and keeps the
    group's other keys.

    Args:
        config: the run's.
        table: the leaves of its LayerTable.
        tuned: what was learned.
    """
    learned = dict(zip(tuned.depths, tuned.learned, strict=True))
    own = {group.name: group.model_dump(exclude_none=True) for group in config.groups}
    groups = [fields for fields in own.values() if fields["freeze"]]
    parts: dict[tuple[str, int, float], list[str]] = {}
    for leaf in table:
        if leaf.trainable:
            parts.setdefault((leaf.group, leaf.depth, leaf.multiplier), []).append(leaf.name)
    names: set[str] = set()
    for (group, depth, multiplier), members in parts.items():
        fields = {k: v for k, v in own.get(group, {}).items() if k not in ("match", "depth")}
        name = base = f"{group}-{depth}"
        while name in names:
            name = f"{base}-{len(names)}"
        names.add(name)
        rate = float(f"{multiplier * learned[depth]:.4g}")
        groups.append(
            {**fields, "name": name, "match": [re.escape(one) for one in members], "lr_mult": rate}
        )
    return groups
