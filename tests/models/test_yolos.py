"""YOLOS beside the contract: other images than its own, and detectors made of plain ViTs."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

import jaxft
from jaxft.errors import UserError
from jaxft.models import load as registry
from jaxft.models.families.vit.yolos import Context
from jaxft.models.families.vit.yolos_from_vit import evenly, places
from jaxft.models.layers.cache import UNCACHED
from jaxft.models.layers.math import layer_norm
from tests.support.families import (
    Pair,
    assert_close_gradients,
    gradients,
    outputs_of,
    torch_gradients,
)

SMALL = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 4}


def random_model(model: torch.nn.Module, folder) -> torch.nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.eval().save_pretrained(folder)
    return model


def pixels(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, 3, height, width)).astype(np.float32)


@pytest.fixture(scope="module")
def yolos(tmp_path_factory) -> Pair:
    """Positions before every block, for images of 16 x 24; and images of 20 x 12."""
    folder = tmp_path_factory.mktemp("yolos")
    config = transformers.YolosConfig(
        **SMALL, intermediate_size=40, image_size=[16, 24], num_detection_tokens=3, num_labels=2
    )
    model = transformers.YolosForObjectDetection._from_config(config, attn_implementation="eager")
    random_model(model, folder)
    batch = {"pixel_values": pixels(20, 12)}
    return Pair(registry.load(str(folder)), model, str(folder), batch)


def test_positions_follow_the_image_before_every_block(yolos):
    assert [n for n in yolos.ours.params if n.endswith("position")] == [
        "blocks/1/position",
        "blocks/2/position",
        "embeddings/position",
    ]
    for ours, theirs in outputs_of(yolos):
        np.testing.assert_allclose(ours, theirs, atol=2e-5, rtol=2e-5)
    assert_close_gradients(gradients(yolos), torch_gradients(yolos), 1e-4)


def test_other_classes_renew_the_last_layer_alone(yolos):
    model = registry.load(yolos.folder, labels=("tree", "car", "house"))
    assert model.report.new == ("head/bias", "head/kernel")
    assert model.params["head/kernel"].shape == (24, 4)


@pytest.mark.parametrize("kind", ["ViT", "DeiT", "Dinov2"])
def test_a_plain_vit_becomes_a_detector(kind, tmp_path):
    """Its patches' stream is the ViT's own where no detection token is looked at."""
    checkpoint = tmp_path / "checkpoint"
    config = getattr(transformers, f"{kind}Config")(**SMALL, image_size=16)
    plain = random_model(getattr(transformers, f"{kind}ForImageClassification")(config), checkpoint)
    model = jaxft.load(
        str(checkpoint), task="object_detection", labels=("tree", "car"), detection_tokens=5
    )
    assert {name.split("/")[0] for name in model.report.new} == {"class_mlp", "box_mlp", "head"}
    tokens, grey = (
        model.params[f"embeddings/{name}"] for name in ("detection_tokens", "patch/bias")
    )
    np.testing.assert_array_equal(tokens[0], np.tile(grey, (5, 1)))
    for block in (1, 2):  # the last two of three; patches are told nothing
        told = np.asarray(model.params[f"blocks/{block}/position"][0])
        assert not told[:-5].any()
        assert told[-5:].std() == pytest.approx(0.05, rel=1e-4)
    out = model(pixel_values=pixels(16, 16))
    assert out["logits"].shape == (2, 5, 3)
    # One that is saved is a YOLOS of its own, to transformers too.
    folder = model.save(tmp_path / "saved")
    theirs = transformers.YolosForObjectDetection.from_pretrained(folder).eval()
    again = registry.load(str(folder))
    assert again.report.new == again.report.unused == ()
    for ours, other in outputs_of(Pair(again, theirs, "", {"pixel_values": pixels(16, 20)})):
        np.testing.assert_allclose(ours, other, atol=2e-5, rtol=2e-5)
    # Detection tokens far from all patches in every key would not be looked at: without them,
    # the rest is the ViT (a DeiT has lost a token by then).
    if kind == "DeiT":
        return
    bare = registry.load(str(folder))
    tower = bare.towers["vision"]
    cut = {
        name: value[:, :-5] if name.endswith("/position") else value
        for name, value in bare.params.items()
    }
    ours = cut_stream(tower, cut, pixels(16, 16))
    base = getattr(plain, kind.lower())
    with torch.no_grad():
        expected = base(torch.tensor(pixels(16, 16))).last_hidden_state.numpy()
    np.testing.assert_allclose(ours, expected, atol=2e-5)


def test_detection_tokens_begin_at_places_of_their_own():
    """Six over a grid of 4 x 6 that holds its own coordinates: two lines of three."""
    rows, columns = 4, 6
    grid = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), axis=-1)
    expected = [[y, x] for y in (0.5, 2.5) for x in (0.5, 2.5, 4.5)]
    np.testing.assert_allclose(evenly(grid, 6), expected)
    # One more is in the upper line, and so many that they stand closer than patches are between.
    np.testing.assert_allclose(evenly(grid, 7)[:4, 1], [0.25, 1.75, 3.25, 4.75])
    assert len(np.unique(evenly(grid, 24 * 9).round(6), axis=0)) > 24 * 4
    expected = [[x, y] for y in (0.25, 0.75) for x in (1 / 6, 0.5, 5 / 6)]
    np.testing.assert_allclose(places(6, rows, columns), expected)


def test_the_first_blocks_are_not_told_a_place(tmp_path):
    config = transformers.ViTConfig(**SMALL | {"num_hidden_layers": 5}, image_size=16)
    random_model(transformers.ViTModel(config), tmp_path)
    model = registry.load(str(tmp_path), task="object_detection", detection_tokens=5)
    told = [bool(np.any(model.params[f"blocks/{block}/position"])) for block in range(1, 5)]
    assert told == [False, False, True, True]


def cut_stream(tower, params, images) -> np.ndarray:
    """The normalised stream of a detector that is run without its detection tokens."""

    def part(part, prefix=""):
        return part.bind({name: params[prefix + name] for name in part.leaves})

    stem = part(tower.stem).embeddings
    x = jnp.concatenate(
        [jnp.broadcast_to(stem.class_token[...], (2, 1, 24)), stem.patch(jnp.asarray(images))], 1
    )
    x = x + params["embeddings/position"]
    for index, block in enumerate(tower.blocks):
        x, _ = part(block, f"blocks/{index}/")(x, Context(None, (4, 4)), None, UNCACHED)
    return layer_norm(x, params["norm/scale"], params["norm/bias"], tower.top.module.norm.eps)


def test_detection_tokens_are_for_a_plain_vit(yolos):
    with pytest.raises(UserError, match="is 7, and the checkpoint has 3"):
        registry.load(yolos.folder, task="object_detection", detection_tokens=7)


def test_gates_have_no_place_in_a_detector(tmp_path):
    config = transformers.Dinov2Config(**SMALL, image_size=16, use_swiglu_ffn=True)
    transformers.Dinov2Model(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="use_swiglu_ffn is true"):
        registry.load(str(tmp_path), task="object_detection")
