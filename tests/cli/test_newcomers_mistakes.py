"""A newcomer's mistakes: each sentence says what is wrong and the words that mend it."""

from pathlib import Path

import pytest

from jaxft.cli.main import main
from jaxft.cli.parts.inputs import looks_like_a_file
from jaxft.config.load import check_resume, load_config, parse_config
from jaxft.data.sources.open import open_source
from jaxft.engine.recipe import check_names
from jaxft.errors import UserError
from jaxft.models.load import LoadOptions, describe
from jaxft.runs.folder import open_run
from tests.support.tiny import tiny_checkpoint, tiny_config


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


CONFIG = """
run: {name: a}
model: {checkpoint: checkpoint}
task: {kind: text_classification}
data: {train: "csv:rows.csv", eval: "csv:rows.csv"}
optimizer: {lr: 1e-3}
"""


@pytest.mark.parametrize(
    ("change", "mend"),
    [
        ('eval: "csv:rows.csv"', "data.train=csv:rows.csv[:90%] and data.eval=csv:rows.csv[90%:]."),
        ('"csv:rows.csv"}', "data.train=csv:rows.csv[:90%]"),
    ],
)
def test_a_missing_eval_split_is_a_tenth_of_the_rows(change, mend):
    text = CONFIG.replace(change, "" if change.startswith("eval") else "null}")
    Path("a.yaml").write_text(text)
    with pytest.raises(UserError, match=r"data\.eval") as error:
        load_config("a.yaml")
    assert mend in str(error.value)


def test_a_config_of_nearly_that_name_is_named():
    Path("tiny.yaml").write_text(CONFIG)
    with pytest.raises(UserError, match=r"'tiny.yml'. Did you mean 'tiny.yaml'\?"):
        load_config("tiny.yml")
    with pytest.raises(UserError, match=r"^There is no config file 'other.yaml'.$"):
        load_config("other.yaml")


def test_a_number_for_a_section_names_its_key():
    Path("a.yaml").write_text(CONFIG)
    with pytest.raises(UserError, match=r"not 1.0. Did you mean 'layer_decay.rate'\?"):
        load_config("a.yaml", ["layer_decay=1.0"])


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("spam/train.csv[:45%]", "names no format. Did you mean 'csv:spam/train.csv[:45%]'?"),
        ("rows.parquet", "Did you mean 'parquet:rows.parquet'?"),
        ("jsonl:array.jsonl", "row 1 (line 1) begins a JSON array; jsonl: reads one object per"),
        ("jsonl:lines.jsonl", "row 1 (line 1) begins a JSON array; jsonl: reads one object per"),
    ],
)
def test_other_formats_are_told_by_name(spec, sentence):
    Path("array.jsonl").write_text('[{"mail": "a"}]\n')
    Path("lines.jsonl").write_text('[\n{"mail": "a"}\n]\n')
    with pytest.raises(UserError) as error:
        open_source(spec)
    assert sentence in str(error.value)


def test_hugging_faces_names_of_parameters_are_translated(tmp_path):
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint")
    model = describe(str(checkpoint), LoadOptions(task="text_classification", labels=("a", "b")))
    group = {"name": "low", "match": "encoder.layer.[01].*", "freeze": True}
    with pytest.raises(UserError) as error:
        check_names(tiny_config(tmp_path, groups=[group]), model)
    assert "'bert.encoder.layer.0.attention.self.key.bias' is 'blocks/0/attention/key/bias'" in str(
        error.value
    )
    check_names(tiny_config(tmp_path, groups=[{**group, "match": "blocks/.*"}]), model)


def test_a_run_that_is_not_there(tmp_path):
    (tmp_path / "runs" / "antibody").mkdir(parents=True)
    (tmp_path / "runs" / "antibody" / "run.json").write_text("{}")
    with pytest.raises(UserError, match=r"`jaxft train CONFIG` makes a run."):
        open_run("runs/tiny")
    with pytest.raises(UserError, match=r"Did you mean 'antibody'\?"):
        open_run("runs/antibdy")
    (tmp_path / "runs" / "lr-study").mkdir()
    (tmp_path / "runs" / "lr-study" / "study.json").write_text("{}")
    with pytest.raises(UserError, match=r"It is a study: open its index.html"):
        open_run("runs/lr-study")


def test_a_checkpoint_of_nearly_that_name_is_named(tmp_path):
    tiny_checkpoint(tmp_path / "assets" / "minilm")
    with pytest.raises(UserError, match=r"Did you mean the folder 'assets/minilm'\?"):
        describe("assets/minlm", LoadOptions())


def test_a_resume_shows_only_what_differs(tmp_path):
    groups = [{"name": "head", "match": "head/.*", "lr_mult": 5.0}]
    old = tiny_config(tmp_path, groups=groups)
    new = parse_config(
        old.dump() | {"groups": [*groups, {"name": "low", "depth": [0, 1], "freeze": True}]}
    )
    with pytest.raises(UserError) as error:
        check_resume(old, new)
    assert "null" not in str(error.value)
    assert '{"name": "low", "depth": [0, 1], "freeze": true}' in str(error.value)


def test_pydantics_words_are_not_shown(capsys):
    assert main(["eval", "run", "--split", "train"]) == 2
    assert "Value error" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "is_file"), [("nofile.txt", True), ("a film.", False), ("see rows.csv", False)]
)
def test_a_text_that_looks_like_a_file(text, is_file):
    assert looks_like_a_file(text) == is_file
