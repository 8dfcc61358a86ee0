"""The optimizer's state of sampled blocks, from one period to the next."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, NamedTuple

import jax

from jaxft.engine.initial_state import abstract_state
from jaxft.engine.state import TrainState
from jaxft.training.sampling.program import Period, SampledRun

COHORT = re.compile(r"@(\d+)")  # of a sampled block, in the labels of the optimizer's state


def enter_period(before: Period, now: Period, state: TrainState) -> TrainState:
    """Make the state as a period begins: the same values, and the moments of what is chosen.

    Args:
        before: the period that ends.
        now: the period that begins.
        state: at the end of that before.
    """
    known = {**state.previously_trained, **state.trainable}
    train = set(now.setup.table.trainable)
    moved = replace(
        state,
        trainable={name: value for name, value in known.items() if name in train},
        previously_trained={name: value for name, value in known.items() if name not in train},
        opt_state=None,
    )
    entered, old = now.to_program(moved), before.to_program(state).opt_state
    idle = {**state.idle, **_copied(before, old)} if now.run.sampling.keep else {}

    def carried(path: tuple[Any, ...], new: jax.Array, former: jax.Array) -> jax.Array:
        if not COHORT.search(jax.tree_util.keystr(path)):
            return former
        leaf = _slot_leaf(now.run, path) if idle else None
        own = idle.get(chosen[leaf.slot]) if leaf else None
        return new if own is None or leaf is None else jax.device_put(own[leaf.key], new.sharding)

    chosen = list(now.choice.slots)
    fresh = now.run.fresh_optimizer(entered.trainable)
    opt_state = jax.tree_util.tree_map_with_path(carried, fresh, old)
    stored = {block: leaves for block, leaves in idle.items() if block not in now.choice.slots}
    return now.to_model(replace(entered, opt_state=opt_state, idle=stored))


def abstract_idle(now: Period) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """Describe the optimizer's state that is kept on the host in a period; see `TrainState`."""
    if not now.run.sampling.keep:
        return {}
    state, home = abstract_state(now.run.setup, now.run.program).opt_state, _host()
    slots = [
        {
            key: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=home)
            for key, leaf in leaves.items()
        }
        for leaves in _by_slot(now.run, state)
    ]
    before = (now.run.choice(index) for index in range(now.index))
    idle = {block: slots[slot] for choice in before for block, slot in choice.slots.items()}
    return {block: leaves for block, leaves in idle.items() if block not in now.choice.slots}


class _SlotLeaf(NamedTuple):
    """Leaf of the optimizer's state that belongs to a sampled block.

    Attributes:
        slot: the block's number among those that train.
        key: the leaf's name, the same for all blocks.
    """

    slot: int
    key: str


def _slot_leaf(run: SampledRun, path: tuple[Any, ...]) -> _SlotLeaf | None:
    """Find the block of a leaf of the program's optimizer state; None of those without one."""
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    if (label := COHORT.search(name)) is None:
        return None
    slot = int(label[1]) - 1
    prefix = list(run.program_choice.slots)[slot]
    return _SlotLeaf(slot, COHORT.sub("@", name).replace(prefix, ""))


def _by_slot(run: SampledRun, opt_state: Any) -> list[dict[str, Any]]:
    """Sort the leaves of the program's optimizer state by the block that they belong to."""
    slots: list[dict[str, Any]] = [{} for _ in run.program_choice.slots]
    for path, leaf in jax.tree.leaves_with_path(opt_state):
        if (own := _slot_leaf(run, path)) is not None:
            slots[own.slot][own.key] = leaf
    return slots


def _copied(period: Period, opt_state: Any) -> dict[str, dict[str, jax.Array]]:
    """Copy the optimizer's state of the blocks of a period to the host."""
    home = _host()
    return {
        block: {key: jax.device_put(jax.device_get(leaf), home) for key, leaf in leaves.items()}
        for block, leaves in zip(period.choice.slots, _by_slot(period.run, opt_state), strict=True)
    }


def _host() -> jax.sharding.SingleDeviceSharding:
    return jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
