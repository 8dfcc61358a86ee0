"""Gradient noise scale of a run: the batch size beyond which larger ones hardly save steps.

Source: McCandlish et al. (2018), https://arxiv.org/abs/1812.06162, section 2.2 and appendix A.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from jaxft.engine.gradients.micro_batches import GRADIENT_SQUARE, GRADIENT_VARIANCE

TERMS = (GRADIENT_VARIANCE, GRADIENT_SQUARE)
DECAY = 0.98  # of the averages of both terms, a step: each is noisy, and so are short averages
FEWEST = 10  # steps with an estimate before there is a scale


class NoiseScale:
    """Averages of the two terms of the gradient noise scale over the steps of a run.

    A resumed run averages anew.
    """

    def __init__(self) -> None:
        self._variance = self._square = 0.0
        self._steps = 0

    def add(self, metrics: Mapping[str, float], examples: int) -> None:
        """Add one step's terms, where it has an estimate.

        Args:
            metrics: what the train step gave.
            examples: in the step.
        """
        variance, square = (metrics.get(name, math.nan) for name in TERMS)
        if not math.isfinite(variance) or not math.isfinite(square):
            return
        self._steps += 1
        share = 1 - DECAY
        # Of an example: its part of the weight may be some tokens.
        self._variance += share * (variance * examples / metrics["weight"] - self._variance)
        self._square += share * (square - self._square)

    @property
    def scale(self) -> float | None:
        """Return the noise scale in examples; None while too few steps have shown it.

        Both averages begin at zero, which their ratio does not depend on.
        """
        if self._steps < FEWEST or self._variance <= 0 or self._square <= 0:
            return None
        return self._variance / self._square

    def line(self, batch_size: int) -> str | None:
        """Say what the noise scale is, for whoever chooses the batch size; None without one."""
        if self.scale is None:
            return None
        return (
            f"The gradient noise scale is about {float(f'{self.scale:.2g}'):,.0f} examples, the "
            f"largest batch that is worth its examples; data.batch_size is {batch_size:,}."
        )
