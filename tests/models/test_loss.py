"""The loss of next tokens in pieces: the plain loss, without its scores in full."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import jaxprs_in_params
from jax.sharding import NamedSharding, PartitionSpec

from jaxft.device.mesh import make_mesh, param_shardings
from jaxft.engine.cost import count_flops
from jaxft.models.layers import loss as layers_loss
from jaxft.models.layers.decoder import CausalLm
from jaxft.models.layers.modules import Embedding, Linear, RMSNorm
from jaxft.models.tower.tower import Part

ROWS, LENGTH, WIDTH, WORDS = 4, 22, 8, 48
TIED = {False: "head/kernel", True: "head/embedding"}


def make_top(tied: bool) -> Part:
    """A head of its own, or the word embeddings with a bound on the scores, as Gemma has it."""
    head = Embedding(WORDS, WIDTH, "vocab", 0.02) if tied else None
    head = head or Linear(WIDTH, WORDS, ("embed", "vocab"), 0.02, bias=False)
    return Part(CausalLm(RMSNorm(WIDTH, 1e-6), head, soft_cap=4.0 if tied else None))


def draw(tied: bool) -> tuple[dict, jax.Array, jax.Array]:
    """Parameters, a stream, and targets of which some are not scored."""
    keys = jax.random.split(jax.random.key(0), 5)
    params = {
        "norm/scale": 1.0 + 0.1 * jax.random.normal(keys[0], (WIDTH,)),
        TIED[tied]: jax.random.normal(keys[1], (WORDS, WIDTH) if tied else (WIDTH, WORDS)),
    }
    x = jax.random.normal(keys[2], (ROWS, LENGTH, WIDTH))
    targets = jax.random.randint(keys[3], (ROWS, LENGTH), 0, WORDS)
    return params, x, jnp.where(jax.random.bernoulli(keys[4], 0.3, targets.shape), -1, targets)


def plain(part: Part, params: dict, x: jax.Array, targets: jax.Array) -> tuple:
    """The loss from scores in full, as optax has it."""
    logits = part.bind(params)(x, {}, None)["logits"]
    right = jnp.maximum(targets, 0)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, right)
    scored = targets >= 0
    return jnp.where(scored, losses, 0.0), (logits.argmax(-1) == targets) & scored


def ours(part: Part, params: dict, x: jax.Array, targets: jax.Array) -> tuple:
    found = part.bind(params)(x, {"targets": targets}, None)
    assert found.keys() == {"losses", "hits"}
    return found["losses"], found["hits"]


def mean_loss(losses, part, targets):
    """A loss whose gradient differs from position to position."""
    weights = jnp.linspace(0.5, 1.5, targets.size).reshape(targets.shape)
    return lambda params, x: (losses(part, params, x, targets)[0] * weights).sum()


@pytest.fixture(params=[32, 4, 1], ids=["padded", "even", "whole"])
def pieces(request, monkeypatch):
    """So many pieces of the words: 32 of 2 with 16 to spare, 4 of 12, 1 of 48."""
    monkeypatch.setattr(layers_loss, "MOST_SCORES", WORDS * LENGTH / request.param)


@pytest.fixture
def few(monkeypatch):
    """Four pieces of 12 words."""
    monkeypatch.setattr(layers_loss, "MOST_SCORES", WORDS * LENGTH / 4)


@pytest.mark.parametrize("tied", TIED)
def test_losses_hits_and_gradients_are_the_plain_ones(tied, pieces):
    part = make_top(tied)
    params, x, targets = draw(tied)
    targets = targets.at[0].set(part.bind(params)(x, {}, None)["logits"][0].argmax(-1))
    for found, wanted in zip(
        ours(part, params, x, targets), plain(part, params, x, targets), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)
    gradients = [
        jax.jit(jax.grad(mean_loss(losses, part, targets), argnums=(0, 1)))(params, x)
        for losses in (ours, plain)
    ]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * float(abs(b).max())),
        *gradients,
    )


def largest(jaxpr) -> int:
    """Elements of the largest array that a jaxpr or one inside it makes."""
    found = [int(np.prod(made.aval.shape)) for e in jaxpr.eqns for made in e.outvars]
    inner = [largest(sub) for e in jaxpr.eqns for sub in jaxprs_in_params(e.params)]
    return max([*found, *inner], default=0)


@pytest.mark.parametrize("tied", TIED)
def test_scores_never_exist_in_full(tied, few):
    part = make_top(tied)
    params, x, targets = draw(tied)

    def most(losses):
        function = jax.grad(mean_loss(losses, part, targets), argnums=(0, 1))
        return largest(jax.make_jaxpr(function)(params, x).jaxpr)

    assert most(plain) == ROWS * LENGTH * WORDS
    assert most(ours) == ROWS * LENGTH * WORDS / 4


@pytest.mark.parametrize("tied", TIED)
def test_what_is_frozen_costs_no_matmul(tied, few):
    """Four pieces: once forward, once again, and once for each gradient that is asked for."""
    part = make_top(tied)
    params, x, targets = draw(tied)
    once = 2 * ROWS * LENGTH * WIDTH * WORDS

    def flops(*names):
        frozen = {name: value for name, value in params.items() if name not in names}

        def loss(trained):
            stream = trained.get("x", x)
            own = {name: value for name, value in trained.items() if name != "x"}
            return mean_loss(ours, part, targets)(frozen | own, stream)

        # With the loss itself, which a step reads: else nothing of the way there would be.
        return count_flops(jax.value_and_grad(loss), {n: params.get(n, x) for n in names})

    assert flops("x", "norm/scale", TIED[tied]) == 4 * once
    assert flops(TIED[tied]) == flops("x") == flops("norm/scale") == 3 * once


def test_the_pieces_gradients_are_summed_in_float32(monkeypatch):
    """In bfloat16 many pieces give the stream a gradient as near to the true one as one piece."""
    part = make_top(tied=True)
    params, x, targets = draw(tied=True)
    narrow = jax.tree.map(lambda value: value.astype(jnp.bfloat16), (params, x))
    true = jax.grad(mean_loss(plain, part, targets), argnums=1)(params, x)
    away = []
    for count in (16, 1):
        monkeypatch.setattr(layers_loss, "MOST_SCORES", WORDS * LENGTH / count)
        gradient = jax.grad(mean_loss(ours, part, targets), argnums=1)(*narrow)
        away.append(float(jnp.linalg.norm(gradient.astype(jnp.float32) - true)))
    assert away[0] < 1.25 * away[1]


@pytest.mark.parametrize("tied", TIED)
@pytest.mark.parametrize("count", [4, 1], ids=["pieces", "whole"])
def test_a_vocabulary_over_devices_stays_there(tied, count, monkeypatch):
    """Words over `tensor`, rows over `data`: no device gathers scores or the head."""
    monkeypatch.setattr(layers_loss, "MOST_SCORES", WORDS * LENGTH / count)
    mesh = make_mesh(2, 1, 4)
    part = make_top(tied)
    params, x, targets = draw(tied)
    shapes = {name: leaf.shape for name, leaf in part.leaves.items()}
    placed = param_shardings(shapes, {n: leaf.axes for n, leaf in part.leaves.items()}, mesh)
    words = shapes[TIED[tied]].index(WORDS)
    assert placed[TIED[tied]].shard_shape(shapes[TIED[tied]])[words] == WORDS // 4
    rows = NamedSharding(mesh, PartitionSpec("data"))

    def loss(params, x, targets):
        losses, hits = ours(part, params, x, targets)
        return losses.sum(), hits

    step = jax.jit(
        jax.value_and_grad(loss, argnums=(0, 1), has_aux=True),
        in_shardings=(placed, rows, rows),
        out_shardings=((None, None), (placed, rows)),
    )
    compiled = step.lower(params, x, targets).compile()
    text = compiled.as_text()
    gathered = re.findall(r"\S+\[([\d,]*)\]\S* all-gather", text)
    sizes = [int(np.prod([int(n) for n in shape.split(",") if n])) for shape in gathered]
    assert max(sizes, default=0) <= ROWS * LENGTH * WIDTH < WORDS * WIDTH * 4
    assert not re.search(rf"f32\[{ROWS // 2},{LENGTH},{WORDS}\]", text)  # all scores of a device
    alone = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, x, targets)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        compiled(params, x, targets),
        alone,
    )


def test_memory_is_that_of_a_piece():
    """128,256 words and 4 x 2,048 positions: 4.2 GB of scores, of which 8 pieces hold an eighth."""
    head = Embedding(128_256, 64, "vocab", 0.02)
    part = Part(CausalLm(RMSNorm(64, 1e-6), head))
    params = {p: jax.ShapeDtypeStruct(leaf.shape, jnp.float32) for p, leaf in part.leaves.items()}
    x = jax.ShapeDtypeStruct((4, 2_048, 64), jnp.float32)
    targets = jax.ShapeDtypeStruct((4, 2_048), jnp.int32)

    def temporary(losses) -> int:
        slope = jax.grad(lambda *given: losses(part, *given)[0].sum(), (0, 1))
        compiled = jax.jit(slope).lower(params, x, targets).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    scores = 4 * 2_048 * 128_256 * 4
    assert temporary(plain) > scores
    assert temporary(ours) < scores / 2
