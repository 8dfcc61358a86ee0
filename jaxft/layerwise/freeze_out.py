"""FreezeOut: layers stop one after another from the input up, each when its rate has reached zero.

Source: Brock, Lim, Ritchie and Weston (2017), https://arxiv.org/abs/1706.04983, and its code,
    https://github.com/ajbrock/FreezeOut.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jaxft.durations import Duration
from jaxft.layerwise.phases import LeafSchedule, Phase, PhaseSpec, within
from jaxft.layerwise.table import LayerTable


def stop_share(depth: int, top: int, first: float, power: int) -> float:
    """Compute the share of the run after which a depth stops: 1 at the top of its tower.

    Args:
        depth: 0 embeddings, i + 1 block i, `top` the final norm and the head.
        top: the depth of its tower's top.
        first: the share after which the embeddings stop, before the power.
        power: stops are spread evenly over depth, then raised to it.
    """
    return (first + (1 - first) * depth / top) ** power


def freeze_out_phases(
    whole: LayerTable,
    tops: Mapping[str, int],
    total_steps: int,
    *,
    first: float = 0.8,
    power: int = 3,
    scaled: bool = True,
) -> tuple[Phase, ...]:
    """List a run's phases, one for each step at which something stops.

    Args:
        whole: the LayerTable without phases.
        tops: name -> the depth of its tower's top.
        total_steps: optimizer steps in the run.
        first, power: see `stop_share`.
        scaled: raise the rate of what stops early, so that all layers move as far.
    """
    trained = [leaf for leaf in whole.leaves if leaf.trainable]
    share = {leaf.name: stop_share(leaf.depth, tops[leaf.name], first, power) for leaf in trained}
    stop = {name: max(round(part * total_steps), 1) for name, part in share.items()}
    # Where the very top is frozen by a group, what stops last trains to the end.
    last = max(stop.values())
    stop = {name: total_steps if at == last else at for name, at in stop.items()}
    phases: list[Phase] = []
    start = 0
    for index, end in enumerate(sorted(set(stop.values()))):
        names = [name for name, at in stop.items() if at > start]
        table = within(whole, set(names), phases[-1].table if phases else None, index)
        scales = [1 / share[name] if scaled else 1.0 for name in table.trainable]
        stops = np.array([stop[name] for name in table.trainable])
        spec = PhaseSpec(Duration(end, "steps"))
        phases.append(Phase(index, start, end, spec, table, LeafSchedule(stops, np.array(scales))))
        start = end
    return tuple(phases)
