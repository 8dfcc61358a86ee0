"""The training story by its true entry points: what it writes, and when it stops."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

import jaxft
from jaxft.cli.main import main
from jaxft.config.load import parse_config
from jaxft.engine.trained import open_trained
from jaxft.errors import UserError
from jaxft.runs.checkpoint import Checkpoints
from jaxft.training import evaluate as train_evals
from jaxft.training import result as train_result
from tests.support.launch import cache, content, events, write_config  # noqa: F401 a fixture
from tests.support.tiny import tiny_config

pytestmark = pytest.mark.usefixtures("cache")

# The first losses of the tiny run below: they move when weights, batches, dropout or the update do.
FIRST_LOSSES = (0.696639, 0.691362, 0.693514, 0.692216)


# Of Weights & Biases: it writes down what it is told.
STAND_IN = """
import json, pathlib
told = []
class Run:
    def log(self, values, step=None):
        told.append([step, values])
    def finish(self):
        text = json.dumps(told)
        pathlib.Path(__file__).with_suffix(".json").write_text(text)
def init(**begin):
    told.append(begin)
    return Run()
"""


def steps(count, **train):
    """So many steps, each logged, scored and saved."""
    return {"length": f"{count} steps", "evaluate_every": "1 steps", "log_every": 1, **train}


def run_json(run):
    return json.loads((run / "run.json").read_text())


def metric(run, name="loss"):
    scored = [event for event in events(run, "eval") if event["split"] == "eval"]
    return {event["step"]: event[name] for event in scored}


@pytest.fixture(scope="module")
def typed(tmp_path_factory, cache):  # noqa: F811 the fixture above
    """A run of four steps from the command line, and what it printed."""
    folder = tmp_path_factory.mktemp("typed")
    config = tiny_config(
        folder,
        run={"trackers": ["wandb"]},
        train=steps(4),
        report={"tensorboard": True, "before": True},
    )
    file = write_config(config, folder / "tiny.yaml")
    (folder / "wandb.py").write_text(STAND_IN)
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.syspath_prepend(folder)
        patch.delitem(sys.modules, "wandb", raising=False)
        patch.setattr("jaxft.cli.main.echo", lambda text: printed.append(str(text)))
        assert main(["train", file, "optimizer.weight_decay=0.02"]) == 0
        del sys.modules["wandb"]
    return (
        folder / "runs" / "tiny",
        ["jaxft", "train", file, "optimizer.weight_decay=0.02"],
        printed,
    )


# ------------------------------------------------------------------------------ what is written


def test_a_run_from_the_command_line_is_complete(typed):
    run, command, printed = typed
    assert printed == [f"jaxft 0.1.0: {run}", str(run)]
    names = {path.name for path in run.iterdir()} - {"run.lock"}
    assert names == {
        "base",
        "checkpoints",
        "config.yaml",
        "digests.json",
        "embeddings-after.json",
        "embeddings-before.json",
        "metrics.jsonl",
        "predictions-before.jsonl",
        "predictions-eval.jsonl",
        "predictions-test.jsonl",
        "rates.json",
        "result.json",
        "run.json",
        "table.json",
        "tensorboard",
    }
    assert yaml.safe_load((run / "config.yaml").read_text())["optimizer"]["weight_decay"] == 0.02
    about = run_json(run)
    assert about["command"] == command
    assert about["state"] == "finished"
    assert {
        "jaxft",
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax-checkpoint",
        "grain",
        "python",
    } == set(about["versions"])
    assert about["devices"] == {"platform": "cpu", "kind": "cpu", "count": 8, "processes": 1}
    assert re.fullmatch("[0-9a-f]{64}", about["checkpoint"]["sha256"])
    assert {"asked", "revision", "sha256"} == set(about["checkpoint"])
    assert [part["split"] for part in about["data"]] == ["train", "eval", "test"]
    assert all(re.fullmatch("[0-9a-f]{64}", part["fingerprint"]) for part in about["data"])
    assert [part["examples"] for part in about["data"]] == [67, 15, 14]
    assert about["time"]["steps"] == 4
    assert about["time"]["flops"] > 0
    seconds = about["time"]["seconds"]
    assert min(seconds[part] for part in ("steps", "compile", "evaluate", "save", "set_up")) > 0
    assert about["resolved"] == {
        "total_steps": 4,
        "steps_per_epoch": 9,
        "evaluate_every": 1,
        "save_every": 500,
        "layers_every": 50,
        "rates_every": 50,
        "freeze_every": 1,
        "sample_every": 0,
        "examples_per_step": 67 / 9,
        "growth": [],
    }
    assert about["layout"]["rows"] == 8
    assert list((run / "tensorboard").glob("events.out.tfevents.*"))


def test_its_numbers_are_in_step(typed):
    run, _, _ = typed
    trained = events(run, "train")
    assert [event["step"] for event in trained] == [1, 2, 3, 4]
    assert {"loss", "accuracy", "grad_norm", "clip", "epoch", "rates"} <= set(trained[0])
    rates = json.loads((run / "rates.json").read_text())
    assert rates["groups"] == ["rest"]
    assert rates["steps"] == [0, 1, 2, 3]
    logged = [[event["rates"]["rest"]] for event in trained]
    np.testing.assert_allclose(rates["rates"], logged, rtol=1e-6)
    assert rates["depths"] == [0, 1, 2, 3]
    np.testing.assert_allclose(rates["by_depth"], np.repeat(logged, 4, axis=1), rtol=1e-6)
    assert list(metric(run)) == [1, 2, 3, 4]

    table = json.loads((run / "table.json").read_text())
    assert sum(group["parameters"] for group in table["groups"]) == sum(
        row["parameters"] for row in table["rows"]
    )
    for name, rows in (("eval", 15), ("test", 14)):
        lines = (run / f"predictions-{name}.jsonl").read_text().splitlines()
        said = [json.loads(line) for line in lines]
        assert [line["id"] for line in said] == list(range(rows))
        right = np.mean([line["label"] == line["predicted"] for line in said])
        loss = np.mean([line["loss"] for line in said])
        for line in said:  # so an example's outcome stands beside its own label
            chance = line["probabilities"][line["label"]]
            assert line["loss"] == pytest.approx(-np.log(chance), abs=1e-5)
        if name == "test":
            result = json.loads((run / "result.json").read_text())
            assert (result["split"], result["examples"], result["checkpoint"]) == (
                "test",
                14,
                "best",
            )
            np.testing.assert_allclose(
                [right, loss], [result["metrics"][key] for key in ("accuracy", "loss")], rtol=1e-5
            )


def test_the_eval_rows_lie_elsewhere_after_training(typed):
    before, after = (
        json.loads((typed[0] / f"embeddings-{when}.json").read_text())
        for when in ("before", "after")
    )
    assert len(before["x"]) == 15
    assert before["labels"] == after["labels"]
    assert not np.allclose(before["x"], after["x"])


def test_a_tracker_is_told_of_the_run(typed):
    run, _, _ = typed
    begin, *told = json.loads((run.parent.parent / "wandb.json").read_text())
    assert (begin["name"], begin["config"]["optimizer"]["weight_decay"]) == ("tiny", 0.02)
    losses = {step: values["train/loss"] for step, values in told if "train/loss" in values}
    assert losses == {event["step"]: event["loss"] for event in events(run, "train")}
    step, last = told[-1]
    assert step is None
    result = json.loads((run / "result.json").read_text())
    assert last["result/accuracy"] == result["metrics"]["accuracy"]
    assert last["result/step"] == result["step"]


def test_the_first_losses_are_those_of_before(typed):
    losses = [event["loss"] for event in events(typed[0], "train")]
    np.testing.assert_allclose(losses, FIRST_LOSSES, atol=1e-4)


def test_from_python(tmp_path, capfd):
    """Quietly; `resume` starts a run that is not there."""
    run = jaxft.train(tiny_config(tmp_path, train=steps(2)), resume=True, quiet=True)
    said = capfd.readouterr()
    assert said.out == ""
    assert [line for line in said.err.splitlines() if "spmd_partitioner" not in line] == []
    assert run.folder == tmp_path / "runs" / "tiny"
    assert run_json(run.folder)["command"] == []
    assert [event["step"] for event in events(run.folder, "train")] == [1, 2]
    assert run.metrics == json.loads((run.folder / "result.json").read_text())["metrics"]
    best = max(metric(run.folder, "accuracy").items(), key=lambda item: item[::-1])[0]
    assert run.best == best
    assert not (run.folder / "tensorboard").exists()


# -------------------------------------------------------------------------- where it stops, and why


@pytest.mark.slow
def test_steps_that_are_not_finite_stop_the_run_and_harm_no_checkpoint(tmp_path, capsys):
    config = tiny_config(
        tmp_path, train=steps(4, evaluate_every="4 steps"), checkpoint={"every": 2}
    )
    run = jaxft.train(config, quiet=True).folder
    before = content(run / "checkpoints")
    file = write_config(config, tmp_path / "tiny.yaml")
    words = ["optimizer.lr=1e30", "train.length=40", "train.max_bad_steps=2", "--resume", "-q"]
    assert main(["train", file, *words]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    # Step 5 was finite and broke the parameters; 6 and 7 are judged, and nothing later is saved.
    assert said == (
        "jaxft: The loss or its gradient was not finite in 2 consecutive steps, up to step 7; "
        f"the last good state is checkpoint 4 in {run}/checkpoints. "
        "Lower optimizer.lr or lengthen schedule.warmup.\n"
    )
    assert content(run / "checkpoints") == before
    assert run_json(run)["state"] == "failed"
    resumed, *notes = [(event["step"], event["text"]) for event in events(run, "note")]
    assert resumed[0] == 4
    assert "Resumed with optimizer.lr 1e+30 (was 0.001)" in resumed[1]
    assert [step for step, _ in notes] == [6, 7]
    assert all("undone" in text for _, text in notes)

    assert main(["train", file, "train.length=6", "--resume", "-q"]) == 0, (
        "with a rate that is sane"
    )
    assert [event["step"] for event in events(run, "train")] == [1, 2, 3, 4, 5, 6]
    notes = [(event["step"], event["text"][:13]) for event in events(run, "note")]
    assert notes == [(4, "Resumed with ")] * 2


def test_a_loss_on_the_eval_rows_that_is_not_finite_stops_the_run(tmp_path):
    config = tiny_config(
        tmp_path,
        train=steps(4, evaluate_every="4 steps", max_bad_steps=9),
        checkpoint={"every": 4},
    )
    spoil(tmp_path / "checkpoint" / "model.safetensors", "pooler.dense.bias", np.nan)
    with pytest.raises(UserError) as caught:
        jaxft.train(config, quiet=True)
    assert caught.value.message == (
        "The loss on the eval rows was not finite after step 4; the last good state is its "
        "starting point."
    )
    assert run_json(tmp_path / "runs" / "tiny")["state"] == "failed"


def test_a_run_that_is_not_finite_from_the_start_has_no_good_checkpoint(tmp_path):
    config = tiny_config(tmp_path, train=steps(9), checkpoint={"every": 1})
    weights = tmp_path / "checkpoint" / "model.safetensors"
    spoil(weights, "pooler.dense.bias", np.nan)
    with pytest.raises(UserError, match=r"up to step 3; the last good state is its starting point"):
        jaxft.train(config, quiet=True)
    assert not list((tmp_path / "runs" / "tiny" / "checkpoints").glob("*"))


def spoil(path, name, value):
    from safetensors.numpy import load_file, save_file

    tensors = load_file(path)
    tensors[name][0] = value
    save_file(tensors, path, {"format": "pt"})


@pytest.mark.slow
def test_patience_stops_early_and_the_best_is_kept_though_it_is_not_the_last(tmp_path, capsys):
    config = tiny_config(
        tmp_path,
        train=steps(9),
        optimizer={"lr": 0.3},
        checkpoint={"best": "loss", "patience": 2, "keep": 1},
    )
    run = jaxft.train(config).folder
    losses = metric(run)
    best = min(losses, key=losses.get)
    assert len(losses) < 9, "it stopped early"
    assert list(losses) == list(range(1, best + 3)), "two evaluations after the best"
    assert "loss has not improved: stopped early" in capsys.readouterr().out
    with Checkpoints(run / "checkpoints", best_metric="loss", mode="min", read_only=True) as kept:
        assert kept.steps() == [best, best + 2], "the best beside the last"
        assert kept.best() == best
    result = json.loads((run / "result.json").read_text())
    assert (result["step"], result["checkpoint"]) == (best, "best")
    assert run_json(run)["state"] == "finished"
    assert run_json(run)["best_metric"] == "loss"


@pytest.mark.slow
def test_an_average_is_what_is_scored_and_training_does_not_notice(tmp_path):
    plain = jaxft.train(tiny_config(tmp_path / "plain", train=steps(4)), quiet=True).folder
    config = tiny_config(tmp_path / "ema", train=steps(4, ema=0.9))
    run = jaxft.train(config, quiet=True).folder
    losses = [[event["loss"] for event in events(folder, "train")] for folder in (plain, run)]
    np.testing.assert_allclose(*losses, atol=1e-6)
    assert abs(metric(plain)[4] - metric(run)[4]) > 1e-4
    trained = open_trained(run, "last").model.params
    with Checkpoints(run / "checkpoints", read_only=True) as checkpoints:
        average = checkpoints.load_params("last")
    name = "blocks/1/mlp/up/kernel"
    np.testing.assert_array_equal(trained[name], average[name])
    base = open_trained(plain, "last").model.params[name]
    assert np.abs(np.asarray(base) - average[name]).max() > 1e-4, "and not the last parameters"


# ------------------------------------------------------------------------------ runs that are there


@pytest.mark.slow
def test_a_run_that_is_there_is_replaced_only_when_asked(tmp_path, capsys):
    config = tiny_config(tmp_path, train=steps(2))
    file = write_config(config, tmp_path / "tiny.yaml")
    assert main(["train", file, "-q"]) == 0
    before = content(tmp_path / "runs")
    capsys.readouterr()
    assert main(["train", file, "-q"]) == 2
    said = capsys.readouterr().err
    assert "already holds a run. Add --resume to continue it, --overwrite to replace it" in said
    assert content(tmp_path / "runs") == before

    assert main(["train", file, "optimizer.lr=1e-4", "--overwrite", "-q"]) == 0
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["tiny"], "the old one is gone"
    run = tmp_path / "runs" / "tiny"
    assert [event["step"] for event in events(run, "train")] == [1, 2]
    assert yaml.safe_load((run / "config.yaml").read_text())["optimizer"]["lr"] == 1e-4


@pytest.mark.slow
def test_what_a_replaced_run_was_stays_until_the_new_one_is_saved(tmp_path):
    config = tiny_config(tmp_path, train=steps(2))
    jaxft.train(config, quiet=True)
    old = content(tmp_path / "runs" / "tiny")
    bad = parse_config(config.dump() | {"train": config.dump()["train"] | {"length": "9 steps"}})
    spoil(tmp_path / "checkpoint" / "model.safetensors", "pooler.dense.bias", np.nan)
    with pytest.raises(UserError, match="not finite"):
        jaxft.train(bad, overwrite=True, quiet=True)
    (aside,) = (tmp_path / "runs").glob("tiny.old-*")
    kept = {name: data for name, data in content(aside).items() if name != "run.lock.owner"}
    assert kept == old


def test_a_run_without_test_rows_reports_its_eval_rows(tmp_path, monkeypatch):
    config = tiny_config(tmp_path, train=steps(2))
    config = parse_config(config.dump() | {"data": config.dump()["data"] | {"test": None}})
    run = jaxft.train(config, quiet=True)
    assert run.result["split"] == "eval"
    assert run.metrics["loss"] == pytest.approx(metric(run.folder)[run.best], rel=1e-6)
    monkeypatch.setattr(train_evals, "evaluate", None)
    monkeypatch.setattr(train_result, "evaluate", None)
    assert jaxft.train(config, resume=True, quiet=True).result == run.result, "not scored again"
    assert not Path(run.folder, "predictions-test.jsonl").exists()
