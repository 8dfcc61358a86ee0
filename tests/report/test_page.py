"""The page of a run: complete in itself, escaped, and never broken by a file that is."""

import base64
import html
import io
import json
import os
import re

import pytest
import yaml
from PIL import Image

from jaxft.cli.main import main
from jaxft.errors import UserError
from jaxft.report.page import png as page_png
from jaxft.report.page.classes import confusion, worst_mistakes
from jaxft.report.page.figures import figures, smooth
from jaxft.report.page.json_report import report_json
from jaxft.report.page.page import spans, write_page
from jaxft.report.page.png import write_pngs
from jaxft.report.page.run import read_run
from jaxft.report.page.views import differences
from tests.support.synthetic_run import write_json, write_run

EVIL = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"
SCRIPT = re.compile(r"<script>.*?</script>", re.DOTALL)


def page_of(*runs, out=None):
    return write_page(runs, out).read_text(encoding="utf-8")


def without_scripts(page):
    """The page's own markup: the inlined programs name addresses that they do not load."""
    return SCRIPT.sub("", page)


def figures_in(page):
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', page, re.S)
    return {figure["id"]: figure for figure in json.loads(found[1])}


def line(label="a", predicted="b", loss=1.0, **more):
    probabilities = {"a": 0.4, "b": 0.6}
    common = {"text": "t", "label": label, "predicted": predicted, "loss": loss}
    return {**common, "probabilities": probabilities, **more}


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path)


def test_a_page_shows_the_whole_run(run):
    page = page_of(run)
    assert (run / "report.html").is_file()
    drawn = figures_in(page)
    assert list(drawn) == [
        "score-loss",
        "score-accuracy",
        "score-f1",
        "rates",
        "depth-rates",
        "examples_per_second",
        "grad_norm",
        "layers-relative_gradient",
        "layers-update_ratio",
        "layers-drift",
        "layers-signal",
        "layers-grad_norm",
        "layers-rate",
        "pr",
        "roc",
        "calibration",
        "embeddings-before",
        "embeddings-after",
    ]
    heat = drawn["layers-drift"]
    assert (heat["x"], heat["y"]) == ([120, 240, 360, 480], ["3", "4", "5", "6", "7"])
    assert all(len(row) == 4 for row in heat["z"])
    assert all(f'id="figure-{name}"' in page for name in drawn)
    body = without_scripts(page)
    assert "0.8312" in body  # the test accuracy
    assert "0.7022" in body  # the baseline
    assert body.count("<code>blocks/") == 96  # the layer table has every parameter
    assert body.count("</b>, predicted <b") == 2 * 20  # the worst of test and of eval
    assert "the step was not finite" in body
    assert "layer_decay:" in body  # the resolved config
    assert "b9a0018dff090c14" in body  # the checkpoint's hash
    assert "Missing data" not in body


def test_the_layer_table_goes_from_the_input_up(run):
    table = json.loads((run / "table.json").read_text())
    write_json(run / "table.json", {**table, "rows": table["rows"][::-1]})
    rows = re.findall(r"<tr class.*?>(.*?)</tr>", page_of(run).split('id="layers-0"')[1], re.S)
    depths = [re.findall('data-value="(.*?)"', row)[2] for row in rows[:105]]
    assert depths == sorted(depths)
    assert len(depths) == 105


def test_a_page_loads_nothing(run):
    body = without_scripts(page_of(run))
    assert not re.search(r"(src|href)=[\"']?(?!#)", body)
    assert "url(" not in body
    assert "@import" not in body


def test_two_towers_are_named(run):
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"]["checkpoint"] = {"encoder": "eye", "decoder": "mouth"}
    (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    assert "from <code>eye and mouth</code>" in page_of(run)


def test_the_figures_hold_the_events(run):
    drawn = figures_in(page_of(run))
    loss = {series["name"]: series for series in drawn["score-loss"]["series"]}
    assert list(loss) == ["train", "train, smoothed", "eval", "best"]
    assert loss["eval"]["x"] == [120, 240, 360, 480]
    assert loss["best"]["x"] == [360]
    assert loss["best"]["y"] == [loss["eval"]["y"][2]]
    rates = {series["name"]: series for series in drawn["rates"]["series"]}
    assert max(rates["head"]["y"]) == pytest.approx(5e-4)
    assert max(rates["rest"]["y"]) == pytest.approx(1e-4)
    fan = drawn["depth-rates"]["series"]
    assert [line["name"] for line in fan] == [f"depth {depth}" for depth in range(3, 8)]
    assert [max(line["y"]) for line in fan] == pytest.approx(
        [0.6561e-4, 0.729e-4, 0.81e-4, 9e-5, 5e-4]
    )
    assert [line["shade"] for line in fan] == [0, 0.25, 0.5, 0.75, 1]
    assert [line["unlisted"] for line in fan] == [False] * 5, "each of a few lines has a name"


def test_a_page_replaces_an_earlier_page_and_nothing_else(run, tmp_path):
    out = tmp_path / "page.html"
    page_of(run, out=out)
    page_of(run, out=out)
    table = tmp_path / "rows.csv"
    table.write_text("text,label\n")
    refusal = r"--out: .*rows\.csv exists and was not written by jaxft\..*delete the file"
    with pytest.raises(UserError, match=refusal):
        write_page([run], table)
    assert table.read_text() == "text,label\n"


def test_a_page_is_not_written_over_a_link_or_a_device(run, tmp_path, capsys):
    out, other = tmp_path / "page.html", tmp_path / "other"
    page_of(run, out=other)
    before = other.read_bytes()
    out.symlink_to(other)
    assert main(["report", str(run), "--out", str(out)]) == 2
    assert "page.html is a symbolic link" in capsys.readouterr().err
    assert out.is_symlink()
    assert other.read_bytes() == before
    os.mkfifo(tmp_path / "pipe")
    assert main(["report", str(run), "--out", str(tmp_path / "pipe")]) == 2
    assert "pipe is a device, a pipe or a socket" in capsys.readouterr().err
    assert (tmp_path / "pipe").is_fifo()


def test_the_metric_that_chose_the_best_comes_first(run):
    about = json.loads((run / "run.json").read_text())
    write_json(run / "run.json", {**about, "best_metric": "f1"})
    page = page_of(run)
    assert list(figures_in(page))[:2] == ["score-loss", "score-f1"]
    assert "f1 on test" in page


def test_several_runs_share_the_figures_and_their_configs_are_compared(tmp_path):
    runs = [write_run(tmp_path, name, lr) for name, lr in (("one", 1e-4), ("two", 3e-4))]
    page = page_of(*runs)
    assert (tmp_path / "report.html").is_file()
    drawn = figures_in(page)
    names = {series["name"] for series in drawn["score-accuracy"]["series"]}
    assert {"one", "two", "one, train", "two, train", "one, best", "two, best"} == names
    assert drawn["rates"]["unit"] == "head solid, rest dashed"
    body = without_scripts(page)
    compared = body.split("Config differences")[1].split("</section>")[0]
    keys = re.findall(r"<th scope=\"row\"><code>(.*?)</code>", compared)
    assert keys == ["run.name", "optimizer.lr"]


def test_a_fan_takes_depths_that_differ(run):
    rates = json.loads((run / "rates.json").read_text())
    alike = [[max(row)] * len(row) for row in rates["by_depth"]]
    write_json(run / "rates.json", {**rates, "by_depth": alike})
    assert "depth-rates" not in figures_in(page_of(run))
    older = {name: rates[name] for name in ("groups", "steps", "rates")}
    write_json(run / "rates.json", older)
    page = page_of(run)
    assert "depth-rates" not in figures_in(page)
    assert "Missing data" not in page
    write_json(run / "rates.json", {**rates, "depths": [0]})
    assert "does not have one rate for each group and step" in page_of(run)


def test_the_eval_rows_are_drawn_before_and_after(run):
    read = json.loads((run / "embeddings-before.json").read_text())
    drawn = figures_in(page_of(run))["embeddings-before"]
    assert [line["name"] for line in drawn["series"]] == ["negative", "positive"]
    assert sum(len(line["x"]) for line in drawn["series"]) == 200
    assert drawn["axes"] == ["component 1 (31.0%)", "component 2 (12.0%)"]
    assert "61.0% have a nearest neighbor of their own class" in drawn["lead"]
    many = [f"class {number % 20:02}" for number in range(199)] + ["rare"]
    write_json(run / "embeddings-before.json", {**read, "labels": many})
    lines = figures_in(page_of(run))["embeddings-before"]["series"]
    assert (len(lines), lines[0]["name"]) == (13, "9 others")
    assert [line["symbol"] for line in lines[1:]] == ["circle"] * 6 + ["diamond"] * 6
    write_json(run / "embeddings-before.json", {**read, "labels": ["one"]})
    page = page_of(run)
    assert "does not have one point for each label" in page
    (run / "embeddings-before.json").unlink()
    page = page_of(run)
    assert "embeddings-after" not in figures_in(page)
    assert "Missing data" not in page


def test_of_many_runs_each_is_one_line_in_a_shade_of_its_own(tmp_path):
    runs = [write_run(tmp_path, f"run-{number}", seed=number) for number in range(9)]
    page = page_of(*runs)
    drawn = figures_in(page)
    lines = drawn["score-loss"]["series"]
    assert [line["name"] for line in lines] == [f"run-{number}" for number in range(9)]
    assert [line["shade"] for line in lines] == [number / 8 for number in range(9)]
    assert {line["style"] for line in lines} == {"points"}
    assert {line["dash"] for line in drawn["rates"]["series"]} == {"solid", "dash"}
    chance = [line for line in drawn["roc"]["series"] if not line["name"]]
    assert [line["style"] for line in chance] == ["faint"]
    body = without_scripts(page)
    assert body.count('class="pick"') == 9
    assert "color-mix(in srgb, var(--c3) 50.0%, var(--c0))" in body
    told = json.loads(report_json(runs))
    assert len(told["figures"][0]["series"]) == 27  # nothing is kept from a script


def test_json_has_the_scores_and_every_figure(run, tmp_path):
    told = json.loads(report_json([run]))
    assert list(told) == ["runs", "differences", "figures"]
    assert {figure["id"]: figure for figure in told["figures"]} == figures_in(page_of(run))
    (one,) = told["runs"]
    assert one["result"]["metrics"]["accuracy"] == 0.8312
    assert one["result"]["split"] == "test"
    assert one["best_metric"] == "accuracy"
    assert one["config"]["layer_decay"]["rate"] == 0.9
    assert [split["name"] for split in one["splits"]] == ["test", "eval"]
    assert [line["name"] for line in one["splits"][0]["classes"]] == ["negative", "positive"]
    assert len(one["thresholds"]["rows"]) == 3
    assert told["differences"] == {}
    (run / "result.json").unlink()
    other = write_run(tmp_path, "other", lr=3e-4)
    both = json.loads(report_json([run, other]))
    assert both["differences"]["optimizer.lr"] == ["0.0001", "0.0003"]
    assert both["runs"][0]["result"] is None
    assert "has no result.json" in both["runs"][0]["problems"][0]


def test_figures_as_files_replace_earlier_figures_and_nothing_else(run, tmp_path, monkeypatch):
    picture = io.BytesIO()
    Image.new("RGB", (4, 4)).save(picture, "PNG")
    uri = f"data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()}"

    def draw(page):
        told = json.dumps(dict.fromkeys(figures_in(page), uri))
        return f'<pre id="drawn">{html.escape(told)}</pre>'

    monkeypatch.setattr(page_png, "run_page", draw)
    paths = write_pngs([run], tmp_path / "figures")
    assert write_pngs([run], tmp_path / "figures") == paths
    paths[0].unlink()
    paths[1].write_bytes(picture.getvalue())  # a picture of somebody's
    with pytest.raises(UserError, match=f"--png: .*{paths[1].name} exists and was not written"):
        write_pngs([run], tmp_path / "figures")
    assert paths[1].read_bytes() == picture.getvalue()
    assert not paths[0].exists()  # nothing is written before all may be


def test_figures_as_files_need_a_browser(run, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="Chromium, which renders the figures, is not installed"):
        write_pngs([run], tmp_path / "figures")
    broken = tmp_path / "chromium"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(UserError, match="did not render the figures"):
        write_pngs([run], tmp_path / "figures")
    broken.write_text("#!/bin/sh\necho '<html></html>'\n")
    with pytest.raises(UserError, match="Chromium did not render the figure score-loss"):
        write_pngs([run], tmp_path / "figures")
    assert not (tmp_path / "figures").exists()


def test_runs_of_one_name_are_told_apart(tmp_path):
    runs = [write_run(tmp_path / folder, "sentiment") for folder in ("a", "b")]
    names = {series["name"] for series in figures_in(page_of(*runs))["grad_norm"]["series"]}
    assert names == {f"{tmp_path}/a/sentiment", f"{tmp_path}/b/sentiment"}


def test_what_a_run_holds_is_never_markup(run):
    changed = line(text=EVIL, label=EVIL, predicted=EVIL + "2", loss=99.0)
    changed["probabilities"] = {EVIL: 0.1, EVIL + "2": 0.9}
    (run / "predictions-test.jsonl").write_text(json.dumps(changed) + "\n")
    about = json.loads((run / "run.json").read_text())
    write_json(run / "run.json", {**about, "state": f'"{EVIL}', "command": [EVIL], EVIL: EVIL})
    (run / "config.yaml").write_text(json.dumps({"task": {"kind": EVIL}, EVIL: EVIL}))
    with (run / "metrics.jsonl").open("a") as file:
        note = {"kind": "note", "step": 1, "text": EVIL}
        file.write(json.dumps(note) + "\n")
        event = {"kind": "eval", "step": 480, "split": EVIL, "loss": 1.0, EVIL: 1.0}
        file.write(json.dumps(event) + "\n")
    table = json.loads((run / "table.json").read_text())
    table["groups"][0]["name"] = table["rows"][0]["name"] = table["rows"][0]["group"] = EVIL
    write_json(run / "table.json", table)
    page = page_of(run)
    assert "&lt;script&gt;window.hacked" in page
    assert "<script>window.hacked" not in page
    assert "<img" not in without_scripts(page)


def test_only_the_pages_own_scripts_may_run(run):
    page = page_of(run)
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', page)[1]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert re.fullmatch(r"('sha256-[\w+/=]+' ?){3}", rules["script-src"])


FILES = {
    "metrics.jsonl": "the curves",
    "table.json": "the layer table",
    "rates.json": "the rates",
    "result.json": "the result",
    "config.yaml": "the config",
    "predictions-test.jsonl": "the predictions on test",
}


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_a_sentence_in_the_page(run, name):
    (run / name).unlink()
    body = without_scripts(page_of(run))
    assert f"has no {name}" in body
    assert f"The page leaves out {FILES[name]}." in body


@pytest.mark.parametrize("content", ['{"a": ', "[1, 2]\n", '{"rows": [{}], "groups": 3}\n', "3\n"])
@pytest.mark.parametrize("name", FILES)
def test_a_broken_file_is_a_sentence_in_the_page(run, name, content):
    (run / name).write_text(content)
    body = without_scripts(page_of(run))
    if name == "config.yaml" and content.startswith('{"rows'):
        return  # proper YAML with keys that nobody reads
    assert "Missing data" in body
    assert name in body.split("Missing data")[1]


def test_a_number_that_no_float_holds_is_a_sentence_in_the_page(run):
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps(result | {"examples": 10**400}))
    assert "an entry without a proper &#39;examples&#39;" in without_scripts(page_of(run))


@pytest.mark.parametrize("section", ["model", "task"])
def test_a_config_with_a_section_of_another_type_is_a_sentence_in_the_page(run, section):
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(config | {section: "bert"}))
    body = without_scripts(page_of(run))
    assert f"config.yaml has an entry without a proper &#39;{section}&#39;." in body


def test_a_run_that_has_only_begun_has_a_page(tmp_path):
    run = tmp_path / "begun"
    run.mkdir()
    write_json(run / "run.json", {"name": "begun", "state": "running"})
    body = without_scripts(page_of(run))
    assert "running" in body
    assert body.count("The page leaves out") == 7


def test_not_finite_numbers_do_not_break_the_figures(run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 490, "loss": NaN, "accuracy": null}\n')
    assert 490 not in figures_in(page_of(run))["score-loss"]["series"][0]["x"]


def test_a_folder_that_is_no_run_is_an_error(tmp_path):
    with pytest.raises(UserError, match="not a run folder"):
        write_page([tmp_path])
    with pytest.raises(UserError, match="no run to report"):
        write_page([])
    assert list(tmp_path.iterdir()) == []


def test_a_run_named_twice_is_an_error(run):
    with pytest.raises(UserError, match="named 2 times"):
        write_page([run, run.parent / "." / run.name])


def test_confusion_counts_true_by_predicted():
    lines = [line("a", "a"), line("a", "b"), line("a", "b"), line("b", "b")]
    matrix = confusion(lines)
    assert matrix["names"] == ["a", "b"]
    assert [row["cells"] for row in matrix["rows"]] == [
        [(1, 1 / 3), (2, 2 / 3)],
        [(0, 0.0), (1, 1.0)],
    ]


def test_too_many_labels_are_not_drawn():
    assert confusion([line(str(n), str(n)) for n in range(50)]) is None


def test_worst_mistakes_are_the_twenty_with_the_highest_loss():
    lines = [line(loss=float(n), id=n) for n in range(30)] + [line("a", "a", loss=99.0)]
    worst = worst_mistakes(lines)
    assert [mistake["id"] for mistake in worst] == list(range(29, 9, -1))
    assert worst[0]["sure"] == 0.6


def test_differences_are_dotted():
    one = {"a": {"b": 1, "c": [1, 2]}, "d": "x"}
    other = {"a": {"b": 2, "c": [1, 2]}, "e": None}
    assert differences([one, other]) == [
        ("a.b", ["1", "2"]),
        ("d", ["x", ""]),
        ("e", ["", "null"]),
    ]
    assert differences([one, one]) == []
    assert differences([{"groups": []}, {"groups": [{"name": "head"}]}]) == [
        ("groups", ["[]", ""]),
        ("groups.0.name", ["", "head"]),
    ]


@pytest.mark.parametrize("count", range(1, 15))
def test_figures_fill_their_rows(count):
    columns = spans(count)
    assert len(columns) == count
    filled = 0
    for span in columns:
        filled += span
        assert filled <= 12  # no figure is pushed to the next row
        filled %= 12
    assert filled == 0


def test_smoothing_is_unbiased_at_the_start():
    assert smooth([2.0, 2.0, 2.0], 10) == pytest.approx([2.0, 2.0, 2.0])
    assert smooth([0.0, 1.0], 1) == pytest.approx([0.0, 2 / 3])


def test_a_long_run_is_thinned(run):
    with (run / "metrics.jsonl").open("w") as file:
        for step in range(10_000):
            file.write(json.dumps({"kind": "train", "step": step, "loss": float(step % 2)}) + "\n")
    series = figures([read_run(run, "long")])[0]["series"][0]
    assert len(series["x"]) <= 1500
    assert sum(series["y"]) / len(series["y"]) == pytest.approx(0.5, abs=0.1)


def test_the_runs_own_page_is_replaced_whichever_version_wrote_it(run):
    """A page of a version that left no mark is jaxft's, since it is in the run's folder."""
    (run / "report.html").write_text("<html>an older page</html>")
    assert write_page([run]) == run / "report.html"
    assert "an older page" not in (run / "report.html").read_text()
    events = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"metrics\.jsonl exists and was not written by jaxft"):
        write_page([run], run / "metrics.jsonl")
    assert (run / "metrics.jsonl").read_bytes() == events


def test_characters_that_reorder_or_control_are_written_out(tmp_path):
    run = write_run(tmp_path)
    hostile = "a \u202egnp.exe \x1b]52;c;eA==\x07 \x9b2J"
    line = {"id": 0, "text": hostile, "label": hostile, "predicted": "other", "loss": 9.0}
    text = json.dumps({**line, "probabilities": {hostile: 0.1, "other": 0.9}})
    (run / "predictions-test.jsonl").write_text(text + "\n")
    about = json.loads((run / "run.json").read_text())
    write_json(run / "run.json", {**about, "command": hostile})
    page = page_of(run)
    assert "a \\u202egnp.exe \\u001b]52;c;eA==\\u0007 \\u009b2J" in page
    assert not {"\u202e", "\x1b", "\x9b"} & set(page)
