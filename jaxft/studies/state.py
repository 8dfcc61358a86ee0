"""The state of all members of a study as one: every array has a leading axis of members, [K, ...].

What differs from member to member and does not train (a new head of another seed that a phase
keeps frozen, what an earlier phase trained) goes into `settled`, as in a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxft.device.mesh import replicated
from jaxft.engine.initial_state import carry_on, load_params
from jaxft.engine.setup import Build
from jaxft.engine.state import TrainState

Params = dict[str, jax.Array]


@dataclass(frozen=True)
class Start:
    """What the members start from.

    Attributes:
        params: every parameter, as the first member has it.
        own: of them, those that differ by `run.seed.init`: `[K, ...]`.
    """

    params: Params
    own: Params


def load_start(builds: Sequence[Build]) -> Start:
    """Read the checkpoint once, and the new leaves of each `run.seed.init`.

    Args:
        builds: one a member.
    """
    first = load_params(builds[0])
    by_seed = {builds[0].config.run.seed.init: first.params}
    for built in builds:
        seed = built.config.run.seed.init
        if seed not in by_seed:
            loaded = load_params(built)
            by_seed[seed] = {name: loaded.params[name] for name in loaded.report.new}
    if len(by_seed) == 1:
        return Start(first.params, {})
    own = {
        name: jnp.stack([by_seed[built.config.run.seed.init][name] for built in builds])
        for name in first.report.new
    }
    return Start(first.params, own)


def initial_states(builds: Sequence[Build], start: Start) -> TrainState:
    """The members' states before the first step.

    Args:
        builds: one a member.
        start: as `load_start` gave it.
    """
    built = builds[0]
    names = set(built.table.trainable)
    trainable = {name: start.own.get(name, start.params[name]) for name in built.table.trainable}
    settled = {name: leaf for name, leaf in start.own.items() if name not in names}
    return _fresh(builds, trainable, settled, apart=frozenset(start.own))


def enter_phase(builds: Sequence[Build], states: TrainState, frozen: Params) -> TrainState:
    """The members' states as a phase begins: all values as they were; see `build_state`.

    Args:
        builds: one a member, in the phase to come.
        states: at the end of the phase before.
        frozen: as that phase had them, without an axis of members.
    """
    built = builds[0]
    apart = {**states.settled, **states.trainable}
    known = {**frozen, **apart}
    left = states.average if built.schedule_free and states.average else {}
    trainable = {name: known[name] for name in built.table.trainable}
    settled = {n: left.get(n, leaf) for n, leaf in apart.items() if n not in trainable}
    return carry_on(states, _fresh(builds, trainable, settled, apart=frozenset(apart)))


def _fresh(
    builds: Sequence[Build], trainable: Params, settled: Params, apart: frozenset[str]
) -> TrainState:
    """States of step 0; of the leaves, those in `apart` have an axis of members already."""
    built, count = builds[0], len(builds)
    seeds = np.array([one.config.run.seed.dropout for one in builds])

    def spread(name: str, leaf: jax.Array) -> jax.Array:
        whole = leaf if name in apart else jnp.broadcast_to(leaf, (count, *leaf.shape))
        return whole.astype(jnp.float32)

    def make(trainable: Params, settled: Params) -> TrainState:
        trainable = {name: spread(name, leaf) for name, leaf in trainable.items()}
        return TrainState(
            step=jnp.zeros(count, jnp.int32),
            trainable=trainable,
            opt_state=jax.vmap(built.optimizer.init)(trainable),
            key=jnp.stack([jax.random.key(int(seed)) for seed in seeds]),
            average=jax.tree.map(jnp.copy, trainable) if built.averages else None,
            settled={name: spread(name, leaf) for name, leaf in settled.items()},
            bad_steps=jnp.zeros(count, jnp.int32),
        )

    shapes = jax.eval_shape(make, trainable, settled)
    return jax.jit(make, out_shardings=shardings_of(built, shapes))(trainable, settled)


def shardings_of(built: Build, states: Any) -> Any:
    """Where each array of some members' states lies: as in a run, the members side by side."""
    whole = replicated(built.mesh)

    def place(path: Any, leaf: Any) -> NamedSharding:
        name = str(getattr(path[-1], "key", ""))
        if name in built.shardings and leaf.shape[1:] == built.model.params[name].shape:
            return NamedSharding(built.mesh, PartitionSpec(None, *built.shardings[name].spec))
        return whole

    return jax.tree_util.tree_map_with_path(place, states)


def drift(built: Build, states: TrainState, start: Start) -> dict[int, list[float | None]]:
    """How far each depth is from where it started: depth -> `||w - w0|| / ||w0||` of each member.

    Args:
        built: the run; depths in which nothing ever trained are 0.
        states: the members'.
        start: what they started from.

    Returns:
        By depth; None where it is not finite.
    """
    count = len(states.step)
    moved = {depth: np.zeros(count) for depth in sorted(set(built.model.depths.values()))}
    whole = {depth: np.zeros(count) for depth in moved}
    now = {**states.settled, **states.trainable}
    for name, depth in built.model.depths.items():
        begun = start.own.get(name, start.params[name]).astype(jnp.float32)
        apart = name in start.own
        axes = tuple(range(1, begun.ndim)) if apart else None
        whole[depth] += np.asarray(jnp.sum(begun**2, axis=axes))
        if name in now:
            apart_by = (now[name] - begun) ** 2
            moved[depth] += np.asarray(jnp.sum(apart_by, axis=tuple(range(1, apart_by.ndim))))
    far = {depth: np.sqrt(moved[depth] / np.maximum(whole[depth], 1e-30)) for depth in moved}
    return {
        depth: [float(value) if np.isfinite(value) else None for value in values]
        for depth, values in far.items()
    }
