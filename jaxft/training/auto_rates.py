"""Auto-RGN: rates that follow from what the layers do, as multipliers measured while training.

A phase begins with multipliers of 0: its first step measures and moves nothing. From then on the
multipliers are taken anew every `layer_decay.every`, from the gradients of that one step, and act
from the very next. Each decision is an event of the run's diary, in full precision, so that a
resumed run goes on with the same bits.

Source: Lee et al. (2022), surgical fine-tuning, https://arxiv.org/abs/2210.11466.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxft.analysis.diagnostics import COLUMNS
from jaxft.config.load import Config
from jaxft.layerwise.phases import Phase
from jaxft.layerwise.table import LayerTable, LeafRow

KIND = "multipliers"  # of the events


def measures_rates(config: Config) -> bool:
    """Whether a run's multipliers are measured, and not the LayerTable's."""
    return config.layer_decay.preset == "auto_rgn"


def relative_gradients(
    norms: np.ndarray, sums: np.ndarray, leaves: Sequence[LeafRow], layers: Sequence[str]
) -> np.ndarray:
    """Each leaf's gradient norm over its weight norm, as a share of the largest: `[leaves]`.

    A vector (a bias, a norm's scale) takes the ratio of its layer's matrices. Its own may have no
    meaning: a fresh bias is 0, and once it has moved a little, its ratio would dwarf all others.

    Args:
        norms: `[leaves]` gradient norms.
        sums: `[leaves, columns]`, as `diagnostics.look` gives them.
        leaves: the trainable leaves, in the same order.
        layers: each leaf's layer.
    """
    gradient = np.square(np.asarray(norms, np.float64))
    weight = np.asarray(sums, np.float64)[:, COLUMNS.index("weight")]
    names = list(dict.fromkeys(layers))
    place = np.array([names.index(layer) for layer in layers])
    matrix = np.array([len(leaf.shape) > 1 for leaf in leaves])
    with np.errstate(divide="ignore", invalid="ignore"):
        own = np.sqrt(gradient / weight)
        layer = np.sqrt(
            np.bincount(place, gradient * matrix, len(names))
            / np.bincount(place, weight * matrix, len(names))
        )
    ratio = np.where(matrix | ~np.isfinite(layer[place]), own, layer[place])
    largest = max(ratio[np.isfinite(ratio)], default=0.0)
    # What is 0 itself has no ratio, and everything to learn.
    share = ratio / largest if largest > 0 else np.zeros_like(ratio)
    return np.where(np.isfinite(share), share, 1.0)


def measured_multipliers(
    table: LayerTable, norms: np.ndarray, sums: np.ndarray, layers: Sequence[str]
) -> np.ndarray:
    """The multipliers to go on with: `[leaves]` float32; `lr_mult` of a group still multiplies.

    Args:
        table: of the phase.
        norms, sums, layers: see `relative_gradients`.
    """
    leaves = [leaf for leaf in table.leaves if leaf.trainable]
    shares = relative_gradients(norms, sums, leaves, layers)
    return (table.multipliers() * shares).astype(np.float32)


def multipliers_now(
    phase: Phase, measured: bool, events: Iterable[Mapping[str, Any]] = ()
) -> np.ndarray:
    """What a phase goes on with: `[leaves]` float32.

    The LayerTable's multipliers; where they are measured, the last that were in this phase, or 0.

    Args:
        phase: the phase.
        measured: whether its multipliers are, see `measures_rates`.
        events: the run's diary so far.
    """
    if not measured:
        return phase.table.multipliers()
    names = phase.table.trainable
    found = np.zeros(len(names), np.float32)
    for event in events:
        if event["kind"] == KIND and phase.start < event["step"] <= phase.stop:
            found = np.array([event["multipliers"][name] for name in names], np.float32)
    return found
