"""Train step of a run, compiled for devices that need not be present."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from jaxft.device.collectives import Collective, collectives
from jaxft.device.host_memory import split_by_memory
from jaxft.device.mesh import batch_sharding, held
from jaxft.engine.cost import batch_shapes, gradient_flops, tally_program, trunk_shapes
from jaxft.engine.initial_state import abstract_anchor, abstract_frozen, abstract_state
from jaxft.engine.setup import PhaseSetup, Setup
from jaxft.engine.trunk_plan import plan_trunk
from jaxft.training.phase import abstract_inputs, make_step
from jaxft.training.sampling.program import abstract_orders

# Messages of the compilers where a program does not fit: needed and available bytes.
REFUSALS = (
    r"Used ([\d.]+[KMGT]?) of ([\d.]+[KMGT]?) hbm",
    r"temporaries \(([\d.]+[KMGT]?)\) exceeds available HBM \(([\d.]+[KMGT]?)\)",
)
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Memory:
    """Bytes that a step takes on one device.

    Attributes:
        weights: parameters, trained ones in float32; their average and anchor, if there are any.
        optimizer: its state.
        activations: the rest of the peak: activations, gradients, gathered parameters.
        peak: the peak that the compiler reports.
        temporary: of it, memory allocated beside arguments and results.
        host: bytes of the host's memory: offloaded residuals and moments.
    """

    weights: int
    optimizer: int
    activations: int
    peak: int
    temporary: int = 0
    host: int = 0


class OutOfMemory(Exception):
    """The compiler's refusal of a step that takes more memory than a device has.

    Args:
        needs: bytes that it takes; None where the compiler does not say.
    """

    def __init__(self, needs: int | None):
        super().__init__(needs)
        self.needs = needs


@dataclass(frozen=True)
class Compiled:
    """A compiled train step.

    Attributes:
        memory: of one device.
        traffic: the least bytes that a device moves from and to its memory: arguments are read,
            results are written, temporaries are written and read once.
        flops: of its matmuls on all devices, recomputation included.
        collectives: communication between devices; None where the compiler cannot print its
            program, as a libtpu of another release than jax's may not.
        kernels: the number of Pallas kernels; None likewise.
        traced, compiled: seconds of tracing and compiling.
        cpu: CPU seconds of compiling, over all threads.
        widest: the shape with the most elements that a device's program names, also inside of
            fusions; None like the collectives.
    """

    memory: Memory
    traffic: int
    flops: int
    collectives: tuple[Collective, ...] | None
    kernels: int | None
    traced: float
    compiled: float
    cpu: float
    widest: tuple[int, ...] | None = None


def compile_train_step(
    setup: Setup, now: PhaseSetup, tell: Callable[[str], None] = lambda _: None
) -> Compiled:
    """Compile a run's train step for its mesh, from shapes alone.

    Args:
        setup: the run.
        now: the phase of the step.
        tell: called with progress messages.

    Raises:
        OutOfMemory: it does not fit, according to the compiler.
    """
    orders, batch = abstract_orders(setup), step_batch(setup, now)
    mesh = setup.mesh.shape, setup.config.mesh.slices
    frozen, anchor = abstract_frozen(setup, now) | orders, abstract_anchor(setup, now)
    inputs = abstract_inputs(now, anchor)
    state = abstract_state(setup, now)
    start = time.perf_counter()
    tell("tracing the step")
    traced = make_step(setup, now, frozen).trace(state, frozen, batch, inputs)
    flops = tally_program(traced.jaxpr.jaxpr).total()
    if orders:  # its conditionals are told by data what to compute
        flops = gradient_flops(setup, now.table.trainable, batch)
    lowered = traced.lower()
    begun, cpu = time.perf_counter(), time.process_time()
    tell("compiling the step")
    compiled = _compile(lowered)
    ended, cpu = time.perf_counter(), time.process_time() - cpu
    memory, text = compiled.memory_analysis(), program_text(compiled)
    platform = setup.mesh.devices.flat[0].platform
    assert memory is not None  # both compilers report it
    weights = held((state.trainable, state.previously_trained, state.average, frozen, anchor))
    moments, on_hosts = split_by_memory(state.opt_state)
    optimizer, host = held(moments), held(on_hosts) + int(memory.host_temp_size_in_bytes)
    rest = max((peak := _peak(memory, platform)) - weights - optimizer - held(batch), 0)
    return Compiled(
        Memory(weights, optimizer, rest, peak, int(memory.temp_size_in_bytes), host),
        memory.argument_size_in_bytes + memory.output_size_in_bytes + 2 * memory.temp_size_in_bytes,
        flops,
        None if text is None else tuple(collectives(text, *mesh)),
        None if text is None else text.count("tpu_custom_call"),
        begun - start,
        ended - begun,
        cpu,
        None if text is None else widest_shape(text),
    )


def _compile(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compile a program; raise OutOfMemory where it does not fit."""
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise OutOfMemory(_needs(str(error))) from None


def _peak(memory: Any, platform: str) -> int:
    """Return the peak of a device's memory.

    The compiler's own peak counts what is in host memory too; without that the peak is at most
    arguments, results that are not arguments, and temporaries. The CPU's leaves temporaries out.
    """
    own = memory.argument_size_in_bytes + memory.output_size_in_bytes
    own += memory.temp_size_in_bytes - memory.alias_size_in_bytes
    peak = int(memory.peak_memory_in_bytes)
    if platform == "cpu":
        return max(peak, int(own))
    on_host = memory.host_temp_size_in_bytes + memory.host_argument_size_in_bytes
    return min(peak, int(own)) if on_host else peak


def program_text(compiled: jax.stages.Compiled) -> str | None:
    """Return the text of a compiled program; None where its compiler cannot print it.

    jax reads the program back with its own XLA to print it. Where libtpu's is a newer one, it may
    hold instructions that this XLA does not know.
    """
    try:
        return compiled.as_text()
    except jax.errors.JaxRuntimeError:
        return None


def widest_shape(text: str) -> tuple[int, ...]:
    """Return the shape with the most elements in the text of a program, as a device has it."""
    shapes = set(re.findall(r"\b(?:pred|[a-z]+\d+\w*)\[([\d,]+)\]", text))
    return max((tuple(map(int, one.split(","))) for one in shapes), key=math.prod, default=())


def step_batch(setup: Setup, now: PhaseSetup) -> dict[str, jax.ShapeDtypeStruct]:
    """Describe a batch, sharded over its rows, with the trunk's output if that is cached."""
    batch, rows = batch_shapes(setup), batch_sharding(setup.mesh)
    if plan_trunk(setup, now, batch).split_bytes:
        batch |= trunk_shapes(setup.model, now.compute, batch)
    return {n: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=rows) for n, a in batch.items()}


def _needs(message: str) -> int | None:
    """Parse the bytes that a refused program needs from the compiler's message."""
    for pattern in REFUSALS:
        if match := re.search(pattern, message):
            return _bytes(match[1])
    return None


def _bytes(text: str) -> int:
    unit = text[-1] if text[-1] in UNITS else ""
    return round(float(text.removesuffix(unit)) * UNITS[unit])
