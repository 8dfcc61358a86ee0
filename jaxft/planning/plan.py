"""The planning story: groups, rates and cost of a run, with nothing trained."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from jaxft.analysis.layer_criteria.choices import make_choices
from jaxft.config.load import Config, require_config
from jaxft.engine.cost import LOSS, lowest_block_flops, segment_flops
from jaxft.engine.initial_state import abstract_anchor, abstract_state
from jaxft.engine.remat import phase_setups, widest
from jaxft.engine.setup import build
from jaxft.engine.trunk_plan import plan_trunks
from jaxft.numbers import count, counted, share, size
from jaxft.report.terminal.console import EscapingConsole
from jaxft.report.terminal.tables import data_table, depth_table, group_table, segment_table
from jaxft.training.metadata import run_json, table_json
from jaxft.training.rates.heavy_tail import check_matrices_train
from jaxft.training.sampling.program import dearest, sampling_line

COPIES = {"average": "their moving average", "origin": "the anchor of L2-SP"}


@dataclass(frozen=True)
class Plan:
    """Plan of a run: data, groups, rates, FLOPs and memory.

    Attributes:
        about: `run.json` as the run would write it: data, layout, resolved durations, mesh.
        table: `table.json`: groups, parameters, and the FLOPs of a step.
        segments: FLOPs of the step in each segment of the model, see `cost.segment_flops`.
        lowest: FLOPs of a step that trains only the lowest block.
        copies: bytes of further copies of the parameters: `average`, and `origin`, the anchor.
        reinit: the number of re-initialized blocks.
        sampling: how blocks are sampled, in a line; empty where all train.
    """

    about: dict[str, Any]
    table: dict[str, Any]
    segments: list[dict[str, Any]]
    lowest: int
    copies: dict[str, int]
    reinit: int
    sampling: str

    @property
    def flops(self) -> dict[str, int]:
        """Matmul FLOPs of a step: `forward`, `step`, and `full` with nothing frozen."""
        return self.table["flops"]

    @property
    def saved(self) -> float:
        """Share of a full step's FLOPs that freezing saves."""
        return 1 - self.flops["step"] / self.flops["full"]

    def to_json(self) -> str:
        """Format the plan as JSON."""
        return json.dumps({**self.about, **self.table, **self._derived()}, indent=2)

    def _derived(self) -> dict[str, Any]:
        return {
            "saved": self.saved,
            "segments": self.segments,
            "copies": self.copies,
            "reinit": self.reinit,
            "lowest_block_alone": self.lowest / self.flops["full"],
        }

    def render(self) -> RenderableType:
        """Format the plan as tables for a terminal."""
        layout, resolved = self.about["layout"], self.about["resolved"]
        moments = sum(group["optimizer_bytes"] for group in self.table["groups"])
        phases = self.about["phases"]
        lines = [
            f"phase {number:<4} steps {phase['start']:,} to {phase['stop']:,}: "
            f"{count(phase['parameters'])} parameters train, depths {phase['depths'][0]} to "
            f"{phase['depths'][1]}"
            for number, phase in enumerate(phases, 1)
            if len(phases) > 1
        ]
        lines += [
            f"batch      {_batch(layout)}",
            f"length     {counted(resolved['total_steps'], 'step')}, "
            f"{resolved['steps_per_epoch']:,} an epoch; "
            f"scored every {resolved['evaluate_every']:,}, saved every {resolved['save_every']:,}",
            f"a step     {count(self.flops['step'], 'FLOP')}: forward "
            f"{count(self.flops['forward'], 'FLOP')}, nothing frozen "
            f"{count(self.flops['full'], 'FLOP')}, {share(self.saved)} saved",
            f"optimizer  {size(moments)} of moments",
        ]
        copies = [
            f"{size(nbytes)} for {COPIES[name]}" for name, nbytes in self.copies.items() if nbytes
        ]
        if self.reinit:
            blocks = "block" if self.reinit == 1 else f"{self.reinit} blocks"
            lines.append(f"reset      the top {blocks} and the pooler are re-initialized")
        lines += [f"copies     {', '.join(copies)}"] if copies else []
        lines += [f"sampling   {self.sampling}"] if self.sampling else []
        return Group(
            data_table(self.about["data"]),
            group_table(self.table),
            depth_table(self.table),
            segment_table(self.segments, self.flops),
            Text("\n".join([*lines, *self._surprises()])),
        )

    def _surprises(self) -> list[str]:
        """List the facts about a step's cost that surprise people."""
        flops = self.flops
        passing = sum(
            row["input_gradient"]
            for row in self.segments
            if not row["weight_gradient"] and row["segment"] != LOSS
        )
        lines = []
        if flops["cached"] < flops["step"]:
            lines.append(
                f"trunk      with its output cached a step takes {count(flops['cached'], 'FLOP')}, "
                f"{share(flops['cached'] / flops['step'])} of this one"
            )
        if passing:
            lines.append(
                f"passing    {share(passing / flops['step'])} of a step propagates the gradient "
                "through frozen layers, to trained layers below them"
            )
        lines.append(
            f"one block  training only block 0 takes {share(self.lowest / flops['full'])} of a "
            "full step: its gradient comes through every block above it"
        )
        return lines


def _batch(layout: Mapping[str, Any]) -> str:
    """Describe a batch; rows are left out where every example is one."""
    if layout["row_length"] == 1:
        return f"{layout['rows']} examples"
    return (
        f"{layout['rows']} rows of {layout['row_length']} tokens, "
        f"{layout['examples_per_step']:.1f} examples, {share(layout['padding'])} padding"
    )


def plan(config: Config) -> Plan:
    """Plan a run without training it: nothing is compiled or written, and no weight is read.

    Groups with `select` are the exception: their criteria are measured, as when the run starts.

    Raises:
        UserError: any error that would stop the run before its first step.
    """
    require_config(config, "plan")
    config = make_choices(config, EscapingConsole(stderr=True))
    setup = build(config)
    check_matrices_train(setup)
    phases = phase_setups(setup)
    plan_trunks(setup, phases)  # raises the errors that the run would raise
    chosen = widest(phases)
    dear = dearest(setup, phases)[1]
    segments, lowest = segment_flops(setup, dear.table.trainable), lowest_block_flops(setup)
    copies = {
        "average": _float32_bytes(abstract_state(setup, chosen).average or {}),
        "origin": _float32_bytes(abstract_anchor(setup, chosen)),
    }
    return Plan(
        run_json(setup, chosen, ()),
        table_json(setup, chosen),
        segments,
        lowest,
        copies,
        config.model.reinit,
        sampling_line(setup),
    )


def _float32_bytes(leaves: Mapping[str, Any]) -> int:
    """Count the bytes of leaves in float32, over all devices."""
    return 4 * sum(math.prod(leaf.shape) for leaf in leaves.values())
