"""Attention rollout: how much of each patch the attention has carried to the class token."""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxft.models.families.vit.config import Config
from jaxft.models.layers.cache import split_heads
from jaxft.models.layers.math import matmul_precision
from jaxft.models.layers.vision import grid_of
from jaxft.models.tower.run import part_values, run_streams
from jaxft.models.tower.tower import Compute, Tower


def attention_rollout(
    tower: Tower,
    config: Config,
    params: Mapping[str, jax.Array],
    batch: Mapping[str, jax.Array],
    compute: Compute,
) -> jax.Array:
    """Compute the share of each patch in the class token, by the attention of all blocks.

    Heads are averaged, and half of a position's stream is assumed to be its own, since each block
    adds to the stream that it reads.

    Args:
        tower: of a ViT or its kin.
        config: the model's.
        params: the flat dict.
        batch: `pixel_values` [B, C, H, W].
        compute: how to run.

    Returns:
        [B, h, w] float32, a number a patch; with the other tokens' they add up to 1.

    Source: Abnar and Zuidema (2020), https://arxiv.org/abs/2005.00928, section 3.
    """
    streams = run_streams(tower, params, batch, compute)
    rows, positions = streams[0].shape[:2]
    shares = jnp.zeros((rows, positions)).at[:, 0].set(1.0)  # [B, T]
    with jax.default_matmul_precision(compute.precision):
        for index in reversed(range(len(tower.blocks))):
            part = tower.blocks[index]
            values = part_values(params, tower.block_names(index), compute)
            block = part.bind(values, mesh=compute.mesh)
            attention = block.attention  # type: ignore[attr-defined]
            weights = attention.weights(streams[index]).mean(1)  # [B, T, T]
            shares = (shares + jnp.einsum("bt,bts->bs", shares, weights)) / 2
    first = config.specials + config.fields.get("num_register_tokens", 0)
    grid = grid_of(batch["pixel_values"].shape[2:], config.patch)
    return shares[:, first:].reshape(rows, *grid)


def attention_weights(query: jax.Array, key: jax.Array, *, heads: int) -> jax.Array:
    """Compute the weights that `attention` gives its values where all positions attend to all.

    Args:
        query, key: [B, T, H K].
        heads: the number of heads H.

    Returns:
        [B, H, T, T] float32; each row of the last axis adds up to 1.
    """
    width = query.shape[-1] // heads
    query, key = (split_heads(x, width) for x in (query, key))
    scores = jnp.einsum(
        "bhtk,bhsk->bhts",
        query,
        key,
        precision=matmul_precision(),
        preferred_element_type=jnp.float32,
    )
    return jax.nn.softmax(scores / math.sqrt(width), axis=-1)
