"""Several towers in one model: names, depths, freezing, and the run of each."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxft.engine.cost import count_flops
from jaxft.models.layers.math import dropout
from jaxft.models.layers.modules import Embedding, Linear, split_key
from jaxft.models.tower.run import run_tower
from jaxft.models.tower.tower import Compute, Part, Tower

WIDTH, WORDS = 4, 7


class Stem(nnx.Module):
    """Words looked up."""

    def __init__(self):
        self.word = Embedding(WORDS, WIDTH, "vocab", 1.0)

    def __call__(self, batch, key, compute):
        return self.word(batch["ids"]), None


class Block(nnx.Module):
    """A linear map with dropout, added to its input."""

    def __init__(self):
        self.up = Linear(WIDTH, WIDTH, ("embed", "mlp"), 1.0)

    def __call__(self, x, context, key, cache, scale=1.0):
        return x + scale * dropout(self.up(x), 0.5, split_key(key, 1)[0]), cache


class Top(nnx.Module):
    """The stream scored against the words."""

    def __init__(self):
        self.decoder = Embedding(WORDS, WIDTH, "vocab", 1.0)
        self.norm = Linear(WIDTH, WIDTH, ("embed", "pooled"), 1.0)

    def __call__(self, x, batch, key):
        return {"scores": self.decoder.scores(self.norm(x))}


BLOCK = Part(Block())
PLAIN = Tower(
    Part(Stem()),
    (BLOCK,) * 3,
    Part(Top()),
    ties={"decoder/embedding": "word/embedding"},
    numbers={"scale": [1.0, 0.5, 0.25]},
)
PREFIXED = replace(PLAIN, prefix="text/")
BATCH = {"ids": np.arange(6).reshape(2, 3)}


def values(tower=PLAIN):
    draw = np.random.default_rng(0)
    return {
        name: jnp.asarray(draw.normal(size=leaf.shape), jnp.float32)
        for name, leaf in tower.leaves.items()
    }


def with_prefix(params):
    return {f"text/{name}": value for name, value in params.items()}


def test_every_name_and_no_tie_carries_the_prefix():
    assert PREFIXED.leaves == with_prefix(PLAIN.leaves)
    assert PREFIXED.depths == with_prefix(PLAIN.depths)
    assert PREFIXED.depths["text/blocks/2/up/kernel"] == 3
    assert PREFIXED.depths["text/norm/kernel"] == PREFIXED.last == 4
    assert "text/decoder/embedding" not in PREFIXED.leaves


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("trained", [None, "blocks/1/up/kernel"])
def test_a_tower_with_a_prefix_computes_what_it_does_without(scan, trained):
    """Dropout, ties, numbers and what is trained included."""
    params, key = values(), jax.random.key(0)
    names = [None if trained is None else frozenset([p + trained]) for p in ("", "text/")]
    plain, prefixed = (
        run_tower(tower, given, BATCH, key, Compute(scan=scan, trainable=some))["scores"]
        for tower, given, some in zip(
            (PLAIN, PREFIXED), (params, with_prefix(params)), names, strict=True
        )
    )
    assert np.array_equal(plain, prefixed)
    still = run_tower(PLAIN, params, BATCH, None, Compute(scan=scan))["scores"]
    assert not np.array_equal(plain, still)


@pytest.mark.parametrize(("count", "pieces"), [(17, 4), (6, 1)])
def test_weights_of_a_scan_are_stacked_again_for_the_way_back(count, pieces):
    """Kept are the streams that blocks read; what is run again is one forward pass."""
    tower = replace(
        PLAIN, blocks=(BLOCK,) * count, numbers={"scale": [0.1 * n for n in range(count)]}
    )
    params = values(tower)
    key = jax.random.key(1)

    def loss(params, **how):
        compute = Compute(trainable=frozenset(params), remat="full", **how)
        return run_tower(tower, params, BATCH, key, compute)["scores"].astype(jnp.float32).sum()

    _, back = jax.vjp(lambda params: loss(params, scan=True), params)
    kept = [leaf.shape for leaf in jax.tree.leaves(back) if hasattr(leaf, "shape")]
    assert [shape for shape in kept if shape[1:] == (WIDTH, WIDTH)] == []
    streams = [shape[0] for shape in kept if shape[1:] == (*BATCH["ids"].shape, WIDTH)]
    assert sum(streams) == count
    assert len(streams) == pieces
    found, wanted = (jax.grad(loss)(params, scan=scan) for scan in (True, False))
    for name, gradient in wanted.items():
        near = 1e-6 * float(abs(gradient).max())
        np.testing.assert_allclose(found[name], gradient, rtol=1e-6, atol=near)
    once, again = (
        count_flops(jax.value_and_grad(lambda p, scan=scan: loss(p, scan=scan)), params)
        for scan in (False, True)
    )
    assert once == again
