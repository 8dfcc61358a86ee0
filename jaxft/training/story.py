"""The training story: from a config to a run folder with its best checkpoint and its scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from rich.console import Console

from jaxft.analysis.forgetting import open_forgetting
from jaxft.config.load import Config, check_resume, parse_config
from jaxft.data.batching.plans import Layout
from jaxft.device.distributed import SHARED, compare, wait_for_all
from jaxft.device.process import stop_signals
from jaxft.engine.evaluate import build_eval_step
from jaxft.engine.initial_state import abstract_state, initial_state, load_params
from jaxft.engine.remat import phase_after, phase_setups, widest
from jaxft.engine.setup import PhaseSetup, Setup, build
from jaxft.engine.state import TrainState
from jaxft.engine.trained import (
    Run,
    base_checkpoint,
    best_metric,
    check_base,
    new_at_start,
    open_checkpoints,
    save_base,
    with_checkpoint,
)
from jaxft.engine.trunk_plan import plan_trunks
from jaxft.models.load import Model
from jaxft.report.terminal.progress import Progress
from jaxft.report.terminal.tables import data_table, group_table, loading_table, result_table
from jaxft.runs.checkpoint import Checkpoints
from jaxft.runs.folder import RUN_FILE, RunFolder, check_run, create_run, open_run, run_path
from jaxft.storage.files import place
from jaxft.training.auto_freeze import with_decisions
from jaxft.training.batches import Batches
from jaxft.training.evaluate import Evals
from jaxft.training.layers import with_measured
from jaxft.training.log import find_trackers, open_diary, read_diary, tell_result
from jaxft.training.loop import Loop
from jaxft.training.metadata import batch_line, rates_json, run_json, table_json
from jaxft.training.phase import Ahead, Stage, make_stage
from jaxft.training.preflight import compare_setup, meet
from jaxft.training.profile import Profile
from jaxft.training.result import final_result


def train(
    config: Config,
    *,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    command: Sequence[str] = (),
    profile: tuple[int, int] | None = None,
) -> Run:
    """Fine-tune, evaluate, keep the best checkpoint, and score the test rows once.

    Args:
        config: the run.
        resume: go on from the run's last checkpoint, or start it where there is none.
        overwrite: replace the run of this name.
        quiet: print nothing.
        command: what was typed, for `run.json`.
        profile: the first and last step of a trace for XProf, counted from 1; None for none.

    Returns:
        The run.

    Raises:
        UserError: the config, data, checkpoint or run folder is not as it has to be; or the loss
            stayed not finite, with the last good checkpoint named.
        SystemExit: 128 + the signal's number, after SIGTERM or SIGINT and a save.
    """
    quiet = not meet(config, resume=resume, overwrite=overwrite) or quiet
    console = Console(quiet=quiet)

    # ---------------------------------------- What can be wrong is found before anything is written
    setup = _set_up(config, resume=resume, overwrite=overwrite)
    metric, forgetting = best_metric(config, setup.task), open_forgetting(config, setup)
    phases = phase_setups(setup)
    chosen, trunks = widest(phases), plan_trunks(setup, phases)
    about, table = run_json(setup, chosen, command), table_json(setup, chosen)
    compare_setup(setup)
    report = setup.model.report
    console.print(loading_table(report.loaded, report.new, report.unused, report.notes))
    console.print(data_table(about["data"]))
    console.print(group_table(table))
    console.print(batch_line(setup.layout, setup.length, (*setup.why, chosen.why)), highlight=False)

    flags = {"resume": resume, "overwrite": overwrite}
    with (
        create_run(config.dump(), config.run.name, config.run.dir, facts=about, **flags) as run,
        open_checkpoints(run, config, setup.task) as checkpoints,
        find_trackers(run, config, console.print) as trackers,
    ):
        compare({"the step to go on from": checkpoints.latest()}, SHARED)
        run.write_json("table.json", table)
        run.write_json("rates.json", rates_json(setup.length.total_steps, phases))

        # -------------------------------------------------------------------------------- The steps
        start = _start(setup, phases, config, run, checkpoints, console)
        eval_step, first = build_eval_step(setup), int(start.state.step)
        with (
            open_diary(run, config, first, trackers) as log,
            Progress(setup.length.total_steps, first, console, quiet) as progress,
            stop_signals() as stop,
            Batches(setup, eval_step, trunks, progress, stop.asked) as batches,
            Ahead() as ahead,
            Profile(run.path, profile) as trace,
        ):
            told = run, log, progress, stop.asked
            loop = Loop(
                stage=start.stage,
                state=start.state,
                run=run,
                checkpoints=checkpoints,
                log=log,
                progress=progress,
                stop=stop,
                batches=batches,
                ahead=ahead,
                evals=Evals(setup, metric, forgetting, start.origin, start.diary, *told),
                trace=trace,
                flops=table["flops"],
            )
            del start  # the state is the loop's, which donates it to each step
            loop.begin(eval_step)
            loop.go()

        # ------------------------------------------------ The test rows, once, with the best of all
        run.discard_old()
        result = final_result(setup, run, checkpoints, eval_step, loop.stage.frozen, console)
        tell_result(trackers, result)
        run.update(state="finished")
        wait_for_all()
        console.print(result_table(result))
    return Run(place(run.path))


def _set_up(config: Config, *, resume: bool, overwrite: bool) -> Setup:
    """A new run's parts, or those of the one that goes on, which has to be the same run."""
    if not check_run(config.run.name, config.run.dir, resume=resume, overwrite=overwrite):
        return build(config)
    earlier = open_run(run_path(config.run.name, config.run.dir))
    check_resume(parse_config(earlier.config(), f"{earlier.path}/config.yaml"), config)
    layout = Layout(**earlier.read_json(RUN_FILE)["layout"])
    based = with_checkpoint(config, base_checkpoint(earlier, config))
    setup = build(based, layout=layout, new=new_at_start(earlier))
    check_base(earlier, setup.model.source)
    return setup


class _Start(NamedTuple):
    """Where the steps begin.

    Attributes:
        stage, state: the phase and the state.
        origin: the model that the run began with, without its parameters.
        diary: the events up to here.
    """

    stage: Stage
    state: TrainState
    origin: Model
    diary: list[dict[str, Any]]


def _start(
    setup: Setup,
    phases: tuple[PhaseSetup, ...],
    config: Config,
    run: RunFolder,
    checkpoints: Checkpoints,
    console: Console,
) -> _Start:
    """The weights that a run begins with, and the last checkpoint of one that goes on."""
    origin = load_params(setup)
    diary = read_diary(run)
    if "base" not in run.read_json(RUN_FILE):
        save_base(run, config, origin)
    if run.resumed and checkpoints.latest() is not None:
        restored = checkpoints.restore(
            lambda step: abstract_state(*_decided(setup, phases, diary, step)[::2])
        )
        state = restored.state
        for note in restored.notes:
            console.print(note, style="bold yellow", highlight=False)
    else:
        state = initial_state(setup, phases[0], origin.params)
    first = int(state.step)
    stage = make_stage(*_decided(setup, phases, diary, first), origin.params)
    diary = [event for event in diary if first and event["step"] <= first]
    if run.resumed:
        console.print(f"Resumed at step {first:,}.", highlight=False)
    return _Start(with_measured(stage, diary), state, replace(origin, params={}), diary)


def _decided(
    setup: Setup, phases: tuple[PhaseSetup, ...], diary: Sequence[dict[str, Any]], step: int
) -> tuple[Setup, tuple[PhaseSetup, ...], PhaseSetup]:
    """The run as its events up to `step` decided on phases, those, and the one of that step."""
    decided = with_decisions(setup, diary, step)
    if decided is not setup:
        phases = phase_setups(decided)
    return decided, phases, phase_after(phases, step)
