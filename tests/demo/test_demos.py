"""`make demos`: every config has its row, what is measured is kept, and rows say what is lost."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import demos
from benchmarks.demos import Parts, cells, markdown
from benchmarks.demos_rows import DEMOS, ELSEWHERE, RECIPES
from benchmarks.scratch import write_scratch
from benchmarks.tables import LOGISTIC, TREES, table_scores
from jaxft.config.load import parse_config
from jaxft.demo.main import ASSETS
from jaxft.engine.setup import make_task
from jaxft.errors import UserError
from jaxft.models.load import load

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))


def row(**changes):
    scores = {"jaxft": 0.8, "frozen": 0.7, "scratch": 0.6}
    found = {
        "name": "risk",
        "data": "credits",
        "metric": "average_precision",
        "lower_is_better": False,
        "rows": {"train": 1500, "eval": 353, "test": 925},
        "pixels": None,
        "frozen_by": "pooled",
        "scores": scores,
        "seconds": 61.0,
        "cpu_seconds": 110.4,
    }
    return found | changes


def test_every_config_has_a_row_or_is_a_recipe():
    assert sorted([demo.name for demo in DEMOS] + [*RECIPES, *ELSEWHERE]) == CONFIGS


@pytest.mark.parametrize("demo", DEMOS, ids=lambda demo: demo.name)
def test_a_row_is_of_its_config(demo, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = demos._config(demo, demo.quick)
    assert demo.metric in make_task(config).metrics
    read = {
        word for word in json.dumps(config.model_dump(mode="json")).split('"') if "assets/" in word
    }
    needed = {word.split("assets/")[1].split("/")[0].split("[")[0] for word in read}
    assert needed == set(demo.assets)
    assert needed <= ASSETS.keys()
    for more in (demos.AS_IT_IS, [demos.HEAD_ALONE], demo.scratch):
        demos._config(demo, [*demo.quick, *more])


def test_a_row_says_what_it_does_not_beat():
    assert cells(row()) == [
        "risk",
        "credits",
        "1,500 / 925",
        "average precision",
        "0.7000",
        "0.6000",
        "0.8000",
        "1:01 (110 CPU s)",
        "",
    ]
    lost = row(scores={"jaxft": 0.8, "frozen": 0.7, "scratch": 0.9, "trees": 0.85})
    assert cells(lost)[-1] == "does not beat scratch; does not beat trees; trees: 0.8500"
    scores = {"jaxft": 9.0, "frozen": 17.0, "scratch": 8.0}
    lower = row(metric="perplexity", lower_is_better=True, scores=scores)
    assert cells(lower)[-1] == "does not beat scratch"
    assert cells(row(pixels=98))[2] == "1,500 / 925, 98 px"
    assert len({line.count("|") for line in markdown([row(), lost]).splitlines()}) == 1


def test_what_is_measured_is_kept_until_the_recipe_is_another(tmp_path):
    asked = []

    def measure():
        asked.append(1)
        return {"metrics": {"accuracy": 0.5}}

    for recipe in ("one", "one", "two"):
        found = Parts(tmp_path / "risk.json", recipe).get("jaxft", measure)
        assert found["metrics"] == {"accuracy": 0.5}
        assert found["seconds"] >= 0
    assert len(asked) == 2

    def broken():
        raise UserError("no")

    with pytest.raises(UserError):
        Parts(tmp_path / "risk.json", "two").get("scratch", broken)
    assert list(json.loads((tmp_path / "risk.json").read_text())["parts"]) == ["jaxft"]


def test_a_row_that_fails_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    def make_row(demo, folder, full):
        if demo.name == "risk":
            raise UserError("Debian is out of reach.")
        return row(name=demo.name)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demos, "make_row", make_row)
    monkeypatch.setattr(demos.assets, "link", lambda name: name)
    assert demos.main(["risk", "fraud"]) == 1
    said = capsys.readouterr()
    assert "Debian is out of reach." in said.err
    assert [one["name"] for one in json.loads(Path("runs/demos/table.json").read_text())] == [
        "fraud"
    ]
    assert demos.main(["frod"]) == 2
    assert "Did you mean 'fraud'?" in capsys.readouterr().err


# -------------------------------------------------------------------------------------- the rivals


def test_a_twin_from_scratch_has_the_same_shape_and_drawn_weights(tmp_path, tiny_mlm):
    assert write_scratch(str(tiny_mlm), tmp_path / "drawn") == [
        f"model.checkpoint={tmp_path}/drawn"
    ]
    ours, drawn = load(str(tiny_mlm)), load(str(tmp_path / "drawn"))
    assert ours.leaves == drawn.leaves
    kernels = [name for name in ours.leaves if name.endswith("kernel")]
    for name in kernels:
        values = np.asarray(drawn.params[name])
        assert values.std() == pytest.approx(0.02, rel=0.1)
        assert abs(np.corrcoef(values.ravel(), np.asarray(ours.params[name]).ravel())[0, 1]) < 0.05
    assert (tmp_path / "drawn/tokenizer.json").is_file()


def table_config(folder, **task):
    return parse_config(
        {
            "run": {"name": "t"},
            "model": {"checkpoint": "none"},
            "task": {"kind": "text_classification", **task},
            "data": {
                "train": f"csv:{folder}/train.csv",
                "eval": f"csv:{folder}/train.csv[:10%]",
                "test": f"csv:{folder}/test.csv",
            },
        }
    )


def test_a_tables_models_see_numbers_words_and_gaps(tmp_path):
    draw = np.random.default_rng(0)
    for name, count in (("train", 300), ("test", 100)):
        lines = ["age,job,known,y"]
        for _ in range(count):
            age, job = draw.integers(20, 60), draw.choice(["cook", "clerk"])
            bad = (age > 40) == (job == "cook")  # neither column alone tells
            lines.append(
                f"{age},{job},{'' if draw.random() < 0.5 else 1},{'bad' if bad else 'good'}"
            )
        (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n")
    asked = {"template": "{age} {job}", "label": "y", "labels": ["good", "bad"]}
    found = table_scores(table_config(tmp_path, **asked))
    assert found[TREES]["auroc"] > 0.99
    assert found[LOGISTIC]["auroc"] < 0.7
    with pytest.raises(UserError, match=r"with task\.template and test"):
        table_scores(table_config(tmp_path, label="y"))
