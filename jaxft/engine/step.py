"""The train step and the evaluation step: pure, jitted, sharded, donated, accumulating.

Only the trainable dict is differentiated: the optimizer, clipping, accumulation and the average
never see a frozen leaf, so XLA has no frozen gradient to compute, whatever else reads the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
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
Sums = dict[str, tuple[jax.Array, jax.Array]]  # name -> (sum, weight), the loss under "loss"
Objective = Callable[[Params, Batch, jax.Array | None], Sums]  # of params, batch, dropout key


@dataclass(frozen=True)
class StepInputs:
    """The optimizer's inputs at one step: arguments of the compiled step, never constants in it.

    Attributes:
        rates: `[groups]` learning rates at this step.
        multipliers: `[leaves]`, in the order of `LayerTable.trainable`.
        weight_decay: `[groups]`.
        anchor: name -> initial value of each parameter under L2-SP; empty without L2-SP.
        anchor_decay: the decay towards `anchor`; None where that is empty.
    """

    rates: Any
    multipliers: Any
    weight_decay: Any
    anchor: Any = field(default_factory=dict)
    anchor_decay: Any = None

    def arguments(self) -> dict[str, Any]:
        """Return them as keyword arguments of the optimizer's `update`."""
        return {
            "rates": self.rates,
            "multipliers": self.multipliers,
            "weight_decay": self.weight_decay,
            "anchor": self.anchor,
            "anchor_decay": self.anchor_decay,
        }


jax.tree_util.register_dataclass(
    StepInputs,
    data_fields=["rates", "multipliers", "weight_decay", "anchor", "anchor_decay"],
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
    anchored: Mapping[str, jax.sharding.NamedSharding] | None = None,
    grad_norms: bool = False,
    donate: bool = True,
) -> Wrapped:
    """Jit the train step `(state, frozen, batch, inputs) -> (state, metrics)`.

    Args:
        objective: the model's loss and metrics as sums and weights.
        optimizer: the LayerTable's optimizer.
        accumulate: micro-batches a step; gradients are summed and divided by the weight once.
        ema: decay of the moving average of the trainable parameters; None without one. A state's
            average is then that of a schedule-free rule, if there is one.
        state_shardings, frozen_shardings: of the state and the frozen parameters.
        mesh: the mesh.
        anchored: shardings of `StepInputs.anchor`; None where it is empty.
        grad_norms: also return the gradient norm of each leaf.
        donate: reuse the state's memory for the next state.

    Returns:
        The step. `metrics` holds device scalars: each mean of the objective, `weight`,
        `grad_norm`, and `bad_steps`, the number of consecutive steps that were not finite: such a
        step leaves parameters and moments unchanged. With `grad_norms`, an array of that name:
        `[leaves]`, in natural order of the trainable names.
    """
    rows = batch_sharding(mesh)
    step = step_function(
        objective, optimizer, accumulate=accumulate, ema=ema, rows=rows, grad_norms=grad_norms
    )
    whole = replicated(mesh)
    inputs = StepInputs(whole, whole, whole, dict(anchored or {}), whole if anchored else None)
    return jax.jit(
        step,
        donate_argnums=0 if donate else (),
        in_shardings=(state_shardings, frozen_shardings, rows, inputs),
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
    """Build the train step `(state, frozen, batch, inputs) -> (state, metrics)`, not yet jitted.

    Args:
        objective, optimizer, accumulate, ema, grad_norms: see `make_train_step`.
        rows: the sharding of a batch's rows.
    """

    def summed_loss(
        trainable: Params, fixed: Params, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Sums]:
        sums = objective({**fixed, **trainable}, batch, key)
        return sums["loss"][0], sums

    def mean_loss(
        trainable: Params, fixed: Params, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Sums]:
        total, sums = summed_loss(trainable, fixed, batch, key)
        return total / jax.lax.stop_gradient(sums["loss"][1]), sums

    def step(
        state: TrainState, frozen: Params, batch: Batch, inputs: StepInputs
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(state.key, state.step)
        fixed = {**frozen, **state.previously_trained}
        if accumulate == 1:
            # Scaling the loss, a scalar, saves the pass over all gradients that scaling them takes.
            gradients, sums = jax.grad(mean_loss, has_aux=True)(state.trainable, fixed, batch, key)
        else:
            gradient = jax.grad(summed_loss, has_aux=True)
            gradients, sums = _accumulated(
                gradient, accumulate, rows, state.trainable, fixed, batch, key
            )
        loss_sum, weight = sums["loss"]
        grad_norm = optax.tree.norm(gradients)
        finite = jnp.isfinite(loss_sum) & jnp.isfinite(grad_norm)
        updates, opt_state = optimizer.update(
            gradients, state.opt_state, state.trainable, finite=finite, **inputs.arguments()
        )
        trainable = optax.apply_updates(state.trainable, updates)
        average = state.average
        if ema is not None:
            average = _moving_average(ema, finite, average, trainable)
        elif average is not None:
            average = scored(opt_state, trainable)
        bad_steps = jnp.where(finite, 0, state.bad_steps + 1)
        metrics = {name: total / share for name, (total, share) in sums.items()}
        metrics |= {"weight": weight, "grad_norm": grad_norm, "bad_steps": bad_steps}
        if grad_norms:
            each = [optax.tree.norm(gradients[name]) for name in natural_order(gradients)]
            metrics["grad_norms"] = jnp.stack(each)
        new_state = replace(
            state,
            step=state.step + 1,
            trainable=trainable,
            opt_state=opt_state,
            average=average,
            bad_steps=bad_steps,
        )
        return new_state, metrics

    return step


def _moving_average(ema: float, finite: jax.Array, average: Any, trainable: Params) -> Params:
    """Move the average towards the parameters; a step that is not finite leaves it unchanged."""
    return jax.tree.map(
        lambda a, p: jnp.where(finite, ema * a + (1 - ema) * p, a), average, trainable
    )


def _accumulated(
    gradient: Callable[..., tuple[Params, Sums]],
    accumulate: int,
    rows: jax.sharding.NamedSharding,
    trainable: Params,
    fixed: Params,
    batch: Batch,
    key: jax.Array,
) -> tuple[Params, Sums]:
    """Sum the gradients of micro-batches, and divide them by the weight of the whole batch.

    Args:
        gradient: `(trainable, fixed, batch, key)` to the gradients of the summed loss, and the
            objective's sums.
        accumulate: micro-batches.
        rows: the sharding of a batch's rows.
        trainable, fixed: the parameters.
        batch: the whole batch.
        key: of the step; each micro-batch gets its own.
    """

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
        jax.eval_shape(gradient, trainable, fixed, first, keys[0]),
    )

    def add(total: Any, part_and_key: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, gradient(trainable, fixed, *part_and_key)), None

    (gradients, sums), _ = jax.lax.scan(add, zeros, (parts, keys))
    share = 1 / sums["loss"][1]
    return jax.tree.map(lambda g: g * share, gradients), sums


def make_eval_step(
    evaluate: Callable[[Params, Batch], tuple[dict, dict]],
    *,
    param_shardings: dict[str, jax.sharding.NamedSharding],
    mesh: jax.sharding.Mesh,
) -> Callable:
    """Jit the evaluation step `(params, batch) -> (sums, outcomes)`.

    Args:
        evaluate: `(params, batch)` to the objective's sums and to each example's outcomes.
        param_shardings: name -> sharding.
        mesh: the mesh.

    Returns:
        The step. Its outputs are replicated, so that every process can read all of them.
    """
    return jax.jit(
        evaluate,
        in_shardings=(param_shardings, batch_sharding(mesh)),
        out_shardings=replicated(mesh),
    )
