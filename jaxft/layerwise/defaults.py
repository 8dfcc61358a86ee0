"""One leaf under an update rule: does Muon take it, at which rate, and the size of its state."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Protocol

from jaxft.errors import UserError
from jaxft.layerwise.moments import FLOAT32, moment_bytes

MUON, ADAMW = "muon", "adamw"
MATRICES = ("kernel", "lora_a", "lora_b")  # the leaves that a linear map multiplies with
SMALLEST_FACTORED = 128  # the shorter of two sides from which Adafactor keeps two vectors


class Ruled(Protocol):
    """A group's rule and peak rate."""

    @property
    def name(self) -> str: ...
    @property
    def algorithm(self) -> str: ...
    @property
    def peak_rate(self) -> float: ...


class Owned(Protocol):
    """A leaf and the name of its group."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def group(self) -> str: ...


def is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Tell a leaf that Muon takes: the matrix of a block's linear map.

    Neither embeddings nor a head are, nor tables of relative positions, [buckets, heads], nor the
    biases of a mixture's experts, [experts, outputs].
    """
    return len(shape) == 2 and "blocks/" in name and name.rpartition("/")[2] in MATRICES


def check_matrices(leaves: Sequence[Owned], groups: Iterable[Ruled]) -> None:
    """Raise a UserError where Muon has nothing to do in a group."""
    for group in groups:
        own = [leaf for leaf in leaves if leaf.group == group.name]
        if group.algorithm == MUON and not any(is_matrix(leaf.name, leaf.shape) for leaf in own):
            raise UserError(
                f"optimizer: muon moves matrices of blocks, and group '{group.name}' has none.",
                "Give the group another: groups: [{optimizer: adamw, ...}].",
            )


def rest_ratio(group: Ruled, adam_lr: float | None, name: str, shape: tuple[int, ...]) -> float:
    """Compute what multiplies a leaf's rate, so that leaves of Muon's AdamW move at `adam_lr`.

    Args:
        group: the leaf's group.
        adam_lr: peak rate of the leaves that Muon does not take; None for the group's own.
        name, shape: the leaf's own.
    """
    if adam_lr is None or group.algorithm != MUON or is_matrix(name, shape):
        return 1.0
    return adam_lr / group.peak_rate if group.peak_rate else 1.0


def state_bytes(algorithm: str, name: str, shape: tuple[int, ...], moments: str = FLOAT32) -> int:
    """Count the bytes of a rule's state for one leaf, whose moments are stored as `moments`."""
    if algorithm == "adafactor":
        return 4 * _factored(shape)
    one = algorithm in ("sgd", "lion", "lars") or (algorithm == MUON and is_matrix(name, shape))
    return moment_bytes(moments, shape, 1, 0 if one else 1)


def _factored(shape: tuple[int, ...]) -> int:
    """Count Adafactor's: sums along the two longest axes, or one per element without two long ones.

    For each array that it does not need, optax has one of a single number.
    """
    *_, second, longest = (1, 1, *sorted(shape))
    if len(shape) < 2 or second < SMALLEST_FACTORED:
        return math.prod(shape) + 2
    whole = math.prod(shape)
    return whole // longest + whole // second + 1
