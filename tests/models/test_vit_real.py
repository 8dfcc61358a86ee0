"""A real vision transformer against PyTorch `transformers`: ViT-S/14, as ViT and as DINOv2."""

import json

import numpy as np
import pytest
import torch
import transformers

from jaxft.data.image.images import load_image_processor
from jaxft.models import load as registry

# The largest number of the stream that they make is 8.4.
IMAGES = np.random.default_rng(0).normal(size=(2, 3, 224, 224)).astype(np.float32)


def torch_stream(folder, pixels, **options) -> np.ndarray:
    model = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager", **options)
    with torch.no_grad():
        return model.eval()(torch.tensor(pixels)).last_hidden_state.numpy()


def stream(folder, pixels, **options) -> np.ndarray:
    model = registry.load(str(folder), **options)
    return np.asarray(model(pixel_values=pixels)["last_hidden_state"])


@pytest.mark.slow
def test_the_folders_hold_what_they_say(vits, dinov2):
    vit, dino = registry.describe(str(vits)), registry.describe(str(dinov2))
    assert vit.report.new == ("pooler/bias", "pooler/kernel")
    assert dino.report.new == vit.report.unused == dino.report.unused == ()
    assert (vit.image_size, dino.image_size) == ((224, 224), (518, 518))
    assert load_image_processor(vits).size == load_image_processor(dinov2).size == (224, 224)
    sizes = [sum(v.size for n, v in m.params.items() if "pooler" not in n) for m in (vit, dino)]
    assert sizes == [21_619_584, 22_056_576]


@pytest.mark.full
def test_vits_is_pytorchs_and_dinov2s(vits, dinov2):
    theirs = torch_stream(vits, IMAGES, add_pooling_layer=False)
    ours = stream(vits, IMAGES)
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)
    np.testing.assert_allclose(stream(dinov2, IMAGES), ours, atol=1e-4, rtol=0)


@pytest.mark.full
@pytest.mark.parametrize("size", [224, 98, 518])
def test_dinov2_is_pytorchs_at_any_size(dinov2, size):
    pixels = np.random.default_rng(size).normal(size=(1, 3, size, size)).astype(np.float32)
    np.testing.assert_allclose(
        stream(dinov2, pixels), torch_stream(dinov2, pixels), atol=1e-4, rtol=0
    )


@pytest.mark.full
def test_vits_at_98_pixels_is_handed_back(vits, tmp_path):
    model = registry.load(str(vits), image_size=98)
    pixels = IMAGES[:, :, :98, :98]
    ours = np.asarray(model(pixel_values=pixels)["last_hidden_state"])
    out = model.save(tmp_path / "export")
    assert json.loads((out / "config.json").read_text())["image_size"] == 98
    np.testing.assert_allclose(ours, torch_stream(out, pixels), atol=1e-4, rtol=0)
