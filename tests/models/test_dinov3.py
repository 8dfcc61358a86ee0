"""DINOv3 beyond the contract: images of any size, moved coordinates, two towers, its files."""

import json

import jax
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from jaxft.data.image.images import load_image_processor
from jaxft.errors import UserError
from jaxft.models import load as registry
from jaxft.models.families.vit.config import Config
from jaxft.models.families.vit.dinov3 import places_of
from jaxft.models.tower.tower import Compute
from tests.support.families import compiled
from tests.support.tiny import tiny_checkpoint

# As the hub's facebook/dinov3-vits16-pretrain-lvd1689m spells it, with other sizes.
HUB = {
    "architectures": ["DINOv3ViTModel"],
    "attention_dropout": 0.0,
    "drop_path_rate": 0.0,
    "hidden_act": "gelu",
    "hidden_size": 16,
    "image_size": 12,
    "initializer_range": 0.02,
    "intermediate_size": 24,
    "key_bias": False,
    "layer_norm_eps": 1e-5,
    "layerscale_value": 1.0,
    "mlp_bias": True,
    "model_type": "dinov3_vit",
    "num_attention_heads": 2,
    "num_channels": 3,
    "num_hidden_layers": 2,
    "num_register_tokens": 4,
    "patch_size": 3,
    "pos_embed_jitter": None,
    "pos_embed_rescale": 2.0,
    "pos_embed_shift": None,
    "proj_bias": True,
    "query_bias": True,
    "rope_theta": 100.0,
    "torch_dtype": "float32",
    "use_gated_mlp": False,
    "value_bias": True,
}
PROCESSOR = {
    "image_processor_type": "DINOv3ViTImageProcessorFast",
    "do_resize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "resample": 2,
    "rescale_factor": 1 / 255,
    "size": {"height": 12, "width": 12},
}


def trunk(folder, **fields):
    """A random trunk in PyTorch, saved in the hub's spelling with an image processor."""
    torch.manual_seed(0)
    fields = HUB | fields
    model = transformers.DINOv3ViTModel._from_config(
        transformers.DINOv3ViTConfig(**fields), attn_implementation="eager"
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(fields))
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return model.eval()


@pytest.mark.parametrize(("size", "registers"), [((6, 15), 4), ((21, 16), 0)])
def test_images_of_any_size_are_what_transformers_makes_of_them(size, registers, tmp_path):
    theirs = trunk(tmp_path, num_register_tokens=registers)
    ours = registry.load(str(tmp_path))
    pixels = np.random.default_rng(0).normal(size=(2, 3, *size)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.tensor(pixels))
    found = ours(pixel_values=pixels)
    np.testing.assert_allclose(found["last_hidden_state"], expected[0].numpy(), atol=2e-5)
    np.testing.assert_allclose(found["pooler_output"], expected[1].numpy(), atol=2e-5)


def test_an_exported_classifier_is_a_trunk_for_transformers(tmp_path):
    theirs = trunk(tmp_path / "trunk")
    ours = registry.load(str(tmp_path / "trunk"), task="image_classification", num_labels=3)
    assert ours.report.new == ("head/bias", "head/kernel")
    again = transformers.AutoModel.from_pretrained(ours.save(tmp_path / "export"))
    for name, value in theirs.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[name], value, err_msg=name)


def test_coordinates_move_in_training_alone_and_all_patches_alike():
    config = Config.from_hf(HUB | {"pos_embed_shift": 0.2, "pos_embed_jitter": 1.5})
    places = places_of(config)
    plain, moved = (places.waves((3, 4), key) for key in (None, jax.random.key(0)))
    assert not np.array_equal(plain[0], moved[0])
    line = np.array([[-1.0, -1.0], [0.0, 0.0], [1.0, 1.0]])
    factors = []
    for seed in range(50):
        first, middle, last = np.asarray(places.moved(line, jax.random.key(seed)))
        np.testing.assert_allclose(first + last, 2 * middle, atol=1e-5)
        assert middle[0] != middle[1]  # each axis has a shift and a factor of its own
        factors.append((last - first)[0] / 2)
    assert 1 / 3 < min(factors) < 0.7
    assert 1.4 < max(factors) < 3
    unmoved = places_of(Config.from_hf(HUB | {"pos_embed_rescale": None}))
    np.testing.assert_array_equal(unmoved.moved(line, jax.random.key(0)), line)


def test_a_frozen_stem_does_not_move_coordinates(tmp_path):
    trunk(tmp_path)
    model = registry.load(str(tmp_path), task="image_classification", num_labels=3)
    pixels = {"pixel_values": np.ones((1, 3, 12, 12), np.float32)}
    compute = Compute(trainable=frozenset(["head/kernel"]))

    def logits(*options):
        return np.asarray(compiled(model, model.params, pixels, *options)["logits"])

    drawn = logits(jax.random.key(0), compute)
    np.testing.assert_array_equal(drawn, logits())
    assert not np.array_equal(drawn, logits(jax.random.key(0)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 12}, "head width 6 does not divide into 4 parts"),
        ({"pos_embed_rescale": 0}, "pos_embed_rescale is 0, and must be a number above 0"),
        ({"image_size": 2}, "image_size is smaller than patch_size"),
        ({"rope_parameters": {"rope_theta": 50.0}}, "'rope_parameters'"),
    ],
)
def test_what_is_not_supported_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        Config.from_hf(HUB | fields)


def test_pixels_are_transformers_own_but_for_their_rounding(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    noise = np.random.default_rng(0).integers(0, 256, (30, 20, 3)).astype(np.uint8)
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    expected = theirs(images=Image.fromarray(noise), return_tensors="np")["pixel_values"][0]
    found = load_image_processor(tmp_path)(Image.fromarray(noise))
    np.testing.assert_allclose(found, expected, atol=1 / 255 / 0.224)


def test_it_is_the_image_tower_of_two(tmp_path):
    trunk(tmp_path / "vision")
    text = tiny_checkpoint(tmp_path / "text")
    folders = {"vision": str(tmp_path / "vision"), "text": str(text)}
    model = registry.load(folders, task="contrastive")
    exported = model.save(tmp_path / "export")
    theirs = transformers.AutoModel.from_pretrained(exported, attn_implementation="eager").eval()
    draw = np.random.default_rng(0)
    batch = {
        "pixel_values": draw.normal(size=(2, 3, 12, 12)).astype(np.float32),
        "input_ids": draw.integers(4, 20, (2, 6)),
        "attention_mask": np.ones((2, 6), np.int64),
    }
    with torch.no_grad():
        expected = theirs(**{name: torch.tensor(value) for name, value in batch.items()})
    found = model(**batch)["logits_per_image"]
    np.testing.assert_allclose(found, expected.logits_per_image.numpy(), atol=2e-5)
