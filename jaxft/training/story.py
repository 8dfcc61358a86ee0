"""The training story: from a config to a run folder with its best checkpoint and its scores."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

from jaxft.analysis.forgetting import open_forgetting
from jaxft.analysis.time_use import COMPILE, EVALUATE, INPUT, SAVE, TRUNK, paragraph, time_use
from jaxft.config.load import Config, require_config
from jaxft.device.distributed import SHARED, compare, wait_for_all
from jaxft.device.process import Stop, stop_signals
from jaxft.engine.evaluate import Interrupted, build_eval_step
from jaxft.engine.initial_state import initial_state, load_params
from jaxft.engine.remat import phase_setups, widest
from jaxft.engine.state import TrainState
from jaxft.engine.trained import Run, best_metric, open_checkpoints, save_base
from jaxft.engine.trunk_plan import plan_trunks
from jaxft.report.terminal.console import EscapingConsole
from jaxft.report.terminal.tables import data_table, group_table, loading_table, result_table
from jaxft.runs.checkpoint import Checkpoints
from jaxft.runs.folder import RUN_FILE, RunFolder, create_run, run_path
from jaxft.storage.files import place
from jaxft.training.batches import Batches
from jaxft.training.evaluate import Evaluator
from jaxft.training.freezing.decisions import decides_at
from jaxft.training.layers import (
    decide_again,
    measure_again,
    read_layers,
    read_spectra,
    with_measured,
)
from jaxft.training.log import IN_FLIGHT, Log, earlier_events, find_trackers, log_result
from jaxft.training.metadata import batch_line, phase_line, rates_json, run_json, table_json
from jaxft.training.phase import Phases, PhaseStep, make_phase_step
from jaxft.training.preflight import compare_setup, join_processes
from jaxft.training.profile import Profile, Times, check_steps
from jaxft.training.result import final_result, not_finite
from jaxft.training.resume import (
    change_line,
    decided_at,
    finished_line,
    restore,
    set_up,
    write_settings,
)
from jaxft.training.sampling.program import sampling_line
from jaxft.training.utilisation import Work, work_of


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
        resume: continue from the run's last checkpoint, or start it if there is none.
        overwrite: replace the run of this name.
        quiet: print nothing.
        command: the command line, for `run.json`.
        profile: the first and last step of a trace for XProf, counted from 1; None for no trace.

    Returns:
        The run.

    Raises:
        UserError: an error in the config, data, checkpoint or run folder; or too many consecutive
            steps that were not finite, with the last good checkpoint named.
        SystemExit: 128 + the signal's number, after SIGTERM or SIGINT and a save.
    """
    # ----------------------------------------------------------------------------- Processes
    require_config(config, "train")
    times = Times()
    quiet = not join_processes(config, resume=resume, overwrite=overwrite) or quiet
    console = EscapingConsole(quiet=quiet)

    # --------------------------------------------- Set-up: errors are raised before any write
    begin = set_up(config, console, resume=resume, overwrite=overwrite)
    config, setup = begin.config, begin.setup
    if begin.finished is not None:
        console.print(finished_line(begin), highlight=False)
        return Run(place(run_path(config.run.name, config.run.dir)))
    check_steps(profile, setup.length.total_steps)
    metric, forgetting = best_metric(setup.config, setup.task), open_forgetting(config, setup)
    phases = phase_setups(setup)
    chosen, trunks = widest(phases), plan_trunks(setup, phases)
    about, table = run_json(setup, chosen, command), table_json(setup, chosen)
    why = (*setup.why, chosen.why, sampling_line(setup))
    compare_setup(setup)

    # ------------------------------------------------------------------------------ Report
    report = setup.model.report
    console.print(loading_table(report.loaded, report.new, report.unused, report.notes))
    console.print(data_table(about["data"]))
    console.print(group_table(table))
    console.print(batch_line(setup.layout, setup.length, why), highlight=False)

    # ---------------------------------------------------------------------------- The folder
    flags = {"resume": resume, "overwrite": overwrite}
    facts = {**about, "changed": begin.changed} if begin.changed else about
    with (
        create_run(config.dump(), config.run.name, config.run.dir, facts=facts, **flags) as run,
        open_checkpoints(run, setup.config, setup.task) as checkpoints,
        find_trackers(run, config, console.print) as trackers,
    ):
        compare({"the step to go on from": checkpoints.latest()}, SHARED)

        # --------------------------------------------------------------------- Weights and state
        initial, events = load_params(setup), earlier_events(run)
        if "base" not in run.read_json(RUN_FILE):
            save_base(run, config, initial, bool(setup.quantized))
        state = restore(setup, phases, events, run, checkpoints, console)
        first, total = 0 if state is None else int(state.step), setup.length.total_steps
        decided = decided_at(setup, phases, events, first)
        if state is None:
            state = initial_state(setup, decided.now, initial.params)
        write_settings(run, begin, first, table, rates_json(total, phases))
        events = [event for event in events if first and event["step"] <= first]
        start = make_phase_step(
            decided.setup, decided.phases, decided.now, initial.params, period=decided.period
        )
        initial = replace(initial, params={})  # the first step donates them
        eval_step, failure = build_eval_step(setup), partial(not_finite, run, checkpoints)
        with (
            Log(run, setup, first, trackers, console, quiet, failure) as log,
            stop_signals() as stop,
            Batches(setup, eval_step, trunks, log.progress, stop.asked) as batches,
            Phases(with_measured(start, events)) as running,
            Profile(run.path, profile) as trace,
        ):
            del start
            if first and change_line(begin):
                log.events.note(first, change_line(begin))
            ends = stop.asked, failure
            evaluator = Evaluator(setup, metric, forgetting, initial, events, run, log, *ends)
            end_if_asked = partial(_end_if_asked, run, checkpoints, log, stop)
            length, flops, save_due, score_due = setup.length, table["flops"], False, False

            # A signal during an evaluation ended the run without it: a resumed run catches up.
            times.is_set_up()
            missed = first and length.evaluates_at(first) and not checkpoints.metrics(first)
            begins = first < total or missed
            if begins and not _enter(batches, running.now, state, first, log, flops, times):
                if first:
                    _save(checkpoints, log, first, state)
                end_if_asked(first)
            if missed:
                with times.of(EVALUATE):
                    scores = evaluator.score(running.now, state, first, batches)
                _save(checkpoints, log, first, state, scores)
                end_if_asked(first)
            if first == 0:
                log.sampled(first, running.now)
                with times.of(EVALUATE):
                    evaluator.before(running.now, state, eval_step)
            if first < total:
                log.progress.doing("compiling the step")

            # ------------------------------------------------------------------------- The steps
            for step in range(first, total):
                if evaluator.patience_is_over():
                    log.progress.message(f"{metric} has not improved: stopped early")
                    break

                if decides_at(running.now.setup, step):  # AutoFreeze, GradES
                    log.read()
                    running.now = decide_again(running.now, log.events, step)
                if running.now.is_over(step):
                    log.read()
                    state = running.enter_next(state)
                    line = phase_line(running.now.now.phase, len(running.now.phases))
                    log.say(step, line, line)
                    if not _enter(batches, running.now, state, step, log, flops, times):
                        _save(checkpoints, log, step, state)
                        end_if_asked(step)

                if running.now.samples_before(step):
                    log.read()
                    state = running.sample(state, step, log.events)
                    log.sampled(step, running.now)
                    log.meter.works(_work(running.now, batches, flops))
                if running.now.reads_spectra_before(step):  # heavy-tail rates
                    log.read()
                    running.now = read_spectra(running.now, state, log.events, step)

                trace.before(step, state)
                asked = time.monotonic()
                batch = batches.next()
                times.add(INPUT, log.idle(since=asked))
                train_step, inputs = running.step(batch), running.now.inputs(step)
                with times.of(COMPILE) if log.meter.compiles else nullcontext():
                    state, metrics = train_step(state, running.now.frozen, batch, inputs)
                del batch  # frees its memory while the state is scored
                done = step + 1
                layers = read_layers(running.now, state, done, metrics)
                log.started(done, running.now, metrics, layers)
                if running.now.measures_at(done) and log.read():  # Auto-RGN
                    running.now = measure_again(running.now, log.events, done, layers)
                log.read(most=IN_FLIGHT)

                save_due |= length.saves_at(done)
                score_due |= length.evaluates_at(done)
                if not save_due and not stop.asked():
                    continue
                # Save only after the step proved finite: a late NaN must not replace good states.
                if log.read() or done == total or stop.asked():
                    with log.meter.clock.paused():
                        scores = None
                        if score_due and not stop.asked():
                            with times.of(EVALUATE):
                                scores = evaluator.score(running.now, state, done, batches)
                        with times.of(SAVE):
                            _save(checkpoints, log, done, state, scores)
                    end_if_asked(done)
                    if checkpoints.latest() is not None:
                        run.discard_old()
                    save_due = score_due = False
            with times.of(SAVE):
                checkpoints.wait()
            noise = log.meter.noise.line(config.data.batch_size)
            if noise is not None:
                log.say(checkpoints.latest() or total, noise, noise)
            frozen, meter = running.now.frozen, log.meter

        # ------------------------------------------------- The test rows, with the best checkpoint
        run.discard_old()
        with times.of(EVALUATE):
            result = final_result(setup, run, checkpoints, eval_step, frozen, console)
        log_result(trackers, result)
        spent = times.facts(meter.steps, meter.flops, meter.peak)
        run.update(state="finished", warnings=result.get("warnings", []), time=spent)
        wait_for_all()
        console.print(result_table(result))
        if (use := time_use(about | {"time": spent})) is not None:
            console.print(paragraph(use), highlight=False)
    return Run(place(run.path))


def _enter(
    batches: Batches,
    phase: PhaseStep,
    state: TrainState,
    step: int,
    log: Log,
    flops: Mapping[str, int],
    times: Times,
) -> bool:
    """Prepare a phase's batches; return False where a signal came while its trunk ran."""
    with log.meter.clock.paused(), times.of(TRUNK):
        try:
            batches.enter(phase, state, step)
        except Interrupted:
            return False
        log.meter.works(_work(phase, batches, flops))
    return True


def _work(phase: PhaseStep, batches: Batches, flops: Mapping[str, int]) -> Work:
    return work_of(phase.setup, phase.phases, phase.costed, batches.cached, flops)


def _save(
    checkpoints: Checkpoints,
    log: Log,
    step: int,
    state: TrainState,
    scores: dict[str, float] | None = None,
) -> None:
    log.events.keep()  # a run resumed from here has all earlier events
    checkpoints.save(step, state, metrics=scores)


def _end_if_asked(
    run: RunFolder, checkpoints: Checkpoints, log: Log, stop: Stop, step: int
) -> None:
    """End the run after a signal, once the save is complete."""
    if not stop.asked():
        return
    checkpoints.wait()
    message = f"stopped and saved at step {step:,}; --resume goes on"
    log.say(step, f"Stopped by a signal after step {step}.", message)
    run.update(state="stopped")
    raise SystemExit(128 + (stop.signal or 0))
