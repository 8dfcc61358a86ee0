"""The train step and the evaluation step: pure, jitted, sharded, donated, accumulating.

Only the trainable dict is differentiated: the optimizer, clipping, accumulation and the average
never see a frozen leaf, so XLA has no frozen gradient to compute, whatever else reads the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.stages import Wrapped

from jaxft.device.compiler_options import compiler_options
from jaxft.device.mesh import batch_sharding, replicated
from jaxft.engine.state import TrainState
from jaxft.layerwise.rules import scored
from jaxft.tree import natural_order

Params = dict[str, jax.Array]
Batch = Mapping[str, jax.Array]
# (params, batch, dropout key) -> {name: (sum, weight)}, the loss under "loss".
Objective = Callable[[Params, Batch, jax.Array | None], dict[str, tuple[jax.Array, jax.Array]]]


@dataclass(frozen=True)
class Rates:
    """What the optimizer is told at each step; none of it is compiled in.

    Attributes:
        rates: `[groups]` learning rates at this step.
        multipliers: `[leaves]`, in the order of `LayerTable.trainable`.
        weight_decay: `[groups]`.
        origin: name -> where a parameter began; those that nothing pulls back are not in it.
        pull: the decay towards `origin`; None where nothing is in it.
    """

    rates: Any
    multipliers: Any
    weight_decay: Any
    origin: Any = field(default_factory=dict)
    pull: Any = None

    def arguments(self) -> dict[str, Any]:
        """Name them as the optimizer's `update` takes them."""
        return {
            "rates": self.rates,
            "multipliers": self.multipliers,
            "weight_decay": self.weight_decay,
            "anchor": self.origin,
            "anchor_decay": self.pull,
        }


jax.tree_util.register_dataclass(
    Rates,
    data_fields=["rates", "multipliers", "weight_decay", "origin", "pull"],
    meta_fields=[],
)


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformationExtraArgs,
    *,
    accumulate: int,
    ema: float | None,
    state_shardings: TrainState,
    frozen_shardings: dict[str, jax.sharding.NamedSharding],
    mesh: jax.sharding.Mesh,
    pulled: Mapping[str, jax.sharding.NamedSharding] | None = None,
    grad_norms: bool = False,
    donate: bool = True,
) -> Wrapped:
    """The jitted step `(state, frozen, batch, rates) -> (state, metrics)`.

    Args:
        objective: the model's loss and metrics as sums and weights.
        optimizer: the LayerTable's optimizer.
        accumulate: micro-batches a step; gradients are summed and divided by the weight once.
        ema: decay of the running average of the trainable parameters, or None; a state's average
            is then that which a schedule-free rule keeps, if any.
        state_shardings, frozen_shardings: where state and frozen parameters lie.
        mesh: the mesh.
        pulled: where `Rates.origin` lies; None where it is empty.
        grad_norms: give the gradient's norm leaf by leaf too.
        donate: give the state's memory to the next one.

    Returns:
        The step. `metrics` holds device scalars: each of the objective's
        means, `weight`, `grad_norm`, and `bad_steps`, the not-finite steps in a row: such a step
        keeps the old parameters and moments. With `grad_norms`, an array of that name: `[leaves]`,
        in natural order of the trainable names.
    """
    rows = batch_sharding(mesh)
    step = step_function(
        objective, optimizer, accumulate=accumulate, ema=ema, rows=rows, grad_norms=grad_norms
    )
    whole = replicated(mesh)
    told = Rates(whole, whole, whole, dict(pulled or {}), whole if pulled else None)
    return jax.jit(
        step,
        donate_argnums=0 if donate else (),
        in_shardings=(state_shardings, frozen_shardings, rows, told),
        out_shardings=(state_shardings, replicated(mesh)),
        compiler_options=compiler_options(mesh.devices.flat[0].platform, mesh.size),
    )


def step_function(
    objective: Objective,
    optimizer: optax.GradientTransformationExtraArgs,
    *,
    accumulate: int,
    ema: float | None,
    rows: jax.sharding.NamedSharding,
    grad_norms: bool = False,
) -> Callable:
    """The step `(state, frozen, batch, rates) -> (state, metrics)` itself, to be traced.

    Args:
        objective, optimizer, accumulate, ema, grad_norms: see `make_train_step`.
        rows: how a batch's rows lie on the mesh.
    """

    def step(
        state: TrainState, frozen: Params, batch: Batch, rates: Rates
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(state.key, state.step)
        fixed = {**frozen, **state.settled}
        gradients, sums = _mean_gradients(objective, accumulate, state, fixed, batch, key, rows)
        loss_sum, weight = sums["loss"]
        grad_norm = optax.tree.norm(gradients)
        finite = jnp.isfinite(loss_sum) & jnp.isfinite(grad_norm)
        updates, opt_state = optimizer.update(
            gradients, state.opt_state, state.trainable, finite=finite, **rates.arguments()
        )
        trainable = optax.apply_updates(state.trainable, updates)
        average = state.average
        if ema is not None:
            average = jax.tree.map(
                lambda a, p: jnp.where(finite, ema * a + (1 - ema) * p, a), average, trainable
            )
        elif average is not None:
            average = scored(opt_state, trainable)
        bad_steps = jnp.where(finite, 0, state.bad_steps + 1)
        metrics = {name: total / share for name, (total, share) in sums.items()}
        metrics |= {"weight": weight, "grad_norm": grad_norm, "bad_steps": bad_steps}
        if grad_norms:
            each = [optax.tree.norm(gradients[name]) for name in natural_order(gradients)]
            metrics["grad_norms"] = jnp.stack(each)
        new_state = TrainState(
            step=state.step + 1,
            trainable=trainable,
            opt_state=opt_state,
            key=state.key,
            average=average,
            settled=state.settled,
            bad_steps=bad_steps,
        )
        return new_state, metrics

    return step


def _mean_gradients(
    objective: Objective,
    accumulate: int,
    state: TrainState,
    frozen: Params,
    batch: Batch,
    key: jax.Array,
    rows: jax.sharding.NamedSharding,
) -> tuple[Params, dict[str, Any]]:
    """Gradients of the batch's mean loss, and the objective's sums and weights over the batch."""

    def loss_sum(trainable: Params, part: Batch, part_key: jax.Array) -> tuple[jax.Array, Any]:
        sums = objective({**frozen, **trainable}, part, part_key)
        return sums["loss"][0], sums

    def loss_mean(trainable: Params, part: Batch, part_key: jax.Array) -> tuple[jax.Array, Any]:
        total, sums = loss_sum(trainable, part, part_key)
        return total / jax.lax.stop_gradient(sums["loss"][1]), sums

    if accumulate == 1:
        # The scale goes in at the loss, a scalar: at the gradients it is a pass over all of them.
        return jax.grad(loss_mean, has_aux=True)(state.trainable, batch, key)
    gradient = jax.grad(loss_sum, has_aux=True)

    def micro(array: jax.Array) -> jax.Array:
        # Row i * accumulate + k goes to micro-batch k: every device keeps its own rows.
        split = array.reshape(array.shape[0] // accumulate, accumulate, *array.shape[1:])
        spec = jax.sharding.PartitionSpec(None, *rows.spec)
        moved = jnp.moveaxis(split, 1, 0)
        return jax.lax.with_sharding_constraint(moved, jax.sharding.NamedSharding(rows.mesh, spec))

    parts = {name: micro(array) for name, array in batch.items()}
    keys = jax.random.split(key, accumulate)
    first = jax.tree.map(lambda array: array[0], parts)
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
        jax.eval_shape(gradient, state.trainable, first, keys[0]),
    )

    def body(total: Any, part_and_key: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, gradient(state.trainable, *part_and_key)), None

    (gradients, sums), _ = jax.lax.scan(body, zeros, (parts, keys))
    share = 1 / sums["loss"][1]
    return jax.tree.map(lambda g: g * share, gradients), sums


def make_eval_step(
    evaluate: Callable[[Params, Batch], tuple[dict, dict]],
    *,
    param_shardings: dict[str, jax.sharding.NamedSharding],
    mesh: jax.sharding.Mesh,
) -> Callable:
    """The jitted evaluation `(params, batch) -> (sums, outcomes)`.

    Args:
        evaluate: `(params, batch)` to the objective's sums and to each example's outcomes.
        param_shardings: where the parameters lie.
        mesh: the mesh.

    Returns:
        The step. Its outputs lie whole on every device, so any process reads all of them.
    """
    return jax.jit(
        evaluate,
        in_shardings=(param_shardings, batch_sharding(mesh)),
        out_shardings=replicated(mesh),
    )
