"""Accelerators in one table, for plans before a run and for utilization after it.

Peaks are dense bfloat16, as the makers tell them. No jax here, so a name is checked at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxft.errors import UserError

GIB = 2**30
GOOGLE = "https://docs.cloud.google.com/tpu/docs/"
NVIDIA = "https://www.nvidia.com/en-us/data-center/"

# Slices that can be rented, in chips along each axis.
FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBES = (
    *("1x1x1", "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4"),
    *("4x4x8", "4x8x8", "8x8x8", "8x8x16"),
)


@dataclass(frozen=True)
class Chip:
    """An accelerator.

    Attributes:
        name: what a person calls it, such as `v5e`.
        kinds: how jax's `device_kind` begins.
        peak: bfloat16 FLOPs a second.
        memory: bytes.
        bandwidth: of its memory, bytes a second.
        link: what it sends to its neighbours, one way, all links together, bytes a second; 0
            where there is no link but the host's.
        source: where the figures are from.
        devices: how many jax sees in one chip; they share all of the above.
        usable: bytes of a device that the compiler gives to a program, as libtpu's says it when
            they do not suffice; None where it does not say.
        shapes: slices of a pod, chips along each axis; none where there are no pods.
    """

    name: str
    kinds: tuple[str, ...]
    peak: float
    memory: int
    bandwidth: float
    link: float
    source: str
    devices: int = 1
    usable: int | None = None
    shapes: tuple[str, ...] = ()

    @property
    def device_peak(self) -> float:
        """bfloat16 FLOPs a second of what jax calls a device."""
        return self.peak / self.devices

    @property
    def device_memory(self) -> int:
        """Bytes that a program may have on a device."""
        return self.usable or self.memory // self.devices


# Links: v4 and v5p as Google's older tables tell them (2,400 and 4,800 Gb/s), the others half of
# the bidirectional figure.
TPUS = (
    Chip(
        *("v4", ("TPU v4",), 275e12, 32 * GIB, 1.2e12, 300e9, f"{GOOGLE}v4"),
        usable=int(30.75 * GIB),
        shapes=CUBES,
    ),
    Chip(
        *("v5e", ("TPU v5 lite",), 197e12, 16 * GIB, 819e9, 200e9, f"{GOOGLE}v5e"),
        usable=int(15.75 * GIB),
        shapes=FLAT,
    ),
    Chip(
        *("v5p", ("TPU v5", "TPU v5p"), 459e12, 96 * GIB, 2.765e12, 600e9, f"{GOOGLE}v5p"),
        usable=int(95.74 * GIB),
        shapes=CUBES,
    ),
    Chip(
        *("v6e", ("TPU v6 lite",), 918e12, 32 * GIB, 1.638e12, 400e9, f"{GOOGLE}v6e"),
        usable=int(31.25 * GIB),
        shapes=FLAT,
    ),
    Chip(
        *("tpu7x", ("TPU7x",), 2307e12, 192 * GIB, 7.38e12, 600e9, f"{GOOGLE}tpu7x"),
        devices=2,
        usable=int(94.75 * GIB),
        shapes=CUBES,
    ),
)
GPUS = (
    Chip(
        "a100-40", ("NVIDIA A100-SXM4-40GB",), 312e12, 40 * GIB, 1.555e12, 300e9, f"{NVIDIA}a100/"
    ),
    Chip("a100", ("NVIDIA A100",), 312e12, 80 * GIB, 2.039e12, 300e9, f"{NVIDIA}a100/"),
    Chip("h100", ("NVIDIA H100",), 989.4e12, 80 * GIB, 3.35e12, 450e9, f"{NVIDIA}h100/"),
    Chip("h200", ("NVIDIA H200",), 989.4e12, 141 * 10**9, 4.8e12, 450e9, f"{NVIDIA}h200/"),
    Chip("b200", ("NVIDIA B200",), 2250e12, 180 * 10**9, 8e12, 900e9, f"{NVIDIA}dgx-b200/"),
    Chip("l4", ("NVIDIA L4",), 121e12, 24 * GIB, 300e9, 0.0, f"{NVIDIA}l4/"),
    Chip("l40s", ("NVIDIA L40S",), 362e12, 48 * GIB, 864e9, 0.0, f"{NVIDIA}l40s/"),
)


@dataclass(frozen=True)
class Topology:
    """A slice of a TPU pod.

    Attributes:
        chip: its chip.
        shape: chips along each axis, such as `4x4`.
    """

    chip: Chip
    shape: str

    @property
    def name(self) -> str:
        """As it is typed: `v5e:4x4`."""
        return f"{self.chip.name}:{self.shape}"

    @property
    def chips(self) -> int:
        """Number of chips in it."""
        return math.prod(map(int, self.shape.split("x")))

    @property
    def devices(self) -> int:
        """Number of devices that jax sees in it."""
        return self.chips * self.chip.devices


def find_chip(kind: str) -> Chip | None:
    """The chip that a device is of or on; None where it is not in the table.

    Args:
        kind: the device's `device_kind`, such as `TPU v5 lite`.
    """
    fitting = {k: chip for chip in (*TPUS, *GPUS) for k in chip.kinds if _is_of(kind, k)}
    return fitting[max(fitting, key=len)] if fitting else None


def _is_of(kind: str, chip: str) -> bool:
    """Return whether a device's kind is a chip's, with or without a suffix (`L4` is no `L40S`)."""
    return kind.startswith(chip) and not kind[len(chip) :][:1].isalnum()


def parse_topology(name: str) -> Topology:
    """The slice of a name such as `v5e:4x4`.

    Raises:
        UserError: there is no such chip, or no such slice of it; says which there are.
    """
    kind, _, shape = name.partition(":")
    known = {chip.name: chip for chip in TPUS}
    if kind not in known:
        raise UserError(f"--topology: unknown TPU type '{kind}'.", f"Known: {_slices()}.")
    chip = known[kind]
    if shape not in chip.shapes:
        raise UserError(
            f"--topology: {kind} has no slice of shape '{shape}'.",
            f"It has {', '.join(chip.shapes)}.",
        )
    return Topology(chip, shape)


def _slices() -> str:
    """Every slice, told once for the chips that have the same."""
    families = []
    for shapes in dict.fromkeys(chip.shapes for chip in TPUS):
        names = [chip.name for chip in TPUS if chip.shapes == shapes]
        families.append(f"{', '.join(names)} with :{', :'.join(shapes)}")
    return "; ".join(families)
