"""SigLIP 2 beyond the contract: images of one size, its processor, files of both of its kinds."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from jaxft.data.image.files import save_processor
from jaxft.data.image.images import load_image_processor
from jaxft.errors import UserError
from jaxft.models import load as registry
from jaxft.models.families.clip.naflex import patches_of
from jaxft.models.families.clip.vision import Config
from tests.support.families import FAMILIES

TOWER = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2}
TOWER |= {"num_attention_heads": 2, "attention_dropout": 0.0, "layer_norm_eps": 1e-6}
TEXT = TOWER | {"vocab_size": 60, "max_position_embeddings": 9, "hidden_act": "gelu_pytorch_tanh"}
VISION = TOWER | {"model_type": "siglip2_vision_model", "num_patches": 16, "patch_size": 4}
# As the hub's google/siglip2-base-patch16-naflex spells it, with other sizes.
NAFLEX = {
    "architectures": ["Siglip2Model"],
    "initializer_factor": 1.0,
    "model_type": "siglip2",
    "text_config": TEXT | {"model_type": "siglip2_text_model"},
    "torch_dtype": "float32",
    "vision_config": VISION,
}
PROCESSOR = {
    "image_processor_type": "Siglip2ImageProcessorFast",
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "max_num_patches": 16,
    "patch_size": 4,
    "resample": 2,
    "rescale_factor": 1 / 255,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random checkpoint in the hub's spelling."""
    folder = tmp_path_factory.mktemp("siglip2")
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(**json.loads(json.dumps(NAFLEX)))
    model = transformers.Siglip2Model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(NAFLEX))
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return folder


@pytest.mark.parametrize("size", [(16, 16), (10, 29)])
def test_images_of_one_size_are_patches_without_padding(folder, size):
    pixels = np.random.default_rng(0).normal(size=(2, 3, *size)).astype(np.float32)
    ids = np.arange(18).reshape(2, 9)
    patches = np.asarray(patches_of(jnp.asarray(pixels), (4, 4)))
    grid = np.array([[size[0] // 4, size[1] // 4]] * 2)
    theirs = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    batch = {
        "input_ids": ids,
        "pixel_values": patches,
        "pixel_attention_mask": np.ones(patches.shape[:2], np.int64),
        "spatial_shapes": grid,
    }
    with torch.no_grad():
        expected = theirs(**{name: torch.tensor(value) for name, value in batch.items()})
    found = registry.load(str(folder))(input_ids=ids, pixel_values=pixels)
    np.testing.assert_allclose(
        found["logits_per_image"], expected.logits_per_image.numpy(), atol=2e-5, rtol=2e-5
    )


def test_a_square_image_is_the_patches_of_transformers(folder, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    theirs = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    expected = theirs(images=Image.fromarray(noise), return_tensors="np")
    pixels = load_image_processor(folder)(Image.fromarray(noise))
    assert pixels.shape == (3, 16, 16)
    patches = np.asarray(patches_of(jnp.asarray(pixels[None]), (4, 4)))
    assert expected["spatial_shapes"].tolist() == [[4, 4]]
    np.testing.assert_array_equal(patches, expected["pixel_values"])
    # Images of another size in training have as many patches in the export.
    save_processor(folder, tmp_path, 24)
    written = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert (written["patch_size"], written["max_num_patches"]) == (4, 36)
    assert load_image_processor(tmp_path).size == (24, 24)


def test_a_checkpoint_of_one_image_size_is_a_siglip(tmp_path):
    """As the hub's google/siglip2-base-patch16-224 names itself."""
    vision = {n: v for n, v in VISION.items() if n != "num_patches"} | {"image_size": 16}
    fields = NAFLEX | {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "text_config": TEXT | {"model_type": "siglip_text_model", "projection_size": 16},
        "vision_config": vision | {"model_type": "siglip_vision_model"},
    }
    config = transformers.AutoConfig.for_model(**json.loads(json.dumps(fields)))
    transformers.SiglipModel(config).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(fields))
    model = registry.load(str(tmp_path))
    assert (model.model_type, model.head, model.image_size) == ("siglip", "contrastive", (16, 16))
    assert model.report.new == model.report.unused == ()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_patches": 10}, "num_patches must be the square"),
        ({"patch_size": [4, 4]}, "patch_size must be one number"),
        ({"image_size": 16}, "'image_size'"),
    ],
)
def test_what_is_not_supported_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        Config.from_hf(VISION | fields)


def test_its_image_tower_stays_with_its_own_text_tower():
    fields = {"model_type": "vision-text-dual-encoder", "vision_config": VISION}
    fields["text_config"] = {"model_type": "bert"}
    with pytest.raises(UserError, match="a 'siglip2_vision_model' is not supported as the image"):
        FAMILIES["vision-text-dual-encoder"].compose(fields, FAMILIES)
