"""Whether a phase keeps its trunk's output: what that takes, and what it saves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax

from jaxft.data.batching.plans import Layout
from jaxft.engine.cost import batch_shapes, trunk_saving, trunk_shapes
from jaxft.engine.setup import PhaseSetup, Setup
from jaxft.errors import UserError
from jaxft.layerwise.phases import Phase
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


def plan_trunks(setup: Setup, phases: Sequence[PhaseSetup]) -> tuple[TrunkPlan, ...]:
    """Which phases of a run keep their trunk's output.

    Args:
        setup: the run.
        phases: each of its phases.

    Raises:
        UserError: `train.trunk_cache` is on and cannot be.
    """
    batch = batch_shapes(setup)
    plans = tuple(plan_trunk(setup, one, batch) for one in phases)
    # A run that freezes layers by itself has no trunk yet.
    fixed = setup.config.phases != "auto_freeze"
    if setup.config.train.trunk_cache == "on" and fixed and not any(plan.kept for plan in plans):
        raise UserError(
            "train.trunk_cache: there is no trunk to keep the output of, since the embeddings "
            "train in every phase.",
            "Freeze from the embeddings up (a group with depth: [0, n] and freeze: true), or "
            "leave it at auto.",
        )
    return plans


def plan_trunk(setup: Setup, now: PhaseSetup, batch: dict[str, jax.ShapeDtypeStruct]) -> TrunkPlan:
    """Whether a phase keeps its trunk's output.

    Args:
        setup: the run.
        now: the phase.
        batch: its batches' shapes (`cost.batch_shapes`).

    Raises:
        UserError: `train.trunk_cache` is on and cannot be.
    """
    asked, examples = setup.config.train.trunk_cache, setup.splits["train"].examples
    if asked == "off":
        return TrunkPlan({}, "train.trunk_cache is off")
    streams = trunk_shapes(setup.model, now.compute, batch)
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
    kept = {name: _bytes(setup, name, streams) for name in _splits(setup, now.phase)}
    nbytes = sum(kept.values())
    most = setup.config.train.trunk_cache_size * 1e9
    if asked == "on":
        if nbytes > most:
            raise UserError(
                f"train.trunk_cache: the trunk's output of all {' and '.join(kept)} examples "
                f"takes {size(nbytes)} ({nbytes:,} bytes), and train.trunk_cache_size allows "
                f"{size(most)}.",
                f"Raise train.trunk_cache_size (GB) to {math.ceil(nbytes / 1e8) / 10} where the "
                "disk has room, or leave train.trunk_cache at auto.",
            )
        return TrunkPlan(kept, "", trunk_saving(setup, now.compute, batch))
    if now.phase.stop - now.phase.start <= setup.length.steps_per_epoch:
        return TrunkPlan({}, "no example is read twice")
    saved = trunk_saving(setup, now.compute, batch)
    if saved < WORTH:
        return TrunkPlan({}, f"it would save {share(saved)} of a step only", saved)
    if nbytes > most:
        reason = f"{size(nbytes)} are more than train.trunk_cache_size ({size(most)})"
        return TrunkPlan({}, reason, saved)
    return TrunkPlan(kept, "", saved)


def _splits(setup: Setup, phase: Phase) -> tuple[str, ...]:
    """The splits whose output is kept: that of the eval rows where they are scored again."""
    every = setup.length.evaluate_every
    again = phase.stop // every - phase.start // every > 1
    return ("train", "eval") if again and not setup.splits["eval"].examples.random else ("train",)


def _bytes(setup: Setup, split: str, streams: Mapping[str, jax.ShapeDtypeStruct]) -> int:
    """What the streams `[R, T, D]` take for all examples of a split."""
    lengths, total = setup.splits[split].examples.lengths, 0
    for shape in streams.values():
        _, positions, width = shape.shape
        taken = int(lengths.sum()) if is_packed(setup.layout) else len(lengths) * positions
        total += taken * width * shape.dtype.itemsize
    return total


def is_packed(layout: Layout) -> bool:
    """Whether an example is a part of a row; else it is a row, whatever positions that has."""
    return layout.row_length > 1
