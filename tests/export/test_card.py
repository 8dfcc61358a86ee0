"""The model card: what the hub reads of it, what a person reads, and what nobody may."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

import jaxft
from jaxft.errors import UserError
from jaxft.export.card import checkpoint_name, source_name
from jaxft.export.export import export
from jaxft.inference.predict import predict
from tests.support.launch import cache  # noqa: F401 a fixture
from tests.support.tiny import tiny_config


@pytest.fixture(scope="module")
def run(tmp_path_factory, cache):  # noqa: F811 the fixture above
    config = tiny_config(
        tmp_path_factory.mktemp("secret-folder"),
        train={"length": "4 steps", "evaluate_every": "2 steps"},
        layer_decay={"rate": 0.8},
        groups=[
            {"name": "low", "depth": [0, 1], "freeze": True},
            {"name": "head", "match": "head/.*", "lr_mult": 10.0},
        ],
    )
    return jaxft.train(config, quiet=True)


@pytest.fixture(scope="module")
def card(run):
    return ModelCard((export(run.folder) / "README.md").read_text())


def test_what_the_hub_reads(run, card):
    about = card.data
    assert about.library_name == "transformers"
    assert about.pipeline_tag == "text-classification"
    assert about.model_name == "tiny"
    assert about.base_model is None  # a folder is no name on the hub
    found = {result.metric_type: result.metric_value for result in about.eval_results}
    assert found == pytest.approx(run.metrics, abs=1e-6)
    assert {result.dataset_split for result in about.eval_results} == {"test"}
    assert about.eval_results[0].dataset_name == "csv:reviews.csv[85%:]"


@pytest.mark.slow
def test_a_preset_without_a_rate_is_named(tmp_path, cache):  # noqa: F811 the fixture above
    section = {"length": "1 steps", "evaluate_every": "1 steps"}
    config = tiny_config(tmp_path, train=section, layer_decay={"preset": "fan_in"})
    text = (export(jaxft.train(config, quiet=True).folder) / "README.md").read_text()
    assert "| layer decay | fan_in |" in text


def test_what_a_person_reads(run, card):
    text = card.text
    told = json.loads((run.folder / "run.json").read_text())
    assert f"| accuracy | {run.metrics['accuracy']:.4f} |" in text
    train = told["data"][0]
    labels = ", ".join(f"{name}: {count}" for name, count in train["labels"].items())
    row = (
        f"| train | `csv:reviews.csv[:70%]` | {train['examples']} | {train['tokens']} | {labels} |"
    )
    assert row in text
    groups = {g["name"]: g for g in json.loads((run.folder / "table.json").read_text())["groups"]}
    assert re.search(r"^\| low \| 0-1 \| .* \| frozen \|  \|  \|$", text, re.MULTILINE)
    assert groups["rest"]["lowest_peak_rate"] < groups["rest"]["peak_rate"]
    assert re.search(r"^\| rest \| 2-3 \| .* \| trained \| \S+ to \S+ \| 0.01 \|$", text, re.M)
    for fact in ("layer decay | 0.8 (mae)", "seeds | init 0, data 0, dropout 0", "adamw (lr 0.001"):
        assert fact in text, fact
    assert f"jax {told['versions']['jax']}" in text
    assert "model = AutoModelForSequenceClassification.from_pretrained(folder)" in text
    assert "tokenizer = AutoTokenizer.from_pretrained(folder)" in text
    assert "AutoImageProcessor" not in text


@pytest.fixture(scope="module")
def short(tmp_path_factory, cache):  # noqa: F811 the fixture above
    """A run that truncates its texts to 6 tokens, of a model that could read 40."""
    folder = tmp_path_factory.mktemp("short")
    data = {"max_length": 6}
    return jaxft.train(
        tiny_config(folder, data=data, train={"length": "2 steps", "evaluate_every": "2 steps"}),
        quiet=True,
    )


def test_a_finished_run_without_its_result_is_not_exported(run, tmp_path):
    copy = Path(shutil.copytree(run.folder, tmp_path / "copy"))
    (copy / "result.json").unlink()
    with pytest.raises(UserError, match=r"copy has no result\.json"):
        export(copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_cards_code_gives_the_predictions_of_the_run(short, tmp_path):
    """Also of texts that are longer than data.max_length."""
    folder = export(short.folder, tmp_path / "out")
    assert json.loads((folder / "tokenizer_config.json").read_text())["model_max_length"] == 6
    card = ModelCard((folder / "README.md").read_text()).text
    assert "| length of a text | at most 6 tokens; the tokenizer truncates" in card
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    long = "the plot of a film with a lovely warm witty cast in the story of a scene"
    code = code.replace('folder = "."', f"folder = {str(folder)!r}").replace("Your text.", long)
    names: dict = {}
    exec(code, names)
    (line,) = predict(short.folder, [long])
    chances = names["outputs"].logits.softmax(-1)[0].tolist()
    labels = [names["model"].config.id2label[index] for index in range(2)]
    assert dict(zip(labels, chances, strict=True)) == pytest.approx(line["probabilities"], abs=1e-5)


def test_a_card_tells_no_path_no_machine_and_no_text(run, card):
    text = card.content
    told = json.loads((run.folder / "run.json").read_text())
    parts = [part for part in Path(run.folder).parts if len(part) > 1 and part != "tiny"]
    assert any("secret-folder" in part for part in parts)
    for secret in (*parts, told["host"], told["system"], "/tmp"):
        assert secret not in text, secret
    root = Path(told["checkpoint"]["asked"]).parent
    with (root / "reviews.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) > 50
    assert not [row["text"] for row in rows if row["text"] in text]


def test_another_checkpoint_has_its_own_scores(run, tmp_path):
    """The step that was not scored last has the scores of the rows that chose."""
    other = {2, 4} - {run.best}
    text = (export(run.folder, tmp_path, other.pop()) / "README.md").read_text()
    found = ModelCard(text).data.eval_results
    assert {result.dataset_split for result in found} == {"eval"}
    assert "| metric | eval rows (the rows that also chose the checkpoint) |" in text


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("csv:/home/me/rows.csv[:90%]:ordered", "csv:rows.csv[:90%]:ordered"),
        ("csv:rows.csv", "csv:rows.csv"),
        ("images:/home/me/digits/", "images:digits"),
        (r"jsonl:C:\Users\me\rows.jsonl", "jsonl:rows.jsonl"),
        ("tfds:my_set:1.0.0:train[90%:]", "tfds:my_set:1.0.0:train[90%:]"),
        ("tfds:/data/my_set/1.0.0:train", "tfds:1.0.0:train"),
    ],
)
def test_a_source_is_named_without_its_path(spec, name):
    assert source_name(spec) == name


def test_a_base_is_named_without_its_path():
    assert checkpoint_name({"asked": "/home/me/minilm", "revision": None}) == "minilm"
    assert checkpoint_name({"asked": "package:p/model", "revision": None}) == "package:p/model"
    assert checkpoint_name({"asked": "owner/name@main", "revision": "abc1"}) == "owner/name@abc1"
    both = {"asked": "/home/me/vits and /home/me/minilm", "revision": None}
    assert checkpoint_name(both) == "vits and minilm"
