"""A range of rates in one short run: the rate rises by a factor a step until the loss blows up."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from jaxft.config.load import Config
from jaxft.data.batching.loader import batches
from jaxft.device.mesh import batch_sharding, place_batch
from jaxft.device.process import environment
from jaxft.engine.setup import PhaseSetup
from jaxft.errors import UserError
from jaxft.report.events import EventLog
from jaxft.report.page.study import write_study_page
from jaxft.report.terminal.console import EscapingConsole
from jaxft.report.terminal.progress import Progress
from jaxft.report.terminal.study import ranges_table
from jaxft.storage.files import place
from jaxft.studies.folder import check_one_process, check_study, create_study
from jaxft.studies.members import make_members
from jaxft.studies.part import Part
from jaxft.studies.phase import Programs, begin, phases_of
from jaxft.studies.study import Study, make_parts

LOWEST, HIGHEST, STEPS = 1e-7, 1e-1, 100  # rates of `optimizer.lr`, and steps between them
KEPT = 0.9  # of the smoothed loss, from step to step
BLOWN_UP = 2.0  # the smoothed loss over its lowest, at which there is nothing more to see
SETTLED = 10  # steps before which nothing is judged
FALLEN = 0.1  # the range begins where this share of the fall is behind
BELOW_LOWEST = 3.0  # and ends so far below the rate at which the loss is lowest


def lr_range(
    config: Config,
    vary: Mapping[str, Sequence[Any]],
    *,
    name: str | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    command: Sequence[str] = (),
) -> Study:
    """Train for a hundred steps at rates from 1e-7 to 1e-1 and suggest a range of them.

    Args:
        config: the run; groups keep their rates relative to `optimizer.lr`.
        vary: config key -> its values, where several runs are to be looked at; may be empty.
        name: of the folder in `run.dir`; the run's name with `-lr-range` when None.
        overwrite: replace the study of this name.
        quiet: print nothing.
        command: what was typed, for `study.json`.

    Returns:
        The study; `about["ranges"]` has each member's curve and range.

    Raises:
        UserError: as `study`; or a config with phases, a rate of 0, or a varied rate.

    Source: Smith (2017), https://arxiv.org/abs/1506.01186.
    """
    check_one_process()
    console = EscapingConsole(quiet=quiet)
    name = name or f"{config.run.name}-lr-range"
    _check(config, vary)
    members = make_members(config, vary)
    check_study(name, config.run.dir, resume=False, overwrite=overwrite)
    parts, _ = make_parts(members)
    about = {
        **environment(),
        "command": list(command),
        "metric": "loss",
        "vary": {key: list(values) for key, values in vary.items()},
        "config": config.dump(),
        "members": [{"index": m.index, "values": dict(m.values)} for m in members],
    }
    ranges: list[dict[str, Any]] = []
    with create_study(name, config.run.dir, overwrite=overwrite, facts=about) as folder:
        path = place(folder.path)
        with (
            EventLog(path, tensorboard=False) as log,
            Progress(STEPS * len(parts), 0, console, quiet) as progress,
        ):
            for part in parts:
                ranges += _find(part, log, progress)
        folder.update(state="finished", ranges=ranges)
        write_study_page(path)
        folder.discard_old()
    console.print(ranges_table(ranges, about["members"]))
    return Study(path)


def _check(config: Config, vary: Mapping[str, Sequence[Any]]) -> None:
    if config.phases:
        raise UserError("--lr-range has no phases.", "Leave them out: add phases=[].")
    if config.optimizer.lr == 0:
        raise UserError("optimizer.lr is 0, so that no rate can rise with it.")
    for key in vary:
        if key == "optimizer.lr" or key.startswith("schedule"):
            raise UserError(f"--vary {key}: --lr-range has rates of its own.", "Leave it out.")


def _find(part: Part, log: EventLog, progress: Progress) -> list[dict[str, Any]]:
    """Each member's curve and range."""
    rates = rising_rates()
    base = part.setups[0].config.optimizer.lr
    phases = [replace(one, rates=_of_groups(one, base, rates)) for one in phases_of(part.setups, 0)]
    stage, states, _ = begin(part.setups, phases, Programs())
    setup = stage.setup
    losses: list[np.ndarray] = []
    progress.doing("compiling the step")
    examples = setup.splits["train"].examples
    for step, batch in enumerate(
        batches(setup.plan, examples.collate, 0, STEPS, augment=examples.random)
    ):
        placed = place_batch(batch, batch_sharding(setup.mesh))
        states, metrics = stage.step(states, stage.frozen, placed, stage.inputs(step))
        loss = np.asarray(jax.device_get(metrics["loss"]), float)
        losses.append(loss)
        for member, value in zip(part.members, loss, strict=True):
            told = {"member": member.index, "loss": float(value), "rate": float(rates[step])}
            log.train(step + 1, told)
        mean = float(np.mean(loss[np.isfinite(loss)])) if np.isfinite(loss).any() else math.nan
        progress.update(part.index * STEPS + step + 1, {"loss": mean, "rates": {"": rates[step]}})
        columns = np.array(losses).T  # [K, steps]
        if all(len(before_blowing_up(column)) <= step for column in columns):
            break
    return [
        {"member": member.index, **range_of(rates[: len(losses)], column)}
        for member, column in zip(part.members, np.array(losses).T, strict=True)
    ]


def rising_rates() -> np.ndarray:
    """The rate of each step: `[STEPS]`, each the same factor above the one before."""
    return np.geomspace(LOWEST, HIGHEST, STEPS)


def _of_groups(now: PhaseSetup, base: float, rates: np.ndarray) -> np.ndarray:
    """The rates of each group, those of `optimizer.lr` being `rates`: `[STEPS + 1, groups]`."""
    relative = np.array([group.peak_rate / base for group in now.table.training_groups])
    table = np.concatenate([rates, rates[-1:]])[:, None] * relative
    return table.astype(np.float32)


def smoothed(losses: np.ndarray) -> np.ndarray:
    """The exponential mean of a curve, unbiased at its start: `[steps]`."""
    mean, weight, out = 0.0, 0.0, []
    for loss in losses:
        mean, weight = KEPT * mean + (1 - KEPT) * loss, KEPT * weight + (1 - KEPT)
        out.append(mean / weight)
    return np.array(out)


def before_blowing_up(losses: np.ndarray) -> np.ndarray:
    """The smoothed curve up to where the loss is not finite, or far above its lowest."""
    bad = np.flatnonzero(~np.isfinite(losses))
    even = smoothed(losses[: bad[0]] if len(bad) else losses)
    lowest = np.minimum.accumulate(even)
    high = np.flatnonzero((even > BLOWN_UP * lowest) & (np.arange(len(even)) >= SETTLED))
    return even[: high[0]] if len(high) else even


def range_of(rates: np.ndarray, losses: np.ndarray) -> dict[str, Any]:
    """The range that a curve suggests.

    Args:
        rates: `[steps]`, rising.
        losses: `[steps]`.

    Returns:
        `rates`, `losses` (None where not finite), `smoothed` up to where it blew up, and `low`
        and `high`: None where the loss never fell.
    """
    even = before_blowing_up(losses)
    low = high = None
    # The mean of few losses is nothing to fall from.
    if len(even) > SETTLED:
        start = even[SETTLED - 1]
        place = int(np.argmin(even))
        if place >= SETTLED and even[place] < start:
            begun = np.flatnonzero(even <= start - FALLEN * (start - even[place]))
            begun = begun[begun >= SETTLED]
            high = float(rates[place]) / BELOW_LOWEST
            low = min(float(rates[begun[0]]), high / BELOW_LOWEST)
    return {
        "rates": rates.tolist(),
        "losses": [float(loss) if math.isfinite(loss) else None for loss in losses],
        "smoothed": even.tolist(),
        "low": low,
        "high": high,
    }
