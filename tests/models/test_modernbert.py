"""ModernBERT beyond the contract: old config files, pooling, a classifier of pretrained weights."""

import json

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file
from transformers.models.modernbert.modeling_modernbert import ModernBertRotaryEmbedding

from jaxft.errors import UserError
from jaxft.models import load as registry
from jaxft.models.families.modernbert.config import Config

# As the hub's answerdotai/ModernBERT-base spells it, with other numbers.
OLD = {
    "model_type": "modernbert",
    "vocab_size": 60,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 5,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "classifier_pooling": "mean",
    "deterministic_flash_attn": False,
    "global_attn_every_n_layers": 2,
    "global_rope_theta": 4e4,
    "layer_norm_eps": 1e-5,
    "local_attention": 6,
    "local_rope_theta": 3e3,
    "position_embedding_type": "absolute",
    "pad_token_id": 0,
}


def test_the_old_spelling_is_what_transformers_reads():
    ours = Config.from_hf(OLD)
    theirs = Config.from_hf(transformers.AutoConfig.for_model(**OLD).to_dict())
    assert ours.layer_types == theirs.layer_types
    assert ours.windows == theirs.windows == (None, 4, None, 4, None)
    assert ours.waves == theirs.waves == (0, 1, 0, 1, 0)
    for one, other in zip(ours.rotaries, theirs.rotaries, strict=True):
        np.testing.assert_array_equal(one.frequencies()[0], other.frequencies()[0])


# As the hub's jhu-clsp/ettin-decoder-17m spells it, with other numbers.
ETTIN = OLD | {"model_type": "modernbert-decoder", "position_embedding_type": "sans_pos"}


def test_a_decoders_window_is_the_half_behind_a_position():
    ours = Config.from_hf(ETTIN)
    new = transformers.AutoConfig.for_model(**ETTIN).to_dict()
    assert new["sliding_window"] == 3
    assert ours.windows == Config.from_hf(new).windows == (None, 3, None, 3, None)
    # What transformers 5 writes beside local_attention is what it reads.
    other = new | {"sliding_window": 2}
    assert transformers.AutoConfig.for_model(**other).sliding_window == 2
    assert Config.from_hf(other).windows == (None, 2, None, 2, None)
    assert Config.from_hf(OLD | {"position_embedding_type": "sans_pos"}) == Config.from_hf(OLD)
    with pytest.raises(UserError, match="the sliding window is 0; it must be a whole number"):
        Config.from_hf(ETTIN | {"local_attention": 1})


def test_yarn_of_a_kind_of_blocks_is_cut_to_whole_dimensions_as_in_transformers():
    """transformers reads a kind's factors, but not its `truncate`."""
    yarn = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 2.0, "truncate": False}
    yarn |= {"beta_fast": 4.0, "beta_slow": 0.5, "original_max_position_embeddings": 19}
    ropes = {"full_attention": yarn, "sliding_attention": {"rope_type": "default"}}
    config = transformers.AutoConfig.for_model(**OLD | {"rope_parameters": ropes})
    theirs = ModernBertRotaryEmbedding(config)
    frequencies, scale = Config.from_hf(config.to_dict()).rotaries[0].frequencies()
    np.testing.assert_allclose(frequencies, theirs.full_attention_inv_freq.numpy(), rtol=1e-6)
    assert scale == pytest.approx(theirs.full_attention_attention_scaling)


@pytest.mark.parametrize("theta", [None, 99.0])
def test_a_scaling_in_the_old_spelling_leaves_the_base_of_the_new_one(theta):
    full = {"rope_type": "default"} | ({} if theta is None else {"rope_theta": theta})
    ropes = {"full_attention": full, "sliding_attention": {"rope_type": "default"}}
    fields = OLD | {"rope_parameters": ropes, "rope_scaling": {"rope_type": "linear", "factor": 2}}
    ours = Config.from_hf(json.loads(json.dumps(fields))).rotaries
    theirs = ModernBertRotaryEmbedding(transformers.AutoConfig.for_model(**fields))
    for rotary, kind in zip(ours, ropes, strict=True):
        expected = getattr(theirs, f"{kind}_inv_freq").numpy()
        np.testing.assert_allclose(rotary.frequencies()[0], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("classifier_pooling", "max", 'classifier_pooling is "max"; only "cls" and "mean"'),
        ("layer_types", ["full_attention"] * 4, "layer_types must be 5 of"),
        ("layer_types", ["chunked_attention"] * 5, "layer_types must be 5 of"),
        ("position_embedding_type", "relative", "position_embedding_type"),
        ("global_attn_every_n_layers", 0, "global_attn_every_n_layers must be a whole number"),
        ("rope_parameters", {"chunked_attention": {}}, "is not a kind of block"),
        ("rope_scaling", {"type": "linear", "factor": 2}, "Call it rope_type"),
    ],
)
def test_what_is_not_supported_is_refused(field, value, message):
    with pytest.raises(UserError, match=message):
        Config.from_hf(OLD | {field: value})


def test_a_pretrained_checkpoint_becomes_a_classifier(tmp_path):
    """The transform before the word scores is the classifier's, as in transformers."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(**OLD, classifier_bias=True)
    pretrained = transformers.ModernBertForMaskedLM(config)
    with torch.no_grad():
        for parameter in pretrained.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    pretrained.save_pretrained(tmp_path / "words")
    ours = registry.load(str(tmp_path / "words"), task="text_classification", num_labels=3)
    assert ours.report.new == ("head/bias", "head/kernel")
    ours.save(tmp_path / "classes")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "classes")
    batch = {"input_ids": np.arange(1, 25).reshape(2, 12) % 60, "attention_mask": np.ones((2, 12))}
    batch["attention_mask"][1, 7:] = 0
    batch = {name: value.astype(np.int64) for name, value in batch.items()}
    with torch.no_grad():
        expected = theirs.eval()(**{n: torch.tensor(v) for n, v in batch.items()}).logits.numpy()
    np.testing.assert_allclose(ours(**batch)["logits"], expected, atol=2e-5)
    # The fused tensors are whole again, and the old spelling stays.
    before = load_file(tmp_path / "words/model.safetensors")
    after = load_file(tmp_path / "classes/model.safetensors")
    name = "model.layers.1.attn.Wqkv.weight"
    np.testing.assert_array_equal(after[name], before[name])
    exported = json.loads((tmp_path / "classes/config.json").read_text())
    assert exported["classifier_pooling"] == "mean"
