"""The one optax chain: clip once, `optax.multi_transform` over groups, multipliers inside them.

`update` takes the rates as extra arguments (`rates`, `multipliers`, `weight_decay`), so that none
of them is compiled into the step. Only trainable leaves ever come here.

The arithmetic is optax's; the order is for memory traffic, which is all that an optimizer costs on
CPU. Gradients are scaled by one number (never written out scaled), the guard against a step that
is not finite is part of the loop that writes a leaf, and moments are finished before anything reads
them: else XLA computes them again inside the parameters' loop and copies the old ones to do so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxft.config_recipe import OptimizerSection
from jaxft.layerwise.table import LayerTable


@dataclass(frozen=True)
class _Algorithm:
    """An optimizer without its rate.

    Attributes:
        init: parameters -> state.
        advance: gradients, state -> the next state.
        direction: gradients, the next state -> what to descend along.
    """

    init: Callable[[Any], Any]
    advance: Callable[[Any, Any], Any]
    direction: Callable[[Any, Any], Any]


def _adam(section: OptimizerSection) -> _Algorithm:
    """Adam, as `optax.scale_by_adam` has it."""
    b1, b2, eps = section.b1, section.b2, section.eps

    def advance(gradients, state):
        return optax.ScaleByAdamState(
            count=optax.safe_increment(state.count),
            mu=optax.tree.update_moment(gradients, state.mu, b1, 1),
            nu=optax.tree.update_moment_per_elem_norm(gradients, state.nu, b2, 2),
        )

    def direction(gradients, state):
        del gradients
        # A scalar's reciprocal, since a division of every element costs a pass of its own.
        mean, square = 1 / (1 - b1**state.count), 1 / (1 - b2**state.count)
        return jax.tree.map(
            lambda mu, nu: (mu * mean) / (jnp.sqrt(nu * square) + eps), state.mu, state.nu
        )

    return _Algorithm(optax.scale_by_adam(b1, b2, eps).init, advance, direction)


def _sgd(section: OptimizerSection) -> _Algorithm:
    """Gradient descent, with momentum as `optax.trace` has it."""
    if not section.momentum:
        return _Algorithm(
            lambda params: optax.EmptyState(),
            lambda gradients, state: state,
            lambda gradients, state: gradients,
        )
    trace = optax.trace(section.momentum)
    return _Algorithm(
        trace.init,
        lambda gradients, state: trace.update(gradients, state)[1],
        lambda gradients, state: state.trace,
    )


_ALGORITHMS: Mapping[str, Callable[[OptimizerSection], _Algorithm]] = {"adamw": _adam, "sgd": _sgd}


def make_optimizer(
    table: LayerTable, section: OptimizerSection
) -> optax.GradientTransformationExtraArgs:
    """The optimizer of a LayerTable's trainable leaves.

    Args:
        table: says which group each leaf is in and which leaves decay.
        section: the config's `optimizer`.

    Returns:
        A transformation whose `update(grads, state, params, rates=, multipliers=, weight_decay=,
        finite=True)` takes `rates` `[groups]`, `multipliers` `[leaves]` (in the order of
        `table.trainable`) and `weight_decay` `[groups]`; groups are `table.training_groups`.
        Where `finite` (a bool, or an array of one) is False, the updates are 0 and the state is
        kept. Weight decay is decoupled and scaled by the leaf's rate, as in `torch.optim.AdamW`:
        p <- p (1 - rate x mult x decay).
    """
    trained = [leaf for leaf in table.leaves if leaf.trainable]
    label = {leaf.name: leaf.cohort for leaf in trained}
    decays = {leaf.name: leaf.decays for leaf in trained}
    position = {name: index for index, name in enumerate(table.trainable)}
    transforms = {
        cohort: _descent(index, _ALGORITHMS[group.algorithm](section), position, decays)
        for index, group in enumerate(table.training_groups)
        for cohort in {leaf.cohort: None for leaf in trained if leaf.group == group.name}
    }
    # `multi_transform` asks for the labels of whatever tree it is given.
    grouped = optax.multi_transform(
        transforms, lambda params: {name: label[name] for name in params}
    )
    clip = optax.identity() if section.clip is None else _clip(section.clip)
    return optax.with_extra_args_support(optax.chain(clip, grouped))


def carry_state(before: Any, fresh: Any) -> Any:
    """An optimizer's state in the next phase: what still trains keeps its own, by name.

    Leaves that begin to train are a cohort of their own, with a count of their own: under the
    count of those before them, Adam would take their first moments for settled ones, and their
    first updates would be up to (1 - b1) / sqrt(1 - b2) times too large.

    Args:
        before: the state at the end of the phase before.
        fresh: the next phase's optimizer's state as `init` gives it.
    """
    kept = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(before)}
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: kept.get(jax.tree_util.keystr(path), leaf), fresh
    )


def _clip(most: float) -> optax.GradientTransformation:
    """`optax.clip_by_global_norm` with one factor for all elements."""

    def update(gradients, state, params=None):
        del params
        norm = optax.tree.norm(gradients)
        factor = jnp.where(norm < most, 1.0, most / norm)
        return jax.tree.map(lambda gradient: gradient * factor, gradients), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def _descent(
    group: int, algorithm: _Algorithm, position: Mapping[str, int], decays: Mapping[str, bool]
) -> optax.GradientTransformationExtraArgs:
    """One group's optimizer: its algorithm, weight decay, and -rate x multiplier."""

    def update(gradients, state, params, *, rates, multipliers, weight_decay, finite=True, **rest):
        del rest
        state = jax.tree.map(
            lambda new, old: _finished(jnp.where(finite, new, old)),
            algorithm.advance(gradients, state),
            state,
        )

        def descend(name: str, direction: jax.Array) -> jax.Array:
            if decays[name]:
                direction = direction + weight_decay[group] * params[name]
            rate = rates[group] * multipliers[position[name]]
            return jnp.where(finite, -rate * direction, 0.0)

        # Leaves of other groups come as `MaskedNode`, which has no arrays.
        return {
            name: descend(name, leaf) if isinstance(leaf, jax.Array) else leaf
            for name, leaf in algorithm.direction(gradients, state).items()
        }, state

    return optax.GradientTransformationExtraArgs(algorithm.init, update)


def _finished(moment: jax.Array) -> jax.Array:
    """The moment, written before it is read; elsewhere than on CPU, XLA writes all in one loop."""
    return lax.platform_dependent(moment, cpu=lax.optimization_barrier, default=lambda x: x)
