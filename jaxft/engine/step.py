"""The train step and the evaluation step: pure, jitted, sharded, donated, accumulating.

Only the trainable dict is differentiated: the optimizer, clipping, accumulation and the average
never see a frozen leaf, so XLA has no frozen gradient to compute, whatever else reads the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.stages import Wrapped

from jaxft.device.compiler_options import compiler_options
from jaxft.device.host_memory import offloaded, on_device
from jaxft.device.mesh import batch_sharding, replicated
from jaxft.engine.gradients.compared import Compared, compared_gradients
from jaxft.engine.gradients.fused import Advance, Fused, Gradient, advance_fused
from jaxft.engine.gradients.micro_batches import Batch, MicroBatches, Params, Sums, accumulated
from jaxft.engine.state import TrainState
from jaxft.layerwise.rules import scored
from jaxft.tree import natural_order

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
    frozen_shardings: Mapping[str, jax.sharding.NamedSharding | None],
    mesh: jax.sharding.Mesh,
    anchored: Mapping[str, jax.sharding.NamedSharding] | None = None,
    compared: Compared | None = None,
    fused: Fused | None = None,
    grad_norms: bool = False,
    grows: bool = False,
    donate: bool = True,
) -> Wrapped:
    """Jit the train step `(state, frozen, batch, inputs) -> (state, metrics)`.

    Args:
        objective: the model's loss and metrics as sums and weights.
        optimizer: the LayerTable's optimizer.
        accumulate: micro-batches a step; gradients are summed and divided by the weight once.
        ema: decay of the moving average of the trainable parameters; None without one. A state's
            average is then that of a schedule-free rule, if there is one.
        state_shardings, frozen_shardings: of the state and the frozen parameters; None leaves a
            parameter's to the argument.
        mesh: the mesh.
        anchored: shardings of `StepInputs.anchor`; None where it is empty.
        compared: the objective in two parts, where it compares the rows of a batch: micro-batches
            then have the gradients of the whole batch.
        fused: updates blocks in the backward pass, in place of `optimizer`.
        grad_norms: also return the gradient norm of each leaf.
        grows: whether the batch grows: see `MicroBatches`.
        donate: reuse the state's memory for the next state.

    Returns:
        The step. `metrics` holds device scalars: each mean of the objective, with several
        micro-batches the terms of the noise scale (`noise_terms`; NaN without an estimate),
        `weight`, `grad_norm`, and `bad_steps`, the number of consecutive steps that were not
        finite: such a step leaves parameters and moments unchanged. With `grad_norms`, an array of
        that name:
        `[leaves]`, in natural order of the trainable names.
    """
    rows = batch_sharding(mesh)
    step = step_function(
        objective,
        optimizer,
        accumulate=accumulate,
        ema=ema,
        rows=rows,
        compared=compared,
        fused=fused,
        grad_norms=grad_norms,
        grows=grows,
        offloaded_moments=state_shardings.opt_state if offloaded(state_shardings) else None,
    )
    whole = replicated(mesh)
    inputs = StepInputs(whole, whole, whole, dict(anchored or {}), whole if anchored else None)
    return jax.jit(
        step,
        donate_argnums=0 if donate else (),
        in_shardings=(state_shardings, dict(frozen_shardings), rows, inputs),
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
    compared: Compared | None = None,
    grad_norms: bool = False,
    grows: bool = False,
    offloaded_moments: Any = None,
    fused: Fused | None = None,
) -> Callable:
    """Build the train step `(state, frozen, batch, inputs) -> (state, metrics)`, not yet jitted.

    Args:
        objective, optimizer, accumulate, ema, compared, grad_norms, grows: see
            `make_train_step`.
        rows: the sharding of a batch's rows.
        offloaded_moments: shardings of the optimizer's state, where some of it is in host memory.
        fused: updates blocks in the backward pass, in place of `optimizer`.
    """
    differentiate = _differentiation(objective, compared, MicroBatches(accumulate, rows, grows))
    advance = partial(_advance, optimizer) if fused is None else partial(advance_fused, fused)

    def step(
        state: TrainState, frozen: Params, batch: Batch, inputs: StepInputs
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(state.key, state.step)
        fixed = {**frozen, **state.previously_trained}
        moments = state.opt_state
        if offloaded_moments is not None:
            moments = jax.device_put(moments, on_device(offloaded_moments))

        def gradient(trainable: dict[str, Any]) -> tuple[dict[str, Any], Sums]:
            return differentiate(trainable, fixed, batch, key)

        now = advance(gradient, state.trainable, moments, inputs.arguments())
        trainable, finite = now.trainable, now.finite
        average = state.average
        if ema is not None:
            average = _moving_average(ema, finite, average, trainable)
        elif average is not None:
            average = scored(now.opt_state, trainable)
        bad_steps = jnp.where(finite, 0, state.bad_steps + 1)
        metrics = {name: total / share for name, (total, share) in now.sums.items()}
        weight = now.sums["loss"][1]
        metrics |= {"weight": weight, "grad_norm": now.grad_norm, "bad_steps": bad_steps}
        if grad_norms:
            each = [jnp.sqrt(now.norms[name]) for name in natural_order(now.norms)]
            metrics["grad_norms"] = jnp.stack(each)
        new_state = replace(
            state,
            step=state.step + 1,
            trainable=trainable,
            opt_state=now.opt_state,
            average=average,
            bad_steps=bad_steps,
        )
        return new_state, metrics

    return step


def _advance(
    optimizer: optax.GradientTransformationExtraArgs,
    gradient: Gradient,
    trainable: Params,
    opt_state: Any,
    arguments: Mapping[str, Any],
) -> Advance:
    """Compute all gradients, then update all parameters; see `advance_fused`."""
    gradients, sums = gradient(trainable)
    grad_norm = optax.tree.norm(gradients)
    finite = jnp.isfinite(sums["loss"][0]) & jnp.isfinite(grad_norm)
    updates, opt_state = optimizer.update(
        gradients, opt_state, trainable, finite=finite, **arguments
    )
    norms = {name: optax.tree.norm(leaf, squared=True) for name, leaf in gradients.items()}
    moved = optax.apply_updates(trainable, updates)
    return Advance(moved, opt_state, sums, grad_norm, norms, finite)


def _differentiation(
    objective: Objective, compared: Compared | None, micro: MicroBatches
) -> Callable[[Params, Params, Batch, jax.Array], tuple[Params, Sums]]:
    """Build `(trainable, fixed, batch, key)` to the gradients of the mean loss, and its sums."""

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

    if micro.count == 1:
        # Scaling the loss, a scalar, saves the pass over all gradients that scaling them takes.
        return jax.grad(mean_loss, has_aux=True)
    if compared is not None:
        return partial(compared_gradients, compared, micro)
    return partial(accumulated, jax.grad(summed_loss, has_aux=True), micro)


def _moving_average(ema: float, finite: jax.Array, average: Any, trainable: Params) -> Params:
    """Move the average towards the parameters; a step that is not finite leaves it unchanged."""
    return jax.tree.map(
        lambda a, p: jnp.where(finite, ema * a + (1 - ema) * p, a), average, trainable
    )


def make_eval_step(
    evaluate: Callable[[Params, Batch], tuple[dict, dict]],
    *,
    param_shardings: Mapping[str, jax.sharding.NamedSharding | None],
    mesh: jax.sharding.Mesh,
) -> Callable:
    """Jit the evaluation step `(params, batch) -> (sums, outcomes)`.

    Args:
        evaluate: `(params, batch)` to the objective's sums and to each example's outcomes.
        param_shardings: name -> sharding; None leaves it to the argument.
        mesh: the mesh.

    Returns:
        The step. Its outputs are replicated, so that every process can read all of them.
    """
    return jax.jit(
        evaluate,
        in_shardings=(dict(param_shardings), batch_sharding(mesh)),
        out_shardings=replicated(mesh),
    )
