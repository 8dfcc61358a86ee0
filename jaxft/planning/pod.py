"""The planning story for absent devices: memory and time of a step on each, and whether it fits.

A child process (`jaxft.planning.child`) compiles; this module starts it and shows its results.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import IO, Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from jaxft.config.load import Config
from jaxft.device.chips import Topology
from jaxft.device.libtpu import libtpu_mismatch
from jaxft.device.mesh import spelled
from jaxft.errors import UserError
from jaxft.numbers import count, share, size

DOES_NOT_FIT = 3  # the exit code of `jaxft plan` where the compiler refuses the step
INSTALL = "pip install 'jaxft[plan]'"
# With these libtpu looks for no TPU and no metadata server, and other processes can load it too.
TPU_SETTINGS = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}


@dataclass(frozen=True)
class PodPlan:
    """Plan of a step on given devices.

    Attributes:
        facts: JSON data: `fits`, `memory`, `attention` (tower -> what it is computed `by` and the
            `reason`), `collectives` and `widest`, the shape of most elements (None where the
            compiler cannot print its program), `flops`, `roofline`, `compile`, `mesh`, `slices`,
            `batch`, `mismatch` (of libtpu and jax), `needs` and `tried`, `largest_batch`.
    """

    facts: dict[str, Any]

    @property
    def fits(self) -> bool:
        """True if the step fits, according to the compiler."""
        return self.facts["fits"]

    def to_json(self) -> str:
        """Format the plan as JSON."""
        return json.dumps(self.facts, indent=2)

    def render(self) -> RenderableType:
        """Format the plan as tables for a terminal."""
        facts = self.facts
        lines = [_target(facts), *_auto(facts)]
        lines += [f"note       {facts[name]}" for name in ("note", "mismatch") if facts[name]]
        if not self.fits:
            lines.append(_refusal(facts))
            return Group(Text("\n".join(lines)), _tried_table(facts), *_largest(facts))
        return Group(
            Text("\n".join(lines)),
            _memory_table(facts),
            _sent_table(facts["collectives"]),
            Text("\n".join(_costs(facts))),
            *_largest(facts),
        )


def plan_on(
    config: Config,
    *,
    topology: Topology | None = None,
    devices: int | None = None,
    largest_batch: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> PodPlan:
    """Compile a run's train step for devices that need not be present.

    Args:
        config: the run; the config.json of its checkpoint is enough.
        topology: the TPU slice; None for the devices of this machine.
        devices: the number of those; a CPU is divided into as many.
        largest_batch: also search for the largest batch that fits.
        tell: called with progress messages.

    Raises:
        UserError: the TPU compiler is not installed; or any error that would stop the run before
            its first step.
    """
    if topology is not None:
        _check_compiler()
    request = {
        "config": config.dump(),
        "topology": topology.name if topology else None,
        "devices": devices,
        "largest_batch": largest_batch,
    }
    with (
        tempfile.TemporaryFile("w+") as noise,
        subprocess.Popen(
            [sys.executable, "-m", "jaxft.planning.child"],
            env=_environment(topology, devices),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=noise,
            text=True,
        ) as child,
    ):
        try:
            mismatch = None if topology is None else _mismatch()
            return _ask(child, request, mismatch, tell, noise)
        finally:
            child.kill()  # after its answer, or after an error here


def _check_compiler() -> None:
    if find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ:
        raise UserError(
            "--topology: the compiler for TPUs (libtpu) is not installed.",
            f"{INSTALL} brings it, on Linux x86-64; it needs no TPU.",
        )


def _mismatch() -> str | None:
    """Return the sentence on a libtpu that does not belong to jax; None where it does."""
    if "TPU_LIBRARY_PATH" in os.environ:
        return None  # the library is not the package's
    mismatch = libtpu_mismatch()
    return mismatch and " ".join(mismatch)


def _environment(topology: Topology | None, devices: int | None) -> dict[str, str]:
    """Return the child's environment, in which a CPU is divided into `devices`."""
    if topology is not None:
        return os.environ | TPU_SETTINGS
    flags = os.environ.get("XLA_FLAGS", "")
    if devices is not None:
        flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", flags)
        flags += f" --xla_force_host_platform_device_count={devices}"
    return os.environ | {"XLA_FLAGS": flags}


def _ask(
    child: subprocess.Popen,
    request: dict[str, Any],
    mismatch: str | None,
    tell: Callable[[str], None],
    noise: IO[str],
) -> PodPlan:
    """Send the request to the child and wait for its answer."""
    assert child.stdin is not None  # both are pipes
    assert child.stdout is not None
    with child.stdin:
        json.dump(request, child.stdin)
    for line in child.stdout:
        if not line.startswith("{"):
            continue  # printed by a library
        answer = json.loads(line)
        if "doing" in answer:
            tell(answer["doing"])
        elif "error" in answer:
            raise UserError(*answer["error"])
        else:
            return PodPlan(answer["plan"] | {"mismatch": mismatch})
    code = child.wait()
    noise.seek(0)
    last = [line.strip() for line in noise.read().splitlines() if line.strip()]
    named = [line for line in last if re.match(r"F\d{4} |\w*Error\b", line)]
    raise UserError(
        f"The compiler ended without a result (exit code {code}): {(named or last or ['-'])[-1]}",
        mismatch or "",
    )


def _target(facts: dict[str, Any]) -> str:
    batch, (axes, sizes) = facts["batch"], spelled(facts["mesh"])
    name = facts["topology"] or (facts["chip"] or {}).get("name") or "CPU"
    name = (f"{facts['slices']} x " if facts["slices"] > 1 else "") + name
    return (
        f"devices    {facts['devices']} of {name}, mesh {axes} = {sizes}\n"
        f"batch      {batch['batch_size']} examples in {batch['rows']} rows of "
        f"{batch['row_length']}, in {batch['accumulate']} part(s); {facts['compute']['dtype']}, "
        f"remat {facts['compute']['remat']}\n"
        f"parameters {count(facts['parameters'])}, of which {count(facts['trainable'])} train"
    )


def _auto(facts: dict[str, Any]) -> list[str]:
    """List the reasons for settings that the config leaves open."""
    return [f"auto       {line}" for line in facts.get("why", ())]


def _refusal(facts: dict[str, Any]) -> str:
    takes = size(facts["needs"]) if facts["needs"] else "more than is available"
    return f"memory     does not fit: a step takes {takes} of a device's {size(facts['room'] or 0)}"


def _memory_table(facts: dict[str, Any]) -> Table:
    memory, room = facts["memory"], facts["room"]
    table = _table("memory of a device", ["", "bytes", "share"])
    rows = {
        "weights": memory["weights"],
        "optimizer": memory["optimizer"],
        "activations, gradients": memory["activations"],
        "peak": memory["peak"],
    }
    for name, nbytes in rows.items():
        table.add_row(name, size(nbytes), share(nbytes / room) if room else "")
    if room:
        table.add_row("available", size(room), "")
    if memory["host"]:
        table.add_row("offloaded to its host", size(memory["host"]), "")
    return table


def _sent_table(collectives: list[dict[str, Any]] | None) -> RenderableType:
    if collectives is None:
        return Text("sent       not available: the compiler cannot print its program")
    table = _table("sent between devices in a step", ["", "axis", "times", "bytes a device"])
    for one in collectives:
        axes = one["axes"] + (", between slices" if one["between_slices"] else "")
        table.add_row(one["kind"], axes, f"{one['count']:,}", size(one["sent"]))
    if not collectives:
        table.add_row("nothing", "", "", "")
    return table


def _costs(facts: dict[str, Any]) -> list[str]:
    flops, compiled, best = facts["flops"], facts["compile"], facts["roofline"]
    again = flops["step"] / flops["model"] - 1
    lines = [
        f"FLOPs      {count(flops['model'], 'FLOP')} a step of the model; "
        f"{count(flops['step'], 'FLOP')} are run"
        + (f", {share(again)} more for recomputation" if again > 0.005 else "")
    ]
    if best:
        parts = ", ".join(
            f"{name} {'not available' if best[name] is None else _time(best[name])}"
            for name in ("compute", "memory", "links")
        )
        lines += [
            f"time       {_time(best['seconds'])} a step at least, bound by {best['bound']} "
            f"({parts})",
            f"           {facts['formula']}",
        ]
    lines.append(
        f"compiled   in {compiled['seconds']:.0f} s ({compiled['cpu_seconds']:.0f} CPU seconds), "
        f"after {compiled['trace_seconds']:.0f} s of tracing"
    )
    return lines


def _time(seconds: float) -> str:
    return f"{1000 * seconds:,.1f} ms" if seconds < 10 else f"{seconds:,.1f} s"


def _tried_table(facts: dict[str, Any]) -> Table:
    """Make a table of the changes that were tried, best first."""
    table = _table("what fits instead", ["change", "fits", "of a device", "an example"])
    for one in facts["tried"]:
        table.add_row(
            " ".join(one["change"]),
            "yes" if one["fits"] else "no",
            size(one["needs"]) if one["needs"] else "",
            _time(one["seconds"]) if one["seconds"] else "",
        )
    return table


def _largest(facts: dict[str, Any]) -> list[Text]:
    largest = facts.get("largest_batch")
    if not largest:
        return []
    if not largest["batch_size"]:
        return [Text("largest    no batch fits")]
    line = f"largest    {largest['batch_size']} examples ({largest['rows']} rows) fit, "
    line += f"with {size(largest['peak'])} at the peak"
    if largest["refused_batch_size"]:
        line += f"; {largest['refused_batch_size']} are refused"
    return [Text(line)]


def _table(title: str, columns: list[str]) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number == 0 or name == "axis" else "right")
    return table
