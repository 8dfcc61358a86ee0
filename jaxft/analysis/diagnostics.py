"""Layer diagnostics of a step: small programs beside the step's, reduced by depth on the host.

The step itself gives the gradient norm of each leaf, which it has at hand for the whole norm.
All else is read off the state that the step leaves behind, in those steps that are looked at: the
moments say what the update was, and the update what the parameters were. So a step that is looked
at is the same program, to the bit, as one that is not, and keeps no second copy of anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from jaxft.device.host_memory import fetched
from jaxft.device.mesh import in_turn
from jaxft.engine.state import TrainState
from jaxft.engine.step import StepInputs
from jaxft.layerwise.moments import NarrowState, from_int8
from jaxft.layerwise.optimizer import rule_of
from jaxft.layerwise.table import LayerTable, LeafRow
from jaxft.models.load import Model
from jaxft.models.tower.tower import Tower
from jaxft.tree import natural_order

# Of a leaf: sums of squares of the weight before the step and of the update, and the sum of Adam's
# signal over noise. Not a number where the optimizer keeps nothing to tell it from.
COLUMNS = ("weight", "update", "signal")


def look(
    state: TrainState,
    inputs: StepInputs,
    table: LayerTable,
    adam: tuple[float, float, float],
    mesh: Mesh,
) -> jax.Array:
    """Read what a step did off the state after it: `[leaves, columns]` float32 on the device.

    Nothing waits for it, where programs overlap. Leaves of a shape share a program, so that little
    is compiled.

    Args:
        state: as the step left it.
        inputs: the step's.
        table: whose trainable leaves, in their order.
        adam: b1, b2 and eps of AdamW.
        mesh: on which the state lies.
    """
    moments, traces = _moments(in_turn(mesh, state).opt_state)
    groups = {group.name: index for index, group in enumerate(table.training_groups)}
    rows = []
    for index, leaf in enumerate(leaf for leaf in table.leaves if leaf.trainable):
        group = groups[leaf.group]
        rate = np.float32(inputs.rates[group]) * np.float32(inputs.multipliers[index])
        settings = (rate, np.float32(inputs.weight_decay[group] if leaf.decays else 0.0))
        param = state.trainable[leaf.name]
        rule = rule_of(leaf, table.training_groups[group].algorithm)
        if leaf.name in inputs.anchor:  # nor of where it began
            row = _trace_row(param, None, *settings)
        elif rule == "adamw":
            row = _adam_row(param, *moments[leaf.name], *settings, adam)
        else:  # of the other rules' steps the state does not tell enough
            row = _trace_row(param, traces.get(leaf.name) if rule == "sgd" else None, *settings)
        rows.append(in_turn(mesh, row))
    return _stacked(rows)


def _moments(opt_state: Any) -> tuple[dict[str, tuple], dict[str, tuple]]:
    """By name, what Adam keeps of a leaf (both moments, the count), and what momentum keeps.

    A first moment comes with its scales, None where it has none.
    """
    kinds = (NarrowState, optax.ScaleByAdamState, optax.TraceState)
    adam: dict[str, tuple] = {}
    traces: dict[str, tuple] = {}
    for part in jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, kinds)):
        scales = part.scales if isinstance(part, NarrowState) else {}
        scales = {name: fetched(scale) for name, scale in scales.items()}
        part = part.rule if isinstance(part, NarrowState) else part
        if isinstance(part, optax.ScaleByAdamState):
            for name, mu in _arrays(part.mu):
                adam[name] = (fetched(mu), scales.get(name), fetched(part.nu[name]), part.count)
        elif isinstance(part, optax.TraceState):
            traces |= {name: (fetched(m), scales.get(name)) for name, m in _arrays(part.trace)}
    return adam, traces


def _arrays(leaves: Any) -> list[tuple[str, jax.Array]]:
    """Those of this group: leaves of others come as `MaskedNode`."""
    return [(name, leaf) for name, leaf in leaves.items() if isinstance(leaf, jax.Array)]


def _wide(moment: jax.Array, scales: jax.Array | None) -> jax.Array:
    """Return a first moment in float32."""
    return moment.astype(jnp.float32) if scales is None else from_int8(moment, scales)


@partial(jax.jit, static_argnums=7)
def _adam_row(
    param: Any,
    mu: Any,
    scales: Any,
    nu: Any,
    count: Any,
    rate: Any,
    decay: Any,
    betas: tuple[float, ...],
) -> jax.Array:
    b1, b2, eps = betas
    mu, nu = _wide(mu, scales), nu.astype(jnp.float32)
    mean, square = mu / (1 - b1**count), nu / (1 - b2**count)
    root = jnp.sqrt(square)
    signal = jnp.sum(jnp.where(root > 0, jnp.abs(mean) / jnp.where(root > 0, root, 1), 0))
    return jnp.stack([*_moved(param, mean / (root + eps), rate, decay), signal])


@jax.jit
def _trace_row(param: Any, trace: Any, rate: Any, decay: Any) -> jax.Array:
    # Plain descent keeps nothing, and its gradient is gone.
    direction = jnp.full_like(param, jnp.nan) if trace is None else _wide(*trace)
    weight, update = _moved(param, direction, rate, decay)
    weight = jnp.where(jnp.isnan(weight), jnp.sum(jnp.square(param)), weight)
    return jnp.stack([weight, update, jnp.full_like(weight, jnp.nan)])


def _moved(param: Any, direction: Any, rate: Any, decay: Any) -> tuple[jax.Array, jax.Array]:
    """Squares of the weight before the update, and of the update: -rate (direction + decay p)."""
    before = (param + rate * direction) / (1 - rate * decay)
    update = rate * (direction + decay * before)
    return jnp.sum(jnp.square(before)), jnp.sum(jnp.square(update))


@jax.jit
def _stacked(rows: list[jax.Array]) -> jax.Array:
    return jnp.stack(rows)


def layers_of(model: Model) -> dict[str, str]:
    """Each parameter's layer: its depth (`3`), behind its tower where there are several.

    What is of no tower is `joint`.
    """
    by_name: dict[str, str] = {}
    for part in model.parts.values():
        if isinstance(part, Tower):
            by_name |= {name: f"{part.prefix}{depth}" for name, depth in part.depths.items()}
        else:
            by_name |= dict.fromkeys(part.leaves, "joint")
    return by_name


def layer_values(
    norms: np.ndarray,
    sums: np.ndarray,
    leaves: Sequence[LeafRow],
    layers: Sequence[str],
    rates: np.ndarray,
) -> dict[str, dict[str, float | None]]:
    """Reduce the values of a step by layer: metric -> layer -> value, None where there is none.

    `update_ratio` and `relative_gradient` are norms over the norm of the weights; `signal` is
    Adam's |m| / sqrt(v), the mean of the layer's elements; `rate` is that of the fastest leaf;
    `not_finite` counts the parameters whose gradient is not finite.

    Args:
        norms: `[leaves]` gradient norms, not clipped.
        sums: `[leaves, columns]`, as `look` gives them.
        leaves: the trainable leaves, in the same order.
        layers: each leaf's layer.
        rates: `[leaves]` rate x multiplier.
    """
    names = natural_order(set(layers))
    layer_index = np.array([names.index(layer) for layer in layers])

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(layer_index, values, len(names))

    column = dict(zip(COLUMNS, np.asarray(sums, np.float64).T, strict=True))
    gradient = np.sqrt(total(np.square(np.asarray(norms, np.float64))))
    weight, update = (np.sqrt(total(column[name])) for name in ("weight", "update"))
    elements = np.array([leaf.parameters for leaf in leaves], np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        by_name = {
            "grad_norm": gradient,
            "weight_norm": weight,
            "update_norm": update,
            "update_ratio": update / weight,
            "relative_gradient": gradient / weight,
            "signal": total(column["signal"]) / total(elements),
            "rate": np.array([rates[layer_index == index].max() for index in range(len(names))]),
            "not_finite": total(~np.isfinite(norms)),
        }
    return {
        metric: {
            name: float(value) if np.isfinite(value) else None
            for name, value in zip(names, values, strict=True)
        }
        for metric, values in by_name.items()
    }


@jax.jit
def distances(now: jax.Array, start: jax.Array) -> jax.Array:
    """Squares of the way from `start`, and of `start` itself: [2] float32."""
    now, start = now.astype(jnp.float32), start.astype(jnp.float32)
    return jnp.stack([jnp.sum(jnp.square(now - start)), jnp.sum(jnp.square(start))])


def layer_drift(squares: np.ndarray, layers: Sequence[str]) -> dict[str, float | None]:
    """Measure each layer's distance from its start, as a share of the start's norm.

    Args:
        squares: `[leaves, 2]`, as `distances` gives them.
        layers: each leaf's layer.
    """
    by_name: dict[str, float | None] = {}
    for name in natural_order(set(layers)):
        own = np.array([layer == name for layer in layers])
        moved, start = np.asarray(squares, np.float64)[own].sum(0)
        by_name[name] = float(np.sqrt(moved / start)) if start > 0 and np.isfinite(moved) else None
    return by_name
