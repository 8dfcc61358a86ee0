"""The training story: from a config to a run folder with its best checkpoint and its scores."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from jaxft.config import Config, check_resume, parse_config
from jaxft.data.loader import batches
from jaxft.data.plans import Layout
from jaxft.engine.build import Build, build
from jaxft.engine.build_state import (
    abstract_state,
    frozen_params,
    initial_state,
    load_params,
    state_shardings,
)
from jaxft.engine.checkpoint import Checkpoints
from jaxft.engine.evaluate import Evaluation, Interrupted, build_eval_step, evaluate, predictions
from jaxft.engine.mesh import batch_sharding, place_batch
from jaxft.engine.process import prepare_process, stop_signals
from jaxft.engine.run_folder import (
    RUN_FILE,
    RunFolder,
    check_run,
    create_run,
    open_run,
    run_path,
)
from jaxft.engine.step import Rates, make_train_step
from jaxft.engine.train_facts import batch_line, rates_json, run_json, table_json
from jaxft.engine.train_meter import Meter, is_best, patience_is_over, scores_before
from jaxft.engine.trained import (
    Run,
    base_checkpoint,
    best_metric,
    check_base,
    open_checkpoints,
    save_base,
    with_checkpoint,
    write_lines,
)
from jaxft.errors import UserError
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
) -> Run:
    """Fine-tune, evaluate, keep the best checkpoint, and score the test rows once.

    Args:
        config: the run.
        resume: go on from the run's last checkpoint, or start it where there is none.
        overwrite: replace the run of this name.
        quiet: print nothing.
        command: what was typed, for `run.json`.

    Returns:
        The run.

    Raises:
        UserError: the config, data, checkpoint or run folder is not as it has to be; or the loss
            stayed not finite, with the last good checkpoint named.
        SystemExit: 128 + the signal's number, after SIGTERM or SIGINT and a save.
    """
    prepare_process()
    console = Console(quiet=quiet)

    # ------------------------------------- What can be wrong is found before anything is written
    if check_run(config.run.name, config.run.dir, resume=resume, overwrite=overwrite):
        earlier = open_run(run_path(config.run.name, config.run.dir))
        check_resume(parse_config(earlier.config(), f"{earlier.path}/config.yaml"), config)
        layout = Layout(**earlier.read_json(RUN_FILE)["layout"])
        built = build(with_checkpoint(config, base_checkpoint(earlier, config)), layout=layout)
        check_base(earlier, built.model.source)
    else:
        built = build(config)
    metric = best_metric(config, built.task)
    about, table = run_json(built, command), table_json(built)
    report = built.model.report
    console.print(loading_table(report.loaded, report.new, report.unused, report.notes))
    console.print(data_table(about["data"]))
    console.print(group_table(table))
    console.print(batch_line(built), highlight=False)

    flags = {"resume": resume, "overwrite": overwrite}
    with (
        create_run(config.dump(), config.run.name, config.run.dir, facts=about, **flags) as run,
        open_checkpoints(run, config, built.task) as checkpoints,
    ):
        run.write_json("table.json", table)
        run.write_json("rates.json", rates_json(built))

        # --------------------------------------------------- Weights, and the state to go on from
        start = load_params(built, base_checkpoint(run, config))
        if "base" not in run.read_json(RUN_FILE):
            save_base(run, config, start)
        frozen = frozen_params(built, start.params)
        if run.resumed and checkpoints.latest() is not None:
            restored = checkpoints.restore(abstract_state(built))
            state = restored.state
            for note in restored.notes:
                console.print(note, style="bold yellow", highlight=False)
        else:
            state = initial_state(built, start.params)
        del start
        step = first = int(state.step)
        if run.resumed:
            console.print(f"Resumed at step {first:,}.", highlight=False)

        # ------------------------------------------------------------------------- Compiled steps
        train_step = make_train_step(
            built.objective,
            built.optimizer,
            accumulate=config.train.accumulate,
            ema=config.train.ema,
            state_shardings=state_shardings(built),
            frozen_shardings={name: built.shardings[name] for name in frozen},
            mesh=built.mesh,
        )
        eval_step = build_eval_step(built)
        multipliers, weight_decay = built.table.multipliers(), built.table.weight_decays()
        rows = batch_sharding(built.mesh)
        total = built.length.total_steps

        with (
            EventLog(Path(run.path), config.report.tensorboard, first if first else None) as log,
            Progress(total, first, console, quiet) as progress,
            stop_signals() as stop,
        ):
            meter = Meter(built)
            scores = scores_before(Path(run.path), metric)
            pending: deque[tuple[int, dict[str, jax.Array]]] = deque()

            def read(most: int) -> None:
                """Read the metrics of all but the last `most` steps: those are over, or nearly."""
                while len(pending) > most:
                    done, metrics = pending.popleft()
                    values = {name: float(v) for name, v in jax.device_get(metrics).items()}
                    event = meter.add(done, values)
                    if event:
                        log.train(done, event)
                    progress.update(done, event)
                    if not meter.finite:
                        log.note(done, f"Not finite (loss {values['loss']}): the step was undone.")
                        progress.message(f"step {done:,} was not finite and is undone")
                    if values["bad_steps"] >= config.train.max_bad_steps:
                        raise _not_finite(run, checkpoints, done, int(values["bad_steps"]))

            def end_if_asked() -> None:
                """After a signal: end once the save is complete."""
                if not stop.asked():
                    return
                checkpoints.wait()
                log.note(step, f"Stopped by a signal after step {step}.")
                progress.message(f"stopped and saved at step {step:,}; --resume goes on")
                run.update(state="stopped")
                raise SystemExit(128 + (stop.signal or 0))

            def score() -> Evaluation | None:
                """Score the eval rows; None where a signal came before they were through."""
                progress.doing(f"scoring {len(built.splits['eval'].examples):,} eval rows")
                params = {**frozen, **(state.average or state.trainable)}
                try:
                    found = evaluate(built, eval_step, params, built.splits["eval"], stop.asked)
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
                progress.evaluation(step, found.scores, best=best)
                if best:
                    lines = predictions(built, built.splits["eval"], found)
                    write_lines(run, "predictions-eval.jsonl", lines)
                return found

            # ------------------------------------------------------------------------- The loop
            if first and built.length.evaluates_at(first) and not checkpoints.metrics(first):
                _save(checkpoints, step, state, score())  # a signal came while it was scored
                end_if_asked()
            if first < total:
                progress.doing("compiling the step")
            save_due = score_due = False
            for batch in batches(
                built.plan,
                built.splits["train"].examples.collate,
                first,
                total,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
                workers=config.data.workers,
                prefetch=config.data.prefetch,
            ):
                if patience_is_over(metric, scores, config.checkpoint.patience):
                    progress.message(f"{metric} has not improved: stopped early")
                    break
                rates = Rates(built.rates[step], multipliers, weight_decay)
                state, metrics = train_step(state, frozen, place_batch(batch, rows), rates)
                step += 1
                pending.append((step, metrics))
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
                _save(checkpoints, step, state, found)
                save_due = score_due = False
                meter.go_on()
                end_if_asked()
                if checkpoints.latest() is not None:
                    run.discard_old()
            checkpoints.wait()

        # ------------------------------------------------ The test rows, once, with the best of all
        run.discard_old()
        result = _final_result(built, run, checkpoints, eval_step, frozen, console)
        run.update(state="finished")
        console.print(result_table(result))
    return Run(Path(run.path))


def _save(checkpoints: Checkpoints, step: int, state: Any, found: Evaluation | None) -> None:
    checkpoints.save(step, state, metrics=None if found is None else found.scores)


def _not_finite(run: RunFolder, checkpoints: Checkpoints, step: int, count: int) -> UserError:
    checkpoints.wait()
    run.update(state="failed")
    kept = checkpoints.latest()
    good = f"checkpoint {kept} in {checkpoints.folder}" if kept else "its starting point"
    return UserError(
        f"The loss or its gradient was not finite in {count} steps in a row, up to step {step}; "
        f"the last good state is {good}.",
        "Lower optimizer.lr or lengthen schedule.warmup.",
    )


def _final_result(
    built: Build,
    run: RunFolder,
    checkpoints: Checkpoints,
    eval_step: Any,
    frozen: dict[str, jax.Array],
    console: Console,
) -> dict[str, Any]:
    """Score the test rows with the best checkpoint; a run without test rows repeats its best."""
    best = checkpoints.best()
    step = checkpoints.resolve("last") if best is None else best
    name = "test" if "test" in built.splits else "eval"
    split = built.splits[name]
    if (run.path / "result.json").exists():
        scored = run.read_json("result.json")
        if (scored["step"], scored["fingerprint"]) == (step, split.source.fingerprint):
            return scored
    console.print(f"Scoring {len(split.examples):,} {name} rows with step {step:,}.")
    trained = checkpoints.load_params(step, {n: built.shardings[n] for n in built.table.trainable})
    found = evaluate(built, eval_step, {**frozen, **trained}, split)
    write_lines(run, f"predictions-{name}.jsonl", predictions(built, split, found))
    result = {
        "split": name,
        "step": step,
        "checkpoint": "last" if best is None else "best",
        "metrics": found.scores,
        "examples": len(split.examples),
        "fingerprint": split.source.fingerprint,
    }
    run.write_json("result.json", result)
    return result
