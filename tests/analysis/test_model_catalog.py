"""`jaxft models`: the table of what is supported, and what one checkpoint can be used for."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxft.analysis.model_catalog import (
    IN_PAIRS,
    entries,
    inspect_checkpoint,
    parts_of_pair,
    task_heads,
)
from jaxft.cli.main import main
from jaxft.config.tasks import task_sections
from jaxft.models.load import HEADLESS, LoadOptions, describe, families
from tests.support.families import FAMILIES, kind_of, names_of
from tests.support.random_configs import random_config
from tests.support.tiny import CONFIG


def checkpoint(folder: Path, **fields) -> Path:
    """A folder with a config.json and nothing else."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | fields))
    return folder


def printed(capsys, *words, code=0):
    assert main(words) == code
    return capsys.readouterr().out


def test_every_task_has_a_head_and_every_head_a_family():
    heads = task_heads()
    assert heads.keys() == task_sections().keys()
    assert heads["dpo"] == "causal_lm"
    assert heads["embedding"] is None
    assert {kind for one in entries() for kind in one.trains} == heads.keys()


def test_the_table(capsys):
    table = printed(capsys, "models")
    whole = [name for name, family in families().items() if family.model_types[name]]
    assert all(f" {model_type} " in table for model_type in whole)
    llama = [one for one in entries() if one.model_type == "llama"]
    assert [(one.head, one.trains, one.generates) for one in llama] == [
        (None, ("embedding",), False),
        ("causal_lm", ("causal_lm", "dpo"), True),
        ("text_classification", ("distillation", "reranking", "text_classification"), False),
        ("token_classification", ("token_classification",), False),
        ("question_answering", ("question_answering",), False),
    ]
    # Images, their colors as tokens, and texts that a decoder reads the source of.
    for name in ("ViTModel", "ImageGPTModel", "T5Model", "BartModel"):
        assert not next(one for one in entries() if one.architecture == name).trains


@pytest.mark.full
@pytest.mark.parametrize("name", names_of(FAMILIES))
def test_the_table_says_of_a_type_what_is_said_of_a_checkpoint_of_it(name, tmp_path):
    random_config(name, np.random.default_rng(0)).save_pretrained(tmp_path)
    rows = [one for one in entries() if one.model_type == kind_of(name)]
    trains = {kind for one in rows for kind in one.trains}
    # A ViT may also start what finds objects, which has a model type of its own.
    assert set(inspect_checkpoint(str(tmp_path)).trains) - trains <= {"object_detection"}
    assert trains <= set(inspect_checkpoint(str(tmp_path)).trains)
    if "embedding" not in trains:
        return
    model = describe(str(tmp_path), LoadOptions(task=HEADLESS), weights=False)
    params = {n: jax.ShapeDtypeStruct(one.shape, "float32") for n, one in model.leaves.items()}
    texts = {n: np.zeros((2, 6), np.int32) for n in ("input_ids", "token_type_ids")}
    assert jax.eval_shape(model.apply, params, texts)["last_hidden_state"].shape[:2] == (2, 6)


@pytest.mark.parametrize("pattern", ["LLAMA", "llama*", "LlamaFor"])
def test_a_pattern_selects_rows(pattern, capsys):
    rows = json.loads(printed(capsys, "models", pattern, "--json"))
    assert {row["model_type"] for row in rows} == {"llama"}


def test_a_task_selects_rows(capsys):
    rows = json.loads(printed(capsys, "models", "seq2seq", "--json"))
    assert {"t5", "encoder-decoder"} <= {row["model_type"] for row in rows}


def test_a_checkpoint_without_its_weights(capsys, tmp_path):
    folder = checkpoint(tmp_path / "bert")
    answer = json.loads(printed(capsys, "models", str(folder), "--json"))
    assert answer["loads"]
    assert answer["trains"] == {
        "distillation": "BertForSequenceClassification",
        "embedding": "BertModel",
        "masked_lm": "BertForMaskedLM",
        "multiple_choice": "BertForMultipleChoice",
        "question_answering": "BertForQuestionAnswering",
        "reranking": "BertForSequenceClassification",
        "text_classification": "BertForSequenceClassification",
        "token_classification": "BertForTokenClassification",
    }
    assert answer["generates"] == []
    assert answer["size"]["blocks"] == 2
    assert answer["size"]["positions"] == 40
    text = printed(capsys, "models", str(folder))
    assert "loads" in text
    assert "BertForTokenClassification" in text
    assert " ".join(text.split()).endswith(
        "With a second checkpoint: contrastive (model.checkpoint: {vision, text}, as text); "
        "captioning (model.checkpoint: {encoder, decoder}, as decoder); "
        "seq2seq (model.checkpoint: {encoder, decoder}, as encoder or decoder)."
    )
    assert [path.name for path in folder.iterdir()] == ["config.json"], "nothing was written"


def test_a_pair_is_named_of_types_that_make_one():
    types = ("vit", "clip", "siglip2", "gpt2", "llama", "DiTTransformer2DModel")
    assert {kind: [parts_of_pair(pair, kind) for pair in IN_PAIRS] for kind in types} == {
        "vit": [["vision"], ["encoder"], []],
        "clip": [["vision", "text"], ["encoder"], []],
        "siglip2": [[], [], []],
        "gpt2": [[], ["decoder"], ["decoder"]],
        "llama": [[], [], []],
        "DiTTransformer2DModel": [[], [], []],
    }


def test_a_causal_model_generates(tmp_path):
    fields = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_positions": 40}
    for name in CONFIG.keys() - {"vocab_size", "initializer_range"}:
        fields.setdefault(name, None)
    folder = tmp_path / "gpt2"
    folder.mkdir()
    own = {name: value for name, value in fields.items() if value is not None}
    size = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 30}
    (folder / "config.json").write_text(json.dumps(own | size))
    abilities = inspect_checkpoint(str(folder))
    assert abilities.generates == ["causal_lm", "dpo"]
    assert "causal_lm" in abilities.trains


def test_one_that_cannot_be_loaded_is_told_why_and_ends_with_1(capsys, tmp_path):
    folder = checkpoint(tmp_path / "odd", hidden_act="sine")
    answer = json.loads(printed(capsys, "models", str(folder), "--json", code=1))
    assert not answer["loads"]
    assert "hidden_act" in answer["reason"]
    folder = checkpoint(tmp_path / "odd", model_type="brt")
    assert "Did you mean 'bert'?" in " ".join(
        printed(capsys, "models", str(folder), code=1).split()
    )


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("brt", "matches 'brt'. Did you mean 'bert'?"),
        ("zzzzz", "A hub id has the form owner/name"),
        ("./absent", "there is no folder './absent'"),
        ("owner/absent", "neither a folder nor in the hub's cache"),
    ],
)
def test_what_is_not_there_is_one_sentence(word, message, capsys):
    assert main(["models", word]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


def test_a_folder_without_a_config_is_one_sentence(capsys, tmp_path):
    assert main(["models", str(tmp_path)]) == 2
    assert "has no config.json" in capsys.readouterr().err
