"""Files with an output matrix beside the embeddings that config.json ties it to, or without them.

transformers scores words with a matrix of the file that differs, whatever config.json says.
"""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from jaxft.errors import UserError
from jaxft.models import load as registry
from tests.support.families import auto_class, make_pair
from tests.support.random_configs import random_config

WEIGHTS, TIED = "model.safetensors", "tie_word_embeddings"
# With a parameter for a matrix of their own: the part of config.json that ties it.
UNTIED = [
    ("llama", "causal_lm", None),
    ("gemma", "causal_lm", None),
    ("gpt2", "causal_lm", None),
    ("gpt_neo", "causal_lm", None),
    ("gpt_neox", "causal_lm", None),
    ("opt", "causal_lm", None),
    ("eurobert", "masked_lm", None),
    ("t5gemma", "seq2seq", None),
    ("idefics3", "vision_language", None),
    ("gemma3", "vision_language", None),
    ("vit+gpt2", "captioning", "decoder"),
    ("vit+trocr", "captioning", "decoder"),
]
ONE_FOR_BOTH = [
    ("albert", "masked_lm"),
    ("bert", "masked_lm"),
    ("deberta-v2", "masked_lm"),
    ("distilbert", "masked_lm"),
    ("electra", "masked_lm"),
    ("modernbert", "masked_lm"),
    ("modernbert-decoder", "causal_lm"),
    ("mpnet", "masked_lm"),
    ("nomic_bert", "masked_lm"),
    ("roberta", "masked_lm"),
    ("bert+bert", "seq2seq"),
]


def make_tied(name, head, folder, part=None):
    """A random checkpoint whose config.json ties words: its folder, tensors and two names."""
    pair = make_pair(name, head, 0, folder)
    fields = json.loads((folder / "config.json").read_text())
    own = fields if part is None else fields[part]
    own[TIED] = True
    if name == "deberta-v2":
        own["legacy"] = True
    (folder / "config.json").write_text(json.dumps(fields))
    names, tensors = pair.ours.family.tensors, load_file(folder / WEIGHTS)
    stored = {names.canonical(one): one for one in tensors}
    words, copy = next(pair for pair in names.tied if pair[0] in stored)
    tensors.pop(copy, None)
    return pair, tensors, stored[words], copy


def write(tensors, folder):
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return str(folder)


@pytest.mark.parametrize(("name", "head", "part"), UNTIED)
def test_words_are_scored_by_a_matrix_of_their_own(name, head, part, tmp_path):
    _, tensors, words, copy = make_tied(name, head, tmp_path / "source", part)
    tensors[copy] = tensors[words] + 0.5
    model = registry.load(write(tensors, tmp_path / "source"))
    assert model.report.new == model.report.unused == ()
    (kernel,) = (ours for ours, hf in model.names.items() if hf == copy)
    np.testing.assert_array_equal(model.params[kernel], tensors[copy].T)
    fields = json.loads((model.save(tmp_path / "export") / "config.json").read_text())
    assert (fields if part is None else fields[part])[TIED] is False


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("stored", ["both", "copy", "ignored"])
def test_word_scores_are_pytorchs(name, stored, tmp_path):
    pair, tensors, words, copy = make_tied(name, "causal_lm", tmp_path / "source")
    tensors[copy] = tensors[words] + (0.5 if stored == "both" else 0.0)
    if stored == "copy":
        del tensors[words]
    theirs = (
        auto_class(name, "causal_lm").from_pretrained(write(tensors, tmp_path / "source")).eval()
    )
    with torch.no_grad():
        expected = theirs(**pair.torch_batch()).logits.numpy()
    if stored == "ignored":
        tensors[copy] = tensors[words] + 0.5
    ignore = [copy] if stored == "ignored" else []
    ours = registry.load(write(tensors, tmp_path / "source"), ignore=ignore)(**pair.batch)["logits"]
    mask = pair.batch["attention_mask"][..., None]
    np.testing.assert_allclose(ours * mask, expected * mask, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize(("name", "head"), ONE_FOR_BOTH)
def test_a_matrix_of_its_own_without_a_parameter_is_refused(name, head, tmp_path):
    """It is read where it equals the embeddings, or stands in their place."""
    part = "decoder" if "+" in name else None
    _, tensors, words, copy = make_tied(name, head, tmp_path / "source", part)
    assert not registry.describe(
        write(tensors | {copy: tensors[words]}, tmp_path / "source")
    ).report.new
    alone = {one: value for one, value in tensors.items() if one != words}
    assert not registry.describe(
        write(alone | {copy: tensors[words]}, tmp_path / "source")
    ).report.new
    source = write(tensors | {copy: tensors[words] + 0.5}, tmp_path / "source")
    with pytest.raises(UserError, match=r"differs from .*; a .* with one for both"):
        registry.describe(source)
    ignored = registry.describe(source, registry.LoadOptions(ignore=[copy]))
    assert ignored.report.unused == (copy,)
    if part is None and head == "masked_lm":
        task = registry.LoadOptions(task="token_classification")
        assert copy in registry.describe(source, task).report.unused


def test_a_bias_of_its_own_is_refused(tmp_path):
    _, tensors, _, _ = make_tied("roberta", "masked_lm", tmp_path / "source")
    tensors["lm_head.decoder.bias"] = tensors["lm_head.bias"] + 0.5
    with pytest.raises(UserError, match=r"'lm_head\.decoder\.bias' differs from"):
        registry.describe(write(tensors, tmp_path / "source"))


@pytest.mark.parametrize("tower", ["encoder", "decoder"])
def test_a_t5_has_one_matrix_for_the_words_of_both_towers(tower, tmp_path):
    """It is read by any of its names, and a second one that differs is refused."""
    folder = tmp_path / "source"
    make_pair("t5", "seq2seq", 0, folder)
    tensors, copy = load_file(folder / WEIGHTS), f"{tower}.embed_tokens.weight"
    words = tensors["shared.weight"]
    alone = {name: value for name, value in tensors.items() if name != "shared.weight"}
    model = registry.load(write(alone | {copy: words}, folder))
    np.testing.assert_array_equal(model.params["encoder/word/embedding"], words)
    source = write(tensors | {copy: words + 0.5}, folder)
    with pytest.raises(UserError, match=f"'{copy}' differs from 'shared.weight'"):
        registry.describe(source)
    assert registry.describe(source, registry.LoadOptions(ignore=[copy])).report.unused == (copy,)


def test_the_head_of_deberta_that_has_no_matrix_ties_none():
    family = registry.families()["deberta-v2"]
    fields = json.loads(random_config("deberta-v2", np.random.default_rng(0)).to_json_string())
    for legacy in (True, False):
        config = family.config.from_hf(fields | {"legacy": legacy})
        assert bool(family.tensors.ties("masked_lm", config)) is legacy
