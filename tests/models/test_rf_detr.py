"""RF-DETR beside the contract: training with groups of queries, sampling without gathers."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from jaxft.errors import UserError
from jaxft.models import load as registry
from jaxft.models.families.rf_detr.deformable import line_weights, sample
from jaxft.models.tower.tower import Compute
from jaxft.tasks.object_detection.query_loss import query_loss
from tests.support.families import (
    Pair,
    assert_close_gradients,
    gradients,
    outputs_of,
    stored_gradients,
    torch_gradients,
)

GATHERS = ("gather", "scatter", "scatter-add", "dynamic_slice", "dynamic_update_slice")


def small_config(**more) -> transformers.RfDetrConfig:
    """Two windows a side, outputs of a block of windows and of one without, three groups."""
    backbone = {
        "model_type": "rf_detr_dinov2",
        "hidden_size": 24,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "patch_size": 4,
        "image_size": 16,
        "num_windows": 2,
        "out_features": ["stage1", "stage4"],
    }
    own = {
        "d_model": 32,
        "decoder_layers": 2,
        "decoder_ffn_dim": 20,
        "num_queries": 5,
        "group_detr": 3,
        "decoder_self_attention_heads": 2,
        "decoder_cross_attention_heads": 4,
        "decoder_n_points": 2,
        "num_labels": 3,
        "dropout": 0.0,
    }
    return transformers.RfDetrConfig(backbone_config=backbone, **own | more)


@pytest.fixture(scope="module")
def detector(tmp_path_factory) -> Pair:
    """A small detector with random weights, and three images of a size that is not its own."""
    folder = tmp_path_factory.mktemp("rf_detr")
    torch.manual_seed(0)
    model = transformers.RfDetrForObjectDetection._from_config(
        small_config(), attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value) * 0.1)
    model.save_pretrained(folder)
    pixels = np.random.default_rng(0).normal(size=(3, 3, 24, 16)).astype(np.float32)
    return Pair(registry.load(str(folder)), model, str(folder), {"pixel_values": pixels})


def objects() -> tuple[np.ndarray, np.ndarray]:
    """Boxes and classes of three images: three, one, and none."""
    boxes = np.random.default_rng(1).uniform(0.2, 0.6, size=(3, 4, 4)).astype(np.float32)
    return boxes, np.array([[0, 2, 1, -1], [1, -1, -1, -1], [-1] * 4])


def torch_loss(pair: Pair, groups: int) -> torch.Tensor:
    """PyTorch's own loss. Its criterion always takes as many groups as its config says."""
    labels = [
        {"class_labels": torch.tensor(label[label >= 0]), "boxes": torch.tensor(box[label >= 0])}
        for box, label in zip(*objects(), strict=True)
    ]
    pair.torch.config.group_detr = groups
    loss = pair.torch(**pair.torch_batch(), labels=labels).loss
    pair.torch.config.group_detr = 3
    return loss


def our_loss(pair: Pair, params, key):
    boxes, labels = objects()
    truth = {"boxes": boxes, "box_labels": labels, "weights": np.ones((3, 1), np.float32)}
    outputs = pair.ours.apply(params, pair.batch | truth, key)
    total, number = query_loss(outputs, truth, pair.ours.config.fields)
    return total / number


def test_images_of_another_size(detector):
    for ours, theirs in outputs_of(detector):
        np.testing.assert_allclose(ours, theirs, atol=2e-5, rtol=2e-5)


@pytest.mark.slow
def test_training_with_groups_has_pytorchs_loss_and_gradients(detector):
    """Every group proposes, is matched and learns; the losses are those of every block."""
    detector.torch.train().zero_grad()
    expected = torch_loss(detector, 3)
    expected.backward()
    theirs = stored_gradients(detector)
    detector.torch.eval()
    loss = jax.jit(jax.value_and_grad(lambda p: our_loss(detector, p, jax.random.key(0))))
    value, ours = loss(detector.ours.params)
    assert float(value) == pytest.approx(expected.item(), rel=1e-6)
    assert all(np.any(ours[f"blocks/4/groups/{group}/map/kernel"]) for group in range(3))
    assert_close_gradients(ours, theirs, 1e-4)


def test_evaluation_scores_the_first_group(detector):
    value = jax.jit(lambda params: our_loss(detector, params, None))(detector.ours.params)
    with torch.no_grad():
        assert float(value) == pytest.approx(torch_loss(detector, 1).item(), rel=1e-6)


def test_a_loss_of_the_last_block_alone(detector):
    """Without auxiliary losses that of the beginning is left."""
    outputs = {
        "layer_logits": jnp.zeros((3, 1, 5, 2)),
        "layer_boxes": jnp.full((3, 1, 5, 4), 0.5),
        "enc_outputs_class": jnp.zeros((1, 5, 2)),
        "enc_outputs_coord_logits": jnp.full((1, 5, 4), 0.5),
    }
    truth = {"boxes": np.full((1, 1, 4), 0.5), "box_labels": np.array([[1]])}
    truth["weights"] = np.ones((1, 1))
    fields = dict(detector.ours.config.fields)
    every, last = (
        float(
            jax.jit(partial(query_loss, weights=fields | {"auxiliary_loss": on}))(outputs, truth)[0]
        )
        for on in (True, False)
    )
    assert every == pytest.approx(2 * last, rel=1e-6)  # four stages, and two


def primitives(jaxpr) -> set[str]:
    """The names of all operations of a program, those of its inner ones too."""
    names = set()
    for equation in jaxpr.eqns:
        names |= {equation.primitive.name}
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=is_program):
            if is_program(value):
                names |= primitives(getattr(value, "jaxpr", value))
    return names


def is_program(value) -> bool:
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")


def test_no_gather_or_scatter_forward_or_backward(detector):
    """A query reads the image, and its first pixel, by matmuls: so does its gradient."""
    batch, key = detector.batch | {"box_labels": objects()[1]}, jax.random.key(0)

    def total(params):
        outputs = detector.ours.apply(params, batch, key)
        return sum(jnp.square(value).sum() for value in outputs.values())

    names = primitives(jax.make_jaxpr(jax.grad(total))(detector.ours.params).jaxpr)
    assert {"top_k", "dot_general"} <= names
    assert not names & set(GATHERS)


def test_sampling_is_grid_sample_and_its_gradients():
    """Points between pixels, on one, at the edge and beyond it; then all three gradients."""
    draw = np.random.default_rng(0)
    image, weights = draw.normal(size=(2, 12, 2, 3)), draw.uniform(size=(2, 5, 2, 4))
    points = draw.uniform(-0.3, 1.3, size=(2, 5, 2, 4, 2))
    points[0, 0, 0] = [[0.125, 0.5], [0.0, 1.0], [0.375, 1 / 6], [-0.4, 0.5]]
    inputs = [x.astype(np.float32) for x in (image, points, weights)]
    ours, pull = jax.vjp(lambda *x: sample(*x, (3, 4), "highest"), *inputs)
    leaves = [torch.tensor(x, requires_grad=True) for x in inputs]
    images = leaves[0].reshape(2, 3, 4, 2, 3).permute(0, 3, 4, 1, 2).reshape(4, 3, 3, 4)
    grid = 2 * leaves[1].transpose(1, 2).reshape(4, 5, 4, 2) - 1
    read = torch.nn.functional.grid_sample(images, grid, align_corners=False)  # [B H, K, Q, P]
    theirs = (read * leaves[2].transpose(1, 2).reshape(4, 1, 5, 4)).sum(-1)
    theirs = theirs.reshape(2, 2, 3, 5).permute(0, 3, 1, 2)
    np.testing.assert_allclose(ours, theirs.detach(), atol=1e-5)
    away = draw.normal(size=ours.shape).astype(np.float32)
    theirs.backward(torch.tensor(away))
    for own, leaf in zip(pull(away), leaves, strict=True):
        np.testing.assert_allclose(own, leaf.grad, atol=1e-4)


def test_the_weights_of_a_place():
    weights = line_weights(jnp.array([0.125, 0.25, 0.0, 1.2]), 4)
    expected = [[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.5, 0, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(weights, expected, atol=1e-6)


def test_depths_and_what_a_new_set_of_classes_renews(detector):
    depths = detector.ours.depths
    assert depths["embeddings/patch/kernel"] == 0
    assert depths["blocks/3/mlp/up/kernel"] == 4
    assert depths["blocks/4/projector/conv1/conv/kernel"] == 5
    assert depths["blocks/6/source_attention/offset/kernel"] == 7
    assert depths["head/kernel"] == depths["norm/scale"] == 8
    other = registry.load(detector.folder, labels=("tree", "car"))
    heads = ["head", *(f"blocks/4/groups/{group}/head" for group in range(3))]
    expected = {f"{head}/{part}" for head in heads for part in ("bias", "kernel")}
    assert set(other.report.new) == expected
    np.testing.assert_allclose(jax.nn.sigmoid(other.params["head/bias"]), 0.01, rtol=1e-5)


@pytest.mark.full
def test_a_frozen_backbone_and_recomputed_blocks(detector):
    """Blocks of different kinds, one by one or recomputed, give the same gradients."""
    names = [name for name, depth in detector.ours.depths.items() if depth >= 5]
    plain = Compute(trainable=frozenset(names))
    expected = jax.tree.map(np.asarray, gradients(detector, compute=plain, names=names))
    again = replace(plain, scan=True, remat="full")
    assert_close_gradients(gradients(detector, compute=again, names=names), expected, 1e-5)
    theirs = torch_gradients(detector)
    assert_close_gradients(expected, theirs, 1e-4)


@pytest.mark.parametrize("frozen", [pytest.param(3, marks=pytest.mark.full), 5])
def test_starting_where_the_trunk_ends_equals_the_whole(detector, frozen):
    """The trunk is of backbone blocks alone, however much more is frozen."""
    names = [name for name, depth in detector.ours.depths.items() if depth > frozen]
    compute = Compute(trainable=frozenset(names))
    assert detector.ours.towers["vision"].frozen_blocks(compute) == min(frozen, 4)
    streams = jax.jit(lambda p: detector.ours.trunk(p, detector.batch, compute))(
        detector.ours.params
    )
    assert streams["trunk"].shape == (3, 4 * (1 + 6), 24 * 3)  # tokens, and two outputs
    whole = jax.tree.map(np.asarray, gradients(detector, compute=compute, names=names))
    batch = detector.batch | streams
    assert_close_gradients(
        gradients(detector, batch=batch, compute=compute, names=names), whole, 1e-5
    )


def test_images_are_cut_into_whole_windows(detector):
    with pytest.raises(UserError, match="20 x 16; the model takes multiples of 8 x 8"):
        detector.ours(pixel_values=np.zeros((1, 3, 20, 16), np.float32))
    with pytest.raises(UserError, match=r"Set model.image_size, to 24 say"):
        registry.load(detector.folder, image_size=22)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone_config": 7}, "backbone_config is 7, and no object"),
        ({"backbone_config": {"model_type": "resnet"}}, "a 'resnet' is not supported as the back"),
        ({"decoder_cross_attention_heads": 5}, "d_model 32 does not divide into 5 heads"),
        ({"num_feature_levels": 2}, "num_feature_levels is 2"),
        ({"group_detr": 0}, "group_detr must be a whole number"),
        ({"hidden_expansion": 0.0}, "hidden_expansion is 0.0, and must be"),
        ({"decoder_activation_function": "wow"}, "decoder_activation_function 'wow'"),
    ],
)
def test_a_config_that_is_not_understood(change, message):
    fields = small_config().to_dict() | change
    with pytest.raises(UserError, match=message):
        registry.families()["rf_detr"].config.from_hf(fields)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"out_indices": [9]}, "names some of stem and stage1 to stage4"),
        ({"num_windows": 0}, "num_windows is 0, and must be"),
        ({"use_swiglu_ffn": True}, "use_swiglu_ffn is true"),
        ({"window_block_indexes": "all"}, 'window_block_indexes is "all"'),
    ],
)
def test_a_backbone_that_is_not_understood(change, message):
    fields = small_config().to_dict()
    fields["backbone_config"] |= change
    with pytest.raises(UserError, match=message):
        registry.families()["rf_detr"].config.from_hf(fields)


def test_queries_have_their_number_and_no_place(detector):
    with pytest.raises(UserError, match="is 7, and the checkpoint has 5"):
        registry.load(detector.folder, task="object_detection", detection_tokens=7)
