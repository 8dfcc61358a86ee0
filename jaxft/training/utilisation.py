"""Model FLOPs utilization: the FLOPs that steps need, over the peak of the chips.

Model FLOPs are the matmuls of the forward pass and of the actual backward pass: without gradients
that freezing makes unnecessary, without a cached trunk, and without recomputation by remat.

Source: Chowdhery et al. (2022), PaLM, appendix B, https://arxiv.org/abs/2204.02311, with the FLOPs
    of the step's jaxpr instead of 6 per parameter and token.
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
    """Model FLOPs of a step, and the peak of the devices.

    Attributes:
        flops: model FLOPs of a step, on all devices together.
        peak: bfloat16 FLOPs a second of all devices; None where the chip is not known.
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
    """Compute the work of a step of a phase.

    Args:
        setup: the run.
        phases: each of its phases.
        now: the phase.
        cached: whether the phase reads the trunk's output from the cache.
        known: `cost.step_flops` of the widest phase.
    """
    mesh = setup.mesh
    chip = find_chip(mesh.devices.flat[0].device_kind)
    peak = None if chip is None else chip.device_peak * mesh.size
    if now.phase.index == widest(phases).phase.index:
        return Work(known["cached" if cached else "step"], peak)
    batch = batch_shapes(setup)
    batch |= trunk_shapes(setup.model, now.compute, batch) if cached else {}
    return Work(gradient_flops(setup, now.table.trainable, batch), peak)
