"""Losses of text embeddings against those of sentence-transformers: values and gradients."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sentence_transformers.sentence_transformer import losses as theirs

from jaxft.errors import UserError
from jaxft.models import load as registry
from jaxft.tasks.embedding.losses import batch_losses, cosent_of_split
from jaxft.tasks.embedding.scores import metric_names, split_scores
from jaxft.tasks.embedding.section import EmbeddingSection as Section
from jaxft.tasks.embedding.task import make
from jaxft.tasks.embedding.text_tuples import TextTuples
from jaxft.tasks.parts.tools import Tools
from tests.support.tiny import tiny_checkpoint

N, WIDTH = 6, 12
SCORES = np.array([0.0, 0.5, 1.0, 0.5, 0.2, 0.2], np.float32)
COSINE = theirs.TripletDistanceMetric.COSINE
TEACHER_SCORES = np.random.default_rng(2).normal(size=(N, 3)).astype(np.float32) * 5
TEACHER = {"negative": ["first", "second"], "teacher_scores": ["right", "wrong", "other"]}


def scaled_cosine(one, other):
    return torch.nn.functional.cosine_similarity(one, other) * 20.0


# Name -> texts a row, section, the loss of sentence-transformers.
LOSSES = {
    "multiple_negatives": (3, {}, theirs.MultipleNegativesRankingLoss(None, scale=20.0)),
    "triplet": (3, {"margin": 0.3}, theirs.TripletLoss(None, COSINE, triplet_margin=0.3)),
    "cosine": (2, {"score": "score"}, None),
    "cosent": (2, {"score": "score"}, theirs.CoSENTLoss(None, scale=20.0)),
    "margin_mse": (4, TEACHER, theirs.MarginMSELoss(None, similarity_fct=scaled_cosine)),
    "distill_kl": (
        4,
        TEACHER,
        theirs.DistillKLDivLoss(None, similarity_fct=scaled_cosine, temperature=1.0),
    ),
}
DIMS, SHARES = [12, 5, 2], [1.0, 0.5, 2.0]


def section_of(name, count, **fields):
    negative = {"negative": "negative"} if count > 2 else {}
    return Section(kind="embedding", loss=name, **(negative | fields))


def drawn(count, seed=0):
    """Vectors `[N, count, D]` that are not of length 1."""
    return np.random.default_rng(seed).normal(size=(N, count, WIDTH)).astype(np.float32)


def ours(section, vectors):
    """The mean loss of a batch with two rows of padding, and its gradient by the real vectors."""
    count = vectors.shape[1]
    numbers = np.arange(N * count, dtype=np.int32).reshape(N, 1, count) + 1

    def padded(array):
        return np.concatenate([array, np.zeros((2, *array.shape[1:]), array.dtype)])

    batch = {
        "weights": padded(np.ones((N, 1), np.float32)),
        "text_numbers": padded(numbers),
        "scores": padded(SCORES[:, None]),
        "teacher_scores": padded(TEACHER_SCORES[:, None]),
    }

    def loss(vectors):
        unit = vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)
        unit = jnp.concatenate([unit, jnp.full((2, *unit.shape[1:]), WIDTH**-0.5)])
        return jnp.sum(batch_losses(section, unit, batch) * batch["weights"][:, 0]) / N

    return jax.jit(jax.value_and_grad(loss))(jnp.asarray(vectors))


def of_torch(name, vectors, dims=(WIDTH,), shares=(1.0,)):
    """The same by sentence-transformers, a weighted sum over widths."""
    leaf = torch.tensor(vectors, requires_grad=True)
    of_teacher = "teacher_scores" in LOSSES[name][1]
    scores, loss = torch.tensor(TEACHER_SCORES if of_teacher else SCORES), LOSSES[name][2]
    total = 0.0
    for dim, share in zip(dims, shares, strict=True):
        columns = torch.nn.functional.normalize(leaf[..., :dim], dim=-1).unbind(1)
        if loss is None:
            alike = torch.nn.functional.cosine_similarity(*columns)
            one = torch.nn.functional.mse_loss(alike, scores)  # CosineSimilarityLoss
        else:
            one = loss.compute_loss_from_embeddings(list(columns), scores)
        total = total + share * one
    total.backward()
    return float(total.detach()), leaf.grad.numpy()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("widths", ["one", "several"])
def test_losses_and_gradients_are_those_of_sentence_transformers(name, widths):
    count, fields, _ = LOSSES[name]
    several = {"matryoshka_dims": DIMS, "matryoshka_weights": SHARES}
    section = section_of(name, count, **fields, **(several if widths == "several" else {}))
    vectors = drawn(count)
    value, gradient = ours(section, vectors)
    dims, shares = (DIMS, SHARES) if widths == "several" else ([WIDTH], [1.0])
    expected, slope = of_torch(name, vectors, dims, shares)
    assert float(value) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-6)


def test_several_negatives_are_all_compared():
    vectors = drawn(4, seed=1)
    section = Section(kind="embedding", negative=["first", "second"])
    assert make(section).texts == ("anchor", "positive", "first", "second")
    value, gradient = ours(section, vectors)
    expected, slope = of_torch("multiple_negatives", vectors)
    assert float(value) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-6)
    triplet = Section(kind="embedding", negative=["first", "second"], loss="triplet", margin=0.3)
    both = [
        float(ours(section_of("triplet", 3, margin=0.3), vectors[:, [0, 1, k]])[0]) for k in (2, 3)
    ]
    assert float(ours(triplet, vectors)[0]) == pytest.approx(np.mean(both), rel=1e-5)


def examples_of(count, scores=None):
    numbers = np.arange(N * count, dtype=np.int32).reshape(N, count)
    return TextTuples(None, numbers, scores)


@pytest.mark.parametrize("name", ["multiple_negatives", "cosent"])
def test_scores_of_a_split_have_every_width(name):
    count, fields, _ = LOSSES[name]
    vectors = drawn(count)
    unit = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    examples = examples_of(count, SCORES if name == "cosent" else None)

    def scores(**more):
        return split_scores(section_of(name, count, **fields, **more), unit, examples)

    all_widths = scores(matryoshka_dims=[12, 5])
    assert set(all_widths) == {
        "loss",
        *metric_names(section_of(name, count, **fields, matryoshka_dims=[12, 5])),
    }
    short = scores(truncate_dim=5)
    whole = scores()
    assert all_widths["loss"] == pytest.approx(whole["loss"] + short["loss"], rel=1e-6)
    metric = "spearman" if name == "cosent" else "recall_at_1"
    assert all_widths[f"{metric}_dim_5"] == short[metric]
    assert all_widths[f"{metric}_dim_12"] == all_widths[metric] == whole[metric]
    if name == "cosent":
        alike = (unit[:, 0] * unit[:, 1]).sum(-1)
        expected = of_torch(name, vectors)[0]
        assert cosent_of_split(alike, SCORES, 0.05) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss": "cosent"}, "the loss cosent needs task.score"),
        ({"loss": "triplet", "score": "s"}, "the loss triplet does not combine with task.score"),
        ({"loss": "triplet"}, "the loss triplet needs task.negative"),
        ({"loss": "distill_kl"}, "the loss distill_kl needs task.teacher_scores"),
        (TEACHER | {"loss": "triplet"}, "does not combine with task.teacher_scores"),
        (TEACHER | {"negative": "one"}, "teacher_scores has 3 columns, and a row has 2 texts"),
        ({"matryoshka_dims": [4, 4]}, "matryoshka_dims has a number twice"),
        ({"matryoshka_weights": [1.0]}, "needs one weight for each of matryoshka_dims"),
    ],
)
def test_sections_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(ValidationError, match=re.escape(message)):
        Section(kind="embedding", **fields)


def test_more_dimensions_than_the_vectors_have_are_refused(tmp_path):
    model = registry.load(str(tiny_checkpoint(tmp_path / "bert")), task="embedding")
    for fields in ({"matryoshka_dims": [32, 33]}, {"truncate_dim": 33}):
        with pytest.raises(UserError, match="the vectors have 32 dimensions, and 33 are asked for"):
            make(Section(kind="embedding", **fields)).bind(Tools(model, None, None), ())
