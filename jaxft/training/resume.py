"""Start of a run: set up anew, or resumed with what its steps so far were trained with."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from rich.console import Console

from jaxft.analysis.layer_criteria.choices import make_choices, with_choices_of
from jaxft.config.load import Config, changed_values, check_resume, parse_config
from jaxft.data.batching.plans import Layout
from jaxft.device.distributed import from_first
from jaxft.engine.initial_state import abstract_state, ever_trained
from jaxft.engine.length import Length, resolve_length
from jaxft.engine.remat import phase_after, phase_setups
from jaxft.engine.setup import PhaseSetup, Setup, build, with_config
from jaxft.engine.state import TrainState
from jaxft.engine.trained import (
    base_checkpoint,
    best_metric,
    check_base,
    new_at_start,
    open_checkpoints,
    with_best_metric,
    with_checkpoint,
)
from jaxft.errors import UserError
from jaxft.layerwise.phases import Phase
from jaxft.report.events import each_event
from jaxft.runs.checkpoint import Checkpoints
from jaxft.runs.folder import RUN_FILE, RunFolder, check_run, open_run, run_path
from jaxft.runs.history import affects_parameters
from jaxft.training.freezing.decisions import with_decisions
from jaxft.training.patience import patience_is_over, scores_before
from jaxft.training.rates.heavy_tail import check_matrices_train
from jaxft.training.result import RESULT, scored_split
from jaxft.training.sampling.moments import abstract_idle
from jaxft.training.sampling.program import Period, period_before, sampled_run

TABLE, RATES = "table.json", "rates.json"


@dataclass(frozen=True)
class Start:
    """A run that is set up, new or resumed.

    Attributes:
        config: of the run, with the groups that were chosen by a criterion.
        setup: the run.
        changed: config key -> old and new value, of a resumed run.
        finished: the step at which the run has finished, so that nothing is left to train.
    """

    config: Config
    setup: Setup
    changed: dict[str, tuple[Any, Any]]
    finished: int | None


def set_up(config: Config, console: Console, *, resume: bool, overwrite: bool) -> Start:
    """Set up a new run, or the one that is resumed, whose fixed keys must be unchanged."""
    if not check_run(config.run.name, config.run.dir, resume=resume, overwrite=overwrite):
        config = make_choices(config, console)
        setup = build(config)
        check_matrices_train(setup)
        return Start(config, setup, {}, None)
    run = open_run(run_path(config.run.name, config.run.dir))
    earlier = parse_config(run.config(), f"{run.path}/config.yaml")
    config = with_choices_of(earlier, config)
    check_resume(earlier, config)
    about = run.read_json(RUN_FILE)
    layout, facts = Layout(**about["layout"]), about.get("fitted", {})
    based = with_best_metric(with_checkpoint(config, base_checkpoint(run, config)), run)
    setup = build(based, layout=layout, new=new_at_start(run), facts=facts)
    check_matrices_train(setup)
    check_base(run, setup.model.source)
    finished = from_first(lambda: finished_at(run, setup))
    if finished is None and earlier.train.length != config.train.length:
        length = resolve_length(earlier, setup.plan)
        before = with_config(replace(setup, length=length), earlier).phases
        saved = from_first(lambda: latest_of(run, setup) if run.checkpoints.exists() else None)
        check_phases(before, setup.phases, saved or 0)
        check_periods(length, setup.length, saved or 0)
    return Start(config, setup, changed_values(earlier, config), finished)


def check_phases(before: Sequence[Phase], now: Sequence[Phase], step: int) -> None:
    """Raise a UserError where the state of a step does not fit the phases of another length.

    Args:
        before: the phases that the run has been trained in.
        now: those of its new length.
        step: of the state, 0 where there is none.
    """

    def state(phases: Sequence[Phase]) -> tuple[dict[str, str], Collection[str]]:
        phase = next((one for one in phases if step <= one.stop), phases[-1])
        cohorts = {leaf.name: leaf.cohort for leaf in phase.table.leaves if leaf.trainable}
        return cohorts, ever_trained(phases, phase.index)

    if not step or state(before) == state(now):
        return
    pairs = [
        (one, other) for one, other in zip(before, now, strict=False) if one.stop != other.stop
    ]
    ends = (pair for pair in pairs if max(one.stop for one in pair) >= step)
    old, new = next(ends, (before[-1], now[-1]))
    raise UserError(
        f"train.length moves the end of phase {old.index + 1} from step {old.stop:,} to step "
        f"{new.stop:,}, and what the run has at step {step:,} was trained with the old one.",
        "Restore the length, or train an export of this run under another run.name; phases whose "
        "'until' is in steps do not move.",
    )


def check_periods(before: Length, now: Length, step: int) -> None:
    """Raise a UserError where the periods of sampled blocks are others in a run of another length.

    Args:
        before: the durations that the run has been trained with.
        now: those of its new length.
        step: of its state, 0 where there is none.
    """
    if step and before.sample_every != now.sample_every:
        raise UserError(
            f"train.length moves sampling.every from {before.sample_every:,} to "
            f"{now.sample_every:,} steps, and the blocks that train at step {step:,} are those of "
            "the old periods.",
            "Restore the length, or train an export of this run under another run.name; a "
            "sampling.every in steps or epochs does not move.",
        )


def latest_of(run: RunFolder, setup: Setup) -> int | None:
    """Return the step of a run's last checkpoint; None without any."""
    with open_checkpoints(run, setup.config, setup.task, read_only=True) as checkpoints:
        return checkpoints.latest()


def finished_at(run: RunFolder, setup: Setup) -> int | None:
    """Return the step at which a run has finished; None where there are steps or rows left.

    A run that was given more steps, more patience or other test rows has not finished.
    """
    if run.read_json(RUN_FILE)["state"] != "finished" or not (run.path / RESULT).exists():
        return None
    if run.read_json(RESULT)["fingerprint"] != scored_split(setup).source.fingerprint:
        return None
    latest = latest_of(run, setup)
    if latest is None:
        return None
    metric, patience = best_metric(setup.config, setup.task), setup.config.checkpoint.patience
    scores = scores_before(each_event(run.path), metric)
    lower = setup.task.metrics[metric].lower_is_better
    stopped = patience_is_over(scores, patience, lower_is_better=lower)
    return latest if stopped or latest >= setup.length.total_steps else None


def finished_line(start: Start) -> str:
    """Describe the resume of a finished run, which trains nothing and writes nothing."""
    line = f"The run is finished at step {start.finished:,}; nothing was trained."
    ignored = [key for key in start.changed if affects_parameters(key)]
    if ignored:
        line += f" Not applied: {', '.join(ignored)}."
    return f"{line} To continue it, set a longer train.length."


def write_settings(
    run: RunFolder, start: Start, step: int, table: dict[str, Any], rates: dict[str, Any]
) -> None:
    """Write `table.json` and `rates.json`; a resumed run keeps what was used before its step.

    Args:
        run: the run's folder.
        start: the run.
        step: the step that it continues from; 0 for a new run.
        table, rates: of the present config.
    """
    if step and (run.path / TABLE).exists():
        table = with_earlier_groups(table, run.read_json(TABLE), step)
    if step and (run.path / RATES).exists():
        rates = with_earlier_rates(rates, run.read_json(RATES), step)
    run.write_json(TABLE, table)
    run.write_json(RATES, rates)
    resumed = run.read_json(RUN_FILE).get("resumed")
    if run.resumed and resumed:
        run.update(resumed=[*resumed[:-1], {**resumed[-1], "step": step}])


def with_earlier_groups(
    table: dict[str, Any], before: Mapping[str, Any], step: int
) -> dict[str, Any]:
    """Return the layer table with the groups of before a resume under `earlier`, if they differ."""
    earlier = list(before.get("earlier", ()))
    if before["groups"] != table["groups"]:
        earlier.append({"stop": step, "groups": before["groups"]})
    return {**table, "earlier": earlier} if earlier else table


def with_earlier_rates(
    rates: dict[str, Any], before: Mapping[str, Any], step: int
) -> dict[str, Any]:
    """Return the rates with those of before a resume for the steps that were trained with them."""
    past = [index for index, at in enumerate(before["steps"]) if at < step]
    new = [index for index, at in enumerate(rates["steps"]) if at >= step]
    merged = {
        **rates,
        "steps": [before["steps"][i] for i in past] + [rates["steps"][i] for i in new],
    }
    for names, rows in (("groups", "rates"), ("depths", "by_depth")):
        if not {names, rows} <= before.keys():  # written before there were rates by depth
            del merged[names], merged[rows]
            continue
        columns = [dict(zip(before[names], before[rows][i], strict=False)) for i in past]
        earlier = [[column.get(name, 0.0) for name in rates[names]] for column in columns]
        merged[rows] = earlier + [rates[rows][i] for i in new]
    return merged


def change_line(start: Start) -> str:
    """Describe for the event log how a resume changed the training; empty where it did not."""
    pairs = [
        f"{key} {json.dumps(new)} (was {json.dumps(old)})"
        for key, (old, new) in start.changed.items()
        if affects_parameters(key)
    ]
    return f"Resumed with {', '.join(pairs)}." if pairs else ""


def restore(
    setup: Setup,
    phases: tuple[PhaseSetup, ...],
    events: Sequence[dict[str, Any]],
    run: RunFolder,
    checkpoints: Checkpoints,
    console: Console,
) -> TrainState | None:
    """Restore the last checkpoint of a resumed run; None where there is none."""
    if not run.resumed:
        return None
    state = None
    if checkpoints.latest() is not None:

        def saved(step: int) -> TrainState:
            decided = decided_at(setup, phases, events, step)
            state = abstract_state(decided.setup, decided.now)
            idle: Any = {} if decided.period is None else abstract_idle(decided.period)
            return replace(state, idle=idle)

        restored = checkpoints.restore(saved)
        state = restored.state
        for note in restored.notes:
            console.print(note, style="bold yellow", highlight=False)
    step = 0 if state is None else int(state.step)
    console.print(f"Resumed at step {step:,}.", highlight=False)
    return state


class Decided(NamedTuple):
    """Decisions of a run by a step.

    Attributes:
        setup: the run.
        phases: each of its phases.
        now: the phase of the step.
        period: the blocks that train in it, where they are sampled.
    """

    setup: Setup
    phases: tuple[PhaseSetup, ...]
    now: PhaseSetup
    period: Period | None


def decided_at(
    setup: Setup, phases: tuple[PhaseSetup, ...], events: Sequence[dict[str, Any]], step: int
) -> Decided:
    """Apply what was decided up to `step`: what stopped training, and which blocks train."""
    if (run := sampled_run(setup)) is not None:
        period = period_before(run, step, events)
        return Decided(setup, phases, period.setup, period)
    decided = with_decisions(setup, events, step)
    if decided is not setup:
        phases = phase_setups(decided)
    return Decided(decided, phases, phase_after(phases, step), None)
