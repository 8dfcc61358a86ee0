"""ViT and its kin beyond their configs: images and patches of any shape, positions resized."""

import json

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

from jaxft.data.image.images import load_image_processor
from jaxft.errors import UserError
from jaxft.models import load as registry
from jaxft.models.families.vit.rollout import attention_rollout
from jaxft.models.tower.tower import PLAIN, Compute, Part

CLASSIFY = "image_classification"
SIZES = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "num_labels": 3}
PROCESSOR = {"image_processor_type": "ViTImageProcessor", "size": {"height": 12, "width": 12}}


def make(model_type, folder, **fields):
    """A random classifier of that type in PyTorch, saved with an image processor."""
    config = transformers.AutoConfig.for_model(model_type, **SIZES | fields)
    if model_type in ("vit", "deit", "beit"):
        config.intermediate_size = 20
    config.architectures = [registry.families()[model_type].model_types[model_type][CLASSIFY]]
    torch.manual_seed(0)
    auto = transformers.AutoModelForImageClassification
    model = auto.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return model


def images(height, width):
    return np.random.default_rng(0).normal(size=(2, 3, height, width)).astype(np.float32)


def logits(model, pixels, **options):
    with torch.no_grad():
        return model(torch.tensor(pixels), **options).logits.numpy()


@pytest.mark.parametrize("model_type", ["vit", "deit"])
def test_images_need_not_be_square(model_type, tmp_path):
    theirs = make(model_type, tmp_path, image_size=(8, 13), patch_size=(2, 3))
    ours = registry.load(str(tmp_path))
    assert ours.image_size == (8, 13)
    pixels = images(8, 13)  # one column fills no patch
    np.testing.assert_allclose(
        ours(pixel_values=pixels)["logits"], logits(theirs, pixels), atol=1e-5
    )


@pytest.mark.parametrize("model_type", ["dinov2", "dinov2_with_registers"])
@pytest.mark.parametrize("size", [(6, 15), (21, 16)])
def test_dinov2_takes_images_of_any_size(model_type, size, tmp_path):
    theirs = make(model_type, tmp_path, image_size=12, patch_size=3)
    ours = registry.load(str(tmp_path))
    pixels = images(*size)
    np.testing.assert_allclose(
        ours(pixel_values=pixels)["logits"], logits(theirs, pixels), atol=1e-5
    )


@pytest.mark.parametrize("model_type", ["vit", "deit", "dinov2", "dinov2_with_registers"])
def test_attention_rollout_is_that_of_transformers_weights(model_type, tmp_path):
    theirs = make(model_type, tmp_path, image_size=12, patch_size=3)
    ours = registry.load(str(tmp_path))
    pixels = images(12, 12)
    with torch.no_grad():
        weights = theirs(torch.tensor(pixels), output_attentions=True).attentions
    product = torch.eye(weights[0].shape[-1])
    for one in weights:  # [B, H, T, T] each, the lowest block first
        product = (0.5 * one.mean(1) + 0.5 * torch.eye(one.shape[-1])) @ product
    wanted = product[:, 0, -16:].reshape(2, 4, 4).numpy()
    (tower,) = ours.towers.values()
    found = attention_rollout(tower, ours.config, ours.params, {"pixel_values": pixels}, PLAIN)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert found.std() > 1e-3


@pytest.mark.parametrize("model_type", ["vit", "deit"])
def test_positions_are_resized_when_the_model_is_loaded(model_type, tmp_path):
    """As transformers does in every forward pass; the export then is of the new size."""
    theirs = make(model_type, tmp_path / "small", image_size=12, patch_size=3)
    ours = registry.load(str(tmp_path / "small"), image_size=18)
    pixels = images(18, 18)
    wanted = logits(theirs, pixels, interpolate_pos_encoding=True)
    np.testing.assert_allclose(ours(pixel_values=pixels)["logits"], wanted, atol=1e-5)
    assert ours.report.notes == (
        "embeddings/position is computed from the checkpoint's, which is "
        f"[1, {16 + ours.config.specials}, 12] and not [1, {36 + ours.config.specials}, 12].",
    )
    out = ours.save(tmp_path / "export")
    assert json.loads((out / "config.json").read_text())["image_size"] == 18
    assert load_image_processor(out).size == (18, 18)
    auto = transformers.AutoModelForImageClassification
    again = auto.from_pretrained(out, attn_implementation="eager").eval()
    np.testing.assert_allclose(logits(again, pixels), wanted, atol=1e-5)
    np.testing.assert_array_equal(
        registry.load(str(out)).params["embeddings/position"], ours.params["embeddings/position"]
    )


def test_classes_of_one_name_are_all_exported(tmp_path):
    """As ImageNet's two cranes are."""
    make("vit", tmp_path / "stored", image_size=12, patch_size=3)
    file = tmp_path / "stored" / "config.json"
    names = {"0": "crane", "1": "tench", "2": "crane"}
    fields = json.loads(file.read_text()) | {
        "id2label": names,
        "label2id": {"crane": 2, "tench": 1},
    }
    file.write_text(json.dumps(fields))
    out = registry.load(str(tmp_path / "stored")).save(tmp_path / "export")
    assert json.loads((out / "config.json").read_text())["id2label"] == names


@pytest.mark.parametrize("shared", [True, False])
def test_beits_distances_are_resized_when_the_model_is_loaded(shared, tmp_path):
    """As transformers does in every forward pass, with each block's table or the shared one."""
    tables = {"use_shared_relative_position_bias": shared, "use_relative_position_bias": not shared}
    tables |= {"use_absolute_position_embeddings": shared, "use_mean_pooling": shared}
    theirs = make("beit", tmp_path / "small", image_size=12, patch_size=3, **tables)
    ours = registry.load(str(tmp_path / "small"), image_size=18)
    pixels = images(18, 18)
    wanted = logits(theirs, pixels)
    np.testing.assert_allclose(ours(pixel_values=pixels)["logits"], wanted, atol=1e-5)
    out = ours.save(tmp_path / "export")
    auto = transformers.AutoModelForImageClassification
    again = auto.from_pretrained(out, attn_implementation="eager").eval()
    np.testing.assert_allclose(logits(again, pixels), wanted, atol=1e-5)
    with pytest.raises(UserError, match=r"model\.image_size=12"):
        ours(pixel_values=images(12, 12))


def test_beits_classifier_begins_from_masked_image_modeling(tmp_path):
    """Its prediction of hidden patches goes unused, and nothing of it is taken for the model's."""
    sizes = {name: value for name, value in SIZES.items() if name != "num_labels"}
    config = transformers.BeitConfig(
        **sizes, intermediate_size=20, image_size=12, patch_size=3, use_mask_token=True
    )
    transformers.BeitForMaskedImageModeling(config).save_pretrained(tmp_path)
    ours = registry.load(str(tmp_path), task=CLASSIFY, labels=("a", "b"))
    assert set(ours.report.new) == {
        *("pooler/norm/scale", "pooler/norm/bias"),
        *("head/kernel", "head/bias"),
    }
    names = ("layernorm.bias", "layernorm.weight", "lm_head.bias", "lm_head.weight")
    assert ours.report.unused == names


def test_the_encoder_of_an_autoencoder_is_a_vit(tmp_path):
    """transformers classifies with it as ViTForImageClassification, and so is the export."""
    sizes = {name: value for name, value in SIZES.items() if name != "num_labels"}
    decoder = {"decoder_hidden_size": 8, "decoder_num_hidden_layers": 1}
    decoder |= {"decoder_num_attention_heads": 2, "decoder_intermediate_size": 9}
    config = transformers.ViTMAEConfig(
        **sizes, **decoder, intermediate_size=20, image_size=12, patch_size=3
    )
    transformers.ViTMAEForPreTraining(config).save_pretrained(tmp_path / "mae")
    ours = registry.load(str(tmp_path / "mae"), task=CLASSIFY, labels=("a", "b", "c"))
    assert set(ours.report.new) == {"head/kernel", "head/bias"}
    out = ours.save(tmp_path / "export")
    fields = json.loads((out / "config.json").read_text())
    assert fields["architectures"] == ["ViTForImageClassification"]
    assert not [name for name in fields if name.startswith(("decoder", "mask"))]
    theirs = transformers.AutoModelForImageClassification.from_pretrained(out).eval()
    stored = load_file(tmp_path / "mae" / "model.safetensors")
    for name, value in load_file(out / "model.safetensors").items():
        assert name.startswith("classifier") or np.array_equal(value, stored[name]), name
    pixels = images(12, 12)
    np.testing.assert_allclose(
        ours(pixel_values=pixels)["logits"], logits(theirs, pixels), atol=1e-5
    )


def test_dinov2_keeps_its_positions_and_changes_its_processor(tmp_path):
    make("dinov2", tmp_path / "small", image_size=12, patch_size=3)
    ours = registry.load(str(tmp_path / "small"), image_size=18)
    assert ours.image_size == (18, 18)
    assert ours.report.notes == ()
    out = ours.save(tmp_path / "export")
    assert json.loads((out / "config.json").read_text())["image_size"] == 12
    assert load_image_processor(out).size == (18, 18)
    processor = tmp_path / "small" / "processor_config.json"  # as newer versions write it
    processor.write_text(json.dumps({"image_processor": PROCESSOR, "processor_class": "X"}))
    assert load_image_processor(ours.save(tmp_path / "again")).size == (18, 18)
    before, after = (load_file(tmp_path / f / "model.safetensors") for f in ("small", "export"))
    assert {n: v.tobytes() for n, v in before.items()} == {n: v.tobytes() for n, v in after.items()}


def test_images_of_another_size_are_refused(tmp_path):
    make("vit", tmp_path, image_size=12, patch_size=3)
    with pytest.raises(UserError, match="18 x 18; the model takes 12 x 12") as error:
        registry.load(str(tmp_path))(pixel_values=images(18, 18))
    assert "model.image_size=18" in error.value.hint
    with pytest.raises(UserError, match="image_size is smaller than patch_size"):
        registry.describe(str(tmp_path), registry.LoadOptions(image_size=2))


def test_an_image_of_less_than_a_patch_is_refused(tmp_path):
    make("dinov2", tmp_path, image_size=12, patch_size=3)
    with pytest.raises(UserError, match="2 x 9, smaller than a patch"):
        registry.load(str(tmp_path))(pixel_values=images(2, 9))


def test_positions_that_dinov2_cannot_take_for_a_square_are_refused(tmp_path):
    make("dinov2", tmp_path, image_size=12, patch_size=3)
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(fields | {"image_size": [6, 9]}))
    with pytest.raises(UserError, match="2 x 3 patches; dinov2 needs a square of them"):
        registry.describe(str(tmp_path))


def test_a_text_model_has_no_image_size(tiny_mlm):
    with pytest.raises(UserError, match=r"model\.image_size is set, and a bert reads no images"):
        registry.describe(str(tiny_mlm), registry.LoadOptions(image_size=18))


def test_stochastic_depth_leaves_out_whole_branches(tmp_path):
    """Of a branch, an image gets all or nothing, and twice as much where half are left out."""
    make("dinov2", tmp_path, image_size=12, patch_size=3, drop_path_rate=0.5)
    join = registry.load(str(tmp_path)).towers["vision"].blocks[0].module.mlp.join
    branch = np.ones((64, 5, 12), np.float32)
    added = Part(join).bind({"layer_scale": branch[0, 0]})(0 * branch, branch, jax.random.key(0))
    assert set(np.unique(added)) == {0.0, 2.0}
    assert np.all(added == added[:, :1, :1])


@pytest.mark.parametrize("model_type", ["vit", "beit"])
def test_a_kernel_that_cannot_serve_is_refused(model_type, tmp_path):
    """Heads of 6 and 17 positions are nothing for cudnn; auto goes without."""
    make(model_type, tmp_path, image_size=12, patch_size=3)
    model, batch = registry.load(str(tmp_path)), {"pixel_values": images(12, 12)}
    gpu = {"platform": "cuda", "dtype": "bfloat16"}
    with pytest.raises(UserError, match=r"train\.attention: cudnn cannot serve this run"):
        model.apply(model.params, batch, None, Compute(attention="cudnn", **gpu))
    model.apply(model.params, batch, None, Compute(**gpu))
