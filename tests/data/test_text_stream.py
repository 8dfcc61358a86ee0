"""Text as tokens come: the pieces are the whole, characters stay whole, stop strings stay out."""

import numpy as np
import pytest
import tokenizers

from jaxft.data.text.stream import TextStream
from jaxft.data.text.tokenizer import load_tokenizer

TEXT = "Grüße 🙂, 東京! ##x ###"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A token a byte, and one that ends a text."""
    folder = tmp_path_factory.mktemp("bytes")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(
        tokenizers.models.BPE({letter: i for i, letter in enumerate(alphabet)}, [])
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(["<end>"])
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A <end>", special_tokens=[("<end>", 256)]
    )
    made.save(str(folder / "tokenizer.json"))
    return load_tokenizer(folder)


def test_pieces_are_whole_characters_and_together_the_text(tokenizer):
    ids = tokenizer.encode([TEXT]).ids[0].tolist()
    assert ids[-1] == 256
    stream = TextStream(tokenizer)
    pieces = [stream.add(token) for token in ids]
    assert "".join(pieces) == TEXT == stream.text
    assert not any("\ufffd" in piece for piece in pieces)
    assert "🙂" in pieces
    assert stream.end() == ""
    np.testing.assert_array_equal(tokenizer.encode([TEXT], spelled=True).ids[0], ids[:-1])


def test_half_a_character_at_the_end_is_given_as_the_whole_text_has_it(tokenizer):
    ids = tokenizer.encode(["a🙂"], spelled=True).ids[0].tolist()[:-1]
    stream = TextStream(tokenizer)
    shown = "".join(stream.add(token) for token in ids)
    assert shown == "a"
    assert shown + stream.end() == tokenizer.decode(ids) == stream.text


@pytest.mark.parametrize(
    ("stops", "expected"),
    [
        (("###",), "Grüße 🙂, 東京! ##x "),
        (("##x", "!"), "Grüße 🙂, 東京"),
        (("🙂",), "Grüße "),
        (("never",), TEXT),
        (("####",), TEXT),
    ],
)
def test_nothing_of_a_stop_string_is_given_out(tokenizer, stops, expected):
    stream, shown = TextStream(tokenizer, stops), ""
    for token in tokenizer.encode([TEXT], spelled=True).ids[0].tolist():
        shown += stream.add(token)
        assert expected.startswith(shown)
        if stream.stopped:
            break
    assert stream.stopped == (expected != TEXT)
    assert shown + stream.end() == expected == stream.text
