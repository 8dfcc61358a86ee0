"""The training story: from a config to a run folder with its best checkpoint and its scores."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
from rich.console import Console

from jaxft.config import Config, check_resume, parse_config
from jaxft.data.plans import Layout
from jaxft.engine.auto_freeze import decides_at, with_decisions
from jaxft.engine.build import build
from jaxft.engine.build_state import abstract_state, initial_state, load_params
from jaxft.engine.checkpoint import Checkpoints
from jaxft.engine.distributed import SHARED, compare, wait_for_all
from jaxft.engine.evaluate import Evaluation, Interrupted, build_eval_step, evaluate
from jaxft.engine.forgetting import SPLIT as FORGETTING
from jaxft.engine.forgetting import open_forgetting
from jaxft.engine.preflight import compare_build, meet
from jaxft.engine.process import prepare_process, stop_signals
from jaxft.engine.run_folder import RUN_FILE, check_run, create_run, open_run, run_path
from jaxft.engine.train_ahead import Ahead
from jaxft.engine.train_batches import Batches
from jaxft.engine.train_diary import find_trackers, open_diary, read_diary, tell_result
from jaxft.engine.train_facts import batch_line, phase_line, rates_json, run_json, table_json
from jaxft.engine.train_layers import (
    Seen,
    decide_again,
    measure_again,
    see_layers,
    with_measured,
    write_drift,
    write_layers,
)
from jaxft.engine.train_meter import Meter, is_best, patience_is_over, scores_before
from jaxft.engine.train_profile import Profile
from jaxft.engine.train_result import final_result, not_finite, score_before, write_evaluation
from jaxft.engine.train_stage import make_stage, next_stage
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
from jaxft.engine.utilisation import work_of
from jaxft.errors import UserError
from jaxft.files import place
from jaxft.report.events import EventLog
from jaxft.report.progress import Progress
from jaxft.report.progress_tables import data_table, group_table, loading_table, result_table

# Steps under way while the host makes the next batch and reads the metrics of those before.
IN_FLIGHT = 2


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
    prepare_process()
    quiet = not meet(config, resume=resume, overwrite=overwrite) or quiet
    console = Console(quiet=quiet)

    # ------------------------------------- What can be wrong is found before anything is written
    if check_run(config.run.name, config.run.dir, resume=resume, overwrite=overwrite):
        earlier = open_run(run_path(config.run.name, config.run.dir))
        check_resume(parse_config(earlier.config(), f"{earlier.path}/config.yaml"), config)
        layout = Layout(**earlier.read_json(RUN_FILE)["layout"])
        based = with_checkpoint(config, base_checkpoint(earlier, config))
        built = build(based, layout=layout, new=new_at_start(earlier))
        check_base(earlier, built.model.source)
    else:
        built = build(config)
    metric, followed = best_metric(config, built.task), open_forgetting(config, built)
    about, table, trunks = run_json(built, command), table_json(built), plan_trunks(built)
    compare_build(built)
    report = built.model.report
    console.print(loading_table(report.loaded, report.new, report.unused, report.notes))
    console.print(data_table(about["data"]))
    console.print(group_table(table))
    console.print(batch_line(built), highlight=False)

    flags = {"resume": resume, "overwrite": overwrite}
    with (
        create_run(config.dump(), config.run.name, config.run.dir, facts=about, **flags) as run,
        open_checkpoints(run, config, built.task) as checkpoints,
        find_trackers(run, config, console.print) as trackers,
    ):
        compare({"the step to go on from": checkpoints.latest()}, SHARED)
        run.write_json("table.json", table)
        run.write_json("rates.json", rates_json(built))

        # --------------------------------------------------- Weights, and the state to go on from
        start = load_params(built, base_checkpoint(run, config))
        diary = read_diary(run)
        decided = partial(with_decisions, built, diary)
        if "base" not in run.read_json(RUN_FILE):
            save_base(run, config, start)
        if run.resumed and checkpoints.latest() is not None:
            restored = checkpoints.restore(lambda step: abstract_state(decided(step).after(step)))
            state = restored.state
            for note in restored.notes:
                console.print(note, style="bold yellow", highlight=False)
        else:
            state = initial_state(built, start.params)
        step = first = int(state.step)
        stage = make_stage(decided(first).after(first), start.params)
        origin = replace(start, params={})
        diary = [e for e in diary if first and e["step"] <= first]
        del start
        if run.resumed:
            console.print(f"Resumed at step {first:,}.", highlight=False)

        # ------------------------------------------------------------------------- Compiled steps
        eval_step, total = build_eval_step(built), built.length.total_steps
        with (
            open_diary(run, config, first, trackers) as log,
            Progress(total, first, console, quiet) as progress,
            stop_signals() as stop,
            Batches(built, eval_step, trunks, progress, stop.asked) as made,
            Ahead() as ahead,
            Profile(run.path, profile) as traced,
        ):
            stage = with_measured(stage, diary)
            meter, scores = Meter(stage), scores_before(diary, metric)
            pending: deque[tuple[int, dict[str, jax.Array], Seen]] = deque()

            def read(most: int) -> None:
                """Read the metrics of all but the last `most` steps: those are over, or nearly."""
                while len(pending) > most:
                    done, metrics, seen = pending.popleft()
                    values = {name: float(v) for name, v in jax.device_get(metrics).items()}
                    event = meter.add(done, values)
                    if event:
                        log.train(done, event)
                    progress.update(done, event)
                    if stage.looks_at(done) or not meter.finite:
                        write_layers(log, stage, done, seen, values["grad_norm"])
                    if not meter.finite:
                        log.note(done, f"Not finite (loss {values['loss']}): the step was undone.")
                        progress.message(f"step {done:,} was not finite and is undone")
                    if values["bad_steps"] >= config.train.max_bad_steps:
                        raise not_finite(run, checkpoints, done, int(values["bad_steps"]))

            def end_if_asked() -> None:
                """After a signal: end once the save is complete."""
                if not stop.asked():
                    return
                checkpoints.wait()
                log.note(step, f"Stopped by a signal after step {step}.")
                progress.message(f"stopped and saved at step {step:,}; --resume goes on")
                run.update(state="stopped")
                raise SystemExit(128 + (stop.signal or 0))

            def look_back(params: dict[str, jax.Array]) -> None:
                """Score the pretraining objective, where that is asked for."""
                if followed is not None:
                    log.eval(step, FORGETTING, followed.score(params))

            def score() -> Evaluation | None:
                """Score the eval rows; None where a signal came before they were through."""
                progress.doing(f"scoring {len(built.splits['eval'].examples):,} eval rows")
                rows, params = built.splits["eval"], stage.params(state)
                try:
                    how = made.eval_step, params, rows, stop.asked, made.eval_collate
                    found = evaluate(built, *how)
                except Interrupted:
                    return None
                if metric not in found.scores:
                    raise UserError(
                        f"checkpoint.best: these rows have no {metric}.",
                        f"They have {', '.join(found.scores)}.",
                    )
                best = is_best(metric, found.scores[metric], scores)
                scores.append(found.scores[metric])
                log.eval(step, "eval", found.scores)
                look_back(params)
                if built.length.layers_every:
                    write_drift(log, stage, state, step, origin)
                progress.evaluation(step, found.scores, best=best)
                write_evaluation(built, run, found, step, best=best)
                return found

            def enter() -> None:
                """Go on in a phase, for whose batches its trunk may have to run first."""
                meter.pause()
                try:
                    made.enter(stage, state, step)
                except Interrupted:
                    if step:
                        _save(log, checkpoints, step, state, None)
                    end_if_asked()
                meter.works(work_of(stage.built, made.cached, table["flops"]))
                meter.go_on()

            # ------------------------------------------------------------------------- The loop
            unscored = first and built.length.evaluates_at(first) and not checkpoints.metrics(first)
            if first < total or unscored:
                enter()
            if unscored:
                _save(log, checkpoints, step, state, score())  # a signal came while it was scored
                end_if_asked()
            if first == 0:
                look_back(stage.params(state))
                score_before(built, run, log, eval_step, stage.params(state), progress, stop.asked)
            if first < total:
                progress.doing("compiling the step")
            save_due = score_due = False
            while step < total:
                if patience_is_over(metric, scores, config.checkpoint.patience):
                    progress.message(f"{metric} has not improved: stopped early")
                    break
                if decides_at(built, step):
                    read(most=0)
                    stage = decide_again(stage, log, step)
                if stage.is_over(step):
                    read(most=0)
                    stage, state = next_stage(stage, state)
                    meter.enter(stage)
                    log.note(step, phase_line(stage.built))
                    progress.message(phase_line(stage.built))
                    enter()
                traced.before(step, state)
                placed = made.next()
                run_step = ahead.step(stage, placed)
                state, metrics = run_step(state, stage.frozen, placed, stage.rates(step))
                step += 1
                seen = see_layers(stage, state, step, metrics)
                pending.append((step, metrics, seen))
                if stage.measures_at(step):
                    read(most=0)
                    if meter.finite:
                        stage = measure_again(stage, log, step, seen)
                        meter.enter(stage)
                read(most=IN_FLIGHT)
                save_due |= built.length.saves_at(step)
                score_due |= built.length.evaluates_at(step)
                if not save_due and not stop.asked():
                    continue

                # A save waits for the step's verdict, so that a late NaN cannot push out good ones.
                read(most=0)
                if not meter.finite and step < total and not stop.asked():
                    continue
                meter.pause()
                found = score() if score_due and not stop.asked() else None
                _save(log, checkpoints, step, state, found)
                save_due = score_due = False
                meter.go_on()
                end_if_asked()
                if checkpoints.latest() is not None:
                    run.discard_old()
            checkpoints.wait()

        # ------------------------------------------------ The test rows, once, with the best of all
        run.discard_old()
        result = final_result(built, run, checkpoints, eval_step, stage.frozen, console)
        tell_result(trackers, result)
        run.update(state="finished")
        wait_for_all()
        console.print(result_table(result))
    return Run(place(run.path))


def _save(log: EventLog, to: Checkpoints, step: int, state: Any, found: Evaluation | None) -> None:
    log.keep()  # a run that goes on from here has told all that was before
    to.save(step, state, metrics=None if found is None else found.scores)
