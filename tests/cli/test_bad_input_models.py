"""A checkpoint that cannot be what it says is one sentence and code 2, whatever the family."""

import json
from pathlib import Path

import pytest
import transformers
from safetensors.numpy import load_file, save_file

from jaxft.cli.main import main
from tests.cli.test_bad_input import folder, refused  # noqa: F401 fixtures
from tests.support.launch import cache  # noqa: F401 a fixture
from tests.support.tiny import VOCABULARY

pytestmark = pytest.mark.usefixtures("cache")
CONFIG, WEIGHTS = Path("checkpoint/config.json"), Path("checkpoint/model.safetensors")
INDEX = Path("checkpoint/model.safetensors.index.json")


def edit_config(**fields):
    CONFIG.write_text(json.dumps(json.loads(CONFIG.read_text()) | fields))


def shard():
    """The checkpoint's weights in two files and an index, which is returned."""
    tensors = load_file(WEIGHTS)
    WEIGHTS.unlink()
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2]}
    parts["model-00002-of-00002.safetensors"] = names[1::2]
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, WEIGHTS.with_name(file))
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    INDEX.write_text(json.dumps(index))
    return index["weight_map"]


@pytest.mark.parametrize("model_type", ["bret", "reformer"])
def test_an_unknown_model_type(refused, model_type):  # noqa: F811 the fixture above
    edit_config(model_type=model_type)
    said = refused("train", "c.yaml", "--quiet")
    assert said.startswith(f"config.json: the model_type '{model_type}' is not supported.")
    assert ("Did you mean 'bert'?" in said) is (model_type == "bret")
    assert said.endswith(" `jaxft models` lists those that are.")


FIELDS = [
    (
        "Bert",
        "use_sliding_window",
        True,
        "may change its outputs. If it does not, set model.ig",
    ),
    ("Bert", "position_embedding_type", "relative_key", 'only "absolute" is supported for bert'),
    ("GPT2", "add_cross_attention", True, "add_cross_attention is true; only false is supported"),
    ("Llama", "sliding_window", 4096, "the field 'sliding_window' (4096) is not known for llama"),
    ("Llama", "partial_rotary_factor", 0.5, "partial_rotary_factor is 0.5; only 1.0 is supported"),
    ("Llama", "rope_parameters", {"rope_type": "spiral", "rope_theta": 1e4}, "'spiral'"),
    ("Llama", "num_key_value_heads", 3, "does not divide into 3"),
    ("Bert", "hidden_act", "swoosh", "hidden_act 'swoosh' is not supported"),
]


@pytest.mark.parametrize(("config", "field", "value", "sentence"), FIELDS)
def test_a_field_that_changes_the_outputs(
    refused,  # noqa: F811 the fixture above
    config,
    field,
    value,
    sentence,
):
    fields = getattr(transformers, f"{config}Config")().to_dict()
    CONFIG.write_text(json.dumps(fields | {field: value}))
    assert sentence in refused("train", "c.yaml", "--quiet")


def test_a_shard_that_is_missing_or_cut_short(refused):  # noqa: F811 the fixture above
    shard()
    second = WEIGHTS.with_name("model-00002-of-00002.safetensors")
    whole = second.read_bytes()
    second.write_bytes(whole[:-1])
    said = refused("train", "c.yaml", "--quiet")
    assert f"{second.name} cannot be read: it is cut short or is not a safetensors file" in said
    second.write_bytes(whole[:5])
    assert f"{second.name} cannot be read" in refused("train", "c.yaml", "--quiet")
    second.unlink()
    assert f"names '{second.name}', which is missing." in refused("train", "c.yaml", "--quiet")


@pytest.mark.parametrize("shard_file", ["../model.safetensors", "/etc/passwd", "config.json"])
def test_a_shard_name_outside_the_folder(refused, shard_file):  # noqa: F811 the fixture above
    weight_map = shard() | {"pooler.dense.bias": shard_file}
    INDEX.write_text(json.dumps({"weight_map": weight_map}))
    said = refused("train", "c.yaml", "--quiet")
    assert f"names '{shard_file}', which is not a safetensors file beside it." in said


def test_an_index_that_names_what_no_shard_holds(refused):  # noqa: F811 the fixture above
    INDEX.write_text(
        json.dumps({"weight_map": shard() | {"x": "model-00001-of-00002.safetensors"}})
    )
    said = refused("train", "c.yaml", "--quiet")
    assert said.endswith("lacks the tensor 'x', which the index says it holds.")
    INDEX.write_text('{"weight_map": []}')
    assert "is not an index of safetensors files." in refused("train", "c.yaml", "--quiet")


@pytest.mark.slow
def test_a_tokenizer_larger_than_the_vocabulary(refused, capsys):  # noqa: F811 the fixture above
    """Refused by default; where it is asked for, the embeddings grow."""
    tensors = load_file(WEIGHTS)
    few = len(VOCABULARY) - 2
    words = "embeddings.word_embeddings.weight"
    save_file(tensors | {words: tensors[words][:few].copy()}, WEIGHTS)
    edit_config(vocab_size=few)
    said = refused("train", "c.yaml", "--quiet")
    assert said.startswith(
        f"model.checkpoint: the tokenizer has {few + 2} tokens and the model embeddings for {few}."
    )
    assert "model.resize_vocab=true" in said
    assert main(["train", "c.yaml", "model.resize_vocab=true", "train.length=1"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"embeddings/word/embedding grew from {few} words to {few + 2}" in shown
    assert main(["export", "runs/tiny", "--out", "export"]) == 0
    assert json.loads(Path("export/config.json").read_text())["vocab_size"] == few + 2
