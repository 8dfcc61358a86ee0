"""What each layer does in a step: one small array on the device, reduced by depth on the host.

Nothing here waits for the device: the array comes back with the step's other metrics. A step that
is not looked at pays nothing, since the sums are taken under a `cond`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxft.layerwise.table import LeafRow
from jaxft.models.registry import Model
from jaxft.models.transformer import Tower
from jaxft.tree import natural_order

# Of a leaf: sums of squares of gradient, weight and update; the sum of Adam's signal over noise
# (not a number where the leaf has no such moments); gradient elements that are not finite.
COLUMNS = ("gradient", "weight", "update", "signal", "not_finite")

Arrays = Mapping[str, jax.Array]


def look_at_layers(
    due: jax.Array,
    update: Callable[[Any, Any, Any], tuple[Any, Any]],
    gradients: Arrays,
    opt_state: Any,
    params: Arrays,
    *,
    betas: tuple[float, float],
) -> tuple[jax.Array, Arrays]:
    """The sums of a step's layers where they are due, and zeros where not.

    The update is computed again inside the branch that looks: else it, or the parameters before
    it, would have to be kept in every step. Parameters and moments are written in place, so the
    gradients come back from here only once the branch is through: the update reads those.

    Args:
        due: a bool.
        update: the optimizer's, with this step's rates: `(gradients, state, params)`.
        gradients, params: the trainable leaves' gradients, not clipped, and values.
        opt_state: the optimizer's state.
        betas: Adam's decays.

    Returns:
        `[leaves, columns]` float32, leaves in natural order of names; and the gradients.
    """

    def look(gradients, opt_state, params):
        updates, after = update(gradients, opt_state, params)
        return measure(gradients, params, updates, after, betas)

    def pass_by(gradients, opt_state, params):
        del gradients, opt_state
        return jnp.zeros((len(params), len(COLUMNS)), jnp.float32)

    found = lax.cond(due, look, pass_by, gradients, opt_state, params)
    return lax.optimization_barrier((found, gradients))


def measure(
    gradients: Arrays, params: Arrays, updates: Arrays, opt_state: Any, betas: tuple[float, float]
) -> jax.Array:
    """The `COLUMNS` of every leaf: `[leaves, columns]` float32, in natural order of names.

    Args:
        gradients, params, updates: name -> array.
        opt_state: after the update.
        betas: Adam's decays.
    """
    signals = _signals(opt_state, *betas)

    def row(name: str) -> jax.Array:
        squares = [_square_sum(of[name]) for of in (gradients, params, updates)]
        bad = jnp.sum(~jnp.isfinite(gradients[name]), dtype=jnp.float32)
        return jnp.stack([*squares, signals.get(name, jnp.float32(jnp.nan)), bad])

    return jnp.stack([row(name) for name in natural_order(params)])


def _square_sum(values: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(values.astype(jnp.float32)))


def _signals(opt_state: Any, b1: float, b2: float) -> dict[str, jax.Array]:
    """name -> the sum over its elements of |m| / sqrt(v), each without its bias to zero."""

    def is_adam(node: Any) -> bool:
        return isinstance(node, optax.ScaleByAdamState)

    found = {}
    for state in filter(is_adam, jax.tree.leaves(opt_state, is_leaf=is_adam)):
        unbias = jnp.sqrt(1 - b2**state.count) / (1 - b1**state.count)
        for name, mean in state.mu.items():
            if isinstance(mean, jax.Array):  # leaves of other groups come as `MaskedNode`
                root = jnp.sqrt(state.nu[name])
                ratio = jnp.where(root > 0, jnp.abs(mean) / root, 0.0)
                found[name] = unbias * jnp.sum(ratio)
    return found


def layers_of(model: Model) -> dict[str, str]:
    """Each parameter's layer: its depth (`3`), behind its tower where there are several.

    What is of no tower is `joint`.
    """
    found = {}
    for part in model.towers.values():
        if isinstance(part, Tower):
            found |= {name: f"{part.prefix}{depth}" for name, depth in part.depths.items()}
        else:
            found |= dict.fromkeys(part.leaves, "joint")
    return found


def layer_values(
    sums: np.ndarray, leaves: Sequence[LeafRow], layers: Sequence[str], rates: np.ndarray
) -> dict[str, dict[str, float | None]]:
    """What a step did by layer: metric -> layer -> value, None where there is none.

    `update_ratio` and `relative_gradient` are norms over the norm of the weights; `signal` is
    Adam's |m| / sqrt(v), the mean of the layer's elements; `rate` that of its fastest leaf.

    Args:
        sums: `[leaves, columns]`, as `measure` gives them.
        leaves: the trainable leaves, in the same order.
        layers: each leaf's layer.
        rates: `[leaves]` rate x multiplier.
    """
    names = natural_order(set(layers))
    place = np.array([names.index(layer) for layer in layers])
    wide = np.asarray(sums, np.float64)

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(place, values, len(names))

    column = dict(zip(COLUMNS, wide.T, strict=True))
    gradient, weight, update = (
        np.sqrt(total(column[name])) for name in ("gradient", "weight", "update")
    )
    elements = np.array([leaf.parameters for leaf in leaves], np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = {
            "grad_norm": gradient,
            "weight_norm": weight,
            "update_norm": update,
            "update_ratio": update / weight,
            "relative_gradient": gradient / weight,
            "signal": total(column["signal"]) / total(elements),
            "rate": np.array([rates[place == index].max() for index in range(len(names))]),
            "not_finite": total(column["not_finite"]),
        }
    return {
        metric: {
            name: float(value) if np.isfinite(value) else None
            for name, value in zip(names, values, strict=True)
        }
        for metric, values in found.items()
    }
