"""Roofline of a step: the time that its scarcest resource needs."""

from __future__ import annotations

from dataclasses import dataclass

from jaxft.device.chips import Chip

FORMULA = (
    "the largest of FLOPs / peak, bytes moved / memory bandwidth and bytes sent / link bandwidth, "
    "each of one device; at least, since none of them is ever reached"
)


@dataclass(frozen=True)
class Roofline:
    """Lower bounds of a step's seconds, by resource.

    Source: Williams, Waterman, Patterson (2009), https://doi.org/10.1145/1498765.1498785.
    """

    compute: float
    memory: float
    links: float

    @property
    def seconds(self) -> float:
        """Lower bound of the step's time."""
        return max(self.compute, self.memory, self.links)

    @property
    def bound(self) -> str:
        """Resource that sets this bound: compute, memory or links."""
        return max(("compute", "memory", "links"), key=lambda name: getattr(self, name))


def roofline(chip: Chip, devices: int, flops: int, traffic: int, sent: int) -> Roofline:
    """Compute the roofline of a step.

    Args:
        chip: the chip of each device.
        devices: their number.
        flops: of all devices together.
        traffic: bytes that one device moves from and to its memory.
        sent: bytes that one device sends.
    """
    each = chip.devices
    links = sent * each / chip.link if chip.link else 0.0
    return Roofline(flops / devices / chip.device_peak, traffic * each / chip.bandwidth, links)
