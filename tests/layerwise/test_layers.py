"""The layers' own backward passes against jax's, and what dropout promises."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.activations import ACT2FN

from jaxft.models.layers.attention import AttentionOptions, attention, make_mask
from jaxft.models.layers.math import (
    ACTIVATIONS,
    dropout,
    gelu,
    keep_mask,
    key_words,
    layer_norm,
    linear,
)


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def plain_layer_norm(x, scale, bias):
    mean = x.mean(-1, keepdims=True)
    variance = jnp.square(x - mean).mean(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(variance + 1e-6) * scale + bias


def plain_attention(query, key, value, segments, keep=1.0, soft_cap=None):
    split = lambda x: x.reshape(*x.shape[:2], 3, -1)  # noqa: E731 [B, T, H, K]
    query, key, value = split(query), split(key), split(value)
    scores = jnp.einsum("bthk,bshk->bhts", query, key) / math.sqrt(query.shape[-1])
    scores = scores if soft_cap is None else soft_cap * jnp.tanh(scores / soft_cap)
    same = segments[:, None, :, None] == segments[:, None, None, :]
    weights = jax.nn.softmax(jnp.where(same, scores, -jnp.inf), -1) * keep
    out = jnp.einsum("bhts,bshk->bthk", weights, value)
    return out.reshape(*out.shape[:2], -1)


SEGMENTS = jnp.array([[1, 1, 1, 2, 2, 0, 0], [1, 1, 1, 1, 1, 1, 2]])


def our_attention(query, key, value, segments=SEGMENTS, soft_cap=None):
    mask = None if segments is None else make_mask(segments)
    return attention(query, key, value, mask, AttentionOptions(heads=3, soft_cap=soft_cap))


CASES = {
    "linear": (
        linear,
        lambda x, kernel, bias: x @ kernel + bias,
        (normal(0, 2, 5, 6), normal(1, 6, 4), normal(2, 4)),
    ),
    "layer_norm": (
        lambda x, scale, bias: layer_norm(x, scale, bias, 1e-6),
        plain_layer_norm,
        (normal(0, 2, 5, 6), normal(1, 6), normal(2, 6)),
    ),
    "gelu": (gelu, lambda x: jax.nn.gelu(x, approximate=False), (normal(0, 3, 50) * 3,)),
    "attention": (
        our_attention,
        lambda *qkv: plain_attention(*qkv, SEGMENTS),
        (normal(0, 2, 7, 12), normal(1, 2, 7, 12), normal(2, 2, 7, 12)),
    ),
    "attention without a mask": (
        lambda *qkv: our_attention(*qkv, segments=None),
        lambda *qkv: plain_attention(*qkv, jnp.ones_like(SEGMENTS)),
        (normal(0, 2, 7, 12), normal(1, 2, 7, 12), normal(2, 2, 7, 12)),
    ),
    "attention with a soft cap": (
        lambda *qkv: our_attention(*qkv, soft_cap=0.8),
        lambda *qkv: plain_attention(*qkv, SEGMENTS, soft_cap=0.8),
        (normal(0, 2, 7, 12), normal(1, 2, 7, 12), normal(2, 2, 7, 12)),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_jaxs(case):
    ours, plain, arguments = CASES[case]
    weight = normal(9, *plain(*arguments).shape)
    every = tuple(range(len(arguments)))
    for function in (
        lambda f: f(*arguments),
        lambda f: jax.grad(lambda *a: (f(*a) * weight).sum(), argnums=every)(*arguments),
    ):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
            function(ours),
            function(plain),
        )


def test_attention_dropout_has_the_gradient_of_its_mask():
    query, key, value = CASES["attention"][2]
    dropout_key, rate = jax.random.key(3), 0.3
    keep = keep_mask(key_words(dropout_key), rate, (2, 3, 7, 7)) / (1.0 - rate)
    weight = normal(9, 2, 7, 12)

    def ours(*qkv):
        options = AttentionOptions(heads=3, rate=rate, dropout_key=dropout_key)
        out = attention(*qkv, make_mask(SEGMENTS), options)
        return (out * weight).sum()

    def plain(*qkv):
        return (plain_attention(*qkv, SEGMENTS, keep) * weight).sum()

    for a, b in zip(
        jax.grad(ours, (0, 1, 2))(query, key, value),
        jax.grad(plain, (0, 1, 2))(query, key, value),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def dots(function, *arguments):
    """The matmuls that a traced function holds, the branches of a platform counted once."""

    def count(jaxpr):
        total = 0
        for equation in jaxpr.eqns:
            total += equation.primitive.name == "dot_general"
            if equation.primitive.name == "cond":
                total += count(equation.params["branches"][0].jaxpr)
            elif equation.primitive.name == "custom_vjp_call":
                total += count(equation.params["call_jaxpr"].jaxpr)
        return total

    return count(jax.make_jaxpr(function)(*arguments).jaxpr)


def test_a_frozen_kernel_costs_no_matmul():
    x, kernel, bias = CASES["linear"][2]
    loss = lambda *a: linear(*a).sum()  # noqa: E731
    assert dots(jax.grad(loss, argnums=(0, 1, 2)), x, kernel, bias) == 3
    assert dots(jax.grad(loss, argnums=(0, 2)), x, kernel, bias) == 2
    assert dots(jax.grad(loss, argnums=1), x, kernel, bias) == 2
    assert dots(jax.grad(loss, argnums=2), x, kernel, bias) == 1


@pytest.mark.parametrize("case", ["linear", "attention"])
def test_the_backward_pass_has_the_precision_of_the_forward(case):
    ours, _, arguments = CASES[case]

    def loss(*values):
        with jax.default_matmul_precision("highest"):
            return ours(*values).sum()

    every = tuple(range(len(arguments)))
    text = str(jax.make_jaxpr(jax.grad(loss, argnums=every))(*arguments))
    assert text.count("= dot_general[") >= 3
    assert text.count("= dot_general[") == text.count("precision=(Precision.HIGHEST")


def test_a_kernels_gradient_compiles_to_one_platform():
    x, kernel, bias = CASES["linear"][2]
    text = jax.jit(jax.grad(lambda k: linear(x, k, bias).sum())).lower(kernel).compile().as_text()
    assert "conditional" not in text


def test_dropout_keeps_its_share_and_the_mean():
    x = jnp.ones((64, 50, 40))
    for rate in (0.1, 0.5):
        out = np.asarray(dropout(x, rate, jax.random.key(0)))
        share = (out == 0).mean()
        assert abs(share - rate) < 4 * math.sqrt(rate * (1 - rate) / x.size)
        np.testing.assert_allclose(out[out != 0], 1 / (1 - rate), rtol=1e-6)
    assert dropout(x, 0.1, None) is x
    assert dropout(x, 0.0, jax.random.key(0)) is x


def test_dropout_masks_are_unrelated():
    """Neighbours along every axis, at several lags, and under neighbouring keys."""
    shape = (32, 64, 64)
    keys = jax.random.split(jax.random.key(0), 4)
    masks = np.stack([keep_mask(key_words(key), 0.5, shape) for key in keys]).astype(float) - 0.5
    bound = 5 * 0.25 / math.sqrt(masks.size / 2)
    for axis in range(4):
        for lag in (1, 2, 3):
            product = masks * np.roll(masks, lag, axis)
            assert abs(product.mean()) < bound, (axis, lag)
    # A row as often has as many kept as chance has it.
    spread = masks.sum(-1).var() / (shape[-1] * 0.25)
    assert 0.95 < spread < 1.05


def test_dropout_masks_of_near_keys_are_unrelated():
    """Each word of the key counts, and no key gives the rows of another one further on."""
    draw = lambda *words: np.asarray(  # noqa: E731
        keep_mask(jnp.array(words, jnp.uint32), 0.5, (512, 64))
    )
    base = draw(5, 9)
    for other in (draw(5, 10), draw(6, 9), draw(5, 9 + 2**31)):
        for shift in range(-3, 4):
            agreement = (base == np.roll(other, shift, 0)).mean()
            assert abs(agreement - 0.5) < 5 * 0.5 / math.sqrt(base.size), shift


def test_dropout_has_the_gradient_of_its_mask():
    x = normal(0, 4, 9)
    key = jax.random.key(1)
    out, gradient = jax.value_and_grad(lambda x: dropout(x, 0.4, key).sum())(x)
    kept = np.asarray(dropout(jnp.ones_like(x), 0.4, key))
    np.testing.assert_allclose(gradient, kept)
    np.testing.assert_allclose(out, (x * kept).sum(), rtol=1e-5)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_that_of_its_name_in_transformers(name):
    x = np.linspace(-6, 6, 97, dtype=np.float32)
    theirs = torch.tensor(x, requires_grad=True)
    expected = ACT2FN[name](theirs)
    expected.sum().backward()
    np.testing.assert_allclose(ACTIVATIONS[name](x), expected.detach(), atol=1e-6)
    # PyTorch's tanh rounds to 1 early, which is in its gradients.
    gradient = jax.grad(lambda x: ACTIVATIONS[name](x).sum())(x)
    np.testing.assert_allclose(gradient, theirs.grad, atol=1e-5)
