"""How long a step takes at best: the slowest of what a chip does at once."""

from __future__ import annotations

from dataclasses import dataclass

from jaxft.device.chips import Chip

FORMULA = (
    "the largest of FLOPs / peak, bytes moved / memory bandwidth and bytes sent / link bandwidth, "
    "each of one device; at least, since none of them is ever reached"
)


@dataclass(frozen=True)
class Roofline:
    """The least seconds of a step, by what bounds it.

    Source: Williams, Waterman, Patterson (2009), https://doi.org/10.1145/1498765.1498785.
    """

    compute: float
    memory: float
    links: float

    @property
    def seconds(self) -> float:
        """The least that the step takes."""
        return max(self.compute, self.memory, self.links)

    @property
    def bound(self) -> str:
        """What that is: compute, memory or links."""
        return max(("compute", "memory", "links"), key=lambda name: getattr(self, name))


def roofline(chip: Chip, devices: int, flops: int, traffic: int, sent: int) -> Roofline:
    """The roofline of a step.

    Args:
        chip: what it runs on.
        devices: how many share the FLOPs.
        flops: of all of them.
        traffic: bytes that one device moves from and to its memory.
        sent: bytes that one device sends.
    """
    each = chip.devices
    links = sent * each / chip.link if chip.link else 0.0
    return Roofline(flops / devices / chip.device_peak, traffic * each / chip.bandwidth, links)
