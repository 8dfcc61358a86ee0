"""An encoder and a decoder out of two checkpoints: what is taken over, what is new, what fails."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from jaxft.errors import UserError
from jaxft.models import load as registry
from tests.support.families import make_pair


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Checkpoints of a ViT, a CLIP, a GPT-2 and a BERT, those of words with a tokenizer."""
    folder = tmp_path_factory.mktemp("parts")
    make_pair("vit", "image_classification", 0, folder / "vit")
    make_pair("clip", "contrastive", 0, folder / "clip")
    make_pair("gpt2", "causal_lm", 0, folder / "gpt2")
    make_pair("bert", "masked_lm", 0, folder / "bert")
    make_pair("opt", "causal_lm", 0, folder / "opt")
    words = {"[PAD]": 0, "[CLS]": 3, "[SEP]": 4, "a": 5, "b": 6}
    for name in ("gpt2", "bert", "opt"):
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="[PAD]"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer.save(str(folder / name / "tokenizer.json"))
        said = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
        (folder / name / "tokenizer_config.json").write_text(json.dumps(said))
    file = folder / "bert" / "config.json"  # as BERT's files are, it names no such token
    fields = json.loads(file.read_text()) | {"bos_token_id": None, "eos_token_id": None}
    file.write_text(json.dumps(fields))
    return folder


@pytest.mark.parametrize(("encoder", "decoder"), [("vit", "gpt2"), ("clip", "bert")])
def test_both_parts_are_taken_over_and_the_rest_is_new(folder, tmp_path, encoder, decoder):
    """What transformers loads of the export computes the same, and its parts are their own."""
    model = registry.load({"encoder": str(folder / encoder), "decoder": str(folder / decoder)})
    assert model.head == "captioning"
    new = set(model.report.new)
    crossing = {n for n in model.params if "/cross/" in n or n.startswith("decoder/source/")}
    assert crossing == {n for n in new if not n.startswith("encoder/pooler/")}
    loaded = transformers.AutoModelForImageTextToText.from_pretrained(
        model.save(tmp_path / "pair"), attn_implementation="eager"
    ).eval()
    assert type(loaded) is transformers.VisionEncoderDecoderModel
    height, width = model.image_size
    pixels = np.random.default_rng(0).normal(size=(2, 3, height, width)).astype(np.float32)
    ids = np.array([[3, 5, 6], [3, 6, 5]])
    with torch.no_grad():
        theirs = loaded(pixel_values=torch.tensor(pixels), decoder_input_ids=torch.tensor(ids))
    ours = model(pixel_values=pixels, decoder_input_ids=ids)
    np.testing.assert_allclose(ours["logits"], theirs.logits.numpy(), atol=2e-5, rtol=2e-5)
    alone = registry.load(str(folder / decoder))
    for name in alone.params.keys() - new:
        np.testing.assert_array_equal(model.params[f"decoder/{name}"], alone.params[name])


def test_a_run_begins_and_ends_texts_as_the_decoder_does(folder):
    config = registry.describe({"encoder": str(folder / "vit"), "decoder": str(folder / "bert")})
    assert (config.config.start_token_id, config.config.end_token_id) == (3, 4)
    gpt2 = registry.describe({"encoder": str(folder / "vit"), "decoder": str(folder / "gpt2")})
    said = json.loads((folder / "gpt2" / "config.json").read_text())
    tokens = gpt2.config.start_token_id, gpt2.config.end_token_id
    assert tokens == (said["bos_token_id"], said["eos_token_id"])


@pytest.mark.parametrize(
    ("checkpoint", "said"),
    [
        ({"encoder": "vit", "decoder": "opt"}, "has a 'opt' for its decoder.*Known: gpt2, bert"),
        ({"encoder": "gpt2", "decoder": "bert"}, "has a 'gpt2' for its encoder.*Known: bert"),
        ({"encoder": "vit", "text": "bert"}, r"'encoder' and 'decoder', not \['encoder', 'text'\]"),
    ],
)
def test_what_does_not_go_together_is_told(folder, checkpoint, said):
    with pytest.raises(UserError) as error:
        registry.describe({part: str(folder / name) for part, name in checkpoint.items()})
    assert re.search(said, f"{error.value.message} {error.value.hint}")


def test_a_whole_checkpoint_lacks_nothing(folder, tmp_path):
    """Of a model that was saved whole, attention over the source does not begin at random."""
    pair = make_pair("vit+gpt2", "captioning", 0, tmp_path)
    tensors = load_file(f"{pair.folder}/model.safetensors")
    kept = {name: value for name, value in tensors.items() if "crossattention" not in name}
    save_file(kept, f"{pair.folder}/model.safetensors")
    with pytest.raises(UserError, match=r"lacks the tensor 'decoder.*crossattention"):
        registry.describe(pair.folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"decoder_start_token_id": None, "decoder": {"bos_token_id": None}},
            "has no decoder_start_token_id",
        ),
        ({"decoder": {"add_cross_attention": False}}, "add_cross_attention is false"),
        ({"decoder": None}, "names no decoder"),
        ({"cross_attention_hidden_size": 7}, "'cross_attention_hidden_size'"),
    ],
)
def test_a_config_that_is_not_understood_is_told(tmp_path, change, said):
    pair = make_pair("bert+bert", "seq2seq", 0, tmp_path)
    file = Path(pair.folder) / "config.json"
    fields = json.loads(file.read_text())
    for name, value in change.items():
        both = isinstance(value, dict) and fields[name]
        fields[name] = {**both, **value} if both else value
    file.write_text(json.dumps(fields))
    with pytest.raises(UserError, match=said):
        _ = registry.describe(pair.folder).config.start_token_id
