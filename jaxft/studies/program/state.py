"""State of all members of a study as one: every array has a leading axis of members, [K, ...].

Leaves that differ between members but do not train (a frozen new head of another seed, the leaves
of an earlier phase) are in `previously_trained`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxft.device.mesh import MEMBERS, replicated
from jaxft.engine.initial_state import carry_on, load_params
from jaxft.engine.setup import PhaseSetup, Setup
from jaxft.engine.state import TrainState
from jaxft.models.quantized import dense
from jaxft.studies.program.placement import member_groups

Params = dict[str, jax.Array]


@dataclass(frozen=True)
class Start:
    """Initial parameters of the members.

    Attributes:
        params: every parameter of the first member.
        own: those of them that differ by `run.seed.init`: `[K, ...]`.
    """

    params: Params
    own: Params


def load_start(setups: Sequence[Setup]) -> Start:
    """Read the checkpoint once, and the new leaves of each `run.seed.init`.

    Args:
        setups: one a member.
    """
    first = load_params(setups[0])
    by_seed = {setups[0].config.run.seed.init: first.params}
    for setup in setups:
        seed = setup.config.run.seed.init
        if seed not in by_seed:
            loaded = load_params(setup)
            by_seed[seed] = {name: loaded.params[name] for name in loaded.report.new}
    if len(by_seed) == 1:
        return Start(first.params, {})
    own = {
        name: jnp.stack([by_seed[setup.config.run.seed.init][name] for setup in setups])
        for name in first.report.new
    }
    return Start(first.params, own)


def initial_states(setups: Sequence[Setup], now: PhaseSetup, start: Start) -> TrainState:
    """Make the members' states before the first step.

    Args:
        setups: one a member.
        now: the first phase of any.
        start: from `load_start`.
    """
    names = set(now.table.trainable)
    trainable = {name: start.own.get(name, start.params[name]) for name in now.table.trainable}
    previously_trained = {name: leaf for name, leaf in start.own.items() if name not in names}
    return _fresh(setups, now, trainable, previously_trained, apart=frozenset(start.own))


def enter_phase(
    setups: Sequence[Setup], now: PhaseSetup, states: TrainState, frozen: Params
) -> TrainState:
    """Make the members' states as a phase begins, with unchanged values.

    Args:
        setups: one a member.
        now: the phase that begins, of any member.
        states: the states at the end of the previous phase.
        frozen: the frozen parameters of that phase, without an axis of members.
    """
    apart = {**states.previously_trained, **states.trainable}
    known = {**frozen, **apart}
    left = states.average if now.schedule_free and states.average else {}
    trainable = {name: known[name] for name in now.table.trainable}
    previously_trained = {n: left.get(n, leaf) for n, leaf in apart.items() if n not in trainable}
    return carry_on(
        states, _fresh(setups, now, trainable, previously_trained, apart=frozenset(apart))
    )


def _fresh(
    setups: Sequence[Setup],
    now: PhaseSetup,
    trainable: Params,
    previously_trained: Params,
    apart: frozenset[str],
) -> TrainState:
    """Make states of step 0; the leaves in `apart` have an axis of members already."""
    setup, count = setups[0], len(setups)
    seeds = np.array([one.config.run.seed.dropout for one in setups])

    def spread(name: str, leaf: jax.Array) -> jax.Array:
        whole = leaf if name in apart else jnp.broadcast_to(leaf, (count, *leaf.shape))
        return whole.astype(jnp.float32)

    def make(trainable: Params, previously_trained: Params) -> TrainState:
        trainable = {name: spread(name, leaf) for name, leaf in trainable.items()}
        return TrainState(
            step=jnp.zeros(count, jnp.int32),
            trainable=trainable,
            opt_state=jax.vmap(now.optimizer.init)(trainable),
            key=jnp.stack([jax.random.key(int(seed)) for seed in seeds]),
            average=jax.tree.map(jnp.copy, trainable) if now.averages else None,
            previously_trained={
                name: spread(name, leaf) for name, leaf in previously_trained.items()
            },
            bad_steps=jnp.zeros(count, jnp.int32),
        )

    shapes = jax.eval_shape(make, trainable, previously_trained)
    return jax.jit(make, out_shardings=shardings_of(setup, shapes))(trainable, previously_trained)


def select_members(setup: Setup, states: TrainState, indices: Sequence[int]) -> TrainState:
    """Select the states of some members, in this order.

    Args:
        setup: any member's run.
        states: of all of them, `[K, ...]`.
        indices: of those that are selected, in the states.
    """
    chosen = np.asarray(indices)

    def select(states: TrainState) -> TrainState:
        return jax.tree.map(lambda leaf: leaf[chosen], states)

    shardings = shardings_of(setup, jax.eval_shape(select, states))
    return jax.jit(select, out_shardings=shardings)(states)


def shardings_of(setup: Setup, states: Any) -> Any:
    """Return the shardings of members' states: as in a run, and divided over shares of devices.

    Members that do not divide over the shares are whole on each of them.
    """
    groups = member_groups(setup.mesh)

    def place(path: Any, leaf: Any) -> NamedSharding:
        name = str(getattr(path[-1], "key", ""))
        members = MEMBERS if groups > 1 and leaf.shape[0] % groups == 0 else None
        follows = name in setup.shardings and leaf.shape[1:] == setup.model.params[name].shape
        own = setup.shardings[name].spec if follows else ()
        return NamedSharding(setup.mesh, PartitionSpec(members, *own))

    return jax.tree_util.tree_map_with_path(place, states)


def drift(setup: Setup, states: TrainState, start: Start) -> dict[int, list[float | None]]:
    """Measure each depth's relative drift `||w - w0|| / ||w0||`: depth -> one value per member.

    Args:
        setup: the run; untrained depths are 0.
        states: of the members.
        start: their initial parameters.

    Returns:
        By depth; None where it is not finite.
    """
    now = {**states.previously_trained, **states.trainable}

    @partial(jax.jit, out_shardings=replicated(setup.mesh))
    def squares(now: Params, start: Params, own: Params) -> dict[str, tuple[jax.Array, ...]]:
        sums: dict[str, tuple[jax.Array, ...]] = {}
        for name in setup.model.depths:
            begun = dense(own.get(name, start[name])).astype(jnp.float32)
            whole = jnp.sum(begun**2, axis=tuple(range(1, begun.ndim)) if name in own else None)
            apart = now[name] - begun if name in now else jnp.zeros((1, 1))
            sums[name] = jnp.sum(apart**2, axis=tuple(range(1, apart.ndim))), whole
        return sums

    count = len(states.step)
    moved = {depth: np.zeros(count) for depth in sorted(set(setup.model.depths.values()))}
    whole = {depth: np.zeros(count) for depth in moved}
    for name, (apart, begun) in jax.device_get(squares(now, start.params, start.own)).items():
        moved[setup.model.depths[name]] += apart
        whole[setup.model.depths[name]] += begun
    far = {depth: np.sqrt(moved[depth] / np.maximum(whole[depth], 1e-30)) for depth in moved}
    return {
        depth: [float(value) if np.isfinite(value) else None for value in values]
        for depth, values in far.items()
    }
