"""Decoders as classifiers: trained, handed back, and read where transformers reads them."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from jaxft.errors import UserError
from jaxft.export.export import export
from jaxft.models import load as registry
from jaxft.models.families.gpt2 import config as gpt2_config
from jaxft.models.families.gpt_neox import gpt_neox
from jaxft.models.families.llama.config import Config
from jaxft.models.layers.batch import read_last
from jaxft.models.layers.rotary import read_rotary, rotary_waves
from jaxft.models.weights.config_fields import pad_token_id
from jaxft.training.story import train
from tests.support import tiny
from tests.support.families import make_pair

SIZES = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "llama": {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    },
}
SIZES["qwen3_moe"] = SIZES["llama"] | {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
}
END = "<|endoftext|>"


def make_checkpoint(folder, model_type):
    """A causal LM of random weights with a byte-level BPE that has no pad token."""
    words = tokenizers.Tokenizer(tokenizers.models.BPE())
    words.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[END],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words.train_from_iterator([" ".join(tiny.VOCABULARY)] * 3, trainer)
    end = words.token_to_id(END)
    config = transformers.AutoConfig.for_model(
        model_type,
        vocab_size=words.get_vocab_size(),
        bos_token_id=end,
        eos_token_id=end,
        **SIZES[model_type],
    )
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token=END)
    tokenizer.save_pretrained(folder)
    return end


@pytest.mark.parametrize("model_type", SIZES)
def test_a_decoder_is_trained_to_classify_and_handed_back(model_type, tmp_path):
    end = make_checkpoint(tmp_path / "checkpoint", model_type)
    config = tiny.tiny_config(tmp_path, train={"length": "2 steps"}, mesh={"data": 8})
    run = train(config, quiet=True)
    folder = export(run.folder)
    ours = registry.load(str(folder))
    assert ours.report.new == ours.report.unused == ()
    assert json.loads((folder / "config.json").read_text())["pad_token_id"] == end

    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    batch = tokenizer(
        ["a witty plot", "stale", f"the cast is warm {END}"], padding=True, return_tensors="np"
    )
    names = ("input_ids", "attention_mask")
    with torch.no_grad():
        expected = theirs(**{name: torch.tensor(batch[name]) for name in names}).logits.numpy()
    got = ours(**{name: batch[name] for name in names})["logits"]
    np.testing.assert_allclose(got, expected, atol=2e-5)
    start = registry.load(str(tmp_path / "checkpoint"), task="text_classification")
    name = "blocks/0/attention/value/kernel"
    assert not np.array_equal(ours.params[name], start.params[name])


def test_the_last_token_is_read_and_the_pad_token_never():
    ids = jnp.array([[5, 6, 9, 7, 9, 9, 9, 3, 0, 0]])  # 9 fills rows: of the second text, all
    packed = {
        "input_ids": ids,
        "segment_ids": jnp.array([[1, 1, 1, 1, 1, 2, 2, 3, 0, 0]]),
        "read_positions": jnp.array([[0, 5, 7, 0]]),
    }
    places = jnp.arange(10.0)[None, :, None]
    assert read_last(places, packed, 9)[0, :3, 0].tolist() == [3, 5, 7]
    assert read_last(places, packed, None)[0, :3, 0].tolist() == [4, 6, 7]
    plain = {"input_ids": ids, "attention_mask": jnp.array([[1] * 7 + [0] * 3])}
    assert read_last(places, plain, 9)[0].tolist() == [3]
    assert read_last(places, plain, None)[0].tolist() == [6]


def test_the_pad_token_is_the_configs_the_tokenizers_or_the_end(tmp_path):
    ends = {"eos_token_id": [7, 8]}
    assert pad_token_id({"pad_token_id": 3} | ends, tmp_path) == 3
    assert pad_token_id({"pad_token_id": -1} | ends, tmp_path) == 7
    assert pad_token_id({}, tmp_path) is None
    described = {"added_tokens": [{"content": "<pad>", "id": 5}], "model": {"vocab": {"x": 6}}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(described))
    for token, found in (("<pad>", 5), ({"content": "x"}, 6), (None, 7)):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": token}))
        assert pad_token_id(ends, tmp_path) == found


@pytest.mark.parametrize("name", ["opt", "roberta"])
def test_a_pad_token_that_is_not_named_is_the_model_types_own(name, tmp_path):
    """OPT's classes are read before it, and RoBERTa's positions are counted from it on."""
    folder = tmp_path / "source"
    pair = make_pair(name, "text_classification", 0, folder)
    fields = json.loads((folder / "config.json").read_text()) | {"eos_token_id": 2}
    del fields["pad_token_id"]
    (folder / "config.json").write_text(json.dumps(fields))
    ids = np.array([[0, 5, 1, 7, 2], [0, 5, 6, 2, 1]])
    batch = {"input_ids": ids, "attention_mask": np.array([[1] * 5, [1] * 4 + [0]])}
    ours = registry.load(str(folder))
    assert ours.config.fields["pad_token_id"] == 1
    for one in (folder, ours.save(tmp_path / "export")):
        theirs = type(pair.torch).from_pretrained(one).eval()
        assert theirs.config.pad_token_id == 1
        with torch.no_grad():
            expected = theirs(**{n: torch.tensor(value) for n, value in batch.items()}).logits
        np.testing.assert_allclose(ours(**batch)["logits"], expected, atol=2e-5)


@pytest.mark.parametrize(
    ("rope", "said"),
    [
        ({"rope_type": "spiral"}, "rotary scaling 'spiral' is not supported"),
        (
            {"rope_type": "longrope", "original_max_position_embeddings": 4, "long_factor": [1.0]},
            "'longrope' needs 2 numbers in 'short_factor'",
        ),
        ({"rope_type": "lineer", "factor": 2}, "'linear'"),
        ({"type": "linear"}, "'linear' has no number 'factor'"),
        ({"rope_type": "linear", "factor": 2.0, "odd": 1}, "has the unknown field 'odd'"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "'partial_rotary_factor'"),
    ],
)
def test_a_rotary_scaling_that_is_not_understood_is_refused(rope, said):
    with pytest.raises(UserError, match=said):
        read_rotary({"rope_scaling": rope, "max_position_embeddings": 8}, 4, 1e4)


def test_opt_counts_positions_from_the_first_true_token(tmp_path):
    config = transformers.OPTConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        ffn_dim=24,
        max_position_embeddings=16,
        word_embed_proj_dim=12,
        do_layer_norm_before=False,
    )
    torch.manual_seed(0)
    theirs = transformers.OPTForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path)
    mask = np.array([[0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    batch = {
        "input_ids": np.array([[1, 1, 1, 2, 9, 7], [2, 5, 6, 7, 8, 9]]),
        "attention_mask": mask,
    }
    with torch.no_grad():
        expected = theirs(**{n: torch.tensor(v) for n, v in batch.items()}).logits.numpy()
    got = np.asarray(registry.load(str(tmp_path))(**batch)["logits"])
    np.testing.assert_allclose(got * mask[..., None], expected * mask[..., None], atol=2e-5)


def gemma(model_type, **own):
    """A config.json of a Gemma, as transformers makes it of fields in an old spelling."""
    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "head_dim": 8}
    counts = {"num_hidden_layers": 7, "num_attention_heads": 2, "num_key_value_heads": 1}
    old = {"model_type": model_type, "max_position_embeddings": 16} | sizes | counts | own
    return old, transformers.AutoConfig.for_model(**old).to_dict()


@pytest.mark.parametrize("model_type", ["gemma2", "gemma3_text"])
def test_a_gemma_in_its_old_spelling_is_what_transformers_reads(model_type):
    rope = {"rope_theta": 5e5}
    if model_type == "gemma3_text":
        rope |= {
            "rope_local_base_freq": 3e3,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        }
        rope |= {"sliding_window_pattern": 3}
    old, new = gemma(model_type, sliding_window=5, hidden_activation="gelu_pytorch_tanh", **rope)
    ours, theirs = (Config.from_hf(fields) for fields in (old, new))
    assert ours.windows == theirs.windows
    assert ours.waves == theirs.waves
    assert len(set(ours.waves)) == (2 if model_type == "gemma3_text" else 1)
    for one, other in zip(ours.rotaries, theirs.rotaries, strict=True):
        np.testing.assert_array_equal(one.frequencies()[0], other.frequencies()[0])


@pytest.mark.parametrize(
    ("model_type", "own", "said"),
    [
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention is true"),
        ("gemma3_text", {"rope_parameters": {"rope_type": "default"}}, "'rope_type', which is no"),
        ("gemma2", {"layer_types": ["chunked_attention"] * 7}, "has 'chunked_attention'"),
        ("gemma2", {"sliding_window": None, "layer_types": ["sliding_attention"] * 7}, "not set"),
    ],
)
def test_what_a_gemma_may_not_ask_for(model_type, own, said):
    old, _ = gemma(model_type)
    with pytest.raises(UserError, match=said):
        Config.from_hf(old | own)


@pytest.mark.parametrize(
    ("types", "said"),
    [([[["global", "near"], 1]], "has 'near'"), ([[["local"], 3]], "does not describe 2 blocks")],
)
def test_a_pattern_of_blocks_that_is_not_understood_is_refused(types, said):
    fields = {"model_type": "gpt_neo", "vocab_size": 50, "max_position_embeddings": 16}
    fields |= {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "attention_types": types}
    with pytest.raises(UserError, match=said):
        gpt2_config.Config.from_hf(fields)


def test_longrope_takes_the_long_factors_beyond_the_original_positions():
    rope = {"rope_type": "longrope", "original_max_position_embeddings": 8, "rope_theta": 1e4}
    rope |= {"short_factor": [1.0, 1.5], "long_factor": [2.0, 4.0]}
    config = transformers.LlamaConfig(
        hidden_size=8, num_attention_heads=2, max_position_embeddings=32, rope_parameters=rope
    )
    rotary = read_rotary(config.to_dict(), 4, 1e4)
    turned = []
    for length in (8, 9):
        theirs = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(length)[None])
        ours = rotary_waves(rotary, jnp.arange(length)[None])
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(one[0, :, 0], other[0, :, :2].numpy(), atol=1e-6)
        turned.append(ours[0][0, 1, 0, 1])
    assert turned[0] != turned[1]


def test_old_and_new_spellings_of_a_rotary_scaling_are_one():
    new = {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}}
    old = {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 5e5}
    waves = [
        read_rotary(fields | {"max_position_embeddings": 8}, 4, 1e4).frequencies()[0]
        for fields in (new, old)
    ]
    np.testing.assert_array_equal(*waves)


NEOX = {
    "model_type": "gpt_neox",
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
}


@pytest.mark.parametrize(
    "own", [{}, {"rotary_pct": 0.5, "rotary_emb_base": 100}, {"rotary_pct": 1.0}]
)
def test_pythias_spelling_of_its_rotary_embedding_is_transformers_own(own):
    new = transformers.GPTNeoXConfig.from_dict(NEOX | own).to_dict()
    assert "rotary_pct" not in new
    spelled = [gpt_neox.Config.from_hf(fields).rotary for fields in (NEOX | own, new)]
    for rotary in spelled:
        assert rotary.width == int(16 * own.get("rotary_pct", 0.25))
        assert rotary.theta == own.get("rotary_emb_base", 1e4)


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"rotary_pct": 0}, "rotary_pct must be a number above 0"),
        ({"rope_parameters": {"partial_rotary_factor": 1.5}}, "partial_rotary_factor must be"),
        ({"rotary_pct": 0.2}, "needs an even head width, not 3"),
        ({"rope_scaling": "linear"}, 'rope_scaling is "linear", and must be'),
    ],
)
def test_what_a_pythia_may_not_ask_for(own, said):
    with pytest.raises(UserError, match=said):
        gpt_neox.Config.from_hf(NEOX | own)
