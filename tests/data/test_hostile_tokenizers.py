"""Tokenizers, templates and settings of a stranger's checkpoint: bounded, or refused by name."""

import json
import threading

import pytest
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, processors

from jaxft.bounds import MOST_SPECIAL_TOKENS, MOST_TOKEN_CHARACTERS
from jaxft.data.text import tokenizer_files
from jaxft.data.text.chat import load_chat_template
from jaxft.data.text.tokenizer import load_tokenizer
from jaxft.errors import UserError
from jaxft.models.generate.settings import Settings, check_cache, read_settings

REPEATED = processors.TemplateProcessing(
    single=" ".join(["[CLS]"] * (MOST_SPECIAL_TOKENS + 1)) + " $A", special_tokens=[("[CLS]", 1)]
)


def save(folder, vocabulary=(), **parts):
    backend = tokenizers.Tokenizer(
        models.WordLevel({"a": 0, "[CLS]": 1, **dict(vocabulary)}, unk_token="a")
    )
    for name, part in parts.items():
        setattr(backend, name, part)
    backend.save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        (
            {"normalizer": normalizers.Sequence([normalizers.Replace("a", "a" * 100)] * 4)},
            "The normalizer of the tokenizer in .* may make a text 100,000,000 times as long",
        ),
        (
            {"normalizer": normalizers.Sequence([normalizers.Replace(Regex("a*"), "aa")] * 6)},
            "may make a text 729 times as long; at most 256 times",
        ),
        ({"normalizer": normalizers.Prepend("x" * 999)}, "a text 1,000 times as long"),
        ({"decoder": decoders.Replace("a", "b" * 1000)}, "The decoder .* 1,000 times as long"),
        ({"post_processor": REPEATED}, "adds 1,001 special tokens to each text; at most 1000"),
        (
            {"vocabulary": [("x" * (MOST_TOKEN_CHARACTERS + 1), 2)]},
            "has a token of 10,001 characters, 'x{20}...'; at most 10,000",
        ),
    ],
)
def test_what_makes_texts_grow_is_refused(tmp_path, parts, sentence):
    save(tmp_path, **parts)
    with pytest.raises(UserError, match=sentence):
        load_tokenizer(tmp_path)


def test_what_real_tokenizers_replace_is_not(tmp_path):
    """Those of Llama, Gemma and T5."""
    parts = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    parts += [normalizers.NFKD(), normalizers.Replace(Regex(" {2,}"), "▁")]
    save(tmp_path, normalizer=normalizers.Sequence(parts))
    assert load_tokenizer(tmp_path).encode(["b c"]).tokens == 1


def test_encoding_that_does_not_end(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer_files, "MOST_ENCODE_SECONDS", 0.05)
    save(tmp_path)
    tokenizer, never = load_tokenizer(tmp_path), threading.Event()

    class Endless:
        def encode_batch(self, inputs, add_special_tokens):
            never.wait()

        def num_special_tokens_to_add(self, is_pair):
            return 0

    monkeypatch.setattr(tokenizer, "_backend", Endless())
    try:
        for encode in (tokenizer.encode, tokenizer.locate):
            with pytest.raises(UserError, match=r"cannot encode a text \(it did not finish in 0 s"):
                encode(["text"])
    finally:
        never.set()


@pytest.mark.parametrize("size", [len("{{ x }}"), 40_000])
def test_a_chat_template_that_is_not_utf8(tmp_path, size):
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff" * size)
    with pytest.raises(UserError, match=r"chat_template\.jinja is not UTF-8 text"):
        load_chat_template(tmp_path)


@pytest.mark.parametrize(
    ("templates", "text"),
    [
        ([{"name": ["default"], "template": "a"}, {"name": "default", "template": "b"}], "b"),
        ([{"name": {"default": 1}, "template": "a"}, 5, None], None),
        ([{"name": "default"}], None),
        ([], None),
    ],
)
def test_named_chat_templates_of_any_shape(tmp_path, templates, text):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": templates}))
    template = load_chat_template(tmp_path)
    assert (None if template is None else template.text) == text


@pytest.mark.parametrize("template", [5, {"a": "b"}, [{"name": "default", "template": 5}]])
def test_a_chat_template_that_is_no_text(tmp_path, template):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    with pytest.raises(UserError, match=r"tokenizer_config\.json: chat_template is not text"):
        load_chat_template(tmp_path)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"stop_strings": [5]}, "stop_strings must be strings that are not empty"),
        ({"stop_strings": [""]}, "stop_strings must be strings that are not empty"),
        ({"stop_strings": {"a": 1}, "num_beams": "2"}, "has text where a number is expected"),
        ({"eos_token_id": ["x"]}, "eos_token_id must be a token id, or a list of them"),
        ({"eos_token_id": [[1]]}, "eos_token_id must be a token id, or a list of them"),
        ({"max_new_tokens": 1.5}, "max_new_tokens must be at least 1"),
        ({"temperature": float("nan")}, "temperature must be above 0"),
        ({"top_p": [1]}, "has text where a number is expected"),
    ],
)
def test_generation_settings_of_any_kind(tmp_path, settings, sentence):
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=f"generation_config.json.*{sentence}"):
        read_settings(tmp_path, {}, {})


def test_texts_and_beams_that_no_memory_holds():
    check_cache(32 * 8192, Settings(num_beams=16))
    for tokens, beams in ((2**31, 1), (2**20, 5)):
        with pytest.raises(UserError, match=r"beam.* are more than 4,194,304"):
            check_cache(tokens, Settings(num_beams=beams))
