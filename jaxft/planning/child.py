"""Child process that compiles for a plan: libtpu loads once per process, and may abort it.

It reads a request from its standard input, a JSON object with `config`, `topology`, `devices` and
`largest_batch`, and writes lines of JSON: `doing` for progress, then `plan` or `error`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any, TextIO

import jax
from jax.experimental import topologies

from jaxft.analysis.layer_criteria.choices import make_choices
from jaxft.config.load import Config, override_config, parse_config
from jaxft.device.chips import Chip, Topology, find_chip, parse_topology
from jaxft.device.mesh import row_divisor
from jaxft.engine.cost import batch_shapes, step_flops
from jaxft.engine.remat import phase_setups
from jaxft.engine.setup import PhaseSetup, Setup, build
from jaxft.errors import UserError
from jaxft.planning.attention import attention_choices, attention_lines
from jaxft.planning.fit import Try, as_try, largest_batch, remedies, try_remedies
from jaxft.planning.roofline import FORMULA, Roofline, roofline
from jaxft.planning.stand_in import has_weights, with_tokenizer
from jaxft.planning.step import Compiled, OutOfMemory, compile_train_step
from jaxft.report.terminal.console import EscapingConsole
from jaxft.training.sampling.program import dearest


class Planner:
    """Compiler of variants of a run, for devices that need not be present.

    Args:
        config: the run, with a checkpoint that has a tokenizer.
        devices: the devices to compile for.
        weights: whether the checkpoint has weights.
        tell: called with progress messages.
    """

    def __init__(self, config: Config, devices: Sequence, weights: bool, tell: Callable[..., None]):
        self.config, self.devices, self.weights, self.tell = config, devices, weights, tell
        self.chip: Chip | None = find_chip(devices[0].device_kind)
        self._known: dict[Any, Compiled | OutOfMemory] = {}

    def set_up(self, change: Sequence[str] = ()) -> tuple[Setup, PhaseSetup]:
        """Set up the run under a change; return its setup and its widest phase."""
        config = override_config(self.config, change)
        setup = build(config, devices=self.devices, weights=self.weights)
        return dearest(setup, phase_setups(setup))

    def outcome(
        self, setup: Setup, now: PhaseSetup, change: Sequence[str] = ()
    ) -> Compiled | OutOfMemory:
        """Compile the step, once per change and batch shape; return it or the refusal."""
        key = (*change, setup.layout.shape)
        if key not in self._known:
            subject = ", ".join(change) or f"{setup.layout.rows} rows"
            try:
                compiled = compile_train_step(
                    setup, now, lambda stage: self.tell(f"{subject}: {stage}")
                )
                self._known[key] = self._within_memory(compiled)
            except OutOfMemory as refused:
                self._known[key] = refused
        return self._known[key]

    def _within_memory(self, compiled: Compiled) -> Compiled | OutOfMemory:
        """Refuse what no memory of the machine holds: a CPU's compiler refuses nothing."""
        room, peak = None if self.chip else self.room(), compiled.memory.peak
        return compiled if room is None or peak <= room else OutOfMemory(peak)

    def best_time(self, compiled: Compiled) -> Roofline | None:
        """Compute the roofline of a step; None where the chip is not known."""
        if self.chip is None:
            return None
        known = compiled.collectives
        # Between slices there is another network, whose bandwidth is its owner's.
        sent = None if known is None else sum(one.sent for one in known if not one.between_slices)
        return roofline(self.chip, len(self.devices), compiled.flops, compiled.traffic, sent)

    def attempt(self, change: tuple[str, ...]) -> Try:
        """Try a change; one that the config or the model rejects does not fit."""
        try:
            setup, now = self.set_up(change)
            outcome = self.outcome(setup, now, change)
        except UserError:
            return Try(change, False, None)
        seconds = None
        if isinstance(outcome, Compiled) and (best := self.best_time(outcome)):
            seconds = best.seconds / setup.layout.examples_per_step
        return as_try(change, outcome, seconds)

    def room(self) -> int | None:
        """Return the bytes of memory of a device; None where the chip is not known.

        The devices of a CPU share the machine's.
        """
        if self.chip is not None:
            return self.chip.device_memory
        if self.devices[0].platform == "cpu":
            memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
            return memory // len(self.devices)
        return None


def make_plan(planner: Planner, topology: Topology | None, largest: bool) -> dict[str, Any]:
    """Make a plan as JSON data; see `PodPlan`."""
    setup, now = planner.set_up()
    outcome = planner.outcome(setup, now)
    facts = _about(planner, setup, now, topology)
    if isinstance(outcome, Compiled):
        planner.tell("counting FLOPs")
        facts |= _compiled(planner, step_flops(setup, now)["step"], outcome)
    else:
        rows, devices = setup.layout.rows, len(planner.devices)
        divisor = row_divisor(setup.mesh, 1)
        tries = remedies(setup.config, now.compute.remat, devices, rows, divisor)
        attempts = try_remedies(tries, planner.attempt)
        facts |= {"fits": False, "needs": outcome.needs, "tried": [asdict(one) for one in attempts]}
    if largest:
        facts["largest_batch"] = _largest(planner, setup)
    return facts


def _about(
    planner: Planner, setup: Setup, now: PhaseSetup, topology: Topology | None
) -> dict[str, Any]:
    chip, chosen = planner.chip, attention_choices(setup, now, batch_shapes(setup))
    return {
        "topology": topology.name if topology else None,
        "chip": asdict(chip) if chip else None,
        "devices": len(planner.devices),
        "room": planner.room(),
        "mesh": dict(setup.mesh.shape),
        "slices": setup.config.mesh.slices,
        "batch": {
            "batch_size": setup.config.data.batch_size,
            "rows": setup.layout.rows,
            "row_length": setup.layout.row_length,
            "accumulate": setup.config.train.accumulate,
        },
        "compute": {
            "dtype": now.compute.dtype,
            "remat": str(now.compute.remat),
            "scan": now.compute.scan,
        },
        "attention": {n: {"by": one.name, "reason": one.reason} for n, one in chosen.items()},
        "why": (*setup.why, *([now.why] if now.why else []), *attention_lines(chosen)),
        "parameters": sum(leaf.parameters for leaf in now.table.leaves),
        "trainable": sum(leaf.parameters for leaf in now.table.leaves if leaf.trainable),
    }


def _compiled(planner: Planner, flops: int, compiled: Compiled) -> dict[str, Any]:
    best, sent = planner.best_time(compiled), compiled.collectives
    return {
        "fits": True,
        "memory": asdict(compiled.memory),
        "collectives": None if sent is None else [asdict(one) for one in sent],
        "kernels": compiled.kernels,
        "widest": compiled.widest,
        "flops": {"model": flops, "step": compiled.flops},
        "roofline": best and {**asdict(best), "seconds": best.seconds, "bound": best.bound},
        "formula": FORMULA,
        "compile": {
            "trace_seconds": compiled.traced,
            "seconds": compiled.compiled,
            "cpu_seconds": compiled.cpu,
        },
    }


def _largest(planner: Planner, setup: Setup) -> dict[str, Any]:
    """Search for the largest `data.batch_size` that fits, and the next one, which does not.

    Batch sizes are tried instead of rows, since packing decides how many rows a batch has.
    """
    step = row_divisor(setup.mesh, setup.config.train.accumulate)
    tried: dict[int, tuple[int, int | None]] = {}

    def fits(batch_size: int) -> int | None:
        other, now = planner.set_up((f"data.batch_size={batch_size}",))
        outcome = planner.outcome(other, now)
        peak = outcome.memory.peak if isinstance(outcome, Compiled) else None
        tried[batch_size] = other.layout.rows, peak
        return peak

    most, refused = largest_batch(fits, step, setup.config.data.batch_size, planner.room())
    rows, peak = tried.get(most, (0, None))
    return {"batch_size": most, "rows": rows, "peak": peak, "refused_batch_size": refused}


def devices_of(topology: Topology | None, count: int | None, slices: int) -> Sequence:
    """Return the devices to compile for: TPU slices of the compiler's, or this machine's."""
    if topology is None:
        available = jax.devices()
        needed = len(available) if count is None else count
        if needed > len(available):
            raise UserError(
                f"--devices: {needed} are asked for, and this machine has {len(available)}.",
                f"Ask for at most {len(available)}.",
            )
        return available[:needed]
    options: dict[str, Any] = {}
    if topology.chip.name == "v4":
        options["chip_config_name"] = "megacore"  # both cores are one device, as on hardware
    if topology.chips == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    if slices > 1:
        options["num_slices"] = slices
    slice_devices = topologies.get_topology_desc(
        platform="tpu", topology_name=topology.name, **options
    ).devices
    assert len(slice_devices) == slices * topology.devices, (len(slice_devices), topology)
    return slice_devices


def main(source: TextIO, sink: TextIO) -> None:
    """Answer one request."""

    def say(**line: Any) -> None:
        print(json.dumps(line), file=sink, flush=True)

    request = json.load(source)
    topology = parse_topology(request["topology"]) if request["topology"] else None
    config = parse_config(request["config"])
    try:
        with ExitStack() as stack:
            say(doing="reading the data")
            weights = has_weights(config.model.checkpoint)
            config, note = stack.enter_context(with_tokenizer(config))
            config = make_choices(config, EscapingConsole(quiet=True))
            devices = devices_of(topology, request["devices"], config.mesh.slices)
            planner = Planner(config, devices, weights, lambda message: say(doing=message))
            say(plan=make_plan(planner, topology, request["largest_batch"]) | {"note": note})
    except UserError as error:
        say(error=[error.message, error.hint])


if __name__ == "__main__":
    main(sys.stdin, sys.stdout)
