"""The PyTorch twin starts where jaxft does, learns as it does and is scored as it is."""

import json
from pathlib import Path

import numpy as np
import pytest
from transformers.utils import logging

import jaxft
from benchmarks import agreement
from benchmarks.twin import Twin
from benchmarks.twin_rows import ROWS
from jaxft.demo.ner import tweets
from jaxft.engine.evaluate import build_eval_step, evaluate
from jaxft.engine.initial_state import load_params
from jaxft.engine.setup import build, objective_of
from tests.support.launch import cache  # noqa: F401 a fixture
from tests.support.phases import phase_of
from tests.support.tiny import tiny_config, train_and_eval
from tests.support.tiny_images import tiny_image_config
from tests.support.xla import xla_flags
from tests.tasks.test_token_classification import write_sentences

pytestmark = pytest.mark.usefixtures("cache", "quiet")
ROOT = Path(__file__).parents[2]
WITHOUT_DROPOUT = {"dropout": 0.0}


@pytest.fixture
def quiet():
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def texts(folder):
    return tiny_config(folder, model=WITHOUT_DROPOUT)


def words(folder):
    write_sentences(folder / "train.conll", 64)
    write_sentences(folder / "eval.conll", 16, seed=1)
    return tiny_config(
        folder,
        task={"kind": "token_classification"},
        data=train_and_eval(folder, "conll"),
        model=WITHOUT_DROPOUT,
    )


def images(folder):
    return tiny_image_config(folder, run={"seed": {"init": 1}})  # a head that is right at times


CONFIGS = {
    "text_classification": texts,
    "token_classification": words,
    "image_classification": images,
}


def twin_of(built, folder):
    """The twin with jaxft's weights, new ones too, and those weights."""
    twin, model = Twin(built), load_params(built)
    model.save(folder / "start")
    start = ROWS[built.config.task.kind].architecture.from_pretrained(folder / "start")
    twin.model.load_state_dict(start.state_dict())
    return twin, model.params


@pytest.mark.slow
@pytest.mark.parametrize("kind", ROWS)
def test_the_same_weights_have_the_same_loss_and_score(kind, tmp_path):
    built = build(CONFIGS[kind](tmp_path))
    twin, params = twin_of(built, tmp_path)
    index = next(twin.order())
    rows = built.splits["train"].examples.collate(index[:, None].astype(np.int32), 40)
    loss, weight = objective_of(built, phase_of(built).compute)(params, rows, None)["loss"]
    assert twin.step(index) == pytest.approx(float(loss / weight), rel=1e-5)
    twin, params = twin_of(built, tmp_path)  # as before the step
    found = evaluate(built, build_eval_step(built), params, built.splits["train"]).scores
    metric = twin.rows["train"].metric
    assert found[metric] > 0
    assert twin.score("train") == pytest.approx(found[metric], abs=1e-6)


@pytest.mark.slow
def test_the_same_batches_give_the_same_losses(tmp_path):
    length = {"length": "6 steps", "evaluate_every": "6 steps", "log_every": 1}
    config = tiny_image_config(tmp_path, train=length)
    run = jaxft.train(config, quiet=True)
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    ours = [line["loss"] for line in map(json.loads, lines) if line["kind"] == "train"]
    twin, _ = twin_of(build(config), tmp_path)
    batches = twin.order()
    theirs = [twin.step(next(batches)) for _ in ours]
    assert len(ours) == 6
    np.testing.assert_allclose(theirs, ours, rtol=1e-3)
    assert abs(ours[0] - ours[-1]) > 0.01, "nothing was learned, so that nothing is compared"


# ------------------------------------------------------------------------------ 500 rows, 3 seeds


@pytest.mark.parametrize(
    ("ours", "theirs", "says"),
    [
        ([0.83, 0.82, 0.84], [0.83, 0.83, 0.82], []),
        ([0.80, 0.90, 0.85], [0.84, 0.85, 0.90], []),  # apart by the seed's chance
        ([0.85, 0.85, 0.85], [0.83, 0.83, 0.83], ["+0.020 from PyTorch"]),
        ([0.60, 0.90, 0.90], [0.80, 0.70, 0.70], ["+0.067 from PyTorch"]),  # no noise is so wide
        ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5], ["jaxft reached", "torch reached"]),
    ],
)
def test_what_is_no_noise_is_said(ours, theirs, says):
    found = agreement.complaints("sentiment", {"jaxft": ours, "torch": theirs})
    assert len(found) == len(says)
    assert all(word in said for word, said in zip(says, found, strict=True))


@pytest.mark.full
@pytest.mark.parametrize("name", agreement.RECIPES)
def test_pytorch_agrees_on_500_rows(name, minilm, vits, reviews, digits, tmp_path, monkeypatch):
    for folder in (minilm, vits, reviews, digits, tweets()):
        (tmp_path / "assets").mkdir(exist_ok=True)
        (tmp_path / "assets" / folder.name).symlink_to(folder)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("XLA_FLAGS", xla_flags(1))
    assert agreement.complaints(name, agreement.compare(name)) == []
