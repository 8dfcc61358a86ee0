"""Whether a phase keeps its trunk's output: what that takes, and what it saves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import jax

from jaxft.engine.cost import batch_shapes, trunk_saving, trunk_shapes
from jaxft.engine.setup import Build
from jaxft.errors import UserError
from jaxft.numbers import share, size

WORTH = 0.1  # share of a step's FLOPs from which on `auto` keeps the trunk's output


@dataclass(frozen=True)
class TrunkPlan:
    """What a phase's trunk cache takes and saves.

    Attributes:
        kept: split -> bytes that its trunk's output takes on disk; empty where none is kept.
        reason: where none is, why.
        saved: the share of a step's FLOPs that is saved; 0 where that was not worked out.
    """

    kept: Mapping[str, int]
    reason: str = ""
    saved: float = 0.0


def plan_trunks(built: Build) -> tuple[TrunkPlan, ...]:
    """Which phases of a run keep their trunk's output.

    Raises:
        UserError: `train.trunk_cache` is on and cannot be.
    """
    batch = batch_shapes(built)
    plans = tuple(plan_trunk(built.in_phase(phase.index), batch) for phase in built.phases)
    # A run that freezes layers by itself has no trunk yet.
    fixed = built.config.phases != "auto_freeze"
    if built.config.train.trunk_cache == "on" and fixed and not any(plan.kept for plan in plans):
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
        return TrunkPlan({}, "train.trunk_cache is off")
    streams = trunk_shapes(built, batch)
    if not streams:
        return TrunkPlan({}, "there is no trunk: the embeddings train")
    if examples.random:
        if asked == "on":
            raise UserError(
                "train.trunk_cache: an example is another each time that it is read "
                "(augmentation), so that what the trunk makes of it cannot be kept.",
                "Turn augmentation off, or leave train.trunk_cache at auto.",
            )
        return TrunkPlan({}, "an example is another each time that it is read")
    kept = {name: _bytes(built, name, streams) for name in _splits(built)}
    nbytes = sum(kept.values())
    most = built.config.train.trunk_cache_size * 1e9
    if asked == "on":
        if nbytes > most:
            raise UserError(
                f"train.trunk_cache: the trunk's output of all {' and '.join(kept)} examples "
                f"takes {size(nbytes)} ({nbytes:,} bytes), and train.trunk_cache_size allows "
                f"{size(most)}.",
                f"Raise train.trunk_cache_size (GB) to {math.ceil(nbytes / 1e8) / 10} where the "
                "disk has room, or leave train.trunk_cache at auto.",
            )
        return TrunkPlan(kept, "", trunk_saving(built, batch))
    if built.phase.stop - built.phase.start <= built.length.steps_per_epoch:
        return TrunkPlan({}, "no example is read twice")
    saved = trunk_saving(built, batch)
    if saved < WORTH:
        return TrunkPlan({}, f"it would save {share(saved)} of a step only", saved)
    if nbytes > most:
        reason = f"{size(nbytes)} are more than train.trunk_cache_size ({size(most)})"
        return TrunkPlan({}, reason, saved)
    return TrunkPlan(kept, "", saved)


def _splits(built: Build) -> tuple[str, ...]:
    """The splits whose output is kept: that of the eval rows where they are scored again."""
    every, phase = built.length.evaluate_every, built.phase
    again = phase.stop // every - phase.start // every > 1
    return ("train", "eval") if again and not built.splits["eval"].examples.random else ("train",)


def _bytes(built: Build, split: str, streams: Mapping[str, jax.ShapeDtypeStruct]) -> int:
    """What the streams `[R, T, D]` take for all examples of a split."""
    lengths, total = built.splits[split].examples.lengths, 0
    for shape in streams.values():
        _, positions, width = shape.shape
        taken = int(lengths.sum()) if is_packed(built) else len(lengths) * positions
        total += taken * width * shape.dtype.itemsize
    return total


def is_packed(built: Build) -> bool:
    """Whether an example is a part of a row; else it is a row, whatever positions that has."""
    return built.layout.row_length > 1
