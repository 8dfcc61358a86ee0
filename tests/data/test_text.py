"""Text to token ids: the checkpoint's own, cut where told, counted."""

import json
import pickle
import shutil

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers, processors

from jaxft.data.text.template import parse_template
from jaxft.data.text.tokenizer import load_tokenizer
from jaxft.errors import UserError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefgh"]


@pytest.fixture
def folder(tmp_path):
    """A BERT tokenizer whose words are letters, saved with a length to cut and pad to."""
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    backend = Backend(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    backend.enable_truncation(4)
    backend.enable_padding(length=16)
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": {"content": "[PAD]"}}))
    return tmp_path


def as_lists(arrays):
    assert all(array.dtype == np.int32 for array in arrays)
    return [array.tolist() for array in arrays]


def test_half_of_a_surrogate_pair_is_named(minilm):
    tokenizer = load_tokenizer(minilm)
    with pytest.raises(UserError, match="Example 1 has half of a surrogate pair at character 3"):
        tokenizer.encode(["fine \N{GRINNING FACE}", "a \ud83d"])


def test_the_files_own_length_neither_cuts_nor_pads(folder):
    encoded = load_tokenizer(folder).encode(["a b c d e", "H", ""])
    assert as_lists(encoded.ids) == [[2, 4, 5, 6, 7, 8, 3], [2, 11, 3], [2, 3]]
    assert as_lists(encoded.type_ids) == [[0] * 7, [0] * 3, [0] * 2]
    assert (encoded.tokens, encoded.truncated, encoded.truncated_tokens) == (12, 0, 0)


def test_what_is_cut_is_counted(folder):
    encoded = load_tokenizer(folder).encode(["a b c", "a b c d", "a b c d e f"], max_length=5)
    assert as_lists(encoded.ids) == [[2, 4, 5, 6, 3]] * 3
    assert (encoded.tokens, encoded.truncated, encoded.truncated_tokens) == (15, 2, 4)


def test_pairs_have_types_and_lose_of_the_longer_text_first(folder):
    encoded = load_tokenizer(folder).encode(["a", "a"], ["b c", "b c d e f"], max_length=6)
    assert as_lists(encoded.ids) == [[2, 4, 3, 5, 6, 3], [2, 4, 3, 5, 6, 3]]
    assert as_lists(encoded.type_ids) == [[0, 0, 0, 1, 1, 1]] * 2
    assert (encoded.truncated, encoded.truncated_tokens) == (1, 3)


def test_unknown_tokens_are_counted_where_they_are_kept(folder):
    encoded = load_tokenizer(folder).encode(["a z", "a b c d z"], max_length=5)
    assert (encoded.unknown, encoded.tokens) == (1, 9)


def test_more_texts_than_are_encoded_at_a_time_stay_in_order(folder):
    texts = ["abcdefgh"[i % 8] * (i % 3 == 0) for i in range(2500)]
    encoded = load_tokenizer(folder).encode(texts, max_length=3)
    assert [ids[1:-1].tolist() for ids in encoded.ids] == [
        [4 + i % 8] if i % 3 == 0 else [] for i in range(2500)
    ]


def test_it_is_pickled_by_its_folder(folder):
    tokenizer = load_tokenizer(folder)
    pickled = pickle.dumps(tokenizer)
    assert len(pickled) < 500
    again = pickle.loads(pickled)
    assert as_lists(again.encode(["a b"]).ids) == as_lists(tokenizer.encode(["a b"]).ids)
    assert again.fingerprint == tokenizer.fingerprint


def test_folders_that_end_texts_otherwise_share_no_cache(folder, tmp_path):
    """A base model and its chat model: one tokenizer.json, and two words for the end of a text."""
    other = tmp_path.with_name("chat")
    shutil.copytree(folder, other)
    fields = json.loads((other / "tokenizer_config.json").read_text()) | {"eos_token": "b"}
    (other / "tokenizer_config.json").write_text(json.dumps(fields))
    base, chat = load_tokenizer(folder), load_tokenizer(other)
    assert (base.end_id, chat.end_id) == (None, base.encode(["b"]).ids[0][1])
    assert base.fingerprint != chat.fingerprint


@pytest.mark.parametrize(
    ("value", "text"),
    [(9999.4, "9999"), (9999.6, "10000"), (-9999.6, "-10000"), (0.12345, "0.1235")],
)
def test_numbers_of_a_template_have_four_digits_and_no_exponent(value, text):
    assert parse_template("{x}").render({"x": value}) == text


def test_facts_of_a_real_tokenizer(minilm):
    tokenizer = load_tokenizer(minilm)
    assert (tokenizer.vocab_size, tokenizer.pad_id) == (30522, 0)
    encoded = tokenizer.encode(["a 𓀀 b"])
    assert (encoded.unknown, encoded.tokens) == (1, 5)


@pytest.mark.parametrize("checkpoint", ["minilm", "tiny_mlm"])
def test_ids_are_transformers_own(checkpoint, request):
    transformers = pytest.importorskip("transformers")
    folder = request.getfixturevalue(checkpoint)
    texts = ["A film, by turns naïve & brilliant.", "日本 cafés!", "x" * 300, "so " * 200]
    pairs = ["Is it? " * 60, "No.", "", "Yes"]
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for second in (None, pairs):
        wanted = theirs(texts, second, truncation=True, max_length=64)
        encoded = load_tokenizer(folder).encode(texts, second, max_length=64)
        assert as_lists(encoded.ids) == wanted["input_ids"]
        assert as_lists(encoded.type_ids) == wanted["token_type_ids"]


@pytest.mark.parametrize(
    ("model_type", "tokenizer_class", "lowers"),
    [
        ("siglip2", "GemmaTokenizer", True),  # as published
        ("siglip", "Siglip2Tokenizer", True),
        ("siglip", "GemmaTokenizer", False),
    ],
)
def test_siglip2_reads_texts_in_lower_case(model_type, tokenizer_class, lowers, tmp_path):
    letters = "abcABC"
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "\N{LOWER ONE EIGHTH BLOCK}", *letters]
    backend = Backend(
        models.BPE({token: number for number, token in enumerate(tokens)}, [], unk_token="<unk>")
    )
    backend.normalizer = normalizers.Replace(" ", "\N{LOWER ONE EIGHTH BLOCK}")
    end = [("<eos>", 1)]
    backend.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=end)
    backend.add_special_tokens(tokens[:4])
    backend.save(str(tmp_path / "tokenizer.json"))
    fields = {"tokenizer_class": tokenizer_class, "add_bos_token": False, "add_eos_token": True}
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**fields, **names}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    (ours,) = load_tokenizer(tmp_path).encode(["A bC"]).ids
    assert ours.tolist() == [5 if lowers else 8, 4, 6, 7 if lowers else 10, 1]
    if lowers:
        transformers = pytest.importorskip("transformers")
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
        assert theirs("A bC").input_ids == ours.tolist()


def test_a_folder_with_a_vocabulary_only_goes_by_way_of_transformers(minilm, tmp_path):
    for name in ("vocab.txt", "tokenizer_config.json", "config.json"):
        (tmp_path / name).write_bytes((minilm / name).read_bytes())
    texts = ["A film, by turns naïve & brilliant.", "日本 cafés!"]
    ours, theirs = (load_tokenizer(folder).encode(texts) for folder in (tmp_path, minilm))
    assert as_lists(ours.ids) == as_lists(theirs.ids)


def test_a_folder_without_a_tokenizer_is_one_sentence(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(UserError, match=r"tokenizer\.json is not a tokenizer"):
        load_tokenizer(tmp_path)


def test_what_is_no_text_is_named(folder):
    tokenizer = load_tokenizer(folder)
    with pytest.raises(UserError, match=r"Example 1 is not text but float \(nan\)"):
        tokenizer.encode(["a", float("nan")])
    with pytest.raises(
        UserError, match="max_length 2 leaves no room for text: 2 tokens are special"
    ):
        tokenizer.encode(["a"], max_length=2)
