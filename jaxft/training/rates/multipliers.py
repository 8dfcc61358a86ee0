"""Multipliers that a phase continues with: the LayerTable's, or the last that were measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jaxft.config.load import Config
from jaxft.layerwise.phases import Phase
from jaxft.training.rates.auto_rgn import PRESET as AUTO_RGN
from jaxft.training.rates.heavy_tail import PRESET as HEAVY_TAIL

KIND = "multipliers"  # of the events


def measures_rates(config: Config) -> bool:
    """Return whether a run measures its multipliers instead of taking the LayerTable's."""
    return config.layer_decay.preset in (AUTO_RGN, HEAVY_TAIL)


def multipliers_now(
    phase: Phase, preset: str, events: Iterable[Mapping[str, Any]] = ()
) -> np.ndarray:
    """Return the multipliers that a phase continues with: `[leaves]` float32.

    These are the last that were measured in this phase; before the first, and where none are
    measured, the LayerTable's, or 0 under Auto-RGN, whose first step only measures.

    Args:
        phase: the phase.
        preset: `layer_decay.preset`.
        events: the event log so far.
    """
    names, multipliers = phase.table.trainable, phase.table.multipliers()
    if preset == AUTO_RGN:
        multipliers = np.zeros(len(names), np.float32)
    # Auto-RGN measures after a step and heavy_tail before one: that of a phase's end is the next's.
    first = phase.start + (preset == AUTO_RGN)
    for event in events:
        if event["kind"] == KIND and first <= event["step"] < first + phase.stop - phase.start:
            multipliers = np.array([event["multipliers"][name] for name in names], np.float32)
    return multipliers
