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
    """Lower bounds of a step's seconds, by resource; `links` is None where that is not available.

    Source: Williams, Waterman, Patterson (2009), https://doi.org/10.1145/1498765.1498785.
    """

    compute: float
    memory: float
    links: float | None

    @property
    def seconds(self) -> float:
        """Lower bound of the step's time."""
        return max(self._known().values())

    @property
    def bound(self) -> str:
        """Resource that sets this bound: compute, memory or links."""
        known = self._known()
        return max(known, key=lambda name: known[name])

    def _known(self) -> dict[str, float]:
        known = {"compute": self.compute, "memory": self.memory}
        return known if self.links is None else known | {"links": self.links}


def roofline(chip: Chip, devices: int, flops: int, traffic: int, sent: int | None) -> Roofline:
    """Compute the roofline of a step.

    Args:
        chip: the chip of each device.
        devices: their number.
        flops: of all devices together.
        traffic: bytes that one device moves from and to its memory.
        sent: bytes that one device sends; None where that is not available.
    """
    each = chip.devices
    links = None if sent is None else sent * each / chip.link if chip.link else 0.0
    return Roofline(flops / devices / chip.device_peak, traffic * each / chip.bandwidth, links)
