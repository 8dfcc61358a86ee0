"""Auto-RGN: learning rate multipliers measured during training, by relative gradient norm.

A phase begins with multipliers of 0: its first step measures and updates nothing. The multipliers
are then measured every `layer_decay.every`, from the gradients of one step, and apply from the
next step on. They are logged in full precision, so that a resumed run continues bit for bit.

Source: Lee et al. (2022), surgical fine-tuning, https://arxiv.org/abs/2210.11466.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxft.analysis.diagnostics import COLUMNS
from jaxft.layerwise.table import LayerTable, LeafRow

PRESET = "auto_rgn"


def relative_gradients(
    norms: np.ndarray, sums: np.ndarray, leaves: Sequence[LeafRow], layers: Sequence[str]
) -> np.ndarray:
    """Divide each leaf's gradient norm by its weight norm, and by the largest: `[leaves]`.

    A vector (a bias, a norm's scale) takes the ratio of its layer's matrices. Its own can be
    meaningless: a new bias is 0, and after a small update its ratio would dwarf all others.

    Args:
        norms: `[leaves]` gradient norms.
        sums: `[leaves, columns]`, from `diagnostics.look`.
        leaves: the trainable leaves, in the same order.
        layers: each leaf's layer.
    """
    gradient = np.square(np.asarray(norms, np.float64))
    weight = np.asarray(sums, np.float64)[:, COLUMNS.index("weight")]
    names = list(dict.fromkeys(layers))
    layer_index = np.array([names.index(layer) for layer in layers])
    matrix = np.array([len(leaf.shape) > 1 for leaf in leaves])
    with np.errstate(divide="ignore", invalid="ignore"):
        own = np.sqrt(gradient / weight)
        layer = np.sqrt(
            np.bincount(layer_index, gradient * matrix, len(names))
            / np.bincount(layer_index, weight * matrix, len(names))
        )
    ratio = np.where(matrix | ~np.isfinite(layer[layer_index]), own, layer[layer_index])
    largest = max(ratio[np.isfinite(ratio)], default=0.0)
    # Weights that are all 0 have no ratio, and take the largest.
    share = ratio / largest if largest > 0 else np.zeros_like(ratio)
    return np.where(np.isfinite(share), share, 1.0)


def measured_multipliers(
    table: LayerTable, norms: np.ndarray, sums: np.ndarray, layers: Sequence[str]
) -> np.ndarray:
    """Compute the multipliers from a step: `[leaves]` float32; a group's `lr_mult` applies too.

    Args:
        table: of the phase.
        norms, sums, layers: see `relative_gradients`.
    """
    leaves = [leaf for leaf in table.leaves if leaf.trainable]
    shares = relative_gradients(norms, sums, leaves, layers)
    return (table.multipliers() * shares).astype(np.float32)
