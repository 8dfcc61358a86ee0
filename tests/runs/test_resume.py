"""A run that is killed or stopped goes on as if nothing had been, and a damaged one says so."""

import json
import random
import shutil
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxft.cli.main import main
from jaxft.config.load import parse_config
from jaxft.engine.initial_state import abstract_state
from jaxft.engine.setup import build
from jaxft.export.export import export
from jaxft.report.page.page import write_page
from jaxft.runs.checkpoint import Checkpoints
from jaxft.runs.folder import open_run
from jaxft.training import evaluate as train_evals
from jaxft.training import result as train_result
from tests.support.launch import Launched, cache, content, events, write_config  # noqa: F401 a fixture
from tests.support.phases import phase_of
from tests.support.tiny import tiny_config

STEPS, EVERY = 60, 5
# The run's batches have 4 rows: what 2 x 2 x 2 devices can share.
ON_EIGHT = ("mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2")
pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture(scope="module")
def config(tmp_path_factory, cache):  # noqa: F811 the fixture above
    """A config with all that a state can hold: frozen leaves, moments, dropout, an average."""
    return tiny_config(
        tmp_path_factory.mktemp("undisturbed"),
        data={"batch_size": 12},
        groups=[{"name": "low", "depth": [0, 1], "freeze": True}],
        train={
            "length": f"{STEPS} steps",
            "evaluate_every": "20 steps",
            "log_every": 1,
            "ema": 0.9,
        },
        checkpoint={"every": EVERY},
    )


@pytest.fixture(scope="module")
def undisturbed(config):
    """The run folder of a run that went through."""
    folder = Path(config.run.dir).parent
    launched = Launched(folder, "train", write_config(config, folder / "tiny.yaml"))
    assert launched.end() == 0, launched.said
    return folder / "runs" / "tiny"


@pytest.fixture
def file(config, tmp_path):
    """The same config, for a run of its own in `tmp_path`."""
    moved = config.dump()
    moved["run"]["dir"] = str(tmp_path / "runs")
    return write_config(parse_config(moved), tmp_path / "tiny.yaml")


@pytest.fixture(scope="module")
def stopped(config, tmp_path_factory):
    """The run folder of a run that SIGTERM stopped, and how far it was; to be copied."""
    folder = tmp_path_factory.mktemp("stopped")
    moved = config.dump()
    moved["run"]["dir"] = str(folder / "runs")
    launched = Launched(folder, "train", write_config(parse_config(moved), folder / "tiny.yaml"))
    run = folder / "runs" / "tiny"
    launched.until(lambda: reached(run, 12))
    assert launched.stop(signal.SIGTERM) == 143, launched.said
    assert "--resume goes on" in launched.said
    step = events(run, "train")[-1]["step"]
    assert json.loads((run / "run.json").read_text())["state"] == "stopped"
    assert saved(run)[-1] == step, "the state is saved where it stopped"
    assert 12 <= step < STEPS
    return run


def reached(run, step):
    return any(event["step"] >= step for event in events(run, "train")[-1:])


def saving(run):
    """Whether a checkpoint is being written."""
    return any("tmp" in path.name for path in (run / "checkpoints").glob("*"))


def saved(run):
    with Checkpoints(run / "checkpoints", read_only=True) as checkpoints:
        return checkpoints.steps()


def final_state(run):
    """Every leaf of the last state, as bytes."""
    config = parse_config(json.loads(json.dumps(open_run(run).config())))
    built = build(config, devices=jax.devices()[:1])
    with Checkpoints(run / "checkpoints", read_only=True) as checkpoints:
        state = checkpoints.restore(
            lambda step: abstract_state(built, phase_of(built)), STEPS
        ).state
    leaves, _ = jax.tree.flatten_with_path(state)
    return {
        jax.tree_util.keystr(path): np.asarray(
            jax.random.key_data(leaf) if "key" in str(leaf.dtype) else leaf
        ).tobytes()
        for path, leaf in leaves
    }


def assert_same_run(run, undisturbed):
    """Same state, diary, predictions and result: nothing shows that it was interrupted."""
    ours, theirs = final_state(run), final_state(undisturbed)
    assert len(theirs) > 60, "trainable leaves, two moments each, and their average"
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []
    assert diary(run) == diary(undisturbed)
    for name in ("result.json", "predictions-eval.jsonl", "predictions-test.jsonl"):
        assert (run / name).read_bytes() == (undisturbed / name).read_bytes(), name
    assert json.loads((run / "run.json").read_text())["state"] == "finished"


def diary(run):
    """Losses, scores and rates by step; what is left out is what the clock says."""
    clock = ("time", "examples_per_second", "tokens_per_second", "flops_per_second")
    return [
        {name: value for name, value in event.items() if name not in clock}
        for kind in ("train", "eval")
        for event in events(run, kind)
    ]


# ------------------------------------------------------------------------------ kill and signals


@pytest.mark.slow
@pytest.mark.parametrize(
    "kills",
    [
        ("step", "save"),
        pytest.param(("step", "step", "save", "step", "step"), marks=pytest.mark.full),
    ],
    ids=len,
)
def test_killed_at_random_moments_it_ends_bit_for_bit_the_same(kills, file, undisturbed, tmp_path):
    run = tmp_path / "runs" / "tiny"
    seed = time.time_ns()
    draw = random.Random(seed)
    moments = sorted(draw.sample(range(2, STEPS - 12), len(kills)))
    print(f"seed {seed}: {list(zip(kills, moments, strict=True))}")
    for number, (kill, step) in enumerate(zip(kills, moments, strict=True)):
        launched = Launched(tmp_path, "train", file, *(["--resume"] if number else []))
        launched.until(lambda step=step: reached(run, step))
        if kill == "save":
            launched.until(lambda: saving(run))
        else:
            time.sleep(draw.uniform(0, 0.2))
        assert launched.stop(signal.SIGKILL) == -signal.SIGKILL
        assert kill != "save" or saving(run), "the save was not over"
    launched = Launched(tmp_path, "train", file, "--resume")
    assert launched.end() == 0, launched.said
    assert_same_run(run, undisturbed)


@pytest.mark.slow
def test_signals_save_and_end_and_it_goes_on_the_same(file, stopped, undisturbed, tmp_path):
    shutil.copytree(stopped.parent, tmp_path / "runs")
    run = tmp_path / "runs" / "tiny"

    launched = Launched(tmp_path, "train", file, "--resume")
    launched.until(lambda: "scoring" in launched.said)
    assert launched.stop(signal.SIGTERM) == 143, launched.said
    assert saved(run)[-1] == 20
    assert events(run, "eval") == [], "the evaluation was not finished"

    launched = Launched(tmp_path, "train", file, "--resume")
    launched.until(lambda: "scoring" in launched.said)
    assert launched.stop(signal.SIGTERM) == 143, "the same evaluation, begun again"
    assert saved(run)[-1] == 20
    assert events(run, "eval") == []

    launched = Launched(tmp_path, "train", file, "--resume")
    launched.until(lambda: reached(run, 30))
    assert launched.stop(signal.SIGINT) == 130, launched.said
    assert [event["step"] for event in events(run, "eval")] == [20], "it was scored first"
    assert saved(run)[-1] == events(run, "train")[-1]["step"]

    launched = Launched(tmp_path, "train", file, "--resume")
    assert launched.end() == 0, launched.said
    assert_same_run(run, undisturbed)


# --------------------------------------------------------------- another mesh, damage, other keys


@pytest.mark.slow
def test_on_another_mesh_it_goes_on_with_the_same_batches(file, stopped, undisturbed, tmp_path):
    shutil.copytree(stopped.parent, tmp_path / "runs")
    run = tmp_path / "runs" / "tiny"
    assert main(["train", file, *ON_EIGHT, "--resume", "--quiet"]) == 0
    ours, theirs = events(run, "train"), events(undisturbed, "train")
    assert [event["step"] for event in ours] == list(range(1, STEPS + 1))
    losses = [[event["loss"] for event in part] for part in (ours, theirs)]
    np.testing.assert_allclose(*losses, atol=1e-5, rtol=0)
    assert json.loads((run / "run.json").read_text())["resumed"][-1]["mesh"] == {
        "data": 2,
        "fsdp": 2,
        "expert": 1,
        "context": 1,
        "tensor": 2,
    }


def test_a_flipped_bit_is_found_and_the_checkpoint_before_is_used(
    file, stopped, undisturbed, tmp_path, capsys
):
    shutil.copytree(stopped.parent, tmp_path / "runs")
    run = tmp_path / "runs" / "tiny"
    before, last = saved(run)[-2:]
    flip_a_bit(run / "checkpoints" / str(last))
    assert main(["train", file, *ON_EIGHT, "--resume"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"Checkpoint {last} in" in said
    assert "is damaged" in said
    assert f"Resumed at step {before}." in said
    assert [event["step"] for event in events(run, "train")] == list(range(1, STEPS + 1))
    final = [events(folder, "eval")[-1]["loss"] for folder in (run, undisturbed)]
    np.testing.assert_allclose(*final, atol=1e-5)


def flip_a_bit(checkpoint):
    """In the middle of the largest file, which holds arrays."""
    largest = max(checkpoint.rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)


def test_a_key_that_is_fixed_cannot_change_and_nothing_is_touched(file, stopped, tmp_path, capsys):
    shutil.copytree(stopped.parent, tmp_path / "runs")
    before = content(tmp_path)
    assert main(["train", file, "optimizer.b1=0.5", "data.batch_size=8", "--resume"]) == 2
    assert capsys.readouterr().err == (
        "jaxft: A run cannot be resumed with a different data.batch_size (12 -> 8), "
        "optimizer.b1 (0.9 -> 0.5). Restore the old value, or train under another run.name.\n"
    )
    assert content(tmp_path) == before


def test_a_mesh_that_does_not_divide_the_runs_batches_is_refused(file, stopped, tmp_path, capsys):
    shutil.copytree(stopped.parent, tmp_path / "runs")
    before = content(tmp_path)
    assert main(["train", file, "mesh.data=8", "--resume", "--quiet"]) == 2
    assert "batches have 4 rows, which data x fsdp x" in capsys.readouterr().err
    assert content(tmp_path) == before


# -------------------------------------------------------------------------------- a finished run


def test_a_finished_run_ends_at_once_and_is_not_scored_again(
    file, undisturbed, tmp_path, monkeypatch, capsys
):
    shutil.copytree(undisturbed.parent, tmp_path / "runs")
    run = tmp_path / "runs" / "tiny"
    before = content(tmp_path / "runs")
    monkeypatch.setattr(train_evals, "evaluate", None)
    monkeypatch.setattr(train_result, "evaluate", None)
    assert main(["train", file, *ON_EIGHT, "optimizer.lr=0.01", "--resume"]) == 0
    assert content(tmp_path / "runs") == before, "config, table, rates, result and events stay"
    said = capsys.readouterr().out
    assert f"The run is finished at step {STEPS}; nothing was trained." in said
    assert "Not applied: optimizer.lr" in " ".join(said.split())
    assert "compiling" not in said
    assert said.splitlines()[-1] == str(run)


def test_a_finished_run_can_be_made_longer_and_both_rates_are_recorded(file, undisturbed, tmp_path):
    shutil.copytree(undisturbed.parent, tmp_path / "runs")
    run = tmp_path / "runs" / "tiny"
    rates = json.loads((run / "rates.json").read_text())
    longer = ("train.length=62", "optimizer.lr=0.0005")
    assert main(["train", file, *ON_EIGHT, *longer, "--resume", "--quiet"]) == 0
    assert [event["step"] for event in events(run, "train")] == list(range(1, 63))
    assert [event["step"] for event in events(run, "eval")] == [20, 40, 60, 62]
    resumed = json.loads((run / "run.json").read_text())["resumed"][-1]
    assert resumed["step"] == STEPS
    assert resumed["changed"]["optimizer.lr"] == [0.001, 0.0005]
    after = json.loads((run / "rates.json").read_text())
    assert after["steps"] == [*range(62)]
    assert after["rates"][:STEPS] == rates["rates"]
    (note,) = events(run, "note")
    assert "optimizer.lr 0.0005 (was 0.001)" in note["text"]
    card = (export(run, which="last") / "README.md").read_text()
    assert f"1e-3 to step {STEPS}, 5e-4 after" in card
    assert f"lr 0.001 to step {STEPS}, 0.0005 after" in card
    page = write_page([run]).read_text()
    assert f"1e-3 to step {STEPS}, 5e-4 after" in page
    # The best of the first 60 steps was trained at the first rate alone.
    assert "5e-4 after" not in (export(run, tmp_path / "at60", STEPS) / "README.md").read_text()


@pytest.mark.slow
def test_a_run_whose_checkpoint_is_gone_goes_on_from_its_own_copy(
    file, stopped, undisturbed, config, tmp_path
):
    shutil.copytree(stopped.parent, tmp_path / "runs")
    gone = tmp_path / "gone"
    source = Path(config.model.checkpoint)
    source.rename(gone)
    try:
        assert main(["train", file, *ON_EIGHT, "--resume", "--quiet"]) == 0
    finally:
        gone.rename(source)
    result = [
        json.loads((folder / "result.json").read_text())["metrics"]["loss"]
        for folder in (tmp_path / "runs" / "tiny", undisturbed)
    ]
    np.testing.assert_allclose(*result, atol=1e-5)
