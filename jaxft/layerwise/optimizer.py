"""The one optax chain: clip once, `optax.multi_transform` over groups, multipliers inside them.

`update` takes the rates as extra arguments (`rates`, `multipliers`, `weight_decay`), so that none
of them is compiled into the step. Only trainable leaves ever come here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import optax

from jaxft.config_recipe import OptimizerSection
from jaxft.layerwise.table import LayerTable

_ALGORITHMS: Mapping[str, Callable[[OptimizerSection], optax.GradientTransformation]] = {
    "adamw": lambda section: optax.scale_by_adam(section.b1, section.b2, section.eps),
    "sgd": lambda section: optax.trace(section.momentum) if section.momentum else optax.identity(),
}


def make_optimizer(
    table: LayerTable, section: OptimizerSection
) -> optax.GradientTransformationExtraArgs:
    """The optimizer of a LayerTable's trainable leaves.

    Args:
        table: says which group each leaf is in and which leaves decay.
        section: the config's `optimizer`.

    Returns:
        A transformation whose `update(grads, state, params, rates=, multipliers=, weight_decay=)`
        takes `rates` `[groups]`, `multipliers` `[leaves]` (in the order of `table.trainable`) and
        `weight_decay` `[groups]`; groups are `table.training_groups`. Weight decay is decoupled
        and scaled by the leaf's rate, as in `torch.optim.AdamW`: p <- p (1 - rate x mult x decay).
    """
    label = {leaf.name: leaf.group for leaf in table.leaves if leaf.trainable}
    decays = {leaf.name: leaf.decays for leaf in table.leaves if leaf.trainable}
    position = {name: index for index, name in enumerate(table.trainable)}
    transforms = {
        group.name: optax.chain(
            _ALGORITHMS[group.algorithm](section),
            _descend(index, position, decays),
        )
        for index, group in enumerate(table.training_groups)
    }
    # `multi_transform` asks for the labels of whatever tree it is given.
    grouped = optax.multi_transform(
        transforms, lambda params: {name: label[name] for name in params}
    )
    if section.clip is None:
        return optax.with_extra_args_support(grouped)
    return optax.with_extra_args_support(
        optax.chain(optax.clip_by_global_norm(section.clip), grouped)
    )


def _descend(
    group: int, position: Mapping[str, int], decays: Mapping[str, bool]
) -> optax.GradientTransformationExtraArgs:
    """Turn a direction into an update: add weight decay, scale by -rate x multiplier."""

    def init(params):
        del params
        return optax.EmptyState()

    def update(directions, state, params, *, rates, multipliers, weight_decay, **unused):
        del unused

        def descend(name: str, direction: jax.Array) -> jax.Array:
            if decays[name]:
                direction = direction + weight_decay[group] * params[name]
            return -(rates[group] * multipliers[position[name]]) * direction

        # Leaves of other groups come as `MaskedNode`, which has no arrays.
        return {
            name: descend(name, leaf) if isinstance(leaf, jax.Array) else leaf
            for name, leaf in directions.items()
        }, state

    return optax.GradientTransformationExtraArgs(init, update)
