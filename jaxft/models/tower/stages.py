"""Blocks of a tower whose stages see ever smaller images, as ConvNeXt, Swin and SegFormer have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Unit(NamedTuple):
    """Block of the tower: the number of its stage, and its own in the stage, from 0."""

    stage: int
    number: int

    @property
    def shrinks(self) -> bool:
        """Return whether it makes the image smaller before it; the stem does before stage 0."""
        return self.stage > 0 and self.number == 0


def units_of(depths: Sequence[int]) -> Iterator[Unit]:
    """Yield the blocks in the order in which they run.

    Args:
        depths: blocks of each stage.
    """
    for stage, depth in enumerate(depths):
        for number in range(depth):
            yield Unit(stage, number)
