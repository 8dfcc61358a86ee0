"""Whether a phase keeps its trunk's output: what that takes, and what it saves."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax

from jaxft.engine.build import Build
from jaxft.engine.cost import batch_shapes, trunk_saving, trunk_shapes
from jaxft.errors import UserError
from jaxft.report.numbers import share, size

WORTH = 0.1  # share of a step's FLOPs from which on `auto` keeps the trunk's output


@dataclass(frozen=True)
class TrunkPlan:
    """What a phase's trunk cache takes and saves.

    Attributes:
        used: whether the phase keeps its trunk's output.
        reason: where it does not, why.
        nbytes: what the output of all training examples takes on disk.
        saved: the share of a step's FLOPs that it saves; 0 where that was not worked out.
    """

    used: bool
    reason: str = ""
    nbytes: int = 0
    saved: float = 0.0


def plan_trunks(built: Build) -> tuple[TrunkPlan, ...]:
    """Which phases of a run keep their trunk's output.

    Raises:
        UserError: `train.trunk_cache` is on and cannot be.
    """
    batch = batch_shapes(built)
    plans = tuple(plan_trunk(built.in_phase(phase.index), batch) for phase in built.phases)
    if built.config.train.trunk_cache == "on" and not any(plan.used for plan in plans):
        raise UserError(
            "train.trunk_cache: there is no trunk to keep the output of, since the embeddings "
            "train in every phase.",
            "Freeze from the embeddings up (a group with depth: [0, n] and freeze: true), or "
            "leave it at auto.",
        )
    return plans


def plan_trunk(built: Build, batch: dict[str, jax.ShapeDtypeStruct]) -> TrunkPlan:
    """Whether the phase that a run is in keeps its trunk's output.

    Args:
        built: the run in the phase.
        batch: its batches' shapes (`cost.batch_shapes`).

    Raises:
        UserError: `train.trunk_cache` is on and cannot be.
    """
    asked, examples = built.config.train.trunk_cache, built.splits["train"].examples
    if asked == "off":
        return TrunkPlan(False, "train.trunk_cache is off")
    streams = trunk_shapes(built, batch)
    if not streams:
        return TrunkPlan(False, "there is no trunk: the embeddings train")
    if examples.random:
        if asked == "on":
            raise UserError(
                "train.trunk_cache: an example is another each time that it is read "
                "(augmentation), so that what the trunk makes of it cannot be kept.",
                "Turn augmentation off, or leave train.trunk_cache at auto.",
            )
        return TrunkPlan(False, "an example is another each time that it is read")
    nbytes = sum(_bytes(shape, built) for shape in streams.values())
    most = built.config.train.trunk_cache_size * 1e9
    if asked == "on":
        if nbytes > most:
            raise UserError(
                f"train.trunk_cache: the trunk's output of {len(examples):,} examples takes "
                f"{size(nbytes)} ({nbytes:,} bytes), and train.trunk_cache_size allows "
                f"{size(most)}.",
                f"Raise train.trunk_cache_size (GB) to {math.ceil(nbytes / 1e8) / 10} where the "
                "disk has room, or leave train.trunk_cache at auto.",
            )
        return TrunkPlan(True, "", nbytes, trunk_saving(built, batch))
    if built.phase.stop - built.phase.start <= built.length.steps_per_epoch:
        return TrunkPlan(False, "no example is read twice", nbytes)
    saved = trunk_saving(built, batch)
    if saved < WORTH:
        return TrunkPlan(False, f"it would save {share(saved)} of a step only", nbytes, saved)
    if nbytes > most:
        reason = f"{size(nbytes)} are more than train.trunk_cache_size ({size(most)})"
        return TrunkPlan(False, reason, nbytes, saved)
    return TrunkPlan(True, "", nbytes, saved)


def _bytes(shape: jax.ShapeDtypeStruct, built: Build) -> int:
    """What a stream `[R, T, D]` takes for all training examples."""
    _, positions, width = shape.shape
    lengths = built.splits["train"].examples.lengths
    if is_packed(built):
        return int(lengths.sum()) * width * shape.dtype.itemsize
    return len(lengths) * positions * width * shape.dtype.itemsize


def is_packed(built: Build) -> bool:
    """Whether an example is a part of a row; else it is a row, whatever positions that has."""
    return built.layout.row_length > 1
