"""Use of a run's time: the share of each part, and what to change first."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxft.errors import UserError
from jaxft.numbers import count, span
from jaxft.runs.folder import RUN_FILE, open_run

# Parts of a run's time in `run.json`; steps are what is left of the others.
SET_UP, TRUNK, COMPILE, INPUT = "set_up", "trunk", "compile", "input"
EVALUATE, SAVE, STEPS = "evaluate", "save", "steps"
PARTS = {
    STEPS: "steps",
    INPUT: "waiting for batches",
    COMPILE: "compilation",
    EVALUATE: "evaluation",
    SAVE: "saves",
    TRUNK: "frozen trunk",
    SET_UP: "set-up",
}
LEAST = 0.05  # share of the time that is worth a change
MOST_CHANGES = 3
LOW_UTILIZATION = 0.3


@dataclass(frozen=True)
class TimeUse:
    """Use of a run's time.

    Attributes:
        seconds: by part.
        steps: that were trained.
        flops: model FLOPs of these steps, on all devices together.
        peak: bfloat16 FLOPs a second of all devices; None where the chip is not known.
        padding: share of computed positions that hold no token.
        precision: of the activations.
    """

    seconds: Mapping[str, float]
    steps: int
    flops: float
    peak: float | None
    padding: float
    precision: str

    @property
    def total(self) -> float:
        """Return all seconds."""
        return sum(self.seconds.values())

    def share(self, part: str) -> float:
        """Return the share of a part in the time."""
        return self.seconds.get(part, 0.0) / self.total if self.total > 0 else 0.0

    @property
    def flops_per_second(self) -> float | None:
        """Return the model FLOPs a second of the steps; None where none was trained."""
        seconds = self.seconds.get(STEPS, 0.0)
        return self.flops / seconds if self.steps and seconds > 0 else None

    @property
    def utilization(self) -> float | None:
        """Return the share of the chips' peak that the steps reach (MFU)."""
        rate = self.flops_per_second
        return None if rate is None or not self.peak else rate / self.peak

    def to_json(self) -> str:
        """Return the figures and the changes as JSON."""
        return json.dumps(
            {
                **vars(self),
                "seconds": dict(self.seconds),
                "flops_per_second": self.flops_per_second,
                "utilization": self.utilization,
                "changes": changes(self),
            }
        )

    def render(self) -> str:
        """Return the paragraph for a terminal."""
        return paragraph(self)


def time_use(about: Mapping[str, Any]) -> TimeUse | None:
    """Return the use of time that a run's `run.json` records; None where it records none."""
    spent = about.get("time")
    if not isinstance(spent, Mapping):
        return None
    layout, compute = about.get("layout") or {}, about.get("compute") or {}
    return TimeUse(
        seconds={str(part): float(value) for part, value in spent["seconds"].items()},
        steps=int(spent["steps"]),
        flops=float(spent["flops"]),
        peak=spent["peak"],
        padding=float(layout.get("padding") or 0.0),
        precision=str(compute.get("dtype", "")),
    )


def time_use_of(folder: Path) -> TimeUse:
    """Return the use of time of a run folder.

    Raises:
        UserError: it is no run, or one that has not finished or that an earlier version trained.
    """
    use = time_use(open_run(folder).read_json(RUN_FILE))
    if use is None:
        raise UserError(
            f"'{folder}' does not say where its time went.",
            "It is written when a run finishes: jaxft train CONFIG --resume.",
        )
    return use


def paragraph(use: TimeUse) -> str:
    """Return where the time went, how fast the steps were, and what to change first."""
    shares = [
        f"{name} {use.share(part):.0%}"
        for part, name in PARTS.items()
        if use.share(part) >= 0.005 or part == STEPS
    ]
    text = f"Where the time went ({span(use.total)}): {', '.join(shares)}."
    if (rate := use.flops_per_second) is not None:
        text += f" The steps ran at {count(rate, 'FLOP/s')}"
        peak = "" if use.utilization is None else f", {use.utilization:.0%} of the chips' peak"
        text += f"{peak}."
    return " ".join([text, *changes(use)])


def changes(use: TimeUse) -> list[str]:
    """Return a sentence on each of the changes that save the most time, the first three."""
    worth = sorted(_candidates(use), key=lambda one: -one[0])
    return [sentence for share, sentence in worth if share >= LEAST][:MOST_CHANGES]


def _candidates(use: TimeUse) -> Iterator[tuple[float, str]]:
    """Yield the share of the time that each change is about, and its sentence."""
    yield use.share(EVALUATE), "Evaluate less often: train.evaluate_every; or fewer data.eval rows."
    yield use.share(SAVE), "Save less often: checkpoint.every."
    yield use.share(INPUT), "Batches come too slowly: raise data.workers."
    yield (
        use.share(COMPILE) + use.share(SET_UP),
        "Set-up and compilation are paid once a run: they weigh less in a longer one, and the "
        "compile cache has the programs for the next run of these shapes.",
    )
    padded = use.share(STEPS) * use.padding
    yield padded, f"{use.padding:.0%} of the positions hold no token: data.pack or data.row_length."
    low = use.utilization is not None and use.utilization < LOW_UTILIZATION
    if low and use.precision == "float32":
        yield use.share(STEPS), "Compute in bfloat16: train.precision."
    if low:
        yield use.share(STEPS) / 2, "The chips are hardly used: raise data.batch_size."
