"""Rematerialization of a train step, where the config leaves it open: as little as fits.

`train.remat: auto` saves all activations that the chip has memory for; on a chip that is not in
the table, all of them. Sizes and FLOPs are counted from the program, before anything is compiled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
from flax import nnx
from jax.extend.core import Var

from jaxft.device.chips import find_chip
from jaxft.device.host_memory import split_by_memory
from jaxft.device.mesh import held, row_divisor
from jaxft.engine.cost import batch_shapes, param_shapes, trained_names
from jaxft.engine.initial_state import abstract_anchor, abstract_frozen, abstract_state
from jaxft.engine.setup import PhaseSetup, Setup, objective_of, phase_setup
from jaxft.errors import UserError
from jaxft.models.layers.kernels import ATTENTION_OUTPUT
from jaxft.models.layers.modules import Linear
from jaxft.models.model import Model
from jaxft.models.quantized import quantize
from jaxft.models.tower.residuals import BLOCK_INPUT, Remat, Residuals
from jaxft.models.tower.tower import Compute, Tower
from jaxft.numbers import size
from jaxft.tree import split as split_tree

ORDER = ("none", "dots", "full")  # what is recomputed, by increasing amount
# The compiler needs memory of its own, and gathers a block's parameters where they are sharded.
USABLE = 0.85


def phase_setups(setup: Setup) -> tuple[PhaseSetup, ...]:
    """Set up each phase of a run, with its rematerialization resolved.

    Raises:
        UserError: as `setup`, `train.remat` names what cannot be kept, or L2-SP decays nothing.
    """
    _check(setup)
    phases = [phase_setup(setup, phase) for phase in setup.phases]
    if setup.config.regularise.l2_sp and not any(phase.anchored for phase in phases):
        raise UserError(
            "regularise.l2_sp: it decays parameters towards the checkpoint's, and all that train "
            "here are new.",
            "Set it to 0; optimizer.weight_decay decays new ones towards 0.",
        )
    return tuple(with_remat(setup, phase) for phase in phases)


def with_remat(setup: Setup, now: PhaseSetup) -> PhaseSetup:
    """Resolve `remat: auto` for a phase's step, and say why.

    Args:
        setup: the run.
        now: its phase.
    """
    if now.compute.remat != "auto":
        return now
    chip = find_chip(setup.mesh.devices.flat[0].device_kind)
    remat: Remat = "none"
    why = ""
    if chip is not None:
        room = int(USABLE * chip.device_memory) - taken(setup, now)
        devices = row_divisor(setup.mesh, 1)

        def saved(asked: Remat) -> int:
            return residual_bytes(setup, replace(now.compute, remat=asked)) // devices

        remat, why = first_that_fits(saved, room, lambda left: named_residuals(setup, now, left))
    return replace(now, compute=replace(now.compute, remat=remat), why=why)


def widest(phases: Sequence[PhaseSetup]) -> PhaseSetup:
    """Return the phase in which the most parameters train."""
    return max(phases, key=lambda one: len(one.table.trainable))


def phase_after(phases: Sequence[PhaseSetup], step: int) -> PhaseSetup:
    """Return the phase of the step before `step`, whose state was saved then."""
    return next((one for one in phases if step <= one.phase.stop), phases[-1])


def first_that_fits(
    saved_bytes: Callable[[Remat], int],
    room: int,
    named: Callable[[int], Iterator[Residuals]] = lambda left: iter(()),
) -> tuple[Remat, str]:
    """Choose the least rematerialization that fits, and say why.

    Args:
        saved_bytes: remat -> bytes that a device saves for the backward pass.
        room: bytes available for them.
        named: bytes that `full` leaves of them -> named residuals to try between `dots` and it,
            the fewest recomputed FLOPs first; where it leaves none, those to try after it.
    """
    known = {name: saved_bytes(name) for name in ORDER[:2]}
    choice: Remat = next((name for name in known if known[name] <= room), ORDER[-1])
    nbytes = known[choice] if choice in known else saved_bytes(choice)
    if choice == ORDER[-1]:
        tried = ((one, saved_bytes(one)) for one in named(room - nbytes))
        choice, nbytes = next((pair for pair in tried if pair[1] <= room), (choice, nbytes))
    return choice, (
        f"train.remat is {choice}: the backward pass then saves {size(nbytes)} of the "
        f"{size(max(room, 0))} that parameters, gradients and moments leave on a device"
    )


def named_residuals(setup: Setup, now: PhaseSetup, left: int) -> Iterator[Residuals]:
    """Yield named residuals to try, the fewest recomputed FLOPs first.

    A product of I inputs takes 2 I FLOPs an element, so what has the most inputs is kept first;
    attention before all, which takes as many more as a row has positions.

    Args:
        setup, now: the run and its phase.
        left: bytes of a device that `full` leaves; where it leaves none, a block's input is
            offloaded.
    """
    if left < 0:
        if setup.compute.platform != "cpu":
            yield Residuals((), (BLOCK_INPUT,))
        return
    devices = row_divisor(setup.mesh, 1)
    widths = {ATTENTION_OUTPUT: 2**62, **residual_widths(setup.model)}
    least = residual_bytes(setup, replace(now.compute, remat="full"))
    chosen: list[str] = []
    for name in sorted(widths, key=lambda name: -widths[name]):
        asked = replace(now.compute, remat=Residuals((name,)))
        own = (residual_bytes(setup, asked) - least) // devices
        if 0 < own <= left:  # what only leaves its block is not kept, nor computed again
            left -= own
            chosen.append(name)
    for count in range(len(chosen), 0, -1):
        yield Residuals(tuple(chosen[:count]))


def residual_widths(model: Model) -> dict[str, int]:
    """Map the name of each product in a model's blocks to its number of inputs, I."""
    widths = {}
    for tower in (model.towers if model.adapted is None else model.adapted.plain).values():
        for block in tower.blocks if isinstance(tower, Tower) else ():
            for _, module in nnx.iter_modules(block.module):
                if isinstance(module, Linear):
                    widths[module.path] = module.kernel.get_metadata()["leaf"].shape[0]
    return widths


def _check(setup: Setup) -> None:
    """Raise a UserError for residuals that no block has, and for host memory on a CPU."""
    remat, on_cpu = setup.compute.remat, setup.compute.platform == "cpu"
    if on_cpu and setup.config.optimizer.offload:
        raise UserError(
            "optimizer.offload moves moments to the host's memory, and a CPU has no other.",
            "Leave it out.",
        )
    if not isinstance(remat, Residuals):
        return
    known = [BLOCK_INPUT, ATTENTION_OUTPUT, *residual_widths(setup.model)]
    for name in (*remat.save, *remat.offload):
        if name not in known:
            raise UserError(
                f"train.remat: '{name}' is no residual of this model's blocks.",
                f"Known: {', '.join(known)}.",
            )
    if remat.offload and on_cpu:
        raise UserError(
            "train.remat: offload moves residuals to the host's memory, and a CPU has no other.",
            "Move the names to save.",
        )


def taken(setup: Setup, now: PhaseSetup) -> int:
    """Count the bytes on a device that do not depend on remat: state, gradients, frozen leaves."""
    state = abstract_state(setup, now)
    fixed = abstract_frozen(setup, now), abstract_anchor(setup, now)
    own, _ = split_by_memory(state)
    return held(own) + held(state.trainable) + held(fixed)


def residual_bytes(setup: Setup, compute: Compute) -> int:
    """Count the bytes that the backward pass saves of a batch, without the parameters.

    Args:
        setup: the run.
        compute: the compute settings: the parameters that train, and rematerialization.
    """
    objective = objective_of(setup, compute)
    shapes_of = param_shapes(setup.model, compute.dtype)
    trainable, frozen = split_tree(shapes_of, trained_names(shapes_of, compute))
    trainable = {n: jax.ShapeDtypeStruct(a.shape, "float32") for n, a in trainable.items()}
    frozen |= {
        name: jax.eval_shape(partial(quantize, kind=kind), shapes_of[name])
        for name, kind in setup.quantized.items()
    }

    def residuals(trainable: Any, frozen: Any, batch: Any, key: jax.Array) -> Any:
        batch = {**batch, **setup.model.trunk({**frozen, **trainable}, batch, compute)}

        def loss(trainable: Any) -> jax.Array:
            return objective({**frozen, **trainable}, batch, key)["loss"][0]

        return jax.vjp(loss, trainable)[1]

    arguments = (trainable, frozen, batch_shapes(setup), jax.random.key(0))
    traced = jax.make_jaxpr(residuals)(*arguments).jaxpr
    # Outputs that are inputs are parameters and the batch, which are in memory anyway.
    saved = {variable for variable in traced.outvars if isinstance(variable, Var)}
    saved -= {*traced.invars, *traced.constvars}
    shapes: list[Any] = [variable.aval for variable in saved]
    nbytes = sum(math.prod(shape.shape) * shape.dtype.itemsize for shape in shapes)
    return nbytes // setup.config.train.accumulate
