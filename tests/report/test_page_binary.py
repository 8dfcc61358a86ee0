"""The page of two classes: curves and thresholds are scikit-learn's, chosen on the eval rows."""

import json
import re

import numpy as np
import pytest
import yaml
from sklearn import metrics

from jaxft.report.page.binary import Scored, binary_figures, counted, scored, thresholds
from jaxft.report.page.classes import by_class, confusion, worst_mistakes
from jaxft.report.page.page import write_page
from jaxft.report.page.run import read_run
from tests.support.synthetic_run import write_run

NAMES = ("good", "bad")


def write_lines(run, split, lines):
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run / f"predictions-{split}.jsonl").write_text(text)


def lines_of(chances, found):
    for number, (chance, bad) in enumerate(zip(chances, found, strict=True)):
        yield {
            "id": number,
            "text": f"loan {number}",
            "label": NAMES[int(bad)],
            "predicted": NAMES[int(chance > 0.5)],
            "probabilities": {"good": 1 - chance, "bad": chance},
            "loss": -float(np.log(chance if bad else 1 - chance)),
        }


def draw(count, seed):
    random = np.random.default_rng(seed)
    found = random.random(count) < 0.15
    return random.beta(2, 4, count) * 0.7 + 0.25 * found, found


def set_task(run, **keys):
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["task"].update(keys)
    (run / "config.yaml").write_text(yaml.safe_dump(config))


@pytest.fixture
def run(tmp_path):
    path = write_run(tmp_path, "fraud")
    for seed, (split, count) in enumerate((("test", 600), ("eval", 500))):
        write_lines(path, split, lines_of(*draw(count, seed)))
    set_task(path, costs={"miss": 10.0, "false_alarm": 1.0})
    return path


def figures_of(*runs):
    return {figure["id"]: figure for figure in binary_figures([read_run(r, r.name) for r in runs])}


def area(series):
    return np.trapezoid(series["y"], series["x"])


def test_the_curves_are_scikit_learns(run):
    drawn = figures_of(run)
    chances, found = draw(600, 0)
    assert list(drawn) == ["pr", "roc", "calibration", "cost"]
    roc, chance = drawn["roc"]["series"]
    assert area(roc) == pytest.approx(metrics.roc_auc_score(found, chances), abs=2e-3)
    assert roc["name"] == f"test, AUROC {metrics.roc_auc_score(found, chances):.3f}"
    assert (chance["x"], chance["y"], chance["name"]) == ([0, 1], [0, 1], "")
    precision_recall, chance = drawn["pr"]["series"]
    average = metrics.average_precision_score(found, chances)
    assert area(precision_recall) == pytest.approx(average, abs=0.02)
    assert chance["y"] == pytest.approx([found.mean()] * 2, abs=1e-6)
    said = drawn["calibration"]["series"][0]
    assert len(said["x"]) == 10
    assert np.mean(said["y"]) == pytest.approx(found.mean(), abs=1e-6)  # as many examples a bin
    cost = drawn["cost"]["series"][0]
    assert (cost["x"][0], cost["y"][0]) == (0, pytest.approx(1 - found.mean()))
    assert (cost["x"][-1], cost["y"][-1]) == (1, pytest.approx(10 * found.mean()))


def test_thresholds_are_chosen_on_eval_and_counted_on_test(run):
    told = thresholds(read_run(run, "fraud"))
    assert (told["wanted"], told["chosen"], told["shown"]) == ("bad", "eval", "test")
    chances, found = draw(500, 1)
    by_rule = {row["criterion"]: row for row in told["rows"]}

    def cost(at):
        missed, alarms = found & (chances < at), ~found & (chances >= at)
        return (10 * missed.sum() + alarms.sum()) / 500

    least = min(cost(at) for at in [*chances, 1.0])
    assert cost(by_rule["lowest cost"]["threshold"]) == pytest.approx(least, abs=0.01)
    f1 = [metrics.f1_score(found, chances >= at) for at in chances]
    best = metrics.f1_score(found, chances >= by_rule["best F1"]["threshold"])
    assert best == pytest.approx(max(f1), abs=0.01)
    quiet = by_rule["best recall at 1% false positives"]["threshold"]
    assert (chances[~found] >= quiet).mean() <= 0.01 < (chances[~found] >= quiet - 0.03).mean()
    for row in told["rows"]:
        chances_, found_ = draw(600, 0)
        said = chances_ >= row["threshold"]
        assert row["predicted"] == said.sum()
        assert row["recall"] == pytest.approx(metrics.recall_score(found_, said))
        assert row["precision"] == pytest.approx(
            metrics.precision_score(found_, said, zero_division=0)
        )


def test_no_threshold_is_chosen_on_the_untrained_model(run):
    trained = thresholds(read_run(run, "fraud"))
    # Before the first step every probability is near one half.
    untrained = np.random.default_rng(5).uniform(0.487, 0.515, 500)
    write_lines(run, "before", lines_of(untrained, draw(500, 1)[1]))
    assert thresholds(read_run(run, "fraud")) == trained
    (run / "predictions-eval.jsonl").unlink()
    assert thresholds(read_run(run, "fraud"))["chosen"] == "test"


def test_what_a_threshold_does_is_counted():
    split = Scored("test", np.array([0.9, 0.8, 0.3, 0.2]), np.array([True, False, True, False]))
    found = counted(split, 0.5, {"miss": 10, "false_alarm": 1})
    assert found == {
        "threshold": 0.5,
        "predicted": 2,
        "precision": 0.5,
        "recall": 0.5,
        "false_positive_rate": 0.5,
        "cost": 11 / 4,
    }
    assert counted(split, 0.95, None)["cost"] is None
    assert counted(split, 0.95, None)["precision"] == 0


def test_the_page_shows_them(run):
    page = write_page([run]).read_text()
    body = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    for name in ("pr", "roc", "calibration", "cost"):
        assert f'id="figure-{name}"' in body
    assert "Tuned on eval, measured on test." in body
    assert "A miss costs 10, a false positive 1." in body
    rows = re.findall(r'<th scope="row">(good|bad)</th><td class="n">(\d+)</td>', body)
    there = draw(600, 0)[1].sum()
    assert rows[:2] == [("good", str(600 - there)), ("bad", str(there))]


def test_several_runs_are_in_the_same_curves(run, tmp_path):
    other = write_run(tmp_path, "other")  # of classes with other names, and without costs
    drawn = figures_of(run, other)
    assert [series["name"].split(",")[0] for series in drawn["roc"]["series"]] == [
        "fraud",
        "other",
        "",
    ]
    assert [series["name"] for series in drawn["cost"]["series"]] == ["fraud"]
    assert len(drawn["pr"]["series"]) == 4  # each set has its own share by chance


def test_one_class_has_no_curves(run):
    for split in ("test", "eval"):
        write_lines(run, split, lines_of(np.linspace(0.1, 0.9, 20), np.zeros(20, bool)))
    assert figures_of(run) == {}
    assert thresholds(read_run(run, "fraud")) is None
    assert "Binary metrics" not in write_page([run]).read_text()


def test_without_eval_rows_the_table_says_so(run):
    (run / "predictions-eval.jsonl").unlink()
    assert "Tuned on the same rows, so the figures are optimistic." in write_page([run]).read_text()


@pytest.mark.parametrize("costs", [{"miss": "ten", "false_alarm": 1}, [3], {"miss": 2}])
def test_costs_that_are_none_are_left_out(run, costs):
    set_task(run, costs=costs)
    assert "cost" not in figures_of(run)
    assert "lowest cost" not in write_page([run]).read_text()


# --------------------------------------------------------------------- several labels, or a number


def test_several_labels_have_a_table_of_labels(run):
    lines = [
        {"label": ["a", "b"], "predicted": ["a"], "loss": 0.5},
        {"label": [], "predicted": ["b"], "loss": 0.9},
        {"label": ["b"], "predicted": ["b"], "loss": 0.1},
    ]
    lines = [{"text": "t", "probabilities": {"a": 0.6, "b": 0.4}, **line} for line in lines]
    rows = {row["name"]: row for row in by_class(lines)}
    assert (rows["a"]["precision"], rows["a"]["recall"], rows["a"]["f1"]) == (1, 1, 1)
    assert (rows["b"]["support"], rows["b"]["predicted"], rows["b"]["f1"]) == (2, 2, 0.5)
    assert confusion(lines) is None
    assert [line["label"] for line in worst_mistakes(lines)] == ["none", "a, b"]
    set_task(run, problem="multi_label", costs=None)
    for split in ("test", "eval"):
        write_lines(run, split, lines)
    body = write_page([run]).read_text()
    assert "Missing data" not in body
    assert "2 wrong of 3" in body
    assert scored(read_run(run, "fraud")) == []


def test_a_number_is_drawn_over_what_is_so(run):
    lines = [
        {"text": f"text {n}", "label": float(n), "predicted": n + 0.5, "loss": 0.25 + n}
        for n in range(5)
    ]
    set_task(run, problem="regression", costs=None)
    for split in ("test", "eval"):
        write_lines(run, split, lines)
    page = write_page([run]).read_text()
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', page, re.S)
    drawn = {figure["id"]: figure for figure in json.loads(found[1])}
    assert drawn["numbers"]["series"][0]["x"] == [0, 1, 2, 3, 4]
    assert drawn["numbers"]["series"][0]["y"] == [0.5, 1.5, 2.5, 3.5, 4.5]
    assert "pr" not in drawn
    assert "Largest errors" in page
    assert "wrong of" not in page
    assert "Missing data" not in page


def test_probabilities_in_a_line_of_another_view_are_not_drawn(run):
    about = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(about | {"view": "texts"}))
    odd = {"id": 0, "target": "a", "written": "b", "loss": 1.0}
    first = odd | {"label": "good", "probabilities": {"good": 0.5, "bad": 0.5}}
    write_lines(run, "test", [first, odd])
    assert figures_of(run) == {}
