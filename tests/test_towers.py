"""Several towers in one model: names, depths, freezing, and the run of each."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxft.models.layers import Embedding, Linear, split_key
from jaxft.models.layers_math import dropout
from jaxft.models.transformer import Compute, Part, Tower
from jaxft.models.transformer_run import run_tower

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

    def __call__(self, x, context, key, scale=1.0):
        return x + scale * dropout(self.up(x), 0.5, split_key(key, 1)[0])


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


def values():
    draw = np.random.default_rng(0)
    return {
        name: jnp.asarray(draw.normal(size=leaf.shape), jnp.float32)
        for name, leaf in PLAIN.leaves.items()
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
