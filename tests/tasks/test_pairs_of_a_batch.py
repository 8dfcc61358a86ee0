"""Losses over all pairs of a batch: those of the whole matrix, which no device has."""

import math
import re
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxft.device.mesh import batch_sharding, make_mesh
from jaxft.engine.gradients.compared import compared_gradients
from jaxft.engine.gradients.micro_batches import MicroBatches
from jaxft.engine.initial_state import load_params
from jaxft.engine.setup import build, compared_of, objective_of
from jaxft.models.layers.ring import pairs
from jaxft.tasks.contrastive.losses import BIAS, SCALE, pair_losses
from jaxft.tasks.contrastive.section import ContrastiveSection
from jaxft.tasks.embedding.losses import batch_losses
from jaxft.tasks.embedding.section import EmbeddingSection
from tests.engine.test_compared_gradients import folder, image_config, text_config  # noqa: F401
from tests.support.launch import cache  # noqa: F401 a fixture

R, WIDTH, PADDED = 32, 6, 3
HIDDEN = -1e9


def whole_softmax(scores, weights, hardness):
    """Cross-entropy of each row's diagonal, from the whole matrix."""
    scores = scores + jnp.where(weights > 0, 0.0, HIDDEN)
    own = jnp.eye(R, dtype=bool)
    if hardness:
        negatives = jnp.where(own, HIDDEN, scores) * hardness
        bonus = negatives - jax.nn.logsumexp(negatives, axis=1, keepdims=True)
        scores = scores + jnp.where(own, 0.0, bonus + jnp.log(weights.sum() - 1))
    return optax.softmax_cross_entropy_with_integer_labels(scores, jnp.arange(R))


def whole_clip(params, batch, hardness=0.0, sigmoid=False):
    weights = batch["weights"][:, 0]
    scores = params["one"][:, 0] @ params["other"][:, 0].T * jnp.exp(params[SCALE]) + params[BIAS]
    if sigmoid:
        return -jax.nn.log_sigmoid((2.0 * jnp.eye(R) - 1.0) * scores) @ weights
    return sum(whole_softmax(s, weights, hardness) for s in (scores, scores.T)) / 2


def ring_clip(params, batch, mesh, **section):
    outputs = {"image_embeds": params["one"][:, 0], "text_embeds": params["other"][:, 0]}
    section = ContrastiveSection(kind="contrastive", **section)
    return pair_losses(section, params, outputs, batch["weights"][:, 0], mesh)


def whole_ranking(params, batch):
    """All texts of all examples are scored; positives of equal anchors are left out."""
    vectors = jnp.concatenate([params["one"], params["other"]], 1)
    numbers, there = batch["text_numbers"][:, 0], batch["weights"][:, 0] > 0
    scores = jnp.einsum("nd,mkd->nmk", vectors[:, 0], vectors[:, 1:], precision="highest") / 0.5
    equal = (numbers[:, 0][:, None] == numbers[:, 0][None, :]) & there
    right = jnp.einsum("np,pmk->nmk", equal * 1.0, numbers[:, 1][:, None, None] == numbers[:, 1:])
    own = (jnp.eye(R, dtype=bool)[:, :, None]) & (jnp.arange(2) == 0)
    scores = jnp.where(((right > 0) | ~there[None, :, None]) & ~own, HIDDEN, scores)
    return jax.nn.logsumexp(scores, axis=(1, 2)) - jnp.where(own, scores, 0).sum((1, 2))


def whole_cosent(params, batch):
    cosines, scores = (params["one"][:, 0] * params["other"][:, 0]).sum(-1), batch["scores"][:, 0]
    real = batch["weights"][:, 0] > 0
    wrong = (scores[:, None] < scores[None, :]) & real[:, None] & real[None, :]
    excess = jnp.where(wrong, (cosines[:, None] - cosines[None, :]) / 0.5, HIDDEN)
    return jnp.full(R, jax.nn.logsumexp(jnp.append(excess, 0.0)))


def ring_texts(params, batch, mesh, **section):
    count = 2 if "score" in section else 3
    vectors = jnp.concatenate([params["one"], params["other"]], 1)[:, :count]
    section = EmbeddingSection(kind="embedding", temperature=0.5, **section)
    texts = {"text_numbers": batch["text_numbers"][..., :count]}
    return batch_losses(section, vectors, {**batch, **texts}, mesh)


LOSSES = {
    "softmax": (whole_clip, ring_clip, {}),
    "hard": (partial(whole_clip, hardness=0.5), ring_clip, {"hard_negatives": 0.5}),
    "sigmoid": (partial(whole_clip, sigmoid=True), ring_clip, {"loss": "sigmoid"}),
    "ranking": (whole_ranking, ring_texts, {"negative": "negative"}),
    "cosent": (whole_cosent, ring_texts, {"score": "score", "loss": "cosent"}),
}


def drawn():
    """Vectors, a scale and a bias; and a batch with padding, equal anchors and equal texts."""
    draw = np.random.default_rng(0)
    params = {
        "one": draw.normal(size=(R, 1, WIDTH)).astype(np.float32),
        "other": draw.normal(size=(R, 2, WIDTH)).astype(np.float32),
        SCALE: np.float32(0.4),
        BIAS: np.float32(-0.5),
    }
    batch = {
        "weights": (np.arange(R) < R - PADDED).astype(np.float32)[:, None],
        "text_numbers": draw.integers(0, 12, (R, 1, 3)).astype(np.int32),
        "scores": draw.integers(0, 3, (R, 1)).astype(np.float32),
    }
    return params, batch


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("sizes", [(1, 1), (8, 1), (2, 2)], ids=str)
def test_loss_and_gradients_are_those_of_the_whole_matrix(name, sizes, monkeypatch):
    """On one device and on eight or two of them by two, of which each cuts its rows in parts."""
    whole, ring, section = LOSSES[name]
    monkeypatch.setattr(pairs, "MOST_PAIRS", 64)
    data, fsdp = sizes
    tensor = 2 if fsdp > 1 else 1
    mesh = make_mesh(data, fsdp, tensor, jax.devices()[: data * fsdp * tensor])
    params, batch = drawn()

    def mean(losses):
        return lambda params, batch: jnp.mean(losses(params, batch) * batch["weights"][:, 0])

    expected = jax.jit(jax.value_and_grad(mean(whole)))(params, batch)
    rows = batch_sharding(mesh)
    placed = jax.device_put(batch, rows)
    result = jax.jit(jax.value_and_grad(mean(partial(ring, mesh=mesh, **section))))(params, placed)
    assert float(result[0]) == pytest.approx(float(expected[0]), rel=1e-6)
    norm = float(optax.tree.norm(expected[1]))
    for name, gradient in result[1].items():
        assert float(jnp.linalg.norm(gradient - expected[1][name])) <= 1e-6 * norm, name


LARGE, ACCUMULATED = 2048, 4
ARRAY = re.compile(r"\b[a-z]\w*\[([\d,]+)\]")


def compiled(config, accumulate):
    """The program of a task's gradients for a batch of `LARGE` rows over eight devices."""
    built = build(config, devices=jax.devices())
    compute, rows = replace(built.compute, precision="highest"), batch_sharding(built.mesh)
    params = load_params(built).params
    first = built.splits["train"].examples.collate(built.plan.batch(0), built.layout.row_length)
    batch = {
        name: jax.ShapeDtypeStruct((LARGE, *array.shape[1:]), array.dtype, sharding=rows)
        for name, array in first.items()
    }
    if accumulate > 1:
        compared = compared_of(built, compute)
        run = partial(compared_gradients, compared, MicroBatches(accumulate, rows))
        return jax.jit(run).lower(params, {}, batch, jax.random.key(0)).compile().as_text()
    objective = objective_of(built, compute)
    gradient = jax.grad(lambda params, batch: objective(params, batch, None)["loss"][0])
    return jax.jit(gradient).lower(params, batch).compile().as_text()


@pytest.mark.parametrize(
    ("kind", "accumulate"),
    [
        ("clip", ACCUMULATED),
        ("texts", ACCUMULATED),
        pytest.param("clip", 1, marks=pytest.mark.full),
    ],
)
def test_no_device_has_an_array_of_all_pairs(kind, accumulate, folder):  # noqa: F811
    """Nor of its own rows by all others: the largest is of a block of rows by another."""
    make = {"clip": image_config, "texts": text_config}[kind]
    text = compiled(make(folder), accumulate)
    shapes = {tuple(map(int, sizes.split(","))) for sizes in ARRAY.findall(text)}
    assert (LARGE // 8, LARGE // 8) in shapes
    wide = [one for one in shapes if sum(size >= LARGE // 8 for size in one) > 1]
    assert all(math.prod(one) < LARGE * LARGE // 8 for one in shapes), wide
    assert "collective-permute" in text
