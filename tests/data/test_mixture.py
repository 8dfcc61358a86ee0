"""Mixtures and balanced classes: what an epoch draws, exactly, and after a kill."""

import csv
import json
import signal

import numpy as np
import pytest

from jaxft.cli.main import main
from jaxft.config.load import check_resume, override_config, parse_config
from jaxft.data.batching.mixture import Mixture
from jaxft.data.batching.plans import TrainPlan
from jaxft.engine.setup import build
from jaxft.errors import UserError
from tests.models.test_decoders import make_checkpoint
from tests.support.launch import Launched, cache, events, write_config  # noqa: F401 a fixture
from tests.support.tiny import tiny_config, tiny_reviews

SIZES = np.random.default_rng(0).integers(3, 60, 1000)


def made(weights, counts, sizes=SIZES):
    parts = np.repeat(np.arange(len(counts)), counts)
    return Mixture(sizes[: len(parts)], parts, tuple(weights))


@pytest.mark.parametrize(
    ("weights", "counts", "due"),
    [
        ((3, 1), (100, 700), (600, 200)),
        ((1, 1, 1), (10, 20, 70), (34, 33, 33)),
        ((1, 1), (300, 300), (300, 300)),
        ((1e-9, 1), (50, 50), (1, 100)),
    ],
)
def test_shares_are_those_of_the_weights(weights, counts, due):
    draw = made(weights, counts)
    assert draw.due.tolist() == list(due)
    for epoch in range(3):
        drawn = np.bincount(draw.parts[draw.epoch(0, epoch)], minlength=len(due))
        assert drawn.tolist() == list(due)


def test_every_row_of_a_part_comes_before_any_comes_again():
    draw = made((3, 1), (100, 700))
    seen = np.zeros(800, int)
    for epoch in range(4):
        drawn = np.bincount(draw.epoch(1, epoch), minlength=800)
        assert (drawn[:100] == 6).all(), "read whole, as often as it is due"
        assert drawn[100:].max() == 1
        seen += drawn
    # 700 rows in strata of 3 and 4: after 3 epochs those of 3 are through, after 4 all.
    assert (seen[100:] >= 1).all()
    assert seen[100:].max() <= 2


def test_slots_hold_what_is_drawn_and_the_steps_are_the_same_in_every_epoch():
    draw = made((2, 1), (150, 600))
    plan = TrainPlan(draw.lengths, 3, 8, 96, 6, draw)
    for epoch in range(5):
        members = draw.epoch(3, epoch)
        assert (SIZES[members] <= draw.lengths).all()
        batches = plan.epoch(epoch)
        assert len(batches) == plan.steps_per_epoch
        inside = batches[batches >= 0]
        assert np.array_equal(np.sort(inside), np.sort(members))
        tokens = np.where(batches >= 0, SIZES[np.maximum(batches, 0)], 0).sum(-1)
        assert tokens.max() <= 96
        assert tokens.sum() > 0.97 * plan.fill * batches[..., 0].size * 96, "strata are narrow"


def test_a_draw_is_a_pure_function_that_seed_and_epoch_turn():
    draw, again = made((1, 2), (300, 100)), made((1, 2), (300, 100))
    assert np.array_equal(draw.epoch(5, 7), again.epoch(5, 7))
    assert not np.array_equal(draw.epoch(5, 7), draw.epoch(5, 8))
    assert not np.array_equal(draw.epoch(5, 7), draw.epoch(6, 7))
    # Pinned: a run must resume in another version of numpy.
    assert draw.epoch(5, 7)[-140:-130].tolist() == [149, 222, 46, 140, 231, 35, 78, 18, 263, 66]


# ------------------------------------------------------------------------------------ in a run


def write_rows(path, labels, word="film"):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        words = {0: "cold", 1: "warm", 2: "flat"}
        writer.writerows(
            [f"{words[label]} {word} {i % 7}", label] for i, label in enumerate(labels)
        )
    return path


def mixed(folder, **data):
    tiny_reviews(folder)
    other = write_rows(folder / "other.csv", [0, 1] * 20)
    train = [
        {"source": f"csv:{folder}/reviews.csv[:70%]", "weight": 3},
        {"source": f"csv:{other}", "weight": 1.0},
    ]
    return {"train": train, "batch_size": 12, **data}


def test_a_mixture_draws_by_weight_and_says_so(tmp_path, capsys):
    config = tiny_config(tmp_path, data=mixed(tmp_path))
    built = build(config)
    assert len(built.splits["train"].examples) == 67 + 40
    rows = built.plan.epoch(0)
    drawn = rows[rows >= 0]
    assert len(drawn) == 107
    assert (drawn < 67).sum() == 80
    assert built.splits["train"].source.place(70).startswith(f"csv:{tmp_path}/other.csv: row")
    assert main(["plan", write_config(config, tmp_path / "c.yaml")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "train: 74.8% of the samples are from csv:" in said
    assert "each row 1.2 times per epoch" in said


def test_balanced_classes_come_equally_often(tmp_path):
    labels = [0] * 80 + [1] * 15 + [2] * 5
    rare = write_rows(tmp_path / "rare.csv", labels)
    config = tiny_config(tmp_path, data={"train": f"csv:{rare}", "balance": True})
    built = build(config)
    assert set(built.label_names) == {"0", "1", "2"}
    for epoch in range(2):
        rows = built.plan.epoch(epoch)
        classes = built.splits["train"].examples.labels[rows[rows >= 0]]
        assert np.bincount(classes).tolist() == [34, 33, 33]
    both = mixed(tmp_path, balance=True)
    both["train"][1]["source"] = f"csv:{rare}"
    built = build(tiny_config(tmp_path, data=both, task={"labels": ["0", "1", "2"]}))
    rows = built.plan.epoch(0)
    drawn = rows[rows >= 0]
    classes = built.splits["train"].examples.labels[drawn]
    assert np.bincount(classes[drawn < 67]).tolist() == [63, 62], "of 167, 3 to 1, two classes"
    assert np.bincount(classes[drawn >= 67]).tolist() == [14, 14, 14]


def test_documents_that_are_cut_into_rows_are_drawn_by_their_source(tmp_path):
    """Where an example is no row of the source, it is drawn by the row that it is cut from."""
    make_checkpoint(tmp_path / "checkpoint", "llama")
    for name, documents, words in (("new", 6, 300), ("replay", 3, 100)):
        lines = [json.dumps({"text": "the film was warm " * (words // 4)})] * documents
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    train = [
        {"source": f"jsonl:{tmp_path}/new.jsonl", "weight": 3},
        {"source": f"jsonl:{tmp_path}/replay.jsonl", "weight": 1},
    ]
    data = {"train": train, "eval": f"jsonl:{tmp_path}/new.jsonl", "test": None, "max_length": 32}
    built = build(tiny_config(tmp_path, data=data, task={"kind": "causal_lm", "text": "text"}))
    split = built.splits["train"]
    assert len(split.examples) > 6 * 8, "documents are cut"
    rows = built.plan.epoch(0)
    of_new = split.rows[rows[rows >= 0]] < 6
    assert of_new.mean() == pytest.approx(0.75, abs=0.01)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"train": [{"source": "csv:x.csv", "weight": 0}]}, "'data.train.0.weight' must be more"),
        ({"train": [{"source": "csv:x.csv", "weight": -1}]}, "'data.train.0.weight' must be more"),
        ({"train": []}, "data: train names no source"),
        ({"train": [{"sauce": "csv:x.csv"}]}, "unknown key 'data.train.0.sauce'"),
        ({"train": [{"weight": 2}]}, "'data.train.0.source' is missing"),
        ({"train": 3}, "'data.train' must be "),
    ],
)
def test_a_bad_mixture_is_one_sentence(tmp_path, change, said):
    with pytest.raises(UserError) as caught:
        tiny_config(tmp_path, data=change)
    assert said in str(caught.value)


def test_what_cannot_be_drawn_is_one_sentence(tmp_path):
    data = mixed(tmp_path)
    (tmp_path / "bare.csv").write_text("text,lable\nwarm,1\n")
    data["train"][1]["source"] = f"csv:{tmp_path}/bare.csv"
    with pytest.raises(
        UserError, match=r"bare\.csv: there is no column 'label'. Did you mean 'lab"
    ):
        build(tiny_config(tmp_path, data=data))
    data = mixed(tmp_path, balance=True)
    with pytest.raises(UserError, match="Use one of them"):
        build(tiny_config(tmp_path, data=data, task={"class_weights": "balanced"}))
    with pytest.raises(UserError, match=r"data\.balance: the examples do not have one class"):
        build(tiny_config(tmp_path, data=data, task={"problem": "regression"}))
    (tmp_path / "bad.csv").write_text("text,label\nwarm,\n")
    data = mixed(tmp_path, on_bad_row="skip")
    data["train"][1]["source"] = f"csv:{tmp_path}/bad.csv"
    with pytest.raises(UserError, match=r"no example of csv:.*bad\.csv is left\."):
        build(tiny_config(tmp_path, data=data))


@pytest.mark.slow
@pytest.mark.usefixtures("cache")
def test_a_killed_mixture_goes_on_as_if_nothing_had_been(tmp_path):
    """kill -9 in the second epoch: losses step by step and the result are as undisturbed."""

    def run(name):
        config = tiny_config(
            tmp_path,
            run={"name": name},
            data=mixed(tmp_path, balance=True),
            train={"length": "20 steps", "evaluate_every": "20 steps", "log_every": 1},
            checkpoint={"every": 4},
        )
        return write_config(config, tmp_path / f"{name}.yaml"), tmp_path / "runs" / name

    file, whole = run("whole")
    undisturbed = Launched(tmp_path, "train", file)
    assert undisturbed.end(600) == 0, undisturbed.said
    file, killed = run("killed")
    launched = Launched(tmp_path, "train", file)
    launched.until(lambda: any(e["step"] >= 11 for e in events(killed, "train")[-1:]), 600)
    assert launched.stop(signal.SIGKILL) == -9
    again = Launched(tmp_path, "train", file, "--resume")
    assert again.end(600) == 0, again.said
    assert "Resumed at step" in again.said
    ours, theirs = ([e["loss"] for e in events(run, "train")] for run in (killed, whole))
    assert len(ours) == 20
    assert ours == theirs
    results = [json.loads((run / "result.json").read_text())["metrics"] for run in (killed, whole)]
    assert results[0] == results[1]


def test_another_mixture_is_another_run(tmp_path):
    config = tiny_config(tmp_path, data=mixed(tmp_path))
    other = override_config(config, ["data.train.0.weight=2.0"])
    with pytest.raises(UserError, match=r"different data\.train\.0\.weight \(3\.0 -> 2\.0\)"):
        check_resume(config, other)
    assert parse_config(config.dump()) == config
