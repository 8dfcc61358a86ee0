"""State and step of a loop of one's own: the engine's step under one's own loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from jaxft.device.mesh import AXES, batch_sharding, make_mesh, param_shardings, place_batch
from jaxft.engine.compute import compute_for
from jaxft.engine.state import TrainState, fresh_state, place_state
from jaxft.engine.step import Objective, StepInputs, make_train_step
from jaxft.errors import UserError
from jaxft.layerwise.table import LayerTable
from jaxft.loop.recipe import OptimizerState
from jaxft.models.model import Model
from jaxft.models.tower.dealt import check_context
from jaxft.models.tower.tower import Compute

Params = Mapping[str, jax.Array]
Batch = Mapping[str, Any]
Sum = tuple[jax.Array, jax.Array]
# (params, batch, dropout key or None) -> Hugging Face's output names -> arrays.
Apply = Callable[[Params, Batch, jax.Array | None], dict[str, jax.Array]]
# (apply, params, batch, dropout key) -> (sum of losses, their weight), or metrics by name, each
# a sum and a weight, the loss under "loss".
Loss = Callable[[Apply, Params, Batch, jax.Array], Sum | Mapping[str, Sum]]
REMAT = ("none", "dots", "full")
NO_INPUTS = StepInputs(None, None, None)  # an optimizer with its own rates needs none


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LoopState:
    """Everything that a step reads besides its batch.

    Attributes:
        train: what the step changes: the trainable parameters, the optimizer's state, the count.
        frozen: the parameters that are never differentiated, in the compute type.
        model: the model as it was loaded.
        compute: how it runs.
    """

    train: TrainState
    frozen: dict[str, jax.Array]
    model: Model = dataclasses.field(metadata={"static": True})
    compute: Compute = dataclasses.field(metadata={"static": True})

    @property
    def mesh(self) -> Mesh:
        """The devices that the state lies on."""
        assert self.compute.mesh is not None  # `init_state` sets it
        return self.compute.mesh

    @property
    def params(self) -> dict[str, jax.Array]:
        """All parameters as they are now: name -> array."""
        return {**self.frozen, **self.train.trainable}


def init_state(
    model: Model,
    table: LayerTable,
    tx: optax.GradientTransformation,
    *,
    seed: int = 0,
    precision: str = "auto",
    scan: bool | str = "auto",
    remat: str = "none",
) -> LoopState:
    """Copy a model's parameters into the state of a loop, split into trainable and frozen.

    The state lies on the mesh in scope (`with jax.set_mesh(jaxft.make_mesh(...))`), or else on
    the device that the model is on.

    Args:
        model: loaded.
        table: says which parameters train.
        tx: the optimizer: `jaxft.optimizer`, or any optax transformation.
        seed: of dropout.
        precision: f32, tf32, bf16, or auto: bf16 but on CPU.
        scan: run equal blocks under one `lax.scan`; auto decides by platform and depth.
        remat: none, dots or full: what the backward pass computes again.

    Raises:
        UserError: the mesh in scope has other axes than `jaxft.make_mesh`'s, or an option is none
            of these.
    """
    if remat not in REMAT or not (isinstance(scan, bool) or scan == "auto"):
        raise UserError(
            f"init_state: remat is {remat!r} and scan {scan!r}.",
            f"remat is {', '.join(REMAT[:-1])} or {REMAT[-1]}; scan is True, False or auto.",
        )
    if {leaf.name for leaf in table.leaves} != set(model.params):
        raise UserError("init_state: the table is of another model.", "Make it of this one.")
    mesh = _mesh_of(model)
    check_context(model.towers, mesh)
    compute = compute_for(
        mesh, model.num_depths - 2, table.trainable, precision=precision, scan=scan, remat=remat
    )
    shardings = _shardings(model, mesh)
    own = {name: jnp.copy(model.params[name]) for name in table.trainable}
    make = partial(fresh_state, optimizer=tx, seed=seed)
    shapes = jax.eval_shape(make, own)
    train = jax.jit(make, out_shardings=place_state(shapes, shardings, mesh))(own)
    dtype = jnp.dtype(compute.dtype)
    frozen = {
        name: jax.device_put(model.params[name].astype(dtype), shardings[name])
        for name in table.frozen
    }
    return LoopState(train, frozen, model, compute)


def make_step(
    loss_fn: Loss,
    tx: optax.GradientTransformation,
    *,
    accumulate: int = 1,
    donate: bool = True,
) -> Callable[[LoopState, Batch], tuple[LoopState, dict[str, jax.Array]]]:
    """Make the compiled train step `(state, batch) -> (state, metrics)`.

    Only the trainable leaves are differentiated. A step whose loss or gradient is not finite
    leaves parameters and moments as they were.

    Args:
        loss_fn: `(apply, params, batch, key)` to a sum of losses and its weight, or to several
            such pairs by name, the loss under "loss". `apply(params, batch, key)` computes the
            model's outputs, with dropout where `key` is not None.
        tx: the optimizer that the state was made with.
        accumulate: micro-batches a step.
        donate: give the state's memory to the next one, so that the old state cannot be read.

    Returns:
        The step. Metrics are device scalars: each mean, `weight`, `grad_norm`, and `bad_steps`,
        the steps in a row that were not finite.

    Raises:
        UserError: `accumulate` is no number of micro-batches; or, by the step, of a batch's rows,
            of the loss, or of a state of another optimizer.
    """
    if not isinstance(accumulate, int) or accumulate < 1:
        raise UserError(f"make_step: accumulate is {accumulate!r}, and must be 1 or more.")
    compiled: dict[tuple[Model, Compute], Callable[..., Any]] = {}

    def step(state: LoopState, batch: Batch) -> tuple[LoopState, dict[str, jax.Array]]:
        key = (state.model, state.compute)
        if key not in compiled:
            _require_own_optimizer(tx, state.train)
            shardings = _shardings(state.model, state.mesh)
            shapes = jax.eval_shape(lambda: state.train)
            compiled[key] = make_train_step(
                _objective(loss_fn, state.model, state.compute),
                _guarded(tx, state.train.opt_state),
                accumulate=accumulate,
                ema=None,
                state_shardings=place_state(shapes, shardings, state.mesh),
                frozen_shardings={name: shardings[name] for name in state.frozen},
                mesh=state.mesh,
                donate=donate,
            )
        placed = _placed(batch, batch_sharding(state.mesh))
        _check_rows(placed, accumulate)
        train, metrics = compiled[key](state.train, state.frozen, placed, NO_INPUTS)
        return dataclasses.replace(state, train=train), metrics

    return step


def trained(model: Model, state: LoopState) -> Model:
    """Put a loop's trained parameters into its model; frozen ones are as they were loaded.

    Raises:
        UserError: the state is of another model.
    """
    if state.params.keys() != model.params.keys():
        raise UserError("trained: the state is of another model.", "Pass the one it was made of.")
    frozen = {
        name: jax.device_put(model.params[name], leaf.sharding)
        for name, leaf in state.frozen.items()
    }
    return model.with_params({**frozen, **state.train.trainable})


def _guarded(tx: optax.GradientTransformation, state: Any) -> optax.GradientTransformationExtraArgs:
    """Let a step that is not finite change nothing under any optax transformation.

    Args:
        tx: the optimizer.
        state: of it; `jaxft.optimizer`'s knows of such steps itself.
    """
    inner = optax.with_extra_args_support(tx)
    if isinstance(state, OptimizerState):
        return inner

    def update(
        gradients: Any, state: Any, params: Any = None, *, finite: Any = True, **more: Any
    ) -> tuple[Any, Any]:
        steps, after = inner.update(gradients, state, params, finite=finite, **more)
        steps = jax.tree.map(lambda step: jnp.where(finite, step, 0), steps)
        return steps, jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, state)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _require_own_optimizer(tx: optax.GradientTransformation, train: TrainState) -> None:
    mend = "Make optimizer, state and step from the same table."
    try:
        own = jax.eval_shape(tx.init, dict(train.trainable))
    except UserError as error:
        raise UserError("make_step: the state is not of the step's optimizer.", mend) from error
    if str(jax.tree.structure(own)) != str(jax.tree.structure(train.opt_state)):
        raise UserError("make_step: the state is not of the step's optimizer.", mend)


def _objective(loss_fn: Loss, model: Model, compute: Compute) -> Objective:
    def apply(params: Params, batch: Batch, key: jax.Array | None = None) -> dict[str, jax.Array]:
        return model.apply(params, batch, key, compute)

    def objective(params: Params, batch: Batch, key: jax.Array | None) -> dict[str, Sum]:
        assert key is not None  # a train step has one
        sums = loss_fn(apply, params, batch, key)
        named = dict(sums) if isinstance(sums, Mapping) else {"loss": sums}
        _check_sums(named)
        return {
            name: (jnp.asarray(total, jnp.float32), jnp.asarray(weight, jnp.float32))
            for name, (total, weight) in named.items()
        }

    return objective


def _check_sums(named: Mapping[str, Any]) -> None:
    """Raise a UserError where a loss returns other than pairs of scalars, with one as `loss`."""
    mend = "Return (sum of losses, their weight), or several such pairs by name, one as 'loss'."
    if "loss" not in named:
        raise UserError(f"make_step: the loss has {', '.join(named)}, and no 'loss'.", mend)
    for name, pair in named.items():
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise UserError(f"make_step: '{name}' is no pair of a sum and its weight.", mend)
        if any(jnp.ndim(one) for one in pair):
            shapes = " and ".join(str(jnp.shape(one)) for one in pair)
            raise UserError(f"make_step: '{name}' has the shapes {shapes}, not scalars.", mend)


def _check_rows(batch: Mapping[str, jax.Array], accumulate: int) -> None:
    """Raise a UserError where the rows of a batch do not divide into micro-batches."""
    for name, array in batch.items():
        if not array.shape[0] or array.shape[0] % accumulate:
            raise UserError(
                f"make_step: the {array.shape[0]} rows of '{name}' do not divide into {accumulate} "
                "micro-batches."
            )


def _placed(batch: Batch, rows: NamedSharding) -> dict[str, jax.Array]:
    """Put the arrays of the host onto the mesh; those of a device stay."""
    host = {n: np.asarray(a) for n, a in batch.items() if not isinstance(a, jax.Array)}
    for name, array in {**batch, **host}.items():
        if not np.ndim(array) or (name in host and array.dtype.kind in "OSUMm"):
            raise UserError(
                f"make_step: '{name}' of the batch is no array of numbers with a row an example.",
                "Leave it out of the batch; a loss may read it from where it is defined.",
            )
    return {**batch, **place_batch(host, rows)}


def _mesh_of(model: Model) -> Mesh:
    """Take the mesh in scope, or make one of the device that the model is on."""
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        (device, *_) = next(iter(model.params.values())).devices()
        return make_mesh(1, 1, 1, [device])
    if mesh.axis_names != AXES:
        raise UserError(
            f"The mesh in scope has the axes {', '.join(map(str, mesh.axis_names))}.",
            "Make it with jaxft.make_mesh(data, fsdp, tensor).",
        )
    return mesh


def _shardings(model: Model, mesh: Mesh) -> dict[str, NamedSharding]:
    shapes = {name: leaf.shape for name, leaf in model.leaves.items()}
    return param_shardings(shapes, model.axes, mesh)
