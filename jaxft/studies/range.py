"""Learning rate range test: the rate rises by a factor each step until the loss blows up."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from jaxft.config.load import Config
from jaxft.device.mesh import batch_sharding, place_batch
from jaxft.engine.setup import PhaseSetup
from jaxft.errors import UserError
from jaxft.report.events import EventLog
from jaxft.report.page.study import write_study_page
from jaxft.report.terminal.console import EscapingConsole
from jaxft.report.terminal.progress import Progress
from jaxft.report.terminal.study import ranges_table
from jaxft.storage.files import place
from jaxft.studies.folder import check_one_process, check_study, create_study, study_facts
from jaxft.studies.members import Member, make_members, solo_key
from jaxft.studies.part import Part
from jaxft.studies.parts import make_parts
from jaxft.studies.program.phase import Programs, begin, phases_of
from jaxft.studies.study import Study
from jaxft.training.batches import training_batches

LOWEST, HIGHEST, STEPS = 1e-7, 1e-1, 100  # rates of `optimizer.lr`, and steps between them
DECAY = 0.9  # of the exponential mean of the loss
BLOWN_UP = 2.0  # a curve ends where the mean is this factor above its minimum
WARM_UP = 10  # steps that are left out of every judgment
FALLEN = 0.1  # the range begins after this share of the loss's fall
BELOW_LOWEST = 3.0  # the range ends at the rate of the lowest loss divided by this


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
        vary: config key -> its values, to compare several runs; may be empty.
        name: of the folder in `run.dir`; None for the run's name with `-lr-range`.
        overwrite: replace the study of this name.
        quiet: print nothing.
        command: the command line, for `study.json`.

    Returns:
        The study; `about["ranges"]` has each member's curve and range.

    Raises:
        UserError: see `study`; or a config with phases, a rate of 0, or a varied rate.

    Source: Smith (2017), https://arxiv.org/abs/1506.01186.
    """
    check_one_process()
    console = EscapingConsole(quiet=quiet)
    name = name or f"{config.run.name}-lr-range"
    _check(config, vary)
    members = make_members(config, vary)
    check_study(name, config.run.dir, resume=False, overwrite=overwrite)
    _check_members(members)
    parts, _ = make_parts(members)
    about = study_facts(config, vary, members, "loss", command)
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
        raise UserError("--lr-range does not support phases.", "Remove them: add phases=[].")
    if config.optimizer.lr == 0:
        raise UserError("optimizer.lr is 0, so --lr-range cannot scale it.", "Set it above 0.")
    for key in vary:
        if key == "optimizer.lr" or key.startswith("schedule"):
            raise UserError(f"--vary {key}: --lr-range sets the rates itself.", "Remove the key.")


def _check_members(members: Sequence[Member]) -> None:
    for one in members:
        if (key := solo_key(one.config)) is not None:
            raise UserError(
                f"--lr-range: a run with {key} decides something while it trains.",
                "Search without it: the range is that of a run which trains the same parameters.",
            )


def _find(part: Part, log: EventLog, progress: Progress) -> list[dict[str, Any]]:
    """Train a part's members; return each one's curve and range."""
    rates = rising_rates()
    base = part.setups[0].config.optimizer.lr
    phases = [replace(one, rates=_of_groups(one, base, rates)) for one in phases_of(part.setups, 0)]
    stage, states, _ = begin(part.setups, phases, Programs())
    setup = stage.setup
    losses: list[np.ndarray] = []
    progress.doing("compiling the step")
    collate = setup.splits["train"].examples.collate
    for step, batch in enumerate(training_batches(setup, collate, 0, STEPS)):
        placed = place_batch(batch, batch_sharding(setup.mesh))
        states, metrics = stage.step(states, stage.frozen, placed, stage.inputs(step))
        loss = np.asarray(jax.device_get(metrics["loss"]), float)
        losses.append(loss)
        for member, value in zip(part.members, loss, strict=True):
            point = {"member": member.index, "loss": float(value), "rate": float(rates[step])}
            log.train(step + 1, point)
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
    """Return the rate of each step: `[STEPS]`, in geometric progression."""
    return np.geomspace(LOWEST, HIGHEST, STEPS)


def _of_groups(now: PhaseSetup, base: float, rates: np.ndarray) -> np.ndarray:
    """Compute the rates of each group from those of `optimizer.lr`: `[STEPS + 1, groups]`."""
    relative = np.array([group.peak_rate / base for group in now.table.training_groups])
    table = np.concatenate([rates, rates[-1:]])[:, None] * relative
    return table.astype(np.float32)


def smoothed(losses: np.ndarray) -> np.ndarray:
    """Compute the exponential mean of a curve, unbiased at its start: `[steps]`."""
    mean, weight, out = 0.0, 0.0, []
    for loss in losses:
        mean, weight = DECAY * mean + (1 - DECAY) * loss, DECAY * weight + (1 - DECAY)
        out.append(mean / weight)
    return np.array(out)


def before_blowing_up(losses: np.ndarray) -> np.ndarray:
    """Cut the smoothed curve where the loss is not finite or far above its lowest."""
    bad = np.flatnonzero(~np.isfinite(losses))
    even = smoothed(losses[: bad[0]] if len(bad) else losses)
    lowest = np.minimum.accumulate(even)
    high = np.flatnonzero((even > BLOWN_UP * lowest) & (np.arange(len(even)) >= WARM_UP))
    return even[: high[0]] if len(high) else even


def range_of(rates: np.ndarray, losses: np.ndarray) -> dict[str, Any]:
    """Compute the range that a curve suggests.

    Args:
        rates: `[steps]`, rising.
        losses: `[steps]`.

    Returns:
        `rates`, `losses` (None where not finite), `smoothed` up to where it blew up, and the range
        `low` to `high`: None where the loss never fell.
    """
    even = before_blowing_up(losses)
    low = high = None
    # The mean of a few losses is too noisy to compare with.
    if len(even) > WARM_UP:
        start = even[WARM_UP - 1]
        lowest = int(np.argmin(even))
        if lowest >= WARM_UP and even[lowest] < start:
            begun = np.flatnonzero(even <= start - FALLEN * (start - even[lowest]))
            begun = begun[begun >= WARM_UP]
            high = float(rates[lowest]) / BELOW_LOWEST
            low = min(float(rates[begun[0]]), high / BELOW_LOWEST)
    return {
        "rates": rates.tolist(),
        "losses": [float(loss) if math.isfinite(loss) else None for loss in losses],
        "smoothed": even.tolist(),
        "low": low,
        "high": high,
    }
