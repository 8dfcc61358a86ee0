"""Nomic BERT beyond the contract: the files of its own code on the hub, and what is refused."""

import json

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from jaxft.errors import UserError
from jaxft.models import load as registry
from jaxft.models.families.nomic_bert.config import Config

# As the hub's nomic-ai/nomic-embed-text-v1.5 spelled it for its own code, with other sizes.
OLD = {
    "activation_function": "swiglu",
    "architectures": ["NomicBertModel"],
    "attn_pdrop": 0.0,
    "auto_map": {"AutoModel": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel"},
    "bos_token_id": None,
    "causal": False,
    "dense_seq_output": True,
    "embd_pdrop": 0.0,
    "eos_token_id": None,
    "fused_bias_fc": True,
    "fused_dropout_add_ln": True,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-6,
    "max_trained_positions": 24,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "model_type": "nomic_bert",
    "n_embd": 16,
    "n_head": 2,
    "n_inner": 24,
    "n_layer": 2,
    "n_positions": 96,
    "pad_vocab_size_multiple": 64,
    "parallel_block": False,
    "parallel_block_tied_norm": False,
    "prenorm": False,
    "qkv_proj_bias": False,
    "reorder_and_upcast_attn": False,
    "resid_pdrop": 0.0,
    "rotary_emb_base": 500,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
    "rotary_scaling_factor": None,
    "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True,
    "summary_activation": None,
    "summary_first_dropout": 0.0,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "torch_dtype": "float32",
    "transformers_version": "4.34.0",
    "type_vocab_size": 2,
    "use_cache": True,
    "use_flash_attn": True,
    "use_rms_norm": False,
    "use_xentropy": True,
    "vocab_size": 64,
}
NEW = {
    "model_type": "nomic_bert",
    "hidden_size": 16,
    "intermediate_size": 24,
    "layer_norm_eps": 1e-6,
    "max_position_embeddings": 96,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "rope_parameters": {"rope_theta": 500.0, "rope_type": "default"},
    "vocab_size": 64,
}


def random_model(architecture):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(**json.loads(json.dumps(NEW)))
    model = getattr(transformers, architecture)._from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def texts():
    mask = np.ones((2, 20), np.int64)
    mask[1, 11:] = 0
    return {"input_ids": np.arange(1, 41).reshape(2, 20), "attention_mask": mask}


def outputs(model):
    with torch.no_grad():
        return model(**{name: torch.tensor(value) for name, value in texts().items()})[0].numpy()


def test_old_and_new_spellings_are_one():
    old, new = Config.from_hf(OLD), Config.from_hf(NEW)
    assert old == new
    assert Config.from_hf(OLD | NEW) == new
    stretched = Config.from_hf(OLD | {"rotary_scaling_factor": 2.0})
    assert (new.max_positions, stretched.max_positions) == (96, 24)


def test_files_of_the_hub_are_what_transformers_reads(tmp_path):
    theirs = random_model("NomicBertModel")
    theirs.save_pretrained(tmp_path / "hub")
    (tmp_path / "hub/config.json").write_text(json.dumps(OLD))
    ours = registry.load(str(tmp_path / "hub"))
    keep = texts()["attention_mask"][..., None]
    found = np.asarray(ours(**texts())["last_hidden_state"]) * keep
    np.testing.assert_allclose(found, outputs(theirs) * keep, atol=2e-5)
    # transformers reads an export of it, which it does not the file itself.
    exported = ours.save(tmp_path / "export")
    again = transformers.AutoModel.from_pretrained(exported, attn_implementation="eager").eval()
    np.testing.assert_allclose(outputs(again) * keep, outputs(theirs) * keep, atol=1e-6)


def test_the_names_of_the_hubs_own_masked_word_model(tmp_path):
    theirs = random_model("NomicBertForMaskedLM")
    theirs.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(OLD))
    file = tmp_path / "model.safetensors"
    stored = {
        name.replace("nomic_bert.", "bert.", 1).replace(
            "predictions.bias", "predictions.decoder.bias"
        ): v
        for name, v in load_file(file).items()
    }
    words = stored["bert.embeddings.word_embeddings.weight"]
    save_file(stored | {"cls.predictions.decoder.weight": words.copy()}, file, {"format": "pt"})
    ours = registry.load(str(tmp_path), task="masked_lm")
    keep = texts()["attention_mask"][..., None]
    np.testing.assert_allclose(ours(**texts())["logits"] * keep, outputs(theirs) * keep, atol=2e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prenorm": True}, "prenorm is true; only false is supported"),
        ({"qkv_proj_bias": True}, "qkv_proj_bias is true; only false is supported"),
        ({"rotary_emb_fraction": 0.5}, "rotary_emb_fraction is 0.5"),
        ({"rotary_emb_scale_base": 512}, "'rotary_emb_scale_base'"),
        ({"activation_function": "glu"}, 'activation_function is "glu"; only swiglu and geglu'),
        ({"num_experts": 8}, "'num_experts'"),
        ({"hidden_size": 32}, "n_embd is 16 and hidden_size is 32; they are two names"),
    ],
)
def test_what_is_not_supported_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        Config.from_hf(OLD | fields)
