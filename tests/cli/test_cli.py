"""The commands: what they parse, which story they call with what, what they print, how they end.

The stories are stand-ins here; `test_demo.py` and the engine's tests run the real ones.
"""

import importlib.metadata
import io
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from jaxft.cli.main import main
from jaxft.cli.parts.tagged import labelled
from jaxft.cli.parts.terminal import announce
from jaxft.errors import Note, UserError

CONFIG = """\
run: {name: first}
model: {checkpoint: some/folder}
task: {kind: text_classification}
data: {train: "csv:train.csv[:90%]", eval: "csv:train.csv[90%:]"}
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(CONFIG)
    return "c.yaml"


@pytest.fixture
def story(monkeypatch):
    """Put a stand-in where a command looks for its story; gives the calls it received."""

    def stand_in(module, name, answer):
        calls = []

        def call(*args, **kwargs):
            calls.append((args, kwargs))
            return answer(*args, **kwargs)

        fake = ModuleType(module)
        setattr(fake, name, call)
        monkeypatch.setitem(sys.modules, module, fake)
        return calls

    return stand_in


def refused(capsys, *words):
    """The one line on standard error of a command that ends with 2."""
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    return said.err.strip()


# ------------------------------------------------------------------------------- the commands


def test_train(config, story, capsys):
    calls = story(
        "jaxft.training.story", "train", lambda config, **_: SimpleNamespace(folder="runs/first")
    )
    words = ["train", config, "optimizer.lr=3e-5", "mesh.fsdp=4", "--resume", "--quiet"]
    words += ["--profile", "10:20"]
    assert main(words) == 0
    assert capsys.readouterr().out == "runs/first\n"
    [((given,), options)] = calls
    assert given.optimizer.lr == 3e-5
    assert given.mesh.fsdp == 4
    assert options == {
        "resume": True,
        "overwrite": False,
        "quiet": True,
        "command": ["jaxft", *words],
        "profile": (10, 20),
    }


def test_train_resumes_or_overwrites_but_not_both(config, story, capsys):
    calls = story("jaxft.training.story", "train", lambda *_, **__: None)
    said = refused(capsys, "train", config, "--resume", "--overwrite")
    assert said == "jaxft: --resume continues a run and --overwrite replaces it. Use one of them."
    assert calls == []


def test_plan(config, story, capsys):
    made = SimpleNamespace(render=lambda: "a table", to_json=lambda: '{"groups": []}')
    calls = story("jaxft.planning.plan", "plan", lambda config: made)
    assert main(["plan", config, "optimizer.lr=1"]) == 0
    assert capsys.readouterr().out == "a table\n"
    assert main(["plan", config, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"groups": []}
    assert [args[0].optimizer.lr for args, _ in calls] == [1.0, 5e-5]


def test_eval(story, capsys):
    result = {"split": "test", "metrics": {"accuracy": 0.83}}
    calls = story("jaxft.inference.score", "score", lambda *_, **__: result)
    assert main(["eval", "runs/first"]) == 0
    assert json.loads(capsys.readouterr().out) == result
    assert main(["eval", "runs/first", "--split", "eval", "--data", "csv:more.csv"]) == 0
    assert main(["eval", "runs/first", "--interpolate", "0:1:0.5"]) == 0
    assert main(["eval", "runs/first", "--similarity"]) == 0
    assert main(["eval", "runs/first", "--split", "train", "--checkpoint", "40"]) == 0
    assert [options["which"] for _, options in calls] == [*["best"] * 4, 40]
    assert [args for args, _ in calls] == [
        (Path("runs/first"), "test", None, None, False),
        (Path("runs/first"), "eval", "csv:more.csv", None, False),
        (Path("runs/first"), "test", None, "0:1:0.5", False),
        (Path("runs/first"), "test", None, None, True),
        (Path("runs/first"), "train", None, None, False),
    ]


@pytest.fixture
def labels(story):
    """A story that labels every text, one at a time."""
    story("jaxft.inference.generate", "writes", lambda run, kind: False)
    return story(
        "jaxft.inference.predict",
        "predict",
        lambda run, texts, which, task: (
            {"run": str(run), "text": text, "which": which} for text in texts
        ),
    )


def texts_of(capsys):
    return [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()]


def test_predict_takes_arguments_a_file_or_standard_input(labels, capsys, tmp_path, monkeypatch):
    assert main(["predict", "runs/first", "good", "très bien", "--", "--debug"]) == 0
    out = capsys.readouterr().out
    assert "très bien" in out, "letters are not escaped"
    assert [json.loads(line)["text"] for line in out.splitlines()] == [
        "good",
        "très bien",
        "--debug",
    ]

    file = tmp_path / "texts.txt"
    file.write_bytes(b"one\r\n\nthree\n")
    assert main(["predict", "runs/first", "--file", str(file)]) == 0
    out, err = capsys.readouterr()
    assert [json.loads(line)["text"] for line in out.splitlines()] == ["one", "three"]
    assert "was read as 2 inputs, one per line, without its 1 blank lines. --whole-file" in err
    assert main(["predict", "runs/first", "--file", str(file), "--whole-file"]) == 0
    assert texts_of(capsys) == ["one\r\n\nthree\n"]
    file.write_bytes(b"\xef\xbb\xbfone\ntwo\n")  # as Windows writes UTF-8
    assert main(["predict", "runs/first", "--file", str(file)]) == 0
    assert texts_of(capsys) == ["one", "two"]

    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("für\nalle".encode())))
    assert main(["predict", "runs/first"]) == 0
    assert texts_of(capsys) == ["für", "alle"]


def test_predict_of_another_checkpoint(labels, capsys):
    for written, which in (("last", "last"), ("40", 40)):
        assert main(["predict", "runs/first", "good", "--checkpoint", written]) == 0
        assert json.loads(capsys.readouterr().out)["which"] == which
    message = refused(capsys, "predict", "runs/first", "good", "--checkpoint", "first")
    assert message.endswith("--checkpoint must be best, last or the number of a step, not 'first'.")


def test_predict_writes_a_new_file(labels, capsys, tmp_path):
    out = tmp_path / "predictions.jsonl"
    assert main(["predict", "runs/first", "good", "bad", "--out", str(out)]) == 0
    assert capsys.readouterr().err == f"{out}: 2 predictions\n"
    assert [json.loads(line)["text"] for line in out.read_text().splitlines()] == ["good", "bad"]
    assert "exists already" in refused(capsys, "predict", "runs/first", "x", "--out", str(out))
    assert len(out.read_text().splitlines()) == 2


def test_whole_file_needs_a_file(labels, capsys):
    assert "--whole-file needs --file" in refused(capsys, "predict", "runs/first", "--whole-file")


@pytest.mark.parametrize(
    ("prediction", "shown"),
    [
        (
            {"text": "win\nmoney", "label": "spam", "probabilities": {"spam": 0.99912, "ham": 0.1}},
            "spam 0.999  win money",
        ),
        (
            {"text": "a", "label": ["x", "y"], "probabilities": {"x": 0.9, "y": 0.6}, "cut": 12},
            "x 0.900 y 0.600 [12 tokens cut]  a",
        ),
        ({"text": "a", "label": [], "probabilities": {"x": 0.1}}, "none  a"),
        ({"text": "a", "value": 152.25}, "152.2  a"),
        ({"file": "a.png", "label": "cat", "probabilities": {"cat": 1.0}}, "cat 1.000  a.png"),
    ],
)
def test_a_terminal_shows_the_verdict_first(prediction, shown):
    assert labelled(prediction, {}).plain == shown


def test_other_predictions_are_json_in_a_terminal_too():
    assert labelled({"text": "a [MASK]", "filled": [["b", 0.5]]}, {}) is None


def test_predict_says_which_line_is_no_text(labels, capsys, tmp_path, monkeypatch):
    file = tmp_path / "texts.txt"
    file.write_bytes(b"good\n\xff\n")
    assert main(["predict", "runs/first", "-f", str(file)]) == 2
    assert capsys.readouterr().err == f"jaxft: {file}, line 2 is not UTF-8 text.\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff")))
    said = refused(capsys, "predict", "runs/first")
    assert said == "jaxft: standard input, line 1 is not UTF-8 text."
    said = refused(capsys, "predict", "runs/first", "-f", "absent.txt")
    assert said == "jaxft: Cannot read 'absent.txt': No such file or directory."
    said = refused(capsys, "predict", "runs/first", "a text", "-f", str(file))
    assert said.startswith("jaxft: Inputs are arguments or the lines of --file, not both.")


def test_export(story, capsys):
    calls = story("jaxft.export.export", "export", lambda run, out, which, adapter: Path("there"))
    assert main(["export", "runs/first"]) == 0
    assert capsys.readouterr().out == "there\n"
    assert main(["export", "runs/first", "--out", "there", "--checkpoint", "500"]) == 0
    assert main(["export", "runs/first", "--checkpoint", "last"]) == 0
    assert [args for args, _ in calls] == [
        (Path("runs/first"), None, "best", False),
        (Path("runs/first"), Path("there"), 500, False),
        (Path("runs/first"), None, "last", False),
    ]
    capsys.readouterr()
    said = refused(capsys, "export", "runs/first", "--checkpoint", "first")
    assert said == "jaxft: --checkpoint must be best, last or the number of a step, not 'first'."


def test_a_report_is_a_page_or_json_or_pictures(story, capsys):
    story(
        "jaxft.report.page.json_report",
        "report_json",
        lambda runs: json.dumps([str(r) for r in runs]),
    )
    story("jaxft.report.page.png", "write_pngs", lambda runs, folder: [folder / "a.png"])
    assert main(["report", "runs/a", "--json"]) == 0
    assert capsys.readouterr().out == '["runs/a"]\n'
    assert main(["report", "runs/a", "--png", "out"]) == 0
    assert capsys.readouterr().out == "out/a.png\n"
    assert main(["report", "runs/a", "--png", "out", "--json"]) == 2
    assert "three kinds of report" in capsys.readouterr().err


def test_report(story, capsys):
    calls = story("jaxft.report.page.page", "write_page", lambda runs, out: Path("page.html"))
    assert main(["report", "runs/a", "runs/b", "--out", "page.html"]) == 0
    assert capsys.readouterr().out == "page.html\n"
    assert calls == [(([Path("runs/a"), Path("runs/b")], Path("page.html")), {})]


def test_config_explains_every_key(capsys):
    assert main(["config"]) == 0
    out = capsys.readouterr().out
    for word in ("optimizer.lr", "groups[].lr_mult", "5e-05", "(examples)", "may change", "[a:b]"):
        assert word in out, word


def test_config_shows_a_config_complete(config, capsys):
    assert main(["config", config, "optimizer.lr=3e-5"]) == 0
    shown = capsys.readouterr().out
    Path("shown.yaml").write_text(shown)
    assert "lr: 3.0e-05" in shown
    assert "batch_size: 32" in shown
    assert main(["config", "shown.yaml"]) == 0
    assert capsys.readouterr().out == shown


def test_config_prints_the_schema(config, capsys):
    assert main(["config", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "Config"
    assert refused(capsys, "config", config, "--schema").startswith("jaxft: --schema takes no")


# --------------------------------------------------------------------------- help and mistakes


def test_help_and_version(capsys):
    assert main([]) == 0
    alone = capsys.readouterr().out
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == alone
    for command in ("train", "plan", "eval", "predict", "search", "export", "report", "config"):
        assert f" {command} " in alone
    assert main(["train", "--help"]) == 0
    assert capsys.readouterr().out.strip().endswith("jaxft config")
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("jaxft 0.")


def test_a_mistake_is_one_line_and_code_2(config, capsys):
    said = refused(capsys, "train", config, "optimizer.lrr=3")
    assert said == (
        "jaxft: 'optimizer.lrr=3' on the command line: unknown key 'optimizer.lrr'. "
        "Did you mean 'optimizer.lr'?"
    )
    assert (
        refused(capsys, "train", "absent.yaml") == "jaxft: There is no config file 'absent.yaml'."
    )
    assert refused(capsys, "plan", config, "--jsn").startswith("jaxft: No such option")
    assert refused(capsys, "train") == "jaxft: Missing argument 'CONFIG'."
    assert refused(capsys, "trian", config).endswith("Did you mean 'train'?")
    assert refused(capsys, "eval", "runs/first", "--split", "tst").startswith("jaxft: Invalid")
    assert list(Path().iterdir()) == [Path(config)], "nothing is written"


def test_debug_shows_where(config, capsys):
    for words in (["--debug", "plan", config, "x=1"], ["plan", config, "x=1", "--debug"]):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert said.startswith("Traceback")
        assert said.splitlines()[-1].startswith("jaxft: 'x=1' on the command line: unknown key")


def test_a_mistake_of_a_story_is_one_line(config, story, capsys):
    def fail(*_, **__):
        raise UserError("Two\nlines.", "One mend.")

    story("jaxft.training.story", "train", fail)
    assert refused(capsys, "train", config, "--quiet") == "jaxft: Two lines. One mend."


def test_our_own_mistakes_are_not_hidden(config, story):
    def fail(*_, **__):
        raise ZeroDivisionError

    story("jaxft.training.story", "train", fail)
    with pytest.raises(ZeroDivisionError):
        main(["train", config])


def test_stopping(config, story):
    def stop(*_, **__):
        raise KeyboardInterrupt

    def terminated(*_, **__):
        raise SystemExit(143)

    story("jaxft.training.story", "train", stop)
    assert main(["train", config]) == 130
    story("jaxft.training.story", "train", terminated)
    with pytest.raises(SystemExit, match="143"):
        main(["train", config])


# ------------------------------------------------------------------------------ as a process


def test_help_and_keys_do_not_wait_for_jax():
    code = """
import sys
from jaxft.cli.main import main
from jaxft.cli.parts.tagged import labelled
from jaxft.cli.parts.terminal import announce
for words in (["--help"], ["train", "--help"], ["config"], ["config", "--schema"]):
    assert main(words) == 0
heavy = {"jax", "flax", "optax", "orbax", "torch", "transformers", "numpy"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_list_of_assets_does_not_wait_for_jax():
    code = """
import sys
from jaxft.cli.main import main
assert main(["assets", "--list"]) == 0
heavy = {"jax", "flax", "sklearn", "torch", "transformers"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_python_m_jaxft(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "jaxft", "train", "absent.yaml"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "jaxft: There is no config file 'absent.yaml'.\n"


@pytest.mark.parametrize("words", ["config", "config --schema"])
def test_a_closed_pipe_is_no_traceback(words):
    done = subprocess.run(
        f"{sys.executable} -m jaxft {words} | true",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""


def test_a_report_imports_no_jax():
    """It reads JSON and writes a page: no accelerator is woken for that."""
    modules = "jaxft.cli.main, jaxft.report.page.page, jaxft.report.page.json_report"
    code = f"import sys, {modules}; sys.exit('jax' in sys.modules or 'sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_run_starts_without_what_only_its_end_needs():
    """Each of these takes a half to two seconds of CPU time to import."""
    code = """
import sys, jaxft.training.story
late = {"grain", "pandas", "scipy.stats", "sklearn", "tensorflow_datasets", "transformers"}
assert not late & set(sys.modules), late & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_is_noted_on_an_error_is_printed_and_what_libraries_note_is_not(monkeypatch, capsys):
    def app(**_):
        error = MemoryError()
        error.add_note(Note("The run that this one was to replace is in runs/a.old."))
        error.add_note("JAX has removed its internal frames.")
        raise error

    monkeypatch.setattr("jaxft.cli.main.app", app)
    assert main(["train", "c.yaml"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(
        "what a step needs. The run that this one was to replace is in runs/a.old."
    )


@pytest.mark.parametrize("terminal", [True, False])
def test_a_command_is_announced_to_a_person_only(monkeypatch, capsys, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    announce("plan of mine\x1b[2J.yaml")
    said = capsys.readouterr()
    version = importlib.metadata.version("jaxft")
    assert said.err == (f"jaxft {version}: plan of mine\\u001b[2J.yaml\n" if terminal else "")
    assert said.out == ""
