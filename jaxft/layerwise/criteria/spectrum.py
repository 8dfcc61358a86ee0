"""Weight spectra: power-law exponents of the eigenvalues, and what rises above random noise.

Everything is computed from the singular values of one matrix, on the host in float64. The
eigenvalues of W^T W are their squares.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

FEWEST_TAIL = 10  # eigenvalues to which a power law is fitted, at least
QUADRATURE = 20_000  # points of the integral over the Marchenko-Pastur density
Z95 = 1.96  # standard errors from the estimate to either end of its 95% interval


@dataclass(frozen=True)
class PowerLaw:
    """Power law p(x) ~ x^-exponent, fitted to the tail of a spectrum.

    Attributes:
        exponent: the maximum-likelihood estimate.
        error: its standard error, (exponent - 1) / sqrt(tail).
        xmin: the smallest eigenvalue of the tail.
        distance: Kolmogorov-Smirnov distance between the tail and the fit.
        tail: the number of eigenvalues from `xmin` up.
    """

    exponent: float
    error: float
    xmin: float
    distance: float
    tail: int

    @property
    def interval(self) -> tuple[float, float]:
        """Return the 95% interval of the exponent, by the normal approximation."""
        return self.exponent - Z95 * self.error, self.exponent + Z95 * self.error


def singular_values(matrix: np.ndarray) -> np.ndarray:
    """Compute the singular values of a matrix, ascending, from the smaller of its Gram matrices.

    Args:
        matrix: `[m, n]`.

    Returns:
        `[min(m, n)]` float64; all zero for a matrix that is not finite. Values below about 1e-8 of
        the largest are rounding.
    """
    if not np.isfinite(matrix).all():
        return np.zeros(min(matrix.shape))
    wide = np.asarray(matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T, np.float64)
    singular: np.ndarray = np.sqrt(np.maximum(np.linalg.eigvalsh(wide @ wide.T), 0))
    return singular


def eigenvalues(singular: np.ndarray) -> np.ndarray:
    """Return the squares of the singular values that are not zero to rounding, ascending.

    Args:
        singular: `[n]` singular values of a matrix, in any order.
    """
    values = np.sort(np.asarray(singular, np.float64))
    largest = values[-1] if len(values) else 0.0
    return np.square(values[values > largest * len(values) * np.finfo(np.float32).eps])


def hill_exponent(values: np.ndarray, share: float = 0.5) -> float | None:
    """Estimate a power law's exponent from the largest values: 1 + k / sum log(x_i / x_(k+1)).

    Args:
        values: `[n]` eigenvalues, all positive.
        share: k as a share of n.

    Returns:
        The exponent of the density; None for fewer than three values, or if all are equal.

    Source: Hill (1975), as in AlphaDecay and LLR (https://arxiv.org/abs/2605.22297), k = n / 2.
    """
    ordered = np.sort(np.asarray(values, np.float64))[::-1]
    k = int(len(ordered) * share)
    if k < 1 or k >= len(ordered):
        return None
    total = float(np.sum(np.log(ordered[:k] / ordered[k])))
    return 1 + k / total if total > 0 else None


def fit_power_law(values: np.ndarray) -> PowerLaw | None:
    """Fit a power law above the `xmin` that minimizes the Kolmogorov-Smirnov distance.

    Args:
        values: `[n]` eigenvalues, all positive.

    Returns:
        The fit; None for fewer than `FEWEST_TAIL` values, or if all are equal.

    Source: Clauset, Shalizi and Newman (2009), https://arxiv.org/abs/0706.1062.
    """
    ordered = np.sort(np.asarray(values, np.float64))
    count, logs = len(ordered), np.log(ordered)
    above = np.cumsum(logs[::-1])[::-1]  # sum of the logs from each value up
    best: PowerLaw | None = None
    for start in range(count - FEWEST_TAIL + 1):
        tail = count - start
        spread = above[start] - tail * logs[start]
        if spread <= 0:
            continue
        exponent = 1 + tail / spread
        fitted = -np.expm1((1 - exponent) * (logs[start:] - logs[start]))
        steps = np.arange(tail + 1) / tail
        distance = float(max(np.max(steps[1:] - fitted), np.max(fitted - steps[:-1])))
        if best is None or distance < best.distance:
            error = (exponent - 1) / math.sqrt(tail)
            best = PowerLaw(float(exponent), float(error), float(ordered[start]), distance, tail)
    return best


def noise_edge(singular: np.ndarray, shape: tuple[int, int]) -> float:
    """Return the Marchenko-Pastur edge: the largest singular value that pure noise would have.

    The noise level is estimated from the median singular value, which a few strong directions do
    not move.

    Args:
        singular: `[min(shape)]`.
        shape: of the matrix.

    Source: Gavish and Donoho (2014), https://arxiv.org/abs/1305.5870, section III.D.
    """
    short, long = sorted(shape)
    sigma = float(np.median(singular)) / math.sqrt(long * marchenko_pastur_median(short / long))
    return sigma * (math.sqrt(short) + math.sqrt(long))


@functools.cache
def marchenko_pastur_median(ratio: float) -> float:
    """Compute the median of the Marchenko-Pastur law of unit variance.

    Args:
        ratio: of the matrix's shorter side to its longer, in (0, 1].
    """
    low, high = (1 - math.sqrt(ratio)) ** 2, (1 + math.sqrt(ratio)) ** 2
    # x = low + (high - low) sin^2 t removes the root at both ends, and the pole of ratio 1.
    t = (np.arange(QUADRATURE) + 0.5) * (math.pi / 2 / QUADRATURE)
    x = low + (high - low) * np.sin(t) ** 2
    mass = np.cumsum((np.sin(t) * np.cos(t)) ** 2 / x)
    return float(np.interp(0.5, mass / mass[-1], x))


def share_above_noise(singular: np.ndarray, shape: tuple[int, int]) -> float:
    """Return the share of singular values above the Marchenko-Pastur edge.

    Args:
        singular: `[min(shape)]`.
        shape: of the matrix.
    """
    return float(np.mean(np.asarray(singular) > noise_edge(singular, shape)))


def signal_to_noise(singular: np.ndarray, shape: tuple[int, int]) -> float | None:
    """Return Spectrum's signal-to-noise ratio: the sum above the edge over the sum below.

    As in Spectrum, the ratio is divided by the largest singular value. Its own edge is another:
    Spectrum's code puts it at 1 + sqrt(ratio) times the interquartile range of the singular
    values / 1.349, which counts a quarter of a random square matrix and all of a random
    384 x 1536 matrix as signal.

    Args:
        singular: `[min(shape)]`.
        shape: of the matrix.

    Returns:
        The ratio; None for a matrix of zeros, or one whose singular values are mostly zero.

    Source: Hartford et al. (2024), https://arxiv.org/abs/2406.06623.
    """
    values = np.asarray(singular, np.float64)
    signal = values > noise_edge(values, shape)
    noise = float(values[~signal].sum())
    return float(values[signal].sum()) / noise / float(values.max()) if noise > 0 else None
