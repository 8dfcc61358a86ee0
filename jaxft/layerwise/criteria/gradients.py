"""Gradients of a tensor over several batches: against its weights, and against their own noise.

Of each batch's gradient only two sums are needed, so that no batch's gradient is stored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import linalg

DAMPING = 1e-3  # of the mean square of an input feature


@dataclass(frozen=True)
class GradientSums:
    """Sums over the gradients of one tensor, g_b of batch b, each of the batch's mean loss.

    Attributes:
        mean_square: ||mean over b of g_b||^2.
        squares: the mean over b of ||g_b||^2.
        weight_square: ||w||^2.
        batches: their number.
    """

    mean_square: float
    squares: float
    weight_square: float
    batches: int


def relative_gradient(sums: GradientSums) -> float | None:
    """Return the norm of the mean gradient over the norm of the weights; None for zero weights.

    Source: Lee et al. (2022), https://arxiv.org/abs/2210.11466 (Auto-RGN).
    """
    if sums.weight_square == 0:
        return None
    return math.sqrt(sums.mean_square / sums.weight_square)


def gradient_signal(sums: GradientSums) -> float | None:
    """Return the squared norm of the mean gradient over the trace of the batches' covariance.

    Returns:
        The ratio; None for a single batch, or if all batches have the same gradient.

    Source: the inverse of the simple noise scale of McCandlish et al. (2018),
    https://arxiv.org/abs/1812.06162, in batches; Auto-SNR (https://arxiv.org/abs/2210.11466).
    """
    if sums.batches < 2:
        return None
    spread = max(sums.squares - sums.mean_square, 0.0)
    variance = sums.batches / (sums.batches - 1) * spread
    return sums.mean_square / variance if variance > 0 else None


def fisher_trace(sums: GradientSums) -> float:
    """Return the trace of the empirical Fisher matrix, with one gradient per batch.

    It is the mean over batches, not over examples, of the squared gradient, summed over the
    tensor.
    """
    return sums.squares


def residual_norm(gradient: np.ndarray, products: np.ndarray) -> float:
    """Return the norm of what a change of the weights could take from the loss's residual.

    It is the norm per position of the output's gradient R projected onto the input X, which
    normalizes the weight gradient G = XᵀR by the input: sqrt(tr(Gᵀ (XᵀX + damping)⁻¹ G)).

    Args:
        gradient: `[I, O]`, the mean over positions of x rᵀ.
        products: `[I, I]`, the mean over positions of x xᵀ.

    Returns:
        The norm; NaN if the input is zero.

    Source: Xu et al. (2026), https://arxiv.org/abs/2602.04019 (the Layer Card's residual norm).
    """
    gradient, products = gradient.astype(np.float64), products.astype(np.float64)
    size = np.trace(products) / len(products)
    if not size > 0:
        return math.nan
    damped = products + DAMPING * size * np.eye(len(products))
    return math.sqrt(np.sum(gradient * linalg.solve(damped, gradient, assume_a="pos")))
