"""BART and its kin, and TrOCR, write what transformers writes, with tokenizers of their own kinds.

The weights are random; the tokenizers are trained on the project's own documentation.
"""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from safetensors.numpy import load_file, save_file
from tokenizers import decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing

from jaxft.inference.generate import open_writer
from jaxft.models import load as registry
from jaxft.models.generate.decode import Generator
from jaxft.models.generate.settings import Settings
from tests.models.test_bart import SMALL, write_small
from tests.support.families import make_pair

ROOT = Path(__file__).parents[2]
WORDS = 400
NEW = 12
COUNTS = [2, pytest.param(20, marks=pytest.mark.full)]


@cache
def sentences() -> tuple[str, ...]:
    """Lines of text of the documentation."""
    pages = sorted((ROOT / "docs").glob("*.md"))
    lines = [line.strip() for page in pages for line in page.read_text().splitlines()]
    return tuple(line[:160] for line in lines if line[:1].isalpha() and len(line) > 40)[:400]


def pieces_of(special: list[str]) -> list[tuple[str, float]]:
    """A Unigram vocabulary, as SentencePiece trains it."""
    own = tokenizers.Tokenizer(models.Unigram())
    own.pre_tokenizer = pre_tokenizers.Metaspace()
    own.train_from_iterator(
        sentences(),
        trainers.UnigramTrainer(vocab_size=WORDS, special_tokens=special, unk_token="<unk>"),
    )
    return [(piece, score) for piece, score in json.loads(own.to_str())["model"]["vocab"]]


def merges_of(byte_level: bool, special: list[str]) -> tuple[dict[str, int], list]:
    """A vocabulary of byte pairs, over bytes (BART's) or characters (NLLB's)."""
    own = tokenizers.Tokenizer(models.BPE(unk_token=None if byte_level else "<unk>"))
    split = pre_tokenizers.ByteLevel if byte_level else pre_tokenizers.Metaspace
    own.pre_tokenizer = split()
    own.train_from_iterator(
        sentences(), trainers.BpeTrainer(vocab_size=WORDS, special_tokens=special)
    )
    made = json.loads(own.to_str())["model"]
    return made["vocab"], [tuple(pair) for pair in made["merges"]]


SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]


def bart() -> tuple[transformers.PreTrainedTokenizerBase, dict, dict]:
    """Byte pairs; a text begins with <s>, which is forced."""
    vocab, merges = merges_of(True, [*SPECIAL, "<mask>"])
    own = transformers.BartTokenizer(vocab=vocab, merges=merges)
    return own, {"decoder_start_token_id": 2}, {"forced_bos_token_id": 0, "forced_eos_token_id": 2}


def mbart() -> tuple[transformers.PreTrainedTokenizerBase, dict, dict]:
    """SentencePiece's pieces; the language to write begins a text."""
    own = transformers.MBartTokenizer(vocab=pieces_of(SPECIAL), src_lang="en_XX")
    start = own.convert_tokens_to_ids("de_DE")
    return own, {"decoder_start_token_id": start}, {"forced_eos_token_id": 2}


def pegasus() -> tuple[transformers.PreTrainedTokenizerBase, dict, dict]:
    """SentencePiece's pieces; a text begins with the padding word."""
    own = transformers.PegasusTokenizer(vocab=pieces_of(["<pad>", "</s>", "<unk>"]), offset=0)
    return own, {"decoder_start_token_id": 0}, {"forced_eos_token_id": 1}


def m2m_100() -> tuple[transformers.PreTrainedTokenizerBase, dict, dict]:
    """NLLB: byte pairs; the language to write is forced behind </s>."""
    vocab, merges = merges_of(False, SPECIAL)
    own = transformers.NllbTokenizer(vocab=vocab, merges=merges, src_lang="eng_Latn")
    first = own.convert_tokens_to_ids("deu_Latn")
    return own, {"decoder_start_token_id": 2}, {"forced_bos_token_id": first}


def marian() -> tuple[transformers.PreTrainedTokenizerBase, dict, dict]:
    """The pieces of OPUS-MT's files with the padding word as the last, which never comes."""
    pieces = [*pieces_of(["</s>", "<unk>"]), ("<pad>", 0.0)]
    own = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=1))
    own.pre_tokenizer, own.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    own.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 0)])
    names = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=own, **names)
    pad = len(pieces) - 1
    return fast, {"decoder_start_token_id": pad}, {"bad_words_ids": [[pad]]}


KIN = {"bart": bart, "mbart": mbart, "marian": marian, "m2m_100": m2m_100, "pegasus": pegasus}


@pytest.fixture(scope="module", params=KIN)
def written(request, tmp_path_factory):
    """A checkpoint of a model type with its kind of tokenizer; PyTorch's model of it."""
    folder = tmp_path_factory.mktemp(request.param)
    own, fields, rules = KIN[request.param]()
    ids = {f"{role}_token_id": getattr(own, f"{role}_token_id") for role in ("pad", "eos")}
    sizes = {"vocab_size": len(own), "max_position_embeddings": 128, "init_std": 0.3}
    write_small(folder, request.param, **SMALL | sizes | ids | fields)
    own.save_pretrained(folder)
    change_weights(folder / "model.safetensors")
    (folder / "generation_config.json").write_text(json.dumps(ids | fields | rules))
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, attn_implementation="eager")
    return folder, model.eval()


def change_weights(file: Path) -> None:
    """Sources weigh more, so that texts differ, and so does the bias of words, which is zero."""
    tensors = load_file(file)
    for name in tensors:
        if "encoder_attn.out_proj" in name:
            tensors[name] = tensors[name] * 6.0
    if "final_logits_bias" in tensors:
        shape = tensors["final_logits_bias"].shape
        tensors["final_logits_bias"] = np.random.default_rng(0).normal(size=shape, scale=0.3)
    save_file({n: v.astype(np.float32) for n, v in tensors.items()}, file, {"format": "pt"})


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("beams", [pytest.param(1, marks=pytest.mark.full), 4])
def test_texts_have_transformers_tokens(written, beams, count):
    folder, theirs = written
    asked = {"max_new_tokens": NEW, "num_beams": beams}
    writer = open_writer(str(folder), None, asked)
    assert writer.notes == ()
    texts = sentences()[:: len(sentences()) // count][:count]
    read = transformers.AutoTokenizer.from_pretrained(folder)
    sources = [ids.tolist() for ids in writer.tokenizer.encode(texts).ids]
    assert sources == [read(text)["input_ids"] for text in texts]
    ours = writer.generator.generate(sources, writer.settings)
    for source, new in zip(sources, ours, strict=True):
        ids = torch.tensor([source])
        out = theirs.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **asked)
        assert new == up_to_the_end(out[0, 1:].tolist(), theirs.config.eos_token_id)
    assert len({tuple(text) for text in ours}) > count // 4


def up_to_the_end(tokens: list[int], end: int) -> list[int]:
    """A text with its first end token, without what pads it."""
    return tokens[: tokens.index(end) + 1] if end in tokens else tokens


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("beams", [pytest.param(1, marks=pytest.mark.full), 4])
def test_texts_of_images_have_transformers_tokens(tmp_path, beams, count):
    pair = make_pair("vit+trocr", "captioning", 3, tmp_path)
    draw = np.random.default_rng(1)
    images = draw.normal(size=(count, *pair.batch["pixel_values"].shape[1:])).astype(np.float32)
    asked = {"max_new_tokens": NEW, "num_beams": beams}
    ours = Generator(registry.load(pair.folder)).generate(
        list(images), Settings(eos_token_id=(2,), **asked)
    )
    tokens = {"decoder_start_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    for image, new in zip(images, ours, strict=True):
        pixels = torch.tensor(image[None])
        out = pair.torch.generate(pixel_values=pixels, do_sample=False, **tokens, **asked)
        assert new == up_to_the_end(out[0, 1:].tolist(), 2)
