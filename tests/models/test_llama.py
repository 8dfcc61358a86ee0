"""Llama's kin beyond the contract: the spellings of their files on the hub, and what is refused."""

import copy
import json

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

from jaxft.errors import UserError
from jaxft.models import load as registry
from jaxft.models.families.llama.config import Config

SIZES = {
    "vocab_size": 60,
    "hidden_size": 48,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SCALING = {"short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5], "long_factor": [1.0, 1.5, 2, 2.5, 3, 4]}
# As the hub's microsoft/Phi-4-mini-instruct spells it, with other numbers.
PHI4 = SIZES | {
    "model_type": "phi3",
    "attention_bias": False,
    "auto_map": {"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"},
    "embd_pdrop": 0.0,
    "full_attn_mod": 1,
    "interpolate_factor": 1,
    "lm_head_bias": False,
    "mlp_bias": False,
    "original_max_position_embeddings": 16,
    "partial_rotary_factor": 0.75,
    "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-5,
    "rope_scaling": SCALING | {"type": "longrope"},
    "rope_theta": 1e4,
    "sliding_window": 12,
    "tie_word_embeddings": True,
}

# As the hub's ibm-granite/granite-3.3-2b-instruct spells it, with other sizes.
GRANITE = SIZES | {
    "model_type": "granite",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attention_multiplier": 0.015625,
    "embedding_multiplier": 12.0,
    "hidden_act": "silu",
    "logits_scaling": 8.0,
    "mlp_bias": False,
    "residual_multiplier": 0.22,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 1e7,
    "tie_word_embeddings": True,
}

# As the hub's allenai/OLMo-2-0425-1B spells it, with other sizes.
OLMO2 = SIZES | {
    "model_type": "olmo2",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 5e5,
    "tie_word_embeddings": False,
}

# As the hub's EuroBERT/EuroBERT-210m spells it, with other sizes.
EUROBERT = SIZES | {
    "model_type": "eurobert",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {"AutoModelForMaskedLM": "modeling_eurobert.EuroBertForMaskedLM"},
    "bos_token": "<|begin_of_text|>",
    "clf_pooling": "mean",
    "eos_token": "<|end_of_text|>",
    "head_dim": 16,
    "hidden_act": "silu",
    "hidden_dropout": 0.0,
    "mask_token": "<|mask|>",
    "mask_token_id": 3,
    "mlp_bias": False,
    "pad_token": "<|end_of_text|>",
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 2.5e5,
    "tie_word_embeddings": False,
}


def texts():
    ids = np.arange(1, 41).reshape(2, 20) % 58 + 2
    mask = np.ones((2, 20), np.int64)
    mask[1, 11:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def logits_of_both(folder, batch):
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        expected = theirs(**{name: torch.tensor(value) for name, value in batch.items()}).logits
    mask = batch["attention_mask"][..., None]
    ours = registry.load(str(folder), task="causal_lm")
    return np.asarray(ours(**batch)["logits"]) * mask, expected.numpy() * mask, ours


def test_phi3_files_of_the_hub_are_what_transformers_reads(tmp_path):
    torch.manual_seed(0)
    fields = copy.deepcopy(PHI4)
    known = {name: value for name, value in PHI4.items() if name != "auto_map"}
    new = transformers.AutoConfig.for_model(**copy.deepcopy(known))
    # transformers 5.24 has a line for `su`, the first name of it, and then refuses it.
    old = [fields | {"rope_scaling": SCALING | {"type": kind}} for kind in ("su", "yarn")]
    for one in (fields, new.to_dict(), *old):
        (rotary,) = Config.from_hf(one).rotaries
        assert (rotary.width, rotary.kind, rotary.original) == (12, "longrope", 16)
        assert Config.from_hf(one).windows == (12, 12)
    transformers.Phi3ForCausalLM(new).save_pretrained(tmp_path / "new")
    (tmp_path / "new/config.json").write_text(json.dumps(fields))
    ours, theirs, model = logits_of_both(tmp_path / "new", texts())
    np.testing.assert_allclose(ours, theirs, atol=2e-5)
    # Three heads of queries and one of keys: the fused tensor has parts of unlike sizes.
    model.save(tmp_path / "again")
    before, after = (load_file(tmp_path / f"{n}/model.safetensors") for n in ("new", "again"))
    name = "model.layers.1.self_attn.qkv_proj.weight"
    assert before[name].shape == (48 + 2 * 16, 48)
    np.testing.assert_array_equal(after[name], before[name])
    written = json.loads((tmp_path / "again/config.json").read_text())
    assert written["rope_scaling"] == fields["rope_scaling"]
    assert written["partial_rotary_factor"] == 0.75
    assert "auto_map" not in written


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "'linear' is not supported for phi3"),
        ({"partial_rotary_factor": 0.7}, "needs an even head width, not 11"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor must be a number above 0"),
        ({"partial_rotary_factor": 0.5}, "needs 4 numbers in 'short_factor'"),
        ({"full_attn_mod": 2}, "full_attn_mod is 2; only 1 is supported"),
        ({"attention_bias": True}, "'attention_bias'"),
    ],
)
def test_what_phi3_does_not_compute_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        Config.from_hf(PHI4 | fields)


@pytest.mark.parametrize("old", [GRANITE, OLMO2], ids=["granite", "olmo2"])
def test_files_of_the_hub_are_what_transformers_reads(old, tmp_path):
    torch.manual_seed(0)
    new = transformers.AutoConfig.for_model(**old)
    transformers.AutoModelForCausalLM.from_config(new).save_pretrained(tmp_path)
    for fields in (new.to_dict(), old):
        (tmp_path / "config.json").write_text(json.dumps(fields))
        ours, theirs, model = logits_of_both(tmp_path, texts())
        np.testing.assert_allclose(ours, theirs, atol=2e-5)
        assert model.config.rotaries[0].theta == old["rope_theta"]


def test_losses_of_words_are_of_granites_divided_scores(tmp_path):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(**GRANITE | {"initializer_range": 0.5})
    transformers.GraniteForCausalLM(config).save_pretrained(tmp_path)
    model = registry.load(str(tmp_path), task="causal_lm")
    batch = texts()
    scores = jax.nn.log_softmax(model(**batch)["logits"])
    targets = np.roll(batch["input_ids"], -1, axis=1)
    expected = -np.take_along_axis(np.asarray(scores), targets[..., None], axis=-1)[..., 0]
    losses = model(**batch, targets=targets)["losses"]
    np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-5)


GEMMA = SIZES | {
    "model_type": "gemma",
    "architectures": ["GemmaForCausalLM"],
    "head_dim": 12,
    "hidden_act": "gelu",
    "initializer_range": 0.1,
}


@pytest.mark.parametrize("unread", [None, "relu"])
def test_gelu_of_the_first_gemma_is_its_approximation(unread, tmp_path):
    torch.manual_seed(0)
    fields = GEMMA | {"hidden_activation": unread}
    transformers.GemmaForCausalLM(transformers.AutoConfig.for_model(**fields)).save_pretrained(
        tmp_path
    )
    (tmp_path / "config.json").write_text(json.dumps(fields))
    ours, theirs, model = logits_of_both(tmp_path, texts())
    np.testing.assert_allclose(ours, theirs, atol=2e-6)
    assert model.config.to_hf()["hidden_act"] == "gelu_pytorch_tanh"


@pytest.mark.parametrize("name", ["logits_scaling", "residual_multiplier"])
def test_a_factor_of_granite_is_a_number_above_0(name):
    with pytest.raises(UserError, match=f"{name} is 0, and must be a number above 0"):
        Config.from_hf(GRANITE | {name: 0})


def test_eurobert_files_of_the_hub_pool_as_they_say(tmp_path):
    """What transformers 5 calls classifier_pooling, the first files call clf_pooling."""
    torch.manual_seed(0)
    own = {n: v for n, v in EUROBERT.items() if n not in ("auto_map", "clf_pooling")}
    new = transformers.AutoConfig.for_model(**own, classifier_pooling="mean", num_labels=3)
    theirs = transformers.EuroBertForSequenceClassification(new).eval()
    folder = tmp_path / "hub"
    theirs.save_pretrained(folder)
    batch = texts()
    with torch.no_grad():
        expected = theirs(**{n: torch.tensor(v) for n, v in batch.items()}).logits.numpy()
    labels = {"id2label": {str(n): f"LABEL_{n}" for n in range(3)}}
    architecture = {"architectures": ["EuroBertForSequenceClassification"]}
    for fields in (new.to_dict(), EUROBERT):
        (folder / "config.json").write_text(json.dumps(fields | labels | architecture))
        model = registry.load(str(folder))
        np.testing.assert_allclose(model(**batch)["logits"], expected, atol=2e-5)
    model.save(tmp_path / "export")
    written = json.loads((tmp_path / "export/config.json").read_text())
    assert written["classifier_pooling"] == written["clf_pooling"] == "mean"
    both = Config.from_hf(EUROBERT | {"classifier_pooling": "bos"})
    assert both.fields["classifier_pooling"] == "bos"
    with pytest.raises(UserError, match='classifier_pooling is "max"; only "bos", "mean" and'):
        Config.from_hf(EUROBERT | {"clf_pooling": "max"})
