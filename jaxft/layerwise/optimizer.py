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

from jaxft.config.optimizer import MUON, OptimizerSection
from jaxft.layerwise.defaults import is_matrix
from jaxft.layerwise.rules import Leaves, Rule, Told, make_rule
from jaxft.layerwise.table import LayerTable, LeafRow

REST_OF_MUON = "adamw"


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
        kept. With `origin` (name -> array) and `pull`, those leaves decay towards where they began
        too (L2-SP, Li et al. 2018, https://arxiv.org/abs/1802.01483). Weight decay is decoupled and
        scaled by the leaf's rate, as in `torch.optim.AdamW`: p <- p (1 - rate x mult x decay).
    """
    trained = [leaf for leaf in table.leaves if leaf.trainable]
    rules = {group.name: group.algorithm for group in table.training_groups}
    label = {leaf.name: _label(leaf, rules[leaf.group]) for leaf in trained}
    decays = {leaf.name: leaf.decays for leaf in trained}
    position = {name: index for index, name in enumerate(table.trainable)}
    groups = {group.name: index for index, group in enumerate(table.training_groups)}
    kinds = {
        label[leaf.name]: (groups[leaf.group], rule_of(leaf, rules[leaf.group])) for leaf in trained
    }
    transforms = {
        shared: _descent(group, make_rule(section, rule), position, decays)
        for shared, (group, rule) in kinds.items()
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


def rule_of(leaf: LeafRow, algorithm: str) -> str:
    """What moves a leaf of a group: Muon takes matrices only."""
    return REST_OF_MUON if algorithm == MUON and not is_matrix(leaf.name, leaf.shape) else algorithm


def _label(leaf: LeafRow, algorithm: str) -> str:
    """The leaves that share a state: a cohort's, under one rule."""
    rule = rule_of(leaf, algorithm)
    return leaf.cohort if rule == algorithm else f"{leaf.cohort}+{rule}"


def _descent(
    group: int, rule: Rule, position: Mapping[str, int], decays: Mapping[str, bool]
) -> optax.GradientTransformationExtraArgs:
    """One group's optimizer: its rule, weight decay, and -rate x multiplier."""

    def update(gradients, state, params, *, rates, multipliers, weight_decay, **told_too):
        finite, pull = told_too.get("finite", True), told_too.get("pull")
        origin = told_too.get("origin", {})

        def decayed(directions: Leaves, params: Leaves) -> Leaves:
            found = {}
            for name, leaf in _own(directions).items():
                if decays.get(name):
                    leaf = leaf + weight_decay[group] * params[name]
                if name in origin:
                    leaf = leaf + pull * (params[name] - origin[name])
                found[name] = leaf
            return found | _others(directions)

        def rated(directions: Leaves) -> Leaves:
            return {
                name: -(rates[group] * multipliers[position[name]]) * leaf
                for name, leaf in _own(directions).items()
            } | _others(directions)

        def kept(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda n, o: _finished(jnp.where(finite, n, o)), new, old)

        told = Told(rates[group], decayed, rated, kept, decays)
        steps, state = rule.update(gradients, state, params, told)
        return jax.tree.map(lambda step: jnp.where(finite, step, 0.0), steps), state

    return optax.GradientTransformationExtraArgs(rule.init, update)


def _own(leaves: Leaves) -> Leaves:
    """Those of this group."""
    return {n: leaf for n, leaf in leaves.items() if not isinstance(leaf, optax.MaskedNode)}


def _others(leaves: Leaves) -> Leaves:
    """Those of other groups, which are in its tree as nodes without an array."""
    return {n: leaf for n, leaf in leaves.items() if isinstance(leaf, optax.MaskedNode)}


def _finished(moment: jax.Array) -> jax.Array:
    """The moment, written before it is read; elsewhere than on CPU, XLA writes all in one loop."""
    return lax.platform_dependent(moment, cpu=lax.optimization_barrier, default=lambda x: x)
