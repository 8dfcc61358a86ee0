"""`jaxft config`'s selections, the installed example configs, `jaxft assets` and `jaxft demo`."""

import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from jaxft.cli.main import main
from jaxft.config.examples import FOLDER, list_examples
from jaxft.config.load import load_config
from jaxft.config.tasks import task_sections
from jaxft.demo.main import ASSETS

ROOT = Path(__file__).parents[2]


def printed(capsys, *words):
    assert main(words) == 0
    return capsys.readouterr().out


def refused(capsys, *words):
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err.strip()


def first_words(table):
    return [
        line.split()[0] for line in table.splitlines() if line[:2] == "  " and line[2:3].strip()
    ]


@pytest.mark.parametrize("kind", task_sections())
def test_the_keys_of_one_task(kind, capsys):
    names = first_words(printed(capsys, "config", f"task.kind={kind}"))[1:]
    expected = [f"task.{name}" for name in task_sections()[kind].model_fields]
    assert set(expected) <= set(names)
    assert all(name.startswith("task.") for name in names)
    assert "r_drop" in str(names) or kind != "text_classification"
    assert "r_drop" not in str(names) or kind == "text_classification"


@pytest.mark.parametrize("word", ["optimizer.", "optimizer"])
def test_the_keys_of_one_section(word, capsys):
    names = first_words(printed(capsys, "config", word))[1:]
    assert "optimizer.lr" in names
    assert all(name.startswith("optimizer.") for name in names)


def test_one_key_and_the_items_of_a_list(capsys):
    assert first_words(printed(capsys, "config", "optimizer.lr"))[1:] == ["optimizer.lr"]
    assert "groups[].lr_mult" in first_words(printed(capsys, "config", "groups."))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optimiser."], "neither a config file nor a section or key of one. Did you mean 'opti"),
        (["optimizer.lrr"], "Did you mean 'optimizer.lr'?"),
        (["task.kind=text_clasification"], "no task.kind 'text_clasification'. Did you mean 'te"),
        (["optimizer.lr=1"], "no config is named. Write jaxft config CONFIG KEY=VALUE"),
        (["optimizer.", "train.length=2"], "'optimizer.' names keys, and KEY=VALUE needs a conf"),
    ],
)
def test_keys_that_are_not_there(words, message, capsys):
    assert message in refused(capsys, "config", *words)


def test_every_config_is_installed():
    """A wheel holds what `package-data` names below `jaxft/`, with links followed."""
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = data["tool"]["setuptools"]["package-data"]["jaxft"]
    installed = {path.name for pattern in patterns for path in (ROOT / "jaxft").glob(pattern)}
    assert {path.name for path in (ROOT / "configs").glob("*.yaml")} <= installed
    assert FOLDER.parent == ROOT / "jaxft"


def test_the_list(capsys):
    table = printed(capsys, "configs")
    assert table == printed(capsys, "configs", "list")
    for example in list_examples():
        assert example.name in table
        assert len(example.about) > 20, example.name
        assert example.about[0].isupper(), example.name
        assert example.about.endswith("."), example.name
        assert example.assets, example.name
        assert set(example.assets) <= ASSETS.keys(), example.name


def test_show(capsys):
    assert printed(capsys, "configs", "show", "ner") == (ROOT / "configs/ner.yaml").read_text()
    assert "Did you mean 'sentiment'?" in refused(capsys, "configs", "show", "sentimnt")


def test_a_copy_is_a_config_and_replaces_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert printed(capsys, "configs", "copy", "digits") == "digits.yaml\n"
    assert load_config("digits.yaml") == load_config(ROOT / "configs/digits.yaml")
    text = Path("digits.yaml").read_text()
    assert "jaxft train digits.yaml" in text
    assert "../docs" not in text
    Path("digits.yaml").write_text("mine")
    assert "digits.yaml exists already" in refused(capsys, "configs", "copy", "digits")
    assert Path("digits.yaml").read_text() == "mine"
    Path("folder").mkdir()
    assert printed(capsys, "configs", "copy", "ner.yaml", "folder") == "folder/ner.yaml\n"


def test_assets(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = printed(capsys, "assets", "--list")
    assert all(name in table for name in ASSETS)
    brought = []
    monkeypatch.setitem(ASSETS, "digits", lambda: brought.append("digits"))
    monkeypatch.setattr("jaxft.demo.main.link", lambda name: name)
    assert printed(capsys, "assets", "digits").startswith("digits: in assets/")
    assert brought == ["digits"]
    assert "no asset 'digts'. Did you mean 'digits'?" in refused(capsys, "assets", "digts")


@pytest.mark.parametrize("left", ["nothing", "part", "all"])
def test_the_demo_trains_resumes_and_shows(left, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Path("runs/first")
    run.mkdir(parents=True)
    if left != "nothing":
        (run / "run.json").write_text("{}")
    if left == "all":
        (run / "result.json").write_text("{}")
    calls = []

    def train(config, *, command, resume):
        calls.append((config.run.name, config.model.checkpoint, resume))
        (run / "result.json").write_text("{}")

    def stand_in(name, **functions):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
        vars(sys.modules[name]).update(functions)

    monkeypatch.setattr("jaxft.demo.main.bring", lambda: "brought")
    stand_in("jaxft.training.story", train=train)
    stand_in("jaxft.export.export", export=lambda run: run / "export")
    stand_in("jaxft.inference.predict", predict=lambda run, texts: [{"text": t} for t in texts])
    stand_in("jaxft.report.page.page", write_page=lambda runs, out: runs[0] / "report.html")
    stand_in("jaxft.device.process", prepare_process=lambda: SimpleNamespace())
    out = printed(capsys, "demo", "run.name=first")
    assert calls == ([] if left == "all" else [("first", "assets/minilm", left == "part")])
    for line in ("brought", "runs/first/export", '"an hour too long ."', "runs/first/report.html"):
        assert line in out
