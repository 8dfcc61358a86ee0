"""BART and its kin: the names that its words have in files, forced tokens, and what is refused."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
    MarianMTModel,
    PreTrainedTokenizerFast,
)

from jaxft.config.load import parse_config
from jaxft.engine.setup import build
from jaxft.errors import UserError
from jaxft.models import load as registry
from jaxft.models.generate.decode import Generator
from jaxft.models.generate.settings import Settings, read_settings
from jaxft.models.layers.batch import read_end, repeated_input
from tests.support.families import BARTS_KIN, LIKE_OTHERS, Pair, make_pair, outputs_of
from tests.support.small_assets import write_t5, write_verses

KIN = [
    pytest.param(name, marks=pytest.mark.full if name in LIKE_OTHERS else ()) for name in BARTS_KIN
]
COPIES = [f"model.{side}.embed_tokens.weight" for side in ("encoder", "decoder")]
WORDS = ["model.shared.weight", *COPIES, "lm_head.weight"]
SMALL = {
    "vocab_size": 40,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 8,
    "decoder_ffn_dim": 8,
    "max_position_embeddings": 24,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}


def write_small(folder, model_type="bart", **fields):
    """A small random checkpoint of a model type; PyTorch's model of it."""
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(
        AutoConfig.for_model(model_type, **SMALL | fields), attn_implementation="eager"
    )
    model.save_pretrained(folder)
    return model.eval()


@pytest.fixture(scope="module")
def bart(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bart")
    write_small(folder)
    return folder


def changed(folder, tmp_path, fields=None, tensors=None):
    """A copy of a checkpoint with other fields and tensors; a field of `...` is left out."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    own = json.loads((folder / "config.json").read_text()) | (fields or {})
    own = {name: value for name, value in own.items() if value is not ...}
    (copy / "config.json").write_text(json.dumps(own))
    if tensors is not None:
        save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    return str(copy)


@pytest.mark.parametrize("own", [[0], [1], [2], [3], [1, 2], [0, 1, 2, 3]], ids=str)
def test_shared_words_are_read_by_any_of_their_names(bart, tmp_path, own):
    """An old file has all of the names, and one that was made of it any of them."""
    tensors = load_file(bart / "model.safetensors")
    words = tensors.pop(WORDS[0])
    tensors |= {WORDS[number]: words.copy() for number in own}
    model = registry.load(changed(bart, tmp_path, tensors=tensors))
    np.testing.assert_array_equal(model.params["encoder/word/embedding"], words)
    assert "decoder/head/words/kernel" not in model.params
    folder = model.save(tmp_path / "export")
    assert {WORDS[0]} == set(WORDS) & load_file(folder / "model.safetensors").keys()


def test_scores_of_their_own_are_not_tied(bart, tmp_path):
    """As a file of transformers 4 says it; the export is read the same by transformers 5."""
    tensors = load_file(bart / "model.safetensors")
    tensors["lm_head.weight"] = tensors[WORDS[0]][::-1].copy()
    source = changed(bart, tmp_path, {"tie_word_embeddings": False}, tensors)
    model = registry.load(source)
    np.testing.assert_array_equal(
        model.params["decoder/head/words/kernel"], tensors["lm_head.weight"].T
    )
    folder = model.save(tmp_path / "export")
    theirs = AutoModelForSeq2SeqLM.from_pretrained(folder)
    np.testing.assert_array_equal(theirs.lm_head.weight.detach(), tensors["lm_head.weight"])
    for side in (theirs.model.encoder, theirs.model.decoder):
        np.testing.assert_array_equal(side.embed_tokens.weight.detach(), tensors[WORDS[0]])


PACKED = {
    "input_ids": np.array([[5, 6, 2, 7, 8, 9, 2, 4, 0]], np.int32),
    "segment_ids": np.array([[1, 1, 1, 2, 2, 2, 2, 2, 0]], np.int32),
    "position_ids": np.array([[0, 1, 2, 0, 1, 2, 3, 4, 0]], np.int32),
    "read_positions": np.array([[0, 3]], np.int32),
}


@pytest.mark.parametrize(
    ("start", "wanted"), [(3, [3, 5, 6, 3, 7, 8, 9, 2]), (None, [2, 5, 6, 4, 7, 8, 9, 2])]
)
def test_a_decoder_reads_each_source_of_a_row_again(start, wanted):
    """Behind one token, or as in mBART behind the last of the source: its language."""
    encoded = np.zeros((1, 9, 1), np.float32)
    batch = repeated_input({n: jnp.asarray(value) for n, value in PACKED.items()}, encoded, start)
    assert batch["input_ids"][0, :8].tolist() == wanted
    for name in ("segment_ids", "position_ids"):
        np.testing.assert_array_equal(batch[name], PACKED[name])
    np.testing.assert_array_equal(batch["encoder_segment_ids"], PACKED["segment_ids"])
    plain = {"input_ids": jnp.array([[5, 6, 2, 0]]), "attention_mask": jnp.array([[1, 1, 1, 0]])}
    batch = repeated_input(plain, encoded, start)
    assert batch["input_ids"][0, :3].tolist() == wanted[:3]


def test_a_class_is_read_at_the_last_end_token():
    """And where a source has none, at its last token."""
    x = jnp.arange(9.0)[None, :, None]
    batch = {n: jnp.asarray(value) for n, value in PACKED.items()}
    batch["encoder_input_ids"] = batch["input_ids"]
    assert read_end(x, batch, 2)[0, :, 0].tolist() == [2.0, 6.0]
    assert read_end(x, batch, 9)[0, :, 0].tolist() == [2.0, 5.0]
    ids, mask = jnp.array([[2, 7, 2, 7, 2], [7, 8, 9, 2, 2]]), [[1] * 4 + [0], [1] * 3 + [0] * 2]
    plain = {"encoder_input_ids": ids, "input_ids": ids, "attention_mask": jnp.array(mask)}
    assert read_end(x[:, :5].repeat(2, 0), plain, 2)[:, 0].tolist() == [2.0, 2.0]


def test_classes_of_packed_texts_are_those_of_each_alone(tmp_path):
    torch.manual_seed(0)
    config = AutoConfig.for_model("mbart", **SMALL, num_labels=3)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    model = registry.load(str(tmp_path))
    assert model.head == "text_classification"
    together = model(**PACKED)["logits"][0]
    texts = np.array([[5, 6, 2, 0, 0], [7, 8, 9, 2, 4]])
    mask = np.array([[1, 1, 1, 0, 0], [1] * 5])
    alone = model(input_ids=texts, attention_mask=mask)["logits"]
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert np.abs(alone[0] - alone[1]).max() > 1e-3


def test_a_marian_may_write_other_words_than_it_reads(tmp_path):
    apart = {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 31}
    theirs = write_small(tmp_path / "marian", "marian", **apart, scale_embedding=True)
    assert isinstance(theirs, MarianMTModel)
    model = registry.load(str(tmp_path / "marian"))
    draw = np.random.default_rng(0)
    batch = {
        "input_ids": draw.integers(1, 40, (2, 7)),
        "attention_mask": np.ones((2, 7), int),
        "decoder_input_ids": draw.integers(1, 31, (2, 5)),
        "decoder_attention_mask": np.ones((2, 5), int),
    }
    pair = Pair(model, theirs, str(tmp_path / "marian"), batch)
    (logits, wanted), *_ = [both for both in outputs_of(pair) if both[0].shape[-1] == 31]
    np.testing.assert_allclose(logits, wanted, atol=2e-5)


def test_a_grown_vocabulary_has_a_longer_bias(tmp_path):
    """With zeros, as transformers has them."""
    write_t5(tmp_path / "t5", blocks=1)
    own = PreTrainedTokenizerFast.from_pretrained(tmp_path / "t5")
    write_small(tmp_path / "bart", vocab_size=len(own) - 3)
    own.save_pretrained(tmp_path / "bart")
    source = str(tmp_path / "bart")
    tensors = load_file(tmp_path / "bart" / "model.safetensors")
    tensors["final_logits_bias"] = tensors["final_logits_bias"] + 1.5
    save_file(tensors, tmp_path / "bart" / "model.safetensors", metadata={"format": "pt"})
    bias = registry.load(source, resize_vocab=True).params["decoder/head/bias"]
    assert np.asarray(bias)[0].tolist() == [1.5] * (len(own) - 3) + [0.0] * 3


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"normalize_before": True}, "normalize_before is true, which is not how a bart computes"),
        ({"static_position_embeddings": True}, "static_position_embeddings is true"),
        ({"num_hidden_layers": 3}, "num_hidden_layers is 3, and another field says 1"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is false; only true is supported"),
        ({"d_model": 17}, "d_model 17 does not divide into 2 encoder_attention_heads"),
        ({"rope_theta": 3}, "'rope_theta' .* is not known for bart"),
    ],
    ids=str,
)
def test_what_a_bart_does_not_compute_is_refused(bart, tmp_path, fields, problem):
    with pytest.raises(UserError, match=problem):
        registry.load(changed(bart, tmp_path, fields))


def test_fields_of_old_files_are_known(bart, tmp_path):
    old = {
        "normalize_before": False,
        "normalize_embedding": True,
        "add_final_layer_norm": False,
        "static_position_embeddings": False,
        "extra_pos_embeddings": 2,
        "classif_dropout": 0.0,
        "add_bias_logits": False,
        "_num_labels": 3,
        "num_hidden_layers": 1,
        "early_stopping": True,
        "no_repeat_ngram_size": 3,
        "decoder_start_token_id": ...,
    }
    model = registry.load(changed(bart, tmp_path, old))
    assert model.config.start_token_id == 2


def test_an_mbart_without_a_language_is_refused(tmp_path):
    write_small(tmp_path / "mbart", "mbart", decoder_start_token_id=None)
    with pytest.raises(UserError, match="has no decoder_start_token_id"):
        Generator(registry.load(str(tmp_path / "mbart")))


@pytest.fixture(scope="module", params=KIN)
def pair(request, tmp_path_factory):
    return make_pair(request.param, "seq2seq", 1, tmp_path_factory.mktemp("source"))


@pytest.mark.parametrize("count", [3, pytest.param(20, marks=pytest.mark.full)])
@pytest.mark.parametrize("beams", [pytest.param(1, marks=pytest.mark.full), 4])
def test_forced_tokens_are_transformers(pair, beams, count):
    """The first token is a language's, the last the end; and one never comes."""
    draw = np.random.default_rng(count)
    sources = [draw.integers(1, pair.ours.vocab_size, draw.integers(3, 15)) for _ in range(count)]
    free = Generator(pair.ours).generate(sources, Settings(max_new_tokens=7, num_beams=beams))
    never, end = free[0][1], free[0][-1]
    never = never if never != end else 7
    asked = {"max_new_tokens": 7, "num_beams": beams, "forced_bos_token_id": 5}
    settings = Settings(
        eos_token_id=(end,), forced_eos_token_id=(end,), bad_words_ids=(never,), **asked
    )
    ours = Generator(pair.ours).generate(sources, settings)
    assert all(text[0] == 5 and text[-1] == end and never not in text[1:-1] for text in ours)
    for source, text in zip(sources, ours, strict=True):
        theirs = pair.torch.generate(
            torch.tensor(source[None]),
            attention_mask=torch.ones(1, len(source), dtype=int),
            do_sample=False,
            decoder_start_token_id=0,
            pad_token_id=0,
            eos_token_id=end,
            forced_eos_token_id=end,
            bad_words_ids=[[never]],
            **asked,
        )[0, 1:].tolist()
        assert text == theirs[: theirs.index(end) + 1]


def test_forced_tokens_are_read_from_either_file(tmp_path):
    """Those of config.json only where there is no generation_config.json."""
    fields = {"eos_token_id": 2, "forced_bos_token_id": 9, "forced_eos_token_id": 2}
    settings, notes = read_settings(tmp_path, fields, {})
    assert (settings.forced_bos_token_id, settings.forced_eos_token_id) == (9, (2,))
    own = {"bad_words_ids": [[7], [8]], "forced_eos_token_id": [0], "eos_token_id": 0}
    (tmp_path / "generation_config.json").write_text(json.dumps(own))
    settings, notes = read_settings(tmp_path, fields, {})
    assert settings.bad_words_ids == (7, 8)
    assert (settings.forced_bos_token_id, settings.forced_eos_token_id) == (None, (0,))
    assert notes == ()
    own["bad_words_ids"] = [[7, 8]]
    (tmp_path / "generation_config.json").write_text(json.dumps(own))
    settings, notes = read_settings(tmp_path, fields, {})
    assert settings.bad_words_ids == ()
    assert "bad_words_ids ([[7, 8]]) is not supported" in notes[0]


def test_settings_of_an_old_config_are_those_of_transformers(tmp_path):
    """Without a generation_config.json; `max_length` 20 is what nobody has set."""
    own = {"num_beams": 4, "max_length": 30, "length_penalty": 2.0, "early_stopping": True}
    fields = AutoConfig.for_model("bart").to_dict() | own | {"no_repeat_ngram_size": 3}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    config = {"config_file_name": "config.json", "_from_model_config": True}
    theirs = GenerationConfig.from_pretrained(tmp_path, **config).to_dict()
    settings, notes = read_settings(tmp_path, fields, {})
    assert {name: getattr(settings, name) for name in own} == {name: theirs[name] for name in own}
    assert settings.max_new_tokens is None
    (note,) = notes
    assert note.startswith("config.json: no_repeat_ngram_size (3) is not supported")
    inner, _ = read_settings(tmp_path, {"decoder": {**own, "max_length": 20}}, {})
    assert (inner.num_beams, inner.max_length) == (4, None)


@pytest.mark.parametrize("model_type", KIN)
def test_the_loss_of_pairs_is_transformers(model_type, tmp_path):
    """The task shifts the targets as transformers shifts labels."""
    write_t5(tmp_path / "t5", blocks=1)
    write_verses(tmp_path / "verses")
    own = PreTrainedTokenizerFast.from_pretrained(tmp_path / "t5")
    tokens = {"vocab_size": len(own), "pad_token_id": 0, "eos_token_id": 1}
    theirs = write_small(
        tmp_path / "model", model_type, **tokens, bos_token_id=2, decoder_start_token_id=1
    )
    own.save_pretrained(tmp_path / "model")
    rows = f"jsonl:{tmp_path}/verses/test.jsonl"
    config = {
        "run": {"name": "run", "dir": str(tmp_path / "runs")},
        "model": {"checkpoint": str(tmp_path / "model"), "dropout": 0.0},
        "task": {"kind": "seq2seq", "source": "es", "target": "en"},
        "data": {"train": rows, "eval": rows, "batch_size": 8, "cache": str(tmp_path / "cache")},
    }
    setup = build(parse_config(config))
    batch = setup.splits["eval"].examples.collate(np.arange(8)[:, None], 1)
    model = registry.load(str(tmp_path / "model"))
    inputs = {n: v for n, v in batch.items() if n.endswith(("input_ids", "attention_mask"))}
    losses = model(**inputs, targets=batch["targets"])["losses"]
    ours = np.asarray(losses).sum() / (batch["targets"] >= 0).sum()
    labels = torch.tensor(np.where(batch["targets"] < 0, -100, batch["targets"])).long()
    inputs = {name: torch.tensor(inputs[name]).long() for name in ("input_ids", "attention_mask")}
    if model_type == "mbart":  # it takes the last label for the language, and puts it first
        inputs["decoder_input_ids"] = torch.tensor(batch["decoder_input_ids"]).long()
    with torch.no_grad():
        wanted = theirs(**inputs, labels=labels).loss
    np.testing.assert_allclose(ours, wanted.numpy(), rtol=1e-5)
