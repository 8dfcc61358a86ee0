"""Decision whether a phase caches its trunk's output: size on disk, and FLOPs saved."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax

from jaxft.config.phases import SELF_FREEZING
from jaxft.data.batching.plans import Layout
from jaxft.engine.cost import batch_shapes, trunk_saving, trunk_shapes
from jaxft.engine.setup import PhaseSetup, Setup
from jaxft.errors import UserError
from jaxft.layerwise.phases import Phase
from jaxft.models.layers.kernels import context_of
from jaxft.numbers import share, size

WORTH = 0.1  # `auto` caches the trunk if that saves at least this share of a step's FLOPs


@dataclass(frozen=True)
class TrunkPlan:
    """Plan of a phase's trunk cache: its size and saving, or why there is none.

    Attributes:
        split_bytes: split -> bytes of its cached output on disk; empty without a cache.
        reason: why there is no cache, if there is none.
        saved: the share of a step's FLOPs that is saved; 0 where that was not computed.
    """

    split_bytes: Mapping[str, int]
    reason: str = ""
    saved: float = 0.0


def plan_trunks(setup: Setup, phases: Sequence[PhaseSetup]) -> tuple[TrunkPlan, ...]:
    """Decide for each phase of a run whether it caches its trunk's output.

    Args:
        setup: the run.
        phases: each of its phases.

    Raises:
        UserError: `train.trunk_cache` is on, but no phase can cache its trunk.
    """
    batch = batch_shapes(setup)
    plans = tuple(plan_trunk(setup, one, batch) for one in phases)
    # Some recipes decide only during the run what is frozen.
    config, cached = setup.config, any(plan.split_bytes for plan in plans)
    if config.train.trunk_cache == "on" and config.phases not in SELF_FREEZING and not cached:
        raise UserError(
            "train.trunk_cache: there is no frozen trunk to cache, since the embeddings train in "
            "every phase.",
            "Freeze from the embeddings up (a group with depth: [0, n] and freeze: true), or "
            "leave it at auto.",
        )
    return plans


def plan_trunk(setup: Setup, now: PhaseSetup, batch: dict[str, jax.ShapeDtypeStruct]) -> TrunkPlan:
    """Decide whether a phase caches its trunk's output.

    Args:
        setup: the run.
        now: the phase.
        batch: its batches' shapes (`cost.batch_shapes`).

    Raises:
        UserError: `train.trunk_cache` is on, but the trunk cannot be cached.
    """
    asked, examples = setup.config.train.trunk_cache, setup.splits["train"].examples
    if asked == "off":
        return TrunkPlan({}, "train.trunk_cache is off")
    if why := _divided(setup, asked):
        return TrunkPlan({}, why)
    streams = trunk_shapes(setup.model, now.compute, batch)
    if not streams:
        return TrunkPlan({}, "there is no trunk: the embeddings train")
    if examples.random:
        if asked == "on":
            raise UserError(
                "train.trunk_cache: examples change each time they are read (augmentation), so "
                "the trunk's output cannot be cached.",
                "Turn augmentation off, or leave train.trunk_cache at auto.",
            )
        return TrunkPlan({}, "examples change each time they are read")
    split_bytes = {name: _bytes(setup, name, streams) for name in _splits(setup, now.phase)}
    nbytes = sum(split_bytes.values())
    most = setup.config.train.trunk_cache_size * 1e9
    if asked == "on":
        if nbytes > most:
            raise UserError(
                f"train.trunk_cache: the trunk's output of all {' and '.join(split_bytes)} "
                f"examples takes {size(nbytes)} ({nbytes:,} bytes), and train.trunk_cache_size "
                f"allows {size(most)}.",
                f"Raise train.trunk_cache_size (GB) to {math.ceil(nbytes / 1e8) / 10} where the "
                "disk has room, or leave train.trunk_cache at auto.",
            )
        return TrunkPlan(split_bytes, "", trunk_saving(setup, now.compute, batch))
    if now.phase.stop - now.phase.start <= setup.length.steps_per_epoch:
        return TrunkPlan({}, "no example is read twice")
    saved = trunk_saving(setup, now.compute, batch)
    if saved < WORTH:
        return TrunkPlan({}, f"it would save only {share(saved)} of a step", saved)
    if nbytes > most:
        reason = f"{size(nbytes)} is more than train.trunk_cache_size ({size(most)})"
        return TrunkPlan({}, reason, saved)
    return TrunkPlan(split_bytes, "", saved)


def _divided(setup: Setup, asked: str) -> str:
    """Return why rows on several devices have no cached trunk; empty if they are on one each."""
    if (devices := context_of(setup.mesh)) == 1:
        return ""
    why = f"rows are divided over {devices} devices (mesh.context)"
    if asked == "on":
        raise UserError(f"train.trunk_cache: {why}.", "Leave train.trunk_cache at auto.")
    return why


def _splits(setup: Setup, phase: Phase) -> tuple[str, ...]:
    """List the splits to cache: also the eval rows if they are scored more than once."""
    every = setup.length.evaluate_every
    again = phase.stop // every - phase.start // every > 1
    return ("train", "eval") if again and not setup.splits["eval"].examples.random else ("train",)


def _bytes(setup: Setup, split: str, streams: Mapping[str, jax.ShapeDtypeStruct]) -> int:
    """Count the bytes of the streams `[R, T, D]` for all examples of a split."""
    lengths, total = setup.splits[split].examples.lengths, 0
    for shape in streams.values():
        _, positions, width = shape.shape
        taken = int(lengths.sum()) if is_packed(setup.layout) else len(lengths) * positions
        total += taken * width * shape.dtype.itemsize
    return total


def is_packed(layout: Layout) -> bool:
    """Return whether a row may hold several examples."""
    return layout.row_length > 1
