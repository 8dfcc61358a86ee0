"""What a person gets wrong is one sentence and code 2: no traceback, and nothing is written."""

import csv
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from jaxft.cli.main import main
from jaxft.config.load import to_yaml
from tests.support.launch import cache, content  # noqa: F401 a fixture
from tests.support.tiny import tiny_config
from tests.support.xla import xla_flags

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with `c.yaml`, `checkpoint/` and `reviews.csv`."""
    monkeypatch.chdir(tmp_path)
    config = tiny_config(Path())
    Path("c.yaml").write_text(to_yaml(config.dump()))
    return tmp_path


@pytest.fixture
def refused(folder, capsys):
    """The one sentence that a command ends with; what lay in the folder is as it was."""

    def sentence(*words: str) -> str:
        before = content(folder)
        assert main(words) == 2
        said = capsys.readouterr()
        assert said.err.startswith("jaxft: ")
        assert said.err.count("\n") == 1, said.err
        assert "Traceback" not in said.err
        after = content(folder)
        written = {name for name in after if not name.startswith("cache")} - set(before)
        assert not written, "nothing is written but what is cached"
        assert {name: after[name] for name in before} == before
        return said.err.removeprefix("jaxft: ").rstrip("\n")

    return sentence


def write_rows(path, rows, columns=("text", "label")):
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])


# ---------------------------------------------------------------------------------------- config

CONFIG_MISTAKES = {
    "optimizer.lerning_rate=1": (
        "'optimizer.lerning_rate=1' on the command line: unknown key 'optimizer.lerning_rate'."
    ),
    "optimizer.momentumm=1": "Did you mean 'optimizer.momentum'?",
    "optimizer.lr=fast": "'optimizer.lr' must be a number, not the text 'fast'.",
    "optimizer.name=lionn": "Did you mean 'lion'?",
    "optimizer.scale=sqrt": "'scale' and 'reference_batch' go together: set both or neither",
    "optimizer.adam_lr=1e-3": "'optimizer.adam_lr' applies to muon only",
    "optimizer.momentum=0.5": "'optimizer.momentum' applies to sgd, lars, muon only, and no group",
    "optimizer.name=schedule_free_adamw": "set schedule.kind to constant",
    "groups=[{name: low, depth: [0, 0], optimizer: muon}]": "group 'low' has none",
    "train.ema=1.5": "'train.ema'",
    "checkpoint.patience=0": "'checkpoint.patience'",
    "train.length=3 weeks": "train.length",
    "train.length=1000000000000 steps": "a run has at most 100,000,000.",
    "checkpoint.best=acuracy": "checkpoint.best: 'acuracy' is not a metric of text_classification.",
    "groups=[{name: low, match: 'blocks/9/.*', freeze: true}]": "matches no parameter",
    "groups=[{name: low, match: 'blocks/(', freeze: true}]": "blocks/(",
    "groups=[{name: all, match: '.*', freeze: true}]": "",
    "mesh.data=3": "mesh: 3x1x1 (data x fsdp x tensor) does not divide 8 device(s).",
    "data.batch_size=4": "x processes). The nearest that does is 8.",
    "train.accumulate=3": "x processes). The nearest that does is 24.",
    "data.max_length=64": "data.max_length: 64 tokens do not fit the model's 40 positions.",
    "data.row_length=8": "data.row_length 8 is shorter than the longest example",
    "run.name=a/b": "run.name",
    "sampling.method=liza": "Did you mean 'lisa'?",
    "sampling.blocks=1": "'blocks' needs sampling.method",
    "sampling={method: lisa, blocks: 0}": "'sampling.blocks' must be 1 or more",
    "sampling={method: lisa, every: 0}": "sampling.every: it must be more than zero.",
    "sampling={method: lisa, order: random}": "'order' applies to badam and hift only",
    "sampling={method: lisa, weights: {blocks/0/: 1}}": "'weights' applies to ows only",
    "sampling={method: ows, blocks: 1, weights: {blocks/0/: 1}}": (
        "sampling.weights has no number above 0 for 'blocks/1/'."
    ),
    "sampling={method: lisa}": "sampling.blocks is 2, and the tower has 2 blocks",
    "lisa_n_layers=2": "Did you mean 'sampling.blocks'?",
    "lisa_step_interval=20": "Did you mean 'sampling.every'?",
}
# Pairs of overrides: each is right alone.
SAMPLING_MISTAKES = {
    "phases=lp_ft": "'sampling' and 'phases' cannot be combined",
    "adapter.kind=lora": "'sampling' and 'adapter' cannot be combined",
    "layer_decay.preset=heavy_tail": "'sampling' and 'layer_decay.preset' cannot be combined",
    "regularise.l2_sp=0.1": "'sampling' and 'regularise.l2_sp' cannot be combined",
    "train.ema=0.9": "'sampling' and 'train.ema' cannot be combined",
    "optimizer.moments=int8": "'sampling' and 'optimizer.moments' cannot be combined",
    "optimizer.offload=true": "'sampling' and 'optimizer.offload' cannot be combined",
    "groups=[{name: low, depth: [1, 1], lr_mult: 0.1}]": (
        "sampling: groups treat 'blocks/1/attention/key/bias' differently"
    ),
    "groups=[{name: blocks, match: 'blocks/.*', freeze: true}]": "groups freeze every block",
}


@pytest.mark.parametrize("override", CONFIG_MISTAKES)
def test_config(refused, override):
    assert CONFIG_MISTAKES[override] in refused("train", "c.yaml", override, "--quiet")


@pytest.mark.parametrize("override", SAMPLING_MISTAKES)
def test_sampled_blocks(refused, override):
    both = "sampling={method: lisa, blocks: 1}", override
    assert SAMPLING_MISTAKES[override] in refused("train", "c.yaml", *both, "--quiet")


def test_config_file(refused):
    assert refused("train", "d.yaml") == "There is no config file 'd.yaml'."
    Path("d.yaml").write_text("run: {name: a\nmodel: [")
    assert "d.yaml" in refused("train", "d.yaml")
    Path("d.yaml").write_bytes(b"run: {name: \xff}")
    assert "d.yaml" in refused("train", "d.yaml")


def test_a_topology(refused):
    said = refused("plan", "c.yaml", "--topology", "v9:2x2")
    assert said.startswith("--topology: unknown TPU type 'v9'. Known: ")
    assert "v5e" in said
    said = refused("plan", "c.yaml", "--topology", "v5e:3x3")
    assert said.startswith("--topology: v5e has no slice of shape '3x3'. It has 1x1, ")


def test_no_compiler_for_tpus(folder, monkeypatch, capsys):
    monkeypatch.setattr("jaxft.planning.pod.find_spec", lambda name: None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    assert main(["plan", "c.yaml", "--topology", "v5e:2x2"]) == 2
    first, said = capsys.readouterr().err.splitlines()
    assert first.endswith("the train step of c.yaml for v5e:2x2")
    assert said.startswith("jaxft: --topology: the compiler for TPUs (libtpu) is not installed.")
    assert "pip install 'jaxft[plan]'" in said


# ------------------------------------------------------------------------------------------ data

DATA_MISTAKES = {
    "data.train=csv:absent.csv": "absent.csv",
    "data.train=orc:reviews.csv": "must start with csv:, jsonl:, conll:, boxes:, coco:, ",
    "data.train=parquet:reviews.csv": "reviews.csv cannot be read as Parquet",
    "data.train=csv:part-*.csv": "csv:part-*.csv: no file matches this pattern.",
    "data.train=csv:.": "",
    "task.text=txet": "there is no column 'txet'. Did you mean 'text'? Its columns: text, label.",
    "data.eval=csv:reviews.csv[50%:50%]": "the selection has no rows",
    "data.eval=csv:reviews.csv[0:1]": "the split has only one class",
    "data.where={label: 1}": "the split has only one class ('1')",
    "data.where={label: 7}": "data.where wants label = 7, and no row has it. Values there: 0, 1.",
    "data.where={lable: 1}": "the column 'lable', which is not there. Its columns: text, label.",
    "task.labels=[bad]": "task.labels",
    "task.labels=[bad, good, bad]": "",
}


@pytest.mark.parametrize("override", DATA_MISTAKES)
def test_data(refused, override):
    assert DATA_MISTAKES[override] in refused("train", "c.yaml", override, "--quiet")


def test_a_row_that_is_not_utf8(refused):
    with Path("reviews.csv").open("ab") as file:
        file.write(b"caf\xe9,1\r\n")
    assert "row 97 (line 98) is not UTF-8" in refused("train", "c.yaml", "--quiet")


def test_a_label_that_the_train_set_has_not(refused):
    write_rows("eval.csv", [("fine", "1"), ("dull", "0"), ("odd", "2")])
    said = refused("train", "c.yaml", "data.eval=csv:eval.csv:ordered", "--quiet")
    assert said.startswith("csv:eval.csv:ordered: row 3 has the label '2', which is not among")
    assert "(0, 1)" in said


def test_a_row_without_a_label(refused):
    write_rows("rows.csv", [("fine", "1"), ("dull", ""), ("grim", "0")])
    said = refused("train", "c.yaml", "data.train=csv:rows.csv:ordered", "--quiet")
    assert said == (
        "csv:rows.csv:ordered: row 2 has no label. Fill it in, leave the row out, or say "
        "data.on_bad_row=skip."
    )


def test_many_labels_are_not_all_listed(refused):
    said = refused("train", "c.yaml", "task.text=label", "task.label=text", "--quiet")
    assert "is not among the train set's labels (" in said
    assert said.endswith(", ...).")
    assert said.count(",") == 11


@pytest.mark.full
def test_a_metric_that_three_classes_do_not_have(folder, capsys):
    rows = [(f"a film of the {word}", word) for word in ("plot", "cast", "scene")] * 8
    write_rows("rows.csv", rows)
    overrides = [f"data.{split}=csv:rows.csv" for split in ("train", "eval", "test")]
    words = ["checkpoint.best=auroc", "train.length=1", "--quiet"]
    assert main(["train", "c.yaml", *overrides, *words]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "jaxft: checkpoint.best: these rows have no auroc. They have accuracy, loss, f1, mcc."
    )


def test_a_tfds_folder_with_a_foreign_class(refused, monkeypatch):
    Path("evil").mkdir()
    Path("foreign_features.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(Path.cwd())
    Path("evil/features.json").write_text(
        json.dumps({"pythonClassName": "foreign_features.Evil", "text": {}})
    )
    Path("evil/dataset_info.json").write_text('{"name": "evil", "version": "1.0.0"}')
    said = refused("train", "c.yaml", "data.train=tfds:evil:train", "--quiet")
    assert "foreign_features.Evil" in said
    assert "foreign_features" not in sys.modules


# ------------------------------------------------------------------------------------ checkpoint


def test_no_checkpoint(refused):
    for checkpoint, said in {
        "absent/folder": "",
        "reviews.csv": "there is no folder 'reviews.csv'",
        "package:jaxft/../numpy": "'package:jaxft/../numpy' is not a path inside a package.",
        "package:no_such_thing/model": "no package 'no_such_thing' is installed",
    }.items():
        assert said in refused("train", "c.yaml", f"model.checkpoint={checkpoint}", "--quiet")
    Path("checkpoint/config.json").unlink()
    assert "checkpoint has no config.json" in refused("train", "c.yaml", "--quiet")


def test_a_truncated_checkpoint(refused):
    path = Path("checkpoint/model.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    assert "model.safetensors cannot be read: it is cut short" in refused(
        "train", "c.yaml", "--quiet"
    )


def test_a_tensor_of_another_shape(refused):
    path = Path("checkpoint/model.safetensors")
    tensors = load_file(path)
    name = "encoder.layer.0.intermediate.dense.weight"
    save_file(tensors | {name: tensors[name][:-1].copy()}, path)
    said = refused("train", "c.yaml", "--quiet")
    assert f"'bert.{name}' has the shape [63, 32], but config.json makes it [64, 32]" in said


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("use_sliding_window", True, "model.ignore=[use_sliding_window]"),
        ("is_decoder", True, "is_decoder is true; only false is supported"),
        ("hidden_act", "swoosh", "hidden_act 'swoosh' is not supported"),
        ("model_type", "bret", "the model_type 'bret' is not supported. Did you mean 'bert'?"),
        ("hidden_size", "32", "hidden_size must be a whole number"),
    ],
)
def test_a_field_that_is_not_supported(refused, field, value, said):
    path = Path("checkpoint/config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    assert said in refused("train", "c.yaml", "--quiet")


def test_no_tokenizer(refused):
    Path("checkpoint/tokenizer.json").unlink()
    assert "holds no tokenizer" in refused("train", "c.yaml", "--quiet")


# ------------------------------------------------------------------------------------ run folder


@pytest.mark.parametrize("words", ["eval", "predict", "export", "report"])
def test_a_folder_that_is_not_a_run(refused, words):
    texts = ["a film"] if words == "predict" else []
    of_checkpoint = "checkpoint is not a run folder"
    if words == "predict":  # it predicts with a checkpoint too, if that has a head
        of_checkpoint = "'checkpoint' has no head, so it predicts nothing as it is."
    assert refused(words, "checkpoint", *texts).startswith(of_checkpoint)
    assert refused(words, "absent", *texts).startswith("There is no run folder absent.")


def test_a_run_folder_that_is_not_empty(refused):
    Path("runs/tiny").mkdir(parents=True)
    Path("runs/tiny/thesis.tex").write_text("years of work")
    for flag in ([], ["--resume"], ["--overwrite"]):
        assert "is not empty and holds no run" in refused("train", "c.yaml", "--quiet", *flag)


# ----------------------------------------------------------------------------------- as a process


def test_as_a_process(folder):
    """The true entry point: standard error, standard output, exit code."""
    before = content(folder)
    done = subprocess.run(
        [sys.executable, "-m", "jaxft", "train", "c.yaml", "data.train=csv:absent.csv"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": ""},
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("jaxft: ")
    assert "absent.csv" in done.stderr
    assert done.stdout.count("\n") == 1, "the first word, which comes before jax is there"
    assert content(folder) == before


@pytest.mark.slow
def test_a_disk_that_fills_while_saving(folder):
    """The run ends with one sentence; the checkpoint before is whole, and it goes on from there."""

    words = [sys.executable, "-m", "jaxft", "train", "c.yaml", "train.length=6", "--quiet"]
    words += ["checkpoint.every=2", "train.evaluate_every=2"]
    program = (
        "import resource, sys\n"
        "from jaxft.runs.checkpoint import Checkpoints\n"
        "save = Checkpoints.save\n"
        "def full_at_4(self, step, *rest, **named):\n"
        "    if step == 4:\n"
        "        self.wait()\n"
        "        resource.setrlimit(resource.RLIMIT_FSIZE, (32768, resource.RLIM_INFINITY))\n"
        "    save(self, step, *rest, **named)\n"
        "Checkpoints.save = full_at_4\n"
        "from jaxft.cli.main import main\n"
        "sys.exit(main())\n"
    )
    environment = {**os.environ, "XLA_FLAGS": xla_flags(1)}
    done = subprocess.run(
        [sys.executable, "-c", program, *words[3:]],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("jaxft: A checkpoint could not be saved in runs/tiny/checkpoints")
    assert "Complete checkpoints there: 2." in done.stderr
    again = subprocess.run([*words, "--resume"], capture_output=True, text=True, env=environment)
    assert (again.returncode, again.stderr) == (0, "")


def test_what_the_system_refuses(refused, monkeypatch):
    """A full disk or a folder of another's, wherever it shows."""

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "/cache/tokens")

    monkeypatch.setattr("jaxft.planning.plan.build", full)
    assert refused("plan", "c.yaml") == "/cache/tokens: No space left on device."


# ------------------------------------------------------------------------------ what is only told


def test_a_text_longer_than_the_positions_is_cut_and_told(folder, capsys):
    """Not a mistake: it trains, and says how much was cut before it does."""
    with Path("reviews.csv").open("a", encoding="utf-8") as file:
        file.write("a fine " * 60 + "film,1\r\n")
    assert main(["plan", "c.yaml", "data.train=csv:reviews.csv", "--json"]) == 0
    train = json.loads(capsys.readouterr().out)["data"][0]
    assert (train["truncated"], train["truncated_tokens"]) == (1, 121 + 2 - 40)
    assert train["longest"] == 40
    assert main(["plan", "c.yaml", "data.train=csv:reviews.csv"]) == 0
    shown = capsys.readouterr().out
    assert " cut " in shown
    assert "1.0%" in shown
