"""Models of timm, as its own files on the hub have them."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer

from jaxft.data.image.images import load_image_processor
from jaxft.errors import UserError
from jaxft.models import load as registry
from jaxft.models.families.timm.pyramids import CONVNEXTS, RESNETS
from jaxft.models.families.timm.timm import compose
from jaxft.models.families.timm.vit_architectures import architectures
from jaxft.models.families.timm.vit_config import Config
from jaxft.models.family import leaves_of
from jaxft.models.layers.math import ACTIVATIONS
from tests.layerwise.test_vit_timm import our_scales, timms_scales

CLASSIFY = "image_classification"
LABELS = [f"kind {number}" for number in range(5)]
PROCESSING = {
    "input_size": [3, 160, 160],
    "interpolation": "bicubic",
    "crop_pct": 0.95,
    "crop_mode": "center",
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.3, 0.5],
    "num_classes": 5,
}


def make(folder, architecture="test_vit", fields=(), **arguments) -> torch.nn.Module:
    """A random model of timm, and its folder as timm pushes it to the hub."""
    torch.manual_seed(0)
    model = timm.create_model(architecture, num_classes=5, **arguments).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value) * 0.05)
        for value in model.buffers():  # means and variances of batch norms, and their counts
            if value.is_floating_point():
                value.add_(torch.rand_like(value) * 0.05)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), folder / "model.safetensors")
    config = {
        "architecture": architecture,
        "num_classes": 5,
        "num_features": model.num_features,
        "global_pool": "avg",
        # A model whose positions are learned is built for images of that size.
        "pretrained_cfg": PROCESSING | {"fixed_input_size": "vit" in architecture},
        "label_names": LABELS,
        **dict(fields),
    }
    if arguments:
        config["model_args"] = {"num_classes": 5, "in_chans": 3, **arguments}
    (folder / "config.json").write_text(json.dumps(config))
    return model


def images(side: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, 3, side, side)).astype(np.float32)


def logits_of(model, pixels: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        outputs = model(torch.tensor(pixels))
    return (outputs if isinstance(outputs, torch.Tensor) else outputs.logits).numpy()


SMALL = {"depths": [2, 1, 3, 1], "dims": [8, 12, 16, 24], "drop_path_rate": 0.2}


@pytest.mark.parametrize(
    ("architecture", "arguments"),
    [
        ("test_vit", {}),
        ("test_vit2", {}),
        ("test_vit3", {}),
        ("test_vit2", {"pool_include_prefix": True}),
        ("test_vit", {"fc_norm": True}),
        ("test_vit3", {"fc_norm": True}),
        ("resnet18", {}),
        ("resnet26", {}),
        ("convnext_tiny", SMALL),
    ],
)
def test_a_folder_of_timm_is_loaded_and_its_export_by_both(architecture, arguments, tmp_path):
    theirs = make(tmp_path / "hub", architecture, **arguments)
    ours = registry.load(str(tmp_path / "hub"))
    assert (ours.head, ours.labels) == (CLASSIFY, tuple(LABELS))
    pixels = images(160)
    wanted = logits_of(theirs, pixels)
    np.testing.assert_allclose(ours(pixel_values=pixels)["logits"], wanted, atol=1e-5)
    out = ours.save(tmp_path / "export")
    auto = transformers.AutoModelForImageClassification.from_pretrained(out)
    assert list(auto.config.id2label.values()) == LABELS
    np.testing.assert_allclose(logits_of(auto, pixels), wanted, atol=1e-6)
    by_timm = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    np.testing.assert_allclose(logits_of(by_timm, pixels), wanted, atol=1e-6)


def test_new_classes_are_named_as_timm_names_them(tmp_path):
    make(tmp_path / "hub")
    ours = registry.load(str(tmp_path / "hub"), task=CLASSIFY, labels=("cat", "dog"))
    assert set(ours.report.new) == {"head/kernel", "head/bias"}
    out = ours.save(tmp_path / "export")
    config = json.loads((out / "config.json").read_text())
    assert (config["num_classes"], config["label_names"]) == (2, ["cat", "dog"])
    assert not {"id2label", "label2id", "num_labels"} & config.keys()
    auto = transformers.AutoModelForImageClassification.from_pretrained(out)
    assert auto.config.id2label == {0: "cat", 1: "dog"}
    pixels = images(160)
    np.testing.assert_allclose(
        logits_of(auto, pixels), ours(pixel_values=pixels)["logits"], atol=1e-5
    )


def test_a_folder_that_transformers_saved_is_read(tmp_path):
    """It puts a prefix before the names, and `num_classes` after the arguments."""
    make(tmp_path / "hub")
    theirs = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "hub").eval()
    theirs.save_pretrained(tmp_path / "saved")
    ours = registry.load(str(tmp_path / "saved"))
    pixels = images(160)
    np.testing.assert_allclose(
        ours(pixel_values=pixels)["logits"], logits_of(theirs, pixels), atol=1e-5
    )


def test_an_encoder_without_classes_is_loaded_without_a_head(tmp_path):
    theirs = make(tmp_path, fields={"num_classes": 0, "label_names": None})
    ours = registry.load(str(tmp_path))
    pixels = images(160)
    with torch.no_grad():
        features = theirs.forward_features(torch.tensor(pixels))
        pooled = theirs.forward_head(features, pre_logits=True)
    outputs = ours(pixel_values=pixels)
    assert ours.head is None
    np.testing.assert_allclose(outputs["last_hidden_state"], features, atol=1e-5)
    np.testing.assert_allclose(outputs["pooler_output"], pooled, atol=1e-5)


@pytest.mark.parametrize("architecture", ["test_vit", "test_vit2"])
def test_positions_are_resized_as_timm_resizes_them(architecture, tmp_path):
    theirs = make(tmp_path / "hub", architecture)
    ours = registry.load(str(tmp_path / "hub"), image_size=96)
    first = 0 if theirs.no_embed_class else theirs.num_prefix_tokens
    expected = resample_abs_pos_embed(theirs.pos_embed, [6, 6], num_prefix_tokens=first)
    np.testing.assert_allclose(ours.params["embeddings/position"], expected.detach(), atol=1e-5)
    out = ours.save(tmp_path / "export")
    pixels = images(96)
    wanted = np.asarray(ours(pixel_values=pixels)["logits"])
    auto = transformers.AutoModelForImageClassification.from_pretrained(out)
    np.testing.assert_allclose(logits_of(auto, pixels), wanted, atol=1e-5)
    image = Image.fromarray((images(160)[0].transpose(1, 2, 0) * 40 + 99).astype(np.uint8))
    own = transformers.AutoImageProcessor.from_pretrained(out)(image)["pixel_values"][0]
    np.testing.assert_array_equal(load_image_processor(out)(image), own)
    np.testing.assert_array_equal(load_image_processor(tmp_path / "hub", 96)(image), own)


@pytest.mark.parametrize("size", [(200, 161), (333, 170), (160, 160), (90, 70), (171, 168)])
@pytest.mark.parametrize(
    "fields", [{}, {"crop_pct": 1.0}, {"crop_pct": None}, {"crop_mode": "squash"}]
)
def test_images_are_processed_bit_for_bit_as_timm_processes_them(fields, size, tmp_path):
    fields = (
        PROCESSING | {"interpolation": "bilinear" if "crop_mode" in fields else "bicubic"} | fields
    )
    config = {"architecture": "test_vit", "pretrained_cfg": fields, "num_classes": 5}
    (tmp_path / "config.json").write_text(json.dumps(config))
    values = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    expected = theirs(Image.fromarray(values))["pixel_values"][0]
    np.testing.assert_array_equal(load_image_processor(tmp_path)(Image.fromarray(values)), expected)


@pytest.mark.parametrize("architecture", architectures())
def test_an_architecture_has_the_parameters_that_timm_builds(architecture):
    """Their names and shapes, on no memory; and what is in no parameter."""
    with torch.device("meta"):
        theirs = timm.create_model(architecture, num_classes=5)
    assert type(theirs) is VisionTransformer
    fields = {"model_type": "timm_wrapper", "architecture": architecture}
    config, family = Config.from_hf(fields), compose(fields, {}, False)
    names = family.tensors.table(CLASSIFY, "timm_wrapper")
    lines = registry.resolve_names(names, leaves := leaves_of(family.towers(config, CLASSIFY, 5)))
    ours: dict[str, int] = {}
    for name, line in lines.items():
        ours[line.hf] = ours.get(line.hf, 0) + int(np.prod(leaves[name].shape))
    assert ours == {name: value.numel() for name, value in theirs.named_parameters()}
    block, own = theirs.blocks[0], config.fields
    assert block.attn.num_heads == own["num_heads"]
    assert block.norm1.eps == own["eps"]
    assert theirs.patch_embed.img_size == config.image_size
    assert theirs.patch_embed.patch_size == config.patch
    assert (theirs.global_pool, theirs.no_embed_class) == (
        own["global_pool"],
        own["no_embed_class"],
    )
    x = torch.linspace(-3, 3, 13)
    act = ACTIVATIONS[own["act_layer"]](jnp.asarray(x.numpy()))
    np.testing.assert_allclose(act, block.mlp.act(x).numpy(), atol=1e-6)
    scale = None if isinstance(block.ls1, torch.nn.Identity) else block.ls1.init_values
    assert scale == architectures()[architecture]["init_values"]


@pytest.mark.parametrize(
    ("architecture", "arguments"),
    [
        ("test_vit", {}),
        ("test_vit2", {}),
        ("test_vit3", {}),
        ("test_vit", {"pre_norm": True, "reg_tokens": 2}),
    ],
)
def test_layer_decay_is_timms(architecture, arguments, tmp_path):
    """Each parameter's rate and weight decay, by timm's own names of the parameters."""
    expected = timms_scales(make(tmp_path, architecture, **arguments))
    model = registry.describe(str(tmp_path))
    ours = {model.names[name]: scales for name, scales in our_scales(model).items()}
    assert ours.keys() == expected.keys()
    for name, values in ours.items():
        assert values == pytest.approx(expected[name]), name


@pytest.mark.parametrize("architecture", [*RESNETS, *CONVNEXTS])
def test_a_pyramid_has_the_parameters_that_timm_builds(architecture):
    with torch.device("meta"):
        theirs = timm.create_model(architecture, num_classes=5)
    fields = {"model_type": "timm_wrapper", "architecture": architecture}
    family = compose(fields, {}, False)
    towers = family.towers(family.config.from_hf(fields), CLASSIFY, 5)
    names = family.tensors.table(CLASSIFY, "timm_wrapper")
    lines = registry.resolve_names(names, leaves := leaves_of(towers))
    ours = {line.hf: int(np.prod(leaves[name].shape)) for name, line in lines.items()}
    stored = {name: value.numel() for name, value in theirs.state_dict().items()}
    assert ours == {n: size for n, size in stored.items() if not n.endswith("batches_tracked")}


@pytest.mark.parametrize(
    ("architecture", "arguments"), [("resnet18", {}), ("convnext_tiny", SMALL)]
)
def test_a_pyramid_has_the_gradients_of_timm(architecture, arguments, tmp_path):
    """Batch norms keep their statistics here, as in evaluation there."""
    theirs = make(tmp_path, architecture, **arguments)
    pixels = images(64)
    theirs(torch.tensor(pixels)).square().sum().backward()
    ours = registry.load(str(tmp_path))

    def loss(params):
        return jnp.square(ours.apply(params, {"pixel_values": pixels})["logits"]).sum()

    found = jax.grad(loss)(ours.params)
    named = dict(theirs.named_parameters())
    compared = [name for name in ours.params if ours.names[name] in named]
    assert len(compared) == len(named)
    for name in compared:
        wanted = named[ours.names[name]].grad.numpy()
        if ours.hf_names[name].transpose:
            wanted = np.moveaxis(wanted, 0, -1)
        wanted = wanted.reshape(found[name].shape)
        largest = float(np.abs(wanted).max())
        np.testing.assert_allclose(found[name], wanted, atol=1e-4 * largest, err_msg=name)


WRONG = [
    ({"architecture": "vit_bas_patch16_224"}, "timm architecture 'vit_bas_patch16_224'"),
    ({"architecture": "resnet50d"}, "timm architecture 'resnet50d' is not supported. Did you"),
    ({"architecture": ["resnet50"]}, "timm architecture '['resnet50']'"),
    ({"architecture": "resnet50", "model_args": {"layers": [1]}}, "field 'layers' of model_args"),
    ({"architecture": "resnet50", "model_args": {"in_chans": 1}}, "in_chans of model_args must"),
    ({"architecture": "convnext_tiny", "model_args": {"dims": 8}}, "hidden_sizes"),
    ({"model_args": {"qk_norm": True}}, "field 'qk_norm' of model_args"),
    ({"model_args": {"act_layer": "relu"}}, "field 'act_layer' of model_args"),
    ({"model_args": {"depth": 0}}, "depth is 0, and must be a whole number"),
    ({"model_args": {"depth": 10**9}}, "depth is 1000000000, and must be a whole number"),
    ({"model_args": {"img_size": [1, 2, 3]}}, "img_size is"),
    ({"model_args": {"mlp_ratio": 1e300}}, "mlp_ratio is 1e+300"),
    ({"model_args": {"fc_norm": "yes"}}, "fc_norm must be true, false or null"),
    ({"model_args": {"init_values": "small"}}, "init_values is"),
    ({"model_args": {"num_heads": 5}}, "embed_dim"),
    ({"model_args": {"global_pool": "max"}}, "global_pool is 'max'"),
    ({"model_args": {"class_token": False}}, "token needs a class token"),
    ({"model_args": {"img_size": 8}}, "img_size is smaller than patch_size"),
    ({"model_args": [1]}, "model_args must be a JSON object"),
    ({"label_names": "cat"}, "label_names must be a list"),
    ({"num_classes": "five"}, "num_classes"),
    ({"strange": 1}, "the field 'strange'"),
]


@pytest.mark.parametrize(("fields", "message"), WRONG)
def test_a_config_that_is_not_understood_is_one_sentence(fields, message, tmp_path):
    make(tmp_path, fields=fields)
    with pytest.raises(UserError, match=re.escape(message)):
        registry.describe(str(tmp_path))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"crop_mode": "border"}, "crop_mode 'border'"),
        ({"interpolation": "random"}, "interpolation 'random'"),
        ({"input_size": [3, 160, 120]}, "input_size is [3, 160, 120]"),
        ({"input_size": 160}, "input_size is 160"),
        ({"crop_pct": 1.5}, "crop_pct is 1.5"),
        ({"std": [1, 0, 1]}, "'std' is [1, 0, 1]"),
    ],
)
def test_processing_that_is_not_understood_is_one_sentence(fields, message, tmp_path):
    make(tmp_path, fields={"pretrained_cfg": PROCESSING | fields})
    with pytest.raises(UserError, match=re.escape(message)):
        load_image_processor(tmp_path)
