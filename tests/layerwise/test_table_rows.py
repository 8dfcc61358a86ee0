"""A table's rows as text, through the true commands: train, bad rows, one class, predictions."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from jaxft.cli.main import main
from jaxft.config.load import to_yaml
from tests.support.launch import cache  # noqa: F401 a fixture
from tests.support.tiny import tiny_config

pytestmark = pytest.mark.usefixtures("cache")
TEMPLATE = "a {mood} film of {cost:.0f} in the {place}"
COLUMNS = ("mood", "cost", "place", "kind")


def write_table(path: Path, rows) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    return f"csv:{path}:ordered"


def drawn(count: int, seed: int):
    draw = np.random.default_rng(seed)
    for number in range(count):
        bad = number % 4 == 0
        yield ("cold" if bad else "warm", draw.normal(50, 5), "plot", "bad" if bad else "good")


@pytest.fixture
def config(tmp_path, monkeypatch) -> Path:
    """`c.yaml` beside three tables, two steps long."""
    monkeypatch.chdir(tmp_path)
    specs = {
        name: write_table(Path(f"{name}.csv"), drawn(count, seed))
        for seed, (name, count) in enumerate((("train", 16), ("eval", 8), ("test", 12)))
    }
    made = tiny_config(
        Path(),
        task={
            "template": TEMPLATE,
            "label": "kind",
            "labels": ["good", "bad"],
            "class_weights": {"bad": 3},
            "costs": {"miss": 5, "false_alarm": 1},
        },
        data=specs,
        train={"length": "2 steps", "evaluate_every": "2 steps"},
        checkpoint={"best": "average_precision"},
    )
    Path("c.yaml").write_text(to_yaml(made.dump()))
    return tmp_path


def refused(capsys, *words: str) -> str:
    capsys.readouterr()
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    return said.removeprefix("jaxft: ").rstrip("\n")


def lines(capsys, *words: str) -> list[dict]:
    capsys.readouterr()
    assert main(["predict", "runs/tiny", *words]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.slow
def test_rows_are_trained_on_scored_and_predicted(config, capsys):
    assert main(["train", "c.yaml", "--quiet"]) == 0
    result = json.loads(Path("runs/tiny/result.json").read_text())
    assert {"average_precision", "auroc", "recall_at_1pct_fpr"} <= result["metrics"].keys()
    assert main(["report", "runs/tiny"]) == 0
    assert "A miss costs 5, a false positive 1." in Path("runs/tiny/report.html").read_text()

    written = list(drawn(12, 2))
    said = lines(capsys, "--file", "test.csv")
    assert [line["text"] for line in said] == [
        f"a {mood} film of {cost:.0f} in the plot" for mood, cost, *_ in written
    ]
    evaluated = Path("runs/tiny/predictions-test.jsonl").read_text().splitlines()
    for line, other in zip(said, map(json.loads, evaluated), strict=True):
        assert line["label"] == other["predicted"]
        assert line["probabilities"]["bad"] == pytest.approx(
            other["probabilities"]["bad"], abs=2e-5
        )
    rows = [{"mood": "cold", "cost": 50, "place": None}, {"place": "plot", "cost": 1, "mood": "x"}]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = lines(capsys, "--file", "rows.jsonl")
    assert [line["text"] for line in told] == [
        "a cold film of 50 in the unknown",
        "a x film of 1 in the plot",
    ]
    assert lines(capsys, *map(json.dumps, rows)) == told

    write_table(Path("more.csv"), [*drawn(40, 3), ("cold", "much", "plot", "bad")])
    said = refused(capsys, "predict", "runs/tiny", "-f", "more.csv")
    assert said == "csv:more.csv:ordered: row 41 has 'much' in cost, not a number."
    Path("less.csv").write_text("mood,price\ncold,1\n")
    said = refused(capsys, "predict", "runs/tiny", "-f", "less.csv")
    assert said.startswith("csv:less.csv:ordered: there is no column 'cost'.")
    said = refused(capsys, "predict", "runs/tiny", '{"mood": "cold", "cots": 1, "place": "x"}')
    assert said.startswith("line 1: the row has no 'cost'; use null for a missing value.")
    said = refused(capsys, "predict", "runs/tiny", "cold")
    assert said.startswith(
        "line 1: this run reads rows of a table, and the line is not a JSON object."
    )


BAD = {
    "no number": (("cold", "much", "plot", "bad"), "has 'much' in cost, not a number"),
    "no cells": (("", "", "NA", "bad"), "has no value in any column of the template"),
    "no label": (("cold", "1", "plot", ""), "has no kind"),
    "no class": (("cold", "1", "plot", "odd"), "has the label 'odd'"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_named_by_its_place(case, config, capsys):
    row, said = BAD[case]
    write_table(Path("train.csv"), [*drawn(16, 0), row])
    assert refused(capsys, "train", "c.yaml", "--quiet").startswith(
        f"csv:train.csv:ordered: row 17 {said}"
    )
    assert not Path("runs").exists()


def test_bad_rows_are_skipped_and_counted(config, capsys):
    rows = list(drawn(16, 0))
    rows[3:3] = [row for row, _ in BAD.values()]
    write_table(Path("train.csv"), rows)
    assert main(["train", "c.yaml", "data.on_bad_row=skip"]) == 0
    about = json.loads(Path("runs/tiny/run.json").read_text())
    found = {split["split"]: split for split in about["data"]}
    assert (found["train"]["examples"], found["train"]["skipped"]) == (16, 4)
    assert "skipped" not in found["test"]
    assert "4 bad rows" in capsys.readouterr().out


def test_a_test_split_of_one_class_has_no_auroc_and_says_so(config, capsys):
    write_table(Path("test.csv"), [("warm", 1, "plot", "good")] * 5)
    assert main(["train", "c.yaml"]) == 0
    metrics = json.loads(Path("runs/tiny/result.json").read_text())["metrics"]
    assert "accuracy" in metrics
    assert not {"auroc", "average_precision", "recall_at_1pct_fpr"} & metrics.keys()
    assert "all are 'good'" in " ".join(capsys.readouterr().out.split())
    write_table(Path("eval.csv"), [("warm", 1, "plot", "good")] * 5)
    said = refused(capsys, "train", "c.yaml", "run.name=other", "--quiet")
    assert said.startswith("csv:eval.csv:ordered: the split has only one class ('good').")


def test_a_template_that_names_a_column_that_is_not_there(config, capsys):
    said = refused(capsys, "train", "c.yaml", "task.template='{mod} film'", "--quiet")
    assert said.startswith("csv:train.csv:ordered: there is no column 'mod'. Did you mean 'mood'?")
