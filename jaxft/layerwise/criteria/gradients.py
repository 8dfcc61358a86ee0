"""Gradients of a tensor over several batches: against its weights, and against their own noise.

Of each batch's gradient only two sums are needed, so that no batch's gradient is stored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


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
