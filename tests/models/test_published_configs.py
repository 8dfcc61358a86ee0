"""Fields of published config.json files: those that change nothing, and sizes that are left out."""

import json

import pytest
from transformers import AutoConfig

from jaxft.errors import UserError
from jaxft.models.load import LoadOptions, describe

ENCODER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 99,
}
EYES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "image_size": 28,
    "patch_size": 14,
}
# What transformers 2 wrote of text generation into every file.
GENERATION = {
    "do_sample": False,
    "length_penalty": 1.0,
    "max_length": 20,
    "num_beams": 1,
    "num_return_sequences": 1,
    "pruned_heads": {},
    "repetition_penalty": 1.0,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
}
NAMED = {"id2label": {"0": "a", "1": "b", "2": "c"}, "_num_labels": 3}
# A published file -> the fields of it that no computation reads, in a small model.
FILES = {
    "distilbert-base-uncased": {
        "model_type": "distilbert",
        "dim": 32,
        "hidden_dim": 64,
        "n_heads": 2,
        "n_layers": 2,
        "vocab_size": 99,
        "max_position_embeddings": 64,
        "tie_weights_": True,
        "sinusoidal_pos_embds": False,
    },
    "albert-base-v2": {
        "model_type": "albert",
        **ENCODER,
        "embedding_size": 16,
        "num_hidden_groups": 1,
        "inner_group_num": 1,
        "down_scale_factor": 1,
        "gap_size": 0,
        "net_structure_type": 0,
        "num_memory_blocks": 0,
    },
    "dslim/bert-base-NER": {
        "model_type": "bert",
        **ENCODER,
        **NAMED,
        "pooler_fc_size": 768,
        "pooler_type": "first_token_transform",
        "architectures": ["BertForTokenClassification"],
    },
    "roberta-large-mnli": {
        "model_type": "roberta",
        **ENCODER,
        **NAMED,
        "architectures": ["RobertaForSequenceClassification"],
    },
    "a BERT of transformers 2": {"model_type": "bert", **ENCODER, **GENERATION},
    "huggyllama/llama-7b": {"model_type": "llama", **ENCODER, "max_sequence_length": 2048},
    "unsloth/Llama-3.2-1B-Instruct, saved by transformers 4.48": {
        "model_type": "llama",
        **ENCODER,
        "_attn_implementation_autoset": True,
        "unsloth_fixed": True,
        "unsloth_version": "2026.3.3",
    },
    "NousResearch/Yarn-Llama-2-7b-64k": {
        "model_type": "llama",
        **ENCODER,
        "rope_scaling": {
            "factor": 16.0,
            "finetuned": True,
            "original_max_position_embeddings": 32,
            "type": "yarn",
        },
    },
    "gpt2 with settings": {
        "model_type": "gpt2",
        "n_embd": 32,
        "n_head": 2,
        "n_layer": 2,
        "n_positions": 64,
        "vocab_size": 99,
        **GENERATION,
        "prefix": " ",
    },
    "EleutherAI/gpt-neox-20b": {
        "model_type": "gpt_neox",
        **ENCODER,
        "attention_probs_dropout_prob": 0,
        "hidden_act": "gelu_fast",
        "hidden_dropout_prob": 0,
        "rotary_emb_base": 10_000,
        "rotary_pct": 0.25,
        "use_parallel_residual": True,
    },
    "microsoft/beit-base-patch16-224": {
        "model_type": "beit",
        "hidden_size": 32,
        "num_attention_heads": 2,
        "auxiliary_channels": 256,
        "auxiliary_concat_input": False,
        "auxiliary_loss_weight": 0.4,
        "auxiliary_num_convs": 1,
        "out_indices": [3, 5, 7, 11],
        "pool_scales": [1, 2, 3, 6],
        "semantic_loss_ignore_index": 255,
        "use_auxiliary_head": True,
        "vocab_size": 8192,
    },
    "csebuetnlp/mT5_multilingual_XLSum": {
        "model_type": "mt5",
        "d_model": 32,
        "d_ff": 64,
        "d_kv": 16,
        "num_heads": 2,
        "num_layers": 2,
        "vocab_size": 99,
        "length_penalty": 0.6,
        "no_repeat_ngram_size": 2,
        "num_beams": 4,
    },
    "facebook's DINOv2 with registers": {
        "model_type": "dinov2_with_registers",
        "architectures": ["Dinov2WithRegistersModel"],
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
        "num_register_tokens": 4,
        "mlp_ratio": 4,
        "layerscale_value": 1.0,
        "apply_layernorm": True,
        "interpolate_antialias": True,
        "interpolate_offset": 0.0,
        "reshape_hidden_states": True,
    },
    "llava-hf's LLaVA 1.5": {
        "model_type": "llava",
        "architectures": ["LlavaForConditionalGeneration"],
        "ignore_index": -100,
        "image_token_index": 98,
        "pad_token_id": 1,
        "projector_hidden_act": "gelu",
        "text_config": {
            "_name_or_path": "lmsys/vicuna-7b-v1.5",
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "rms_norm_eps": 1e-05,
            "torch_dtype": "float16",
            **ENCODER,
        },
        "torch_dtype": "float16",
        "vision_config": {
            "model_type": "clip_vision_model",
            **EYES,
            "projection_dim": 768,
            "vocab_size": 32000,
        },
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "vocab_size": 99,
    },
    "llava-hf's LLaVA of a SigLIP and a Qwen 2": {
        "model_type": "llava",
        "architectures": ["LlavaForConditionalGeneration"],
        "ignore_index": -100,
        "image_seq_length": 4,
        "image_token_index": 98,
        "projector_hidden_act": "gelu",
        "text_config": {
            "model_type": "qwen2",
            "max_window_layers": 21,
            "num_key_value_heads": 2,
            "sliding_window": 32_768,
            "tie_word_embeddings": True,
            **ENCODER,
        },
        "vision_config": {
            "model_type": "siglip_vision_model",
            **EYES,
            "projection_dim": 2048,
            "vision_use_head": False,
            "vocab_size": 32_000,
        },
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    },
    "google's PaliGemma 2": {
        "model_type": "paligemma",
        "architectures": ["PaliGemmaForConditionalGeneration"],
        "_vocab_size": 98,
        "hidden_size": 32,
        "image_token_index": 98,
        "num_hidden_layers": 2,
        "projection_dim": 32,
        "text_config": {
            "model_type": "gemma2",
            **ENCODER,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "cache_implementation": "hybrid",
            "num_image_tokens": 4,
        },
        "vision_config": {
            "model_type": "siglip_vision_model",
            **EYES,
            "num_image_tokens": 4,
            "num_positions": 4,
            "projection_dim": 32,
            "vision_use_head": False,
        },
    },
}


@pytest.mark.parametrize("name", FILES)
def test_fields_that_change_nothing_are_passed(name, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(FILES[name]))
    described = describe(tmp_path, LoadOptions(), weights=False)
    assert described.fields["model_type"] == FILES[name]["model_type"]
    if "id2label" in FILES[name]:
        assert described.labels == ("a", "b", "c")


def test_heads_that_are_left_out_are_no_such_field(tmp_path):
    fields = {**FILES["a BERT of transformers 2"], "pruned_heads": {"0": [1]}}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match="'pruned_heads'"):
        describe(tmp_path, LoadOptions(), weights=False)


# The parts of google/gemma-3-4b-it, google/paligemma-3b-pt-224, HuggingFaceTB's SmolVLM 2.2B and
# llava-hf/llava-1.5-7b-hf.
PARTS = {
    "gemma3": (
        {
            "hidden_size": 2560,
            "intermediate_size": 10_240,
            "num_hidden_layers": 34,
            "model_type": "gemma3_text",
            "sliding_window": 1024,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        },
        {"image_size": 896, "patch_size": 14, "vision_use_head": False},
    ),
    "paligemma": (
        {
            "hidden_size": 2048,
            "intermediate_size": 16_384,
            "num_hidden_layers": 18,
            "model_type": "gemma",
            "num_attention_heads": 8,
            "num_key_value_heads": 1,
            "vocab_size": 257_216,
        },
        {"patch_size": 14, "projection_dim": 2048, "vision_use_head": False},
    ),
    "llava": (
        {"max_position_embeddings": 4096, "rms_norm_eps": 1e-05, "vocab_size": 32_064},
        {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14},
    ),
    "smolvlm": (
        {
            "head_dim": 64,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "max_position_embeddings": 8192,
            "model_type": "llama",
            "num_hidden_layers": 24,
            "rms_norm_eps": 1e-5,
            "vocab_size": 49_280,
        },
        {"image_size": 384, "patch_size": 14},
    ),
}
SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim"),
    *("num_attention_heads", "num_key_value_heads", "max_position_embeddings", "rms_norm_eps"),
)


@pytest.mark.parametrize("model_type", PARTS)
def test_sizes_that_a_part_leaves_out_are_those_of_transformers(model_type, tmp_path):
    text, vision = PARTS[model_type]
    sizes = {"hidden_size": 1152, "intermediate_size": 4304}
    vision |= sizes | {"num_attention_heads": 16, "num_hidden_layers": 27}
    words = {"gemma3": 262_144, "llava": 32_000, "paligemma": 257_152, "smolvlm": 49_190}
    word = words[model_type]
    own = {"scale_factor": 3, "image_token_id": word}
    own = own if model_type == "smolvlm" else {"image_token_index": word}
    fields = {"model_type": model_type, "text_config": text, "vision_config": vision, **own}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    ours = describe(tmp_path, LoadOptions(), weights=False).config
    theirs = AutoConfig.from_pretrained(tmp_path).text_config
    assert {name: ours.text.fields[name] for name in SIZES} == {
        name: getattr(theirs, name) for name in SIZES
    }
    written = ours.to_hf()["text_config"]
    assert all(written[name] == getattr(theirs, name) for name in SIZES)
