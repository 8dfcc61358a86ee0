"""What of their chips' peak a run's steps use: model FLOPs, counted, over what the chips could do.

Model FLOPs are the matmuls of the forward pass and of the backward pass that happens: nothing for
gradients that freezing leaves out, for a trunk whose output is kept, or for what remat runs again.

Source: Chowdhery et al. (2022), PaLM, appendix B, https://arxiv.org/abs/2204.02311, with the FLOPs
    of the step's own jaxpr in place of 6 a parameter and token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxft.device.chips import find_chip
from jaxft.engine.cost import batch_shapes, gradient_flops, trunk_shapes
from jaxft.engine.remat import widest
from jaxft.engine.setup import PhaseSetup, Setup


@dataclass(frozen=True)
class Work:
    """What a step asks for, and what there is.

    Attributes:
        flops: model FLOPs of a step, on all devices together.
        peak: bfloat16 FLOPs a second of all devices; None where the chip is in no table.
    """

    flops: int
    peak: float | None


def work_of(
    setup: Setup,
    phases: Sequence[PhaseSetup],
    now: PhaseSetup,
    cached: bool,
    known: Mapping[str, int],
) -> Work:
    """The work of a step of a phase.

    Args:
        setup: the run.
        phases: each of its phases.
        now: the phase.
        cached: whether the trunk's output is at hand.
        known: `cost.step_flops` of the phase in which the most parameters train.
    """
    mesh = setup.mesh
    chip = find_chip(mesh.devices.flat[0].device_kind)
    peak = None if chip is None else chip.device_peak * mesh.size
    if now.phase.index == widest(phases).phase.index:
        return Work(known["cached" if cached else "step"], peak)
    batch = batch_shapes(setup)
    batch |= trunk_shapes(setup.model, now.compute, batch) if cached else {}
    return Work(gradient_flops(setup, now.table.trainable, batch), peak)
