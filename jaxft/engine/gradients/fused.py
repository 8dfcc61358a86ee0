"""Updates of blocks inside the backward pass: the gradients of a piece of blocks at a time.

Source: Lv et al. (2023), https://arxiv.org/abs/2306.09782 (LOMO), for any update rule that takes
each parameter by itself. A global norm is known only after a backward pass of its own, so clipping
costs a second forward and backward pass, as there: one program, of which the first round moves
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxft.config.optimizer import OptimizerSection
from jaxft.engine.gradients.micro_batches import Params, Sums
from jaxft.errors import UserError
from jaxft.layerwise.table import LayerTable
from jaxft.models.model import Model
from jaxft.models.tower.updating import Update, Updating

Gradient = Callable[[dict[str, Any]], tuple[dict[str, Any], Sums]]  # of the trainable leaves


@dataclass(frozen=True)
class Fused:
    """Optimizer whose updates of blocks belong to the backward pass.

    Args:
        optimizer: of all trainable leaves; it does not clip.
        blocks: the leaves of blocks, of which each is read by its block alone.
        clip: the largest norm of the whole gradient; None does not clip.
    """

    optimizer: optax.GradientTransformationExtraArgs
    blocks: frozenset[str]
    clip: float | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Advance:
    """Outcome of a step's arithmetic.

    Attributes:
        trainable: the new parameters.
        opt_state: the optimizer's new state.
        sums: of the objective.
        grad_norm: of the whole gradient.
        norms: name -> squared norm of the leaf's gradient.
        finite: whether loss and gradient are.
    """

    trainable: Params
    opt_state: Any
    sums: Sums
    grad_norm: jax.Array
    norms: Mapping[str, jax.Array]
    finite: jax.Array


def fused_optimizer(
    section: OptimizerSection,
    model: Model,
    table: LayerTable,
    optimizer: optax.GradientTransformationExtraArgs,
) -> Fused | None:
    """Return an optimizer as part of the backward pass, if the config asks for it.

    Args:
        section: of the config.
        model: the model.
        table: of the phase.
        optimizer: that of the table, which does not clip.
    """
    if not section.fused:
        return None
    blocks = {n for n in table.trainable if 0 < model.depths[n] < model.tops[n]}
    return Fused(optimizer, frozenset(blocks), section.clip)


def advance_fused(
    fused: Fused,
    gradient: Gradient,
    trainable: Params,
    opt_state: Any,
    arguments: Mapping[str, Any],
) -> Advance:
    """Make one step of parameters and moments.

    Without clipping, a gradient that is not finite leaves the parameters of its piece and of those
    below as they are, and those of the stem and the top; pieces above it have moved already.

    Args:
        fused: the optimizer.
        gradient: trainable leaves -> the gradients of the mean loss, and its sums.
        trainable, opt_state: the parameters and the optimizer's state.
        arguments: of the optimizer's `update`.

    Raises:
        UserError: a block is read more than once.
    """

    def one_pass(trainable: Params, opt_state: Any, limit: Limit) -> Advance:
        return _pass(fused, gradient, trainable, opt_state, arguments, limit)

    if fused.clip is None:
        return one_pass(trainable, opt_state, Limit(1.0, None))
    clip = fused.clip

    def again(number: jax.Array, before: Advance) -> Advance:
        norm = before.grad_norm
        limit = Limit(jnp.where(norm < clip, 1.0, clip / norm), (number == 1) & jnp.isfinite(norm))
        return one_pass(before.trainable, before.opt_state, limit)

    shapes = jax.eval_shape(one_pass, trainable, opt_state, Limit(jnp.ones(()), jnp.bool(0)))
    empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    start = replace(empty, trainable=trainable, opt_state=opt_state)
    # A loop: side by side XLA would overlap the two passes, and hold what both need.
    return lax.fori_loop(0, 2, again, start)


class Limit(NamedTuple):
    """Use of the gradients of a pass.

    Attributes:
        factor: multiplies all of them.
        finite: whether they move anything; None where each piece judges its own.
    """

    factor: Any
    finite: Any


def _pass(
    fused: Fused,
    gradient: Gradient,
    trainable: Params,
    opt_state: Any,
    arguments: Mapping[str, Any],
    limit: Limit,
) -> Advance:
    """Make one forward and backward pass, with updates."""
    names = frozenset(trainable)
    update = _update(fused, names, opt_state, limit, arguments)
    own = {
        name: Updating(value, arrays_of(opt_state, names, name), jnp.zeros(()), update)
        for name, value in trainable.items()
        if name in fused.blocks
    }
    slopes, sums = gradient({**trainable, **own})
    norms = {
        name: slope.norm if isinstance(slope, Updating) else optax.tree.norm(slope, squared=True)
        for name, slope in slopes.items()
    }
    grad_norm = jnp.sqrt(sum(norms.values()))
    finite = jnp.isfinite(sums["loss"][0]) & jnp.isfinite(grad_norm)
    moves = finite if limit.finite is None else finite & limit.finite
    ends = {name: slopes[name] * limit.factor for name in slopes if name not in own}
    rest = _restricted(opt_state, names, ends.keys())
    values = {name: trainable[name] for name in ends}
    moved, after = fused.optimizer.update(ends, rest, values, finite=moves, **arguments)
    updated = {name: slopes[name].value for name in own} | optax.apply_updates(values, moved)
    joined = _joined(opt_state, names, after, {name: slopes[name].state for name in own})
    in_order = {name: updated[name] for name in trainable}
    return Advance(in_order, joined, sums, grad_norm, norms, finite)


def _update(
    fused: Fused,
    names: frozenset[str],
    opt_state: Any,
    limit: Limit,
    arguments: Mapping[str, Any],
) -> Update:
    """Build the update of a piece of blocks."""
    visited: set[str] = set()

    def update(gradients: Params, updating: dict[str, Updating]) -> dict[str, Updating]:
        if visited & updating.keys():
            raise UserError(
                "optimizer.fused: the task runs the model twice in a step, and its blocks can be "
                "updated once.",
                "Leave optimizer.fused out.",
            )
        visited.update(updating)
        norms = {name: optax.tree.norm(leaf, squared=True) for name, leaf in gradients.items()}
        finite = jnp.isfinite(sum(norms.values())) if limit.finite is None else limit.finite
        own = _with_arrays(opt_state, names, {name: one.state for name, one in updating.items()})
        values = {name: one.value for name, one in updating.items()}
        scaled = {name: leaf * limit.factor for name, leaf in gradients.items()}
        moved, after = fused.optimizer.update(scaled, own, values, finite=finite, **arguments)
        values = optax.apply_updates(values, moved)
        return {
            name: Updating(values[name], arrays_of(after, names, name), norms[name], one.update)
            for name, one in updating.items()
        }

    return update


# ------------------------------------------------------------------ the state of some of the leaves
def _is_by_name(names: Collection[str]) -> Callable[[Any], bool]:
    """Build the test of a node of a state: whether it is a dict of leaves by their names."""
    return lambda node: isinstance(node, dict) and bool(node) and names >= node.keys()  # type: ignore[operator]


def arrays_of(state: Any, names: frozenset[str], name: str) -> tuple[jax.Array, ...]:
    """Return an optimizer's arrays of numbers for one leaf.

    Args:
        state: the optimizer's.
        names: of all leaves.
        name: the leaf.
    """
    nodes = jax.tree.leaves(state, is_leaf=_is_by_name(names))
    entries = [node[name] for node in nodes if isinstance(node, dict) and name in node]
    return tuple(array for array in jax.tree.leaves(entries) if _has_numbers(array))


def _has_numbers(array: jax.Array) -> bool:
    return jnp.issubdtype(array.dtype, jnp.inexact)


def _restricted(state: Any, names: frozenset[str], own: Collection[str]) -> Any:
    """Return a state with the leaves `own` alone."""
    by_name = _is_by_name(names)
    return jax.tree.map(
        lambda node: {n: v for n, v in node.items() if n in own} if by_name(node) else node,
        state,
        is_leaf=by_name,
    )


def _with_arrays(
    state: Any, names: frozenset[str], arrays: Mapping[str, tuple[jax.Array, ...]]
) -> Any:
    """Return the state of some leaves, with other arrays of numbers."""
    by_name = _is_by_name(names)
    taken = {name: iter(own) for name, own in arrays.items()}

    return jax.tree.map(
        lambda node: {n: _entry(v, taken[n]) for n, v in node.items()} if by_name(node) else node,
        _restricted(state, names, taken.keys()),
        is_leaf=by_name,
    )


def _joined(
    state: Any,
    names: frozenset[str],
    rest: Any,
    arrays: Mapping[str, tuple[jax.Array, ...]],
) -> Any:
    """Return a whole state, of the updated rest and the arrays of the leaves of blocks."""
    by_name = _is_by_name(names)
    taken = {name: iter(own) for name, own in arrays.items()}

    def join(node: Any, new: Any) -> Any:
        if not by_name(node):
            return new
        return {n: _entry(v, taken[n]) if n in taken else new[n] for n, v in node.items()}

    return jax.tree.map(join, state, rest, is_leaf=by_name)


def _entry(entry: Any, taken: Iterator[jax.Array]) -> Any:
    """Return an entry of a dict by names with the next arrays in place of its own."""
    return jax.tree.map(lambda array: next(taken) if _has_numbers(array) else array, entry)
