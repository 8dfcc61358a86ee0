"""One program for all members of a study: the frozen trunk once, then each member's step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxft.device.compiler_options import compiler_options
from jaxft.device.mesh import MEMBERS, batch_sharding, replicated
from jaxft.engine.evaluate import EvalStep, evaluation_function
from jaxft.engine.setup import PhaseSetup, Setup, compared_of, objective_of
from jaxft.engine.state import TrainState
from jaxft.engine.step import StepInputs, step_function
from jaxft.models.model import Model
from jaxft.models.tower.tower import Compute, Tower
from jaxft.studies.program.placement import member_groups
from jaxft.studies.program.state import shardings_of

MOVED = ("step", "trainable", "opt_state", "average", "bad_steps")  # by a step, of a state


def takes_turns(compute: Compute) -> bool:
    """Return whether members run one after another: on CPU, where batched matmuls are slow."""
    return compute.platform == "cpu"


def make_study_step(
    setup: Setup, now: PhaseSetup, states: TrainState, frozen: dict[str, jax.Array]
) -> Callable:
    """Jit the step `(states, frozen, batch, inputs) -> (states, metrics)` of all members.

    Args:
        setup: any member's run.
        now: the phase of the step.
        states: the members' states, or their shapes: `[K, ...]`.
        frozen: the leaves that all members share, or their shapes.

    Returns:
        The step. The states are donated. `inputs` are `StepInputs` with a leading axis of members,
        and so are the metrics (see `make_train_step`). A member whose loss or gradient was not
        finite for `train.max_bad_steps` consecutive steps is not updated any more.
    """
    rows = batch_sharding(setup.mesh)
    train = setup.config.train
    own = step_function(
        objective_of(setup, now.compute),
        now.optimizer,
        accumulate=train.accumulate,
        grows=bool(setup.layout.growth),
        ema=train.ema,
        rows=rows,
        compared=compared_of(setup, now.compute),
        fused=now.fused,
    )
    shared = shares_trunk(setup.model, now.compute, frozenset(states.previously_trained))

    def step(
        states: TrainState, frozen: Any, batch: Any, inputs: StepInputs
    ) -> tuple[TrainState, Any]:
        batch = with_trunk(setup.model, now.compute, frozen, batch) if shared else batch

        def advance(state: TrainState, own_inputs: StepInputs) -> tuple[TrainState, Any]:
            metrics = jax.eval_shape(own, state, frozen, batch, own_inputs)[1]
            del metrics["bad_steps"]
            lost = {name: jnp.full(m.shape, jnp.nan, m.dtype) for name, m in metrics.items()}
            return jax.lax.cond(
                state.bad_steps < train.max_bad_steps,
                lambda: own(state, frozen, batch, own_inputs),
                lambda: (state, {**lost, "bad_steps": state.bad_steps}),
            )

        groups = groups_of(setup.mesh, len(states.step))
        if takes_turns(now.compute) and len(states.step) > groups:
            return _in_turn(advance, states, inputs, groups)
        return _together(advance, groups)(states, inputs)

    placed = shardings_of(setup, states)
    whole = replicated(setup.mesh)
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(
            placed,
            {name: setup.argument_shardings[name] for name in frozen},
            rows,
            whole,
        ),
        out_shardings=(placed, whole),
        compiler_options=compiler_options(setup.mesh.devices.flat[0].platform, setup.mesh.size),
    )


def groups_of(mesh: jax.sharding.Mesh, members: int) -> int:
    """Return over how many shares of the devices members divide; 1 where they do not."""
    groups = member_groups(mesh)
    return groups if members % groups == 0 else 1


def _together(function: Callable, groups: int) -> Callable:
    """Vectorize a function over members, which lie on `groups` shares of the devices."""
    return jax.vmap(function, spmd_axis_name=MEMBERS if groups > 1 else None)


def _in_turn(
    advance: Callable, states: TrainState, inputs: StepInputs, groups: int
) -> tuple[TrainState, Any]:
    """Advance the members of each share one after another, in place: no copy of all states."""
    axis = 1 if groups > 1 else 0  # of the turns
    each = _together(advance, groups) if groups > 1 else advance

    def one(states: TrainState, turn: tuple[jax.Array, StepInputs]) -> tuple[TrainState, Any]:
        index, own_inputs = turn
        state = jax.tree.map(
            lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, axis, keepdims=False), states
        )
        after, metrics = each(state, own_inputs)
        moved = {
            field: jax.tree.map(
                lambda leaf, new: jax.lax.dynamic_update_index_in_dim(leaf, new, index, axis),
                getattr(states, field),
                getattr(after, field),
            )
            for field in MOVED
        }
        return replace(states, **moved), metrics

    turns = len(states.step) // groups
    folded, unfold = _folded(groups)
    ended, metrics = jax.lax.scan(
        one, folded(states), (jnp.arange(turns), _turned(folded(inputs), groups))
    )
    return unfold(ended), unfold(_turned(metrics, groups))


def _folded(groups: int) -> tuple[Callable, Callable]:
    """Return the functions that divide an axis of members into shares and turns, and back."""
    if groups == 1:
        return lambda tree: tree, lambda tree: tree

    def fold(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.reshape(groups, -1, *leaf.shape[1:]), tree)

    def unfold(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tree)

    return fold, unfold


def _turned(tree: Any, groups: int) -> Any:
    """Swap the axes of shares and turns."""
    return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), tree) if groups > 1 else tree


def shares_trunk(model: Model, compute: Compute, previously_trained: frozenset[str]) -> bool:
    """Return whether all members have the same trunk, leaf by leaf."""
    for tower in model.towers.values():
        if not isinstance(tower, Tower):
            continue
        blocks = tower.frozen_blocks(compute)
        for name, depth in tower.depths.items():
            if blocks is not None and depth <= blocks and name in previously_trained:
                return False
    return True


def with_trunk(model: Model, compute: Compute, frozen: Any, batch: Any) -> dict[str, jax.Array]:
    """Add the trunk's output to a batch, from which the model then starts."""
    return {**batch, **model.trunk(frozen, batch, compute)}


def make_study_eval(
    setup: Setup, now: PhaseSetup, states: TrainState, frozen: dict[str, jax.Array]
) -> EvalStep:
    """Jit the evaluation `((trained, frozen), batch) -> (sums, outcomes)` of all members.

    Args:
        setup, now, states, frozen: see `make_study_step`; `trained` is `trained_params(states)`.
    """
    own = evaluation_function(setup, now.compute)
    shared = shares_trunk(setup.model, now.compute, frozenset(states.previously_trained))

    def evaluate(params: Any, batch: Any) -> Any:
        trained, frozen = params
        batch = with_trunk(setup.model, now.compute, frozen, batch) if shared else batch
        groups = groups_of(setup.mesh, len(states.step))

        def score(leaves: Any) -> Any:
            return own({**frozen, **leaves}, batch)

        if not takes_turns(now.compute) or len(states.step) == groups > 1:
            return _together(score, groups)(trained)
        if groups == 1:
            return jax.lax.map(score, trained)
        fold, unfold = _folded(groups)
        turned = jax.lax.map(_together(score, groups), _turned(fold(trained), groups))
        return unfold(_turned(turned, groups))

    placed = shardings_of(setup, trained_params(states))
    fixed = {name: setup.argument_shardings[name] for name in frozen}
    rows, whole = batch_sharding(setup.mesh), replicated(setup.mesh)
    return jax.jit(evaluate, in_shardings=((placed, fixed), rows), out_shardings=whole)


def trained_params(states: TrainState) -> dict[str, jax.Array]:
    """Return the leaves with an axis of members, trained ones as their average if there is one."""
    return {**states.previously_trained, **(states.average or states.trainable)}
