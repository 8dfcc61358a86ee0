"""The benchmarks' own arithmetic, and that their contestants run."""

import csv
import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import jaxft
from benchmarks import baseline, gpu, measure, other_forest, seeds, trainer
from benchmarks.measure import median
from benchmarks.studies.page import drift_of
from benchmarks.what_fits import MODELS, WAYS, Cell, config_of, key_of, largest, page
from jaxft.config.load import override_config
from jaxft.data.image.images import decode
from jaxft.demo.rows import write_csv
from jaxft.export.export import export
from jaxft.report.page.page import write_page
from tests.support.tiny import tiny_config
from tests.support.xla import xla_flags

ROOT = Path(__file__).parents[2]


def test_the_interval_holds_the_true_median_nine_times_in_ten():
    draw = np.random.default_rng(0)
    for count in (5, 9, 16):
        found = [median(list(draw.lognormal(size=count))) for _ in range(2000)]
        held = np.mean([m.low <= 1.0 <= m.high for m in found])
        assert held > 0.88  # the exact coverage is 0.92 to 0.96


def test_the_median_of_nine_pairs():
    assert median([9, 1, 8, 2, 7, 3, 6, 4, 5]) == measure.Median(5, 2, 8, 9)
    assert median([1.0, 3.0, 2.0, 4.0]).median == 2.5


@pytest.mark.parametrize("state", [0.5, 3, 10, 15.9, 20])
@pytest.mark.parametrize("each", [0.01, 0.3, 1, 1.9])
@pytest.mark.parametrize("power", [1, 0.9])  # memory may grow less than linearly
def test_the_largest_batch_is_found_in_few_tries(state, each, power):
    """Whatever is tried first."""
    tried = []

    def fits(batch):
        tried.append(batch)
        growing = each * batch**power
        return None if state + growing > 16 else (state + growing, growing)

    fitting = [2**k for k in range(12) if fits(2**k)]
    for guess in (1, 8, 64):
        tried.clear()
        assert largest(fits, guess, 16) == max(fitting, default=0)
        assert len(set(tried)) == len(tried) <= 7


def test_the_page_has_the_slices_that_were_measured():
    known = {
        key_of(model, way, "v5e:1x1"): Cell(2048, 15_000_000_000, 0.125, 60.0)
        for model in MODELS
        for way in WAYS
        if config_of(model, way)
    }
    assert "have not been measured" not in page(known)
    refused = key_of(MODELS[-1], "full", "v5e:1x1")
    text = page(known | {refused: Cell(0, None, None, 60.0)})
    assert "## v5e-1\n" in text
    assert "v5e-8" not in text
    assert "| BERT-base | LoRA | text of 128 tokens | 2,048 | 15.0 | 125 |" in text
    assert "| Llama 3.1 8B | full | row of 2,048 tokens | does not fit |  |  |" in text
    known.pop(refused)
    assert "have not been measured" in page(known)


def test_cpu_seconds_are_those_of_this_process():
    with measure.CpuClock() as clock:
        asleep = time.time()
        time.sleep(0.3)
        awake, began = time.time(), time.process_time()
        while time.process_time() < began + 0.3:
            math.sqrt(2.0)
        ended = time.time()
    assert clock.between(asleep, awake) < 0.15
    assert 0.15 < clock.between(awake, ended) < 0.45


def test_a_run_with_baselines_exports_and_shows_them(tmp_path, monkeypatch):
    """As in `make demo`, between training and the export."""
    config = tiny_config(tmp_path, train={"length": "1 steps", "evaluate_every": "1 steps"})
    run = jaxft.train(config, quiet=True).folder
    monkeypatch.setattr(sys, "argv", ["baseline", str(run)])
    monkeypatch.setattr(baseline, "baselines", lambda config: {baseline.MEAN: 0.625})
    baseline.main()
    assert (export(run, tmp_path / "export") / "config.json").is_file()
    assert "0.6250" in write_page([run]).read_text()


def test_results_are_kept_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "RESULTS", tmp_path / "results.json")
    assert measure.recorded("loop") is None
    measure.record("loop", {"ratio": 1.01})
    measure.record("trainer", {"ratio": 1.3})
    measure.record("loop", {"ratio": 1.02})
    assert measure.recorded("loop")["ratio"] == 1.02
    assert measure.recorded("trainer")["ratio"] == 1.3
    assert measure.recorded("loop")["versions"]["jax"]


def test_a_study_tells_how_far_each_depth_of_each_member_moved(tmp_path):
    (tmp_path / "parts").mkdir()
    for number, members in enumerate(([0, 2], [1, 3])):
        drift = {"0": [0.1, 0.2], "1": [0.3, None]}
        text = json.dumps({"members": members, "drift": drift})
        (tmp_path / "parts" / f"{number}.json").write_text(text)
    found = drift_of(SimpleNamespace(folder=tmp_path))
    assert found == {0: (0.1, 0.3), 1: (0.1, 0.3), 2: (0.2, None), 3: (0.2, None)}


@pytest.mark.parametrize(
    ("ours", "theirs", "says"),
    [
        ([0.83, 0.82, 0.84], [0.83, 0.83, 0.82], []),
        ([0.81, 0.81, 0.82], [0.81, 0.81, 0.82], ["mean"]),
        ([0.85, 0.85, 0.79], [0.83, 0.83, 0.83], ["seed"]),
        ([0.83, 0.83, 0.83], [0.85, 0.85, 0.85], ["PyTorch"]),
    ],
)
def test_what_does_not_hold_is_said(ours, theirs, says):
    found = seeds.complaints(ours, theirs)
    assert len(found) == len(says)
    assert all(word in complaint for word, complaint in zip(says, found, strict=True))


@pytest.mark.full
@pytest.mark.parametrize("contestant", trainer.CONTESTANTS["full"])
@pytest.mark.parametrize("mode", trainer.CONTESTANTS)
def test_each_contestant_runs(contestant, mode, assets):
    said = run("trainer", "--one", contestant, "--mode", mode, "--rows", "8%", at=assets)
    assert all(json.loads(said)[measure] > 0 for measure in trainer.MEASURES)


@pytest.mark.full
def test_the_twin_learns(assets):
    few = [f"data.{name}=csv:assets/reviews/train.csv[:15%]" for name in ("train", "eval", "test")]
    said = run("twin", "configs/sentiment.yaml", *few, "train.length=2 epochs", at=assets)
    assert json.loads(said)["test"] > 0.65  # on the rows it was trained on


def test_a_photo_is_cut_in_two_with_its_boxes(tmp_path):
    """A box at the cut is in both halves, one of which two pixels remain in the other alone."""
    Image.fromarray(np.arange(40 * 101, dtype=np.uint8).reshape(40, 101)).save(tmp_path / "a.png")
    head = ("image_path", "xmin", "ymin", "xmax", "ymax", "label")
    sides = {"left": (5, 20), "both": (40, 60), "right": (70, 101), "nearly": (48, 70)}
    rows = [("a.png", first, 3, end, 9, name) for name, (first, end) in sides.items()]
    write_csv(tmp_path / "a.csv", head, rows)
    (to := tmp_path / "halves").mkdir()
    other_forest.write_halves(tmp_path / "a.csv", to)
    boxes = {
        half: {
            row["label"]: (float(row["xmin"]), float(row["xmax"]), row["ymin"])
            for row in csv.DictReader((to / f"{half}.csv").read_text().splitlines())
        }
        for half in ("left", "right")
    }
    assert boxes["left"] == {"left": (5, 20, "3"), "both": (40, 50, "3")}
    assert boxes["right"] == {"both": (0, 10, "3"), "right": (20, 51, "3"), "nearly": (0, 20, "3")}
    whole, left, right = (
        np.asarray(decode(path)) for path in (tmp_path / "a.png", to / "left.png", to / "right.png")
    )
    assert (left == whole[:, :50]).all()
    assert (right == whole[:, 50:]).all()


@pytest.fixture
def assets(tmp_path, minilm, reviews) -> Path:
    """A folder with `configs/` and `assets/`, as the repository has after `make assets`."""
    (tmp_path / "assets").symlink_to(minilm.parent)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    return tmp_path


def run(name: str, *words: str, at: Path) -> str:
    """The last line that a benchmark prints, run in the folder `at` on one device."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": xla_flags(1)}
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *words],
        cwd=at,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    "name", ["bert", *(pytest.param(name, marks=pytest.mark.full) for name in ("vit", "llama"))]
)
def test_both_sides_of_the_gpu_benchmark_run(name, tmp_path):
    """On a CPU and small, so that where there is a GPU they do."""
    whole = gpu.SHAPES[name]
    shutil.copytree(ROOT / f"benchmarks/shapes/{whole.config}", tmp_path, dirs_exist_ok=True)
    fields = json.loads((tmp_path / "config.json").read_text())
    fields |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    fields |= {"num_attention_heads": 2}
    fields |= {"num_key_value_heads": 2, "head_dim": 16} if name == "llama" else {}
    fields |= {"image_size": 32} if name == "vit" else {"vocab_size": 50}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    small = [f"model.checkpoint={tmp_path}", "data.batch_size=4"]
    small += ["model.image_size=32"] if name == "vit" else ["data.max_length=16"]
    shape = dataclasses.replace(whole, overrides=(*whole.overrides, *small))
    config = gpu.make_config(shape, tmp_path)
    ours = gpu.run_jaxft(config, warm=1, timed=1)
    theirs = gpu.run_torch(config, shape.torch, "cpu", warm=1, timed=1)
    frozen = gpu.run_jaxft(override_config(config, [gpu.FROZEN.replace("8", "1")]), 1, 1)
    assert ours["examples"] == 4
    assert 0 < frozen["flops"] < ours["flops"]
    found = gpu.summary({"jaxft": [ours], "torch": [theirs], "frozen": [frozen]}, shape)
    assert found["ratio"]["median"] == theirs["seconds"] / ours["seconds"]


def test_the_gpu_benchmark_holds_what_it_finds_against_what_is_wanted():
    ours = {"seconds": 1.0, "flops": 500, "peak": 1000.0, "examples": 8, "device": "made"}
    frozen = {**ours, "seconds": 0.5, "flops": 250}
    turns = {"jaxft": [ours], "torch": [{"seconds": 1.2}], "frozen": [frozen]}
    found = gpu.summary(turns, gpu.SHAPES["llama"])
    assert found["mfu"] == {"jaxft": 0.5, "torch": pytest.approx(0.5 / 1.2)}
    assert (found["frozen"], found["held"]) == (1.0, True)
    slow = {**turns, "frozen": [{**frozen, "seconds": 0.6}]}
    assert not gpu.summary(slow, gpu.SHAPES["llama"])["held"]
    assert not gpu.summary({**turns, "torch": [{"seconds": 1.1}]}, gpu.SHAPES["bert"])["held"]
