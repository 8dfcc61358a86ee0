"""The untrained vision-language model of the demo: what it is put together of."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, ViTConfig, ViTModel

from jaxft.data.text.chat import load_chat_template
from jaxft.demo.joined.vlm import GRID, SHUFFLE, TILE, write_joined
from jaxft.demo.vits import VIT
from jaxft.models.load import load
from tests.support.small_assets import write_chat_model


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> tuple[ViTModel, Path]:
    """A random ViT-S/14, and what is made of it and of a small Llama."""
    folder = tmp_path_factory.mktemp("vlm")
    own = {n: v for n, v in VIT.items() if n not in ("architectures", "model_type")}
    torch.manual_seed(0)
    vit = ViTModel(ViTConfig(**own), add_pooling_layer=False).eval()
    vit.save_pretrained(folder / "vits")
    write_chat_model(folder / "smollm2")
    (folder / "out").mkdir()
    write_joined(folder / "vits", folder / "smollm2", folder / "out")
    return vit, folder / "out"


def test_it_sees_as_the_vit_does_without_a_class_token(parts):
    vit, folder = parts
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    tower = model.model.vision_model
    pixels = torch.randn(1, 3, TILE, TILE)
    with torch.no_grad():
        x = vit.embeddings.patch_embeddings.projection(pixels).flatten(2).transpose(1, 2)
        x = x + tower.embeddings.position_embedding.weight
        for block in vit.layers:
            x = block(x)
        theirs = vit.layernorm(x)
        ours = tower(pixels).last_hidden_state
    assert ours.shape[1] == GRID**2
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=2e-5)


def test_it_loads_whole_with_a_word_for_each_part_of_an_image(parts):
    _, folder = parts
    model = load(str(folder))
    assert model.report.new == model.report.unused == ()
    assert model.config.tile_tokens == (GRID // SHUFFLE) ** 2
    assert model.config.image_token_id == model.vocab_size - 3
    connector, words = (
        np.asarray(model.params[f"{name}"])
        for name in ("vision/connector/kernel", "text/embeddings/word/embedding")
    )
    vectors = np.random.default_rng(1).normal(size=(50, len(connector))) @ connector
    assert vectors.std() == pytest.approx(words.std(), rel=0.1)
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    (text,) = load_chat_template(folder).render([asked], add_generation_prompt=True)
    assert text == "<|im_start|>user\n<image>What?<|im_end|>\n<|im_start|>assistant\n"
    assert json.loads((folder / "processor_config.json").read_text())["image_seq_len"] == 4
