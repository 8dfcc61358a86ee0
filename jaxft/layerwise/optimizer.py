"""The one optax chain: clip once, `optax.multi_transform` over groups, multipliers inside them.

`update` takes the rates as extra arguments (`rates`, `multipliers`, `weight_decay`), so that none
of them is compiled into the step. Only trainable leaves ever come here.

The arithmetic is optax's; the order is for memory traffic, which is all that an optimizer costs on
CPU. Gradients are scaled by one number (never written out scaled), the guard against a step that
is not finite is part of the loop that writes a leaf, and moments are finished before anything reads
them: else XLA computes them again inside the parameters' loop and copies the old ones to do so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxft.layerwise.defaults import ADAMW, MUON, is_matrix
from jaxft.layerwise.rules import Leaves, Rule, Terms
from jaxft.layerwise.table import LayerTable, LeafRow


def make_optimizer(
    table: LayerTable, rules: Mapping[str, Rule], clip: float | None
) -> optax.GradientTransformationExtraArgs:
    """Make the optimizer of a LayerTable's trainable leaves.

    Args:
        table: says which group each leaf is in and which leaves decay.
        rules: a rule for each algorithm of `rules_of(table)`.
        clip: the largest norm of the whole gradient; None does not clip.

    Returns:
        A transformation whose `update(grads, state, params, rates=, multipliers=, weight_decay=,
        finite=True)` takes `rates` `[groups]`, `multipliers` `[leaves]` (in the order of
        `table.trainable`) and `weight_decay` `[groups]`; groups are `table.training_groups`.
        Where `finite` (a bool, or an array of one) is False, the updates are 0 and the state is
        as before. With `anchor` (name -> array) and `anchor_decay`, those leaves decay towards
        their anchor too (L2-SP, Li et al. 2018, https://arxiv.org/abs/1802.01483). Weight decay is
        decoupled and scaled by the leaf's rate, as in `torch.optim.AdamW`:
        p <- p (1 - rate x mult x decay).
    """
    trained = [leaf for leaf in table.leaves if leaf.trainable]
    algorithms = {group.name: group.algorithm for group in table.training_groups}
    label = {leaf.name: _label(leaf, algorithms[leaf.group]) for leaf in trained}
    decays = {leaf.name: leaf.decays for leaf in trained}
    position = {name: index for index, name in enumerate(table.trainable)}
    groups = {group.name: index for index, group in enumerate(table.training_groups)}
    kinds = {
        label[leaf.name]: (groups[leaf.group], rule_of(leaf, algorithms[leaf.group]))
        for leaf in trained
    }
    transforms = {
        shared: _descent(group, rules[rule], position, decays)
        for shared, (group, rule) in kinds.items()
    }
    # `multi_transform` asks for the labels of whatever tree it is given.
    grouped = optax.multi_transform(
        transforms, lambda params: {name: label[name] for name in params}
    )
    clip = optax.identity() if clip is None else _clip(clip)
    return optax.with_extra_args_support(optax.chain(clip, grouped))


def rules_of(table: LayerTable) -> frozenset[str]:
    """Collect the algorithms that move some leaf of a table."""
    algorithms = {group.name: group.algorithm for group in table.training_groups}
    return frozenset(
        rule_of(leaf, algorithms[leaf.group]) for leaf in table.leaves if leaf.trainable
    )


def carry_state(before: Any, fresh: Any) -> Any:
    """Carry an optimizer's state into the next phase: what still trains has its own, by name.

    Leaves that begin to train are a cohort of their own, with a count of their own: under the
    count of those before them, Adam would take their first moments for settled ones, and their
    first updates would be up to (1 - b1) / sqrt(1 - b2) times too large.

    Args:
        before: the state at the end of the phase before.
        fresh: the next phase's optimizer's state as `init` gives it.
    """
    old = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(before)}
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: old.get(jax.tree_util.keystr(path), leaf), fresh
    )


def _clip(limit: float) -> optax.GradientTransformation:
    """`optax.clip_by_global_norm` with one factor for all elements."""

    def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        norm = optax.tree.norm(gradients)
        factor = jnp.where(norm < limit, 1.0, limit / norm)
        return jax.tree.map(lambda gradient: gradient * factor, gradients), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def rule_of(leaf: LeafRow, algorithm: str) -> str:
    """Find the algorithm of a leaf of a group: Muon takes matrices only."""
    return ADAMW if algorithm == MUON and not is_matrix(leaf.name, leaf.shape) else algorithm


def _label(leaf: LeafRow, algorithm: str) -> str:
    """Label the leaves that share a state: a cohort's, under one rule."""
    rule = rule_of(leaf, algorithm)
    return leaf.cohort if rule == algorithm else f"{leaf.cohort}+{rule}"


def _descent(
    group: int, rule: Rule, position: Mapping[str, int], decays: Mapping[str, bool]
) -> optax.GradientTransformationExtraArgs:
    """Make one group's optimizer: its rule, weight decay, and -rate x multiplier."""

    def update(
        gradients: Leaves,
        state: Any,
        params: Leaves,
        *,
        rates: jax.Array,
        multipliers: jax.Array,
        weight_decay: jax.Array,
        **more: Any,
    ) -> tuple[Leaves, Any]:
        finite, anchor_decay = more.get("finite", True), more.get("anchor_decay")
        anchor = more.get("anchor", {})

        def decayed(directions: Leaves, params: Leaves) -> Leaves:
            result = {}
            for name, leaf in _own(directions).items():
                if decays.get(name):
                    leaf = leaf + weight_decay[group] * params[name]
                if name in anchor:
                    leaf = leaf + anchor_decay * (params[name] - anchor[name])
                result[name] = leaf
            return result | _others(directions)

        def rated(directions: Leaves) -> Leaves:
            return {
                name: -(rates[group] * multipliers[position[name]]) * leaf
                for name, leaf in _own(directions).items()
            } | _others(directions)

        def guarded(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda n, o: _finished(jnp.where(finite, n, o)), new, old)

        terms = Terms(rates[group], decayed, rated, guarded, decays)
        steps, state = rule.update(gradients, state, params, terms)
        return jax.tree.map(lambda step: jnp.where(finite, step, 0.0), steps), state

    return optax.GradientTransformationExtraArgs(rule.init, update)


def _own(leaves: Leaves) -> Leaves:
    """Select the leaves of this group."""
    return {n: leaf for n, leaf in leaves.items() if not isinstance(leaf, optax.MaskedNode)}


def _others(leaves: Leaves) -> Leaves:
    """Select the leaves of other groups, which are in its tree as nodes without an array."""
    return {n: leaf for n, leaf in leaves.items() if isinstance(leaf, optax.MaskedNode)}


def _finished(moment: jax.Array) -> jax.Array:
    """Write a moment before it is read, on CPU; elsewhere XLA writes all in one loop."""
    written: jax.Array = lax.platform_dependent(
        moment, cpu=lax.optimization_barrier, default=lambda x: x
    )
    return written
