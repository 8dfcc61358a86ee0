"""The planning story for devices that need not be there: what a step takes of each, and if it fits.

The work is done in a process of its own (`plan_child`); here it is asked, watched and told.
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
from jaxft.errors import UserError
from jaxft.numbers import count, share, size

DOES_NOT_FIT = 3  # the exit code of `jaxft plan` where the compiler refuses the step
INSTALL = "pip install 'jaxft[plan]'"
# libtpu looks for no TPU and no metadata server, and lets other processes load it too.
TPU_SETTINGS = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}


@dataclass(frozen=True)
class PodPlan:
    """What a step takes of each device.

    Attributes:
        told: all of it as plain data: `fits`, `memory`, `collectives`, `flops`, `roofline`,
            `compile`, `mesh`, `batch`; where it does not fit `needs` and `tried`; and
            `largest_batch` where that was asked for.
    """

    told: dict[str, Any]

    @property
    def fits(self) -> bool:
        """Whether the compiler takes the step."""
        return self.told["fits"]

    def to_json(self) -> str:
        """All of it as JSON."""
        return json.dumps(self.told, indent=2)

    def render(self) -> RenderableType:
        """All of it as tables for a terminal."""
        told = self.told
        lines = [_where(told), *_auto(told)]
        if told["note"]:
            lines.append(f"note       {told['note']}")
        if not self.fits:
            lines.append(_refusal(told))
            return Group(Text("\n".join(lines)), _tried_table(told), *_largest(told))
        return Group(
            Text("\n".join(lines)),
            _memory_table(told),
            _sent_table(told["collectives"]),
            Text("\n".join(_costs(told))),
            *_largest(told),
        )


def plan_on(
    config: Config,
    *,
    topology: Topology | None = None,
    devices: int | None = None,
    largest_batch: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> PodPlan:
    """Compile a run's train step for devices that need not be there, and say what it takes.

    Args:
        config: the run; of its checkpoint the config.json is enough.
        topology: the TPU slice; None for the devices of this machine.
        devices: how many of those; a CPU counts as so many.
        largest_batch: find the largest batch that fits, too.
        tell: is told what goes on.

    Raises:
        UserError: there is no compiler for TPUs here; or whatever would stop the run before its
            first step.
    """
    if topology is not None:
        _check_compiler()
    asked = {
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
            return _listen(child, asked, tell, noise)
        finally:
            child.kill()  # it has answered, or nobody waits for it any more


def _check_compiler() -> None:
    if find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ:
        raise UserError(
            "--topology: the compiler for TPUs (libtpu) is not installed.",
            f"{INSTALL} brings it, on Linux x86-64; it needs no TPU.",
        )


def _environment(topology: Topology | None, devices: int | None) -> dict[str, str]:
    """What the child runs under; of this machine's CPU it sees as many devices as are asked."""
    if topology is not None:
        return os.environ | TPU_SETTINGS
    flags = os.environ.get("XLA_FLAGS", "")
    if devices is not None:
        flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", flags)
        flags += f" --xla_force_host_platform_device_count={devices}"
    return os.environ | {"XLA_FLAGS": flags}


def _listen(
    child: subprocess.Popen, asked: dict[str, Any], tell: Callable[[str], None], noise: IO[str]
) -> PodPlan:
    """What the child answers."""
    assert child.stdin is not None  # both are pipes
    assert child.stdout is not None
    with child.stdin:
        json.dump(asked, child.stdin)
    for line in child.stdout:
        if not line.startswith("{"):
            continue  # a library that prints
        said = json.loads(line)
        if "doing" in said:
            tell(said["doing"])
        elif "error" in said:
            raise UserError(*said["error"])
        else:
            return PodPlan(said["plan"])
    code = child.wait()
    noise.seek(0)
    last = [line.strip() for line in noise.read().splitlines() if line.strip()]
    named = [line for line in last if re.match(r"F\d{4} |\w*Error\b", line)]
    raise UserError(
        f"The compiler ended without an answer (exit code {code}): {(named or last or ['-'])[-1]}"
    )


def _where(told: dict[str, Any]) -> str:
    mesh, batch = told["mesh"], told["batch"]
    name = told["topology"] or (told["chip"] or {}).get("name") or "CPU"
    return (
        f"devices    {told['devices']} of {name}, mesh data x fsdp x tensor = "
        f"{mesh['data']}x{mesh['fsdp']}x{mesh['tensor']}\n"
        f"batch      {batch['batch_size']} examples in {batch['rows']} rows of "
        f"{batch['row_length']}, in {batch['accumulate']} part(s); {told['compute']['dtype']}, "
        f"remat {told['compute']['remat']}\n"
        f"parameters {count(told['parameters'])}, of which {count(told['trainable'])} train"
    )


def _auto(told: dict[str, Any]) -> list[str]:
    """Why what was left to jaxft is as it is."""
    return [f"auto       {line}" for line in told.get("why", ())]


def _refusal(told: dict[str, Any]) -> str:
    needs, room = told["needs"], told["room"]
    takes = size(needs) if needs else "more than there is"
    return f"memory     does not fit: a step takes {takes} of a device's {size(room or 0)}"


def _memory_table(told: dict[str, Any]) -> Table:
    memory, room = told["memory"], told["room"]
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
        table.add_row("there is", size(room), "")
    return table


def _sent_table(collectives: list[dict[str, Any]]) -> Table:
    table = _table("sent between devices in a step", ["", "axis", "times", "bytes a device"])
    for one in collectives:
        table.add_row(one["kind"], one["axes"], f"{one['count']:,}", size(one["sent"]))
    if not collectives:
        table.add_row("nothing", "", "", "")
    return table


def _costs(told: dict[str, Any]) -> list[str]:
    flops, compiled, best = told["flops"], told["compile"], told["roofline"]
    again = flops["step"] / flops["model"] - 1
    lines = [
        f"FLOPs      {count(flops['model'], 'FLOP')} a step of the model; "
        f"{count(flops['step'], 'FLOP')} are run"
        + (f", {share(again)} of it again" if again > 0.005 else "")
    ]
    if best:
        parts = ", ".join(f"{name} {_time(best[name])}" for name in ("compute", "memory", "links"))
        lines += [
            f"time       {_time(best['seconds'])} a step at least, bound by {best['bound']} "
            f"({parts})",
            f"           {told['formula']}",
        ]
    lines.append(
        f"compiled   in {compiled['seconds']:.0f} s ({compiled['cpu_seconds']:.0f} CPU seconds), "
        f"after {compiled['trace_seconds']:.0f} s of tracing"
    )
    return lines


def _time(seconds: float) -> str:
    return f"{1000 * seconds:,.1f} ms" if seconds < 10 else f"{seconds:,.1f} s"


def _tried_table(told: dict[str, Any]) -> Table:
    """What was tried to make it fit, best first."""
    table = _table("what fits instead", ["change", "fits", "of a device", "an example"])
    for one in told["tried"]:
        table.add_row(
            " ".join(one["change"]),
            "yes" if one["fits"] else "no",
            size(one["needs"]) if one["needs"] else "",
            _time(one["seconds"]) if one["seconds"] else "",
        )
    return table


def _largest(told: dict[str, Any]) -> list[Text]:
    found = told.get("largest_batch")
    if not found:
        return []
    if not found["batch_size"]:
        return [Text("largest    no batch fits")]
    line = f"largest    {found['batch_size']} examples ({found['rows']} rows) fit, "
    line += f"with {size(found['peak'])} at the peak"
    if found["refused_batch_size"]:
        line += f"; {found['refused_batch_size']} are refused"
    return [Text(line)]


def _table(title: str, columns: list[str]) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number == 0 or name == "axis" else "right")
    return table
