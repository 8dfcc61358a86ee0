"""Attention of a chunk by jax's splash attention on TPUs; a whole row is one chunk too.

B rows, G heads of keys and values, M heads of queries for each, T queries, S keys, K width of a
head.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels

from jaxft.models.layers.ring.chunks import Keys, Mixed, Queries, Sight, Slope

# Positions at a time, the most first. A block of T x T scores and what belongs to it must fit in
# the 16 MB that the compiler of v5e leaves a kernel of its fast memory.
BLOCKS = (2048, 1024, 512, 256, 128)
QUERIES = 1024  # at a time, at most
KEYS = {"forward": 1024, "backward": 2048}  # at a time, at most
SCORED = 512  # keys of a block that are scored at a time, at most
WIDE = 128  # a head wider than this takes few positions at a time, and no fused backward pass
MOST_WIDE = 512
# The fused backward pass writes the queries' gradient once for every block of keys and adds them
# up: 5 products in place of 7, for as many times the memory of the queries.
MOST_PARTS = 4


def splash_blocks(length: int, width: int, causal: bool, window: int | None) -> splash.BlockSizes:
    """Choose how many queries and keys splash takes at a time, and its backward pass.

    Args:
        length: T, a multiple of 128.
        width: K.
        causal, window: as of a mask. Blocks are no longer than what a position sees, so that few
            hidden scores are computed; a window has the backward pass of two kernels, which skips
            the blocks outside it.
    """
    span = length if window is None else (window if causal else 2 * window - 1)

    def most(bound: int) -> int:
        bound = bound if width <= WIDE else min(bound, MOST_WIDE)
        fitting = [size for size in BLOCKS if length % size == 0 and size <= bound]
        return next((size for size in fitting if size < 2 * span), fitting[-1])

    queries, keys = most(QUERIES), most(KEYS["forward"])
    forward = queries, keys, min(keys, SCORED)
    fused = span == length and width <= WIDE and length <= MOST_PARTS * most(KEYS["backward"])
    if fused:
        keys = most(KEYS["backward"])
        backward = queries, keys, min(keys, SCORED)
        return splash.BlockSizes(*forward, *backward, use_fused_bwd_kernel=True)
    backward = queries, keys, min(keys, SCORED)
    return splash.BlockSizes(*forward, *backward, block_q_dq=queries, block_kv_dq=keys)


def splash_mask(length: int, sight: Sight) -> splash.Mask:
    """Return splash's mask of `length` queries and as many keys, within a segment."""
    shape = (length, length)
    if sight.distance is None or not (sight.causal or sight.window):
        return splash.FullMask(shape)
    if sight.window is None:
        return splash.CausalMask(shape, sight.distance)
    back = sight.window - 1
    return splash.LocalMask(shape, (back, 0 if sight.causal else back), sight.distance)


@dataclass(frozen=True)
class BySplash:
    """Attention of chunks by splash attention, which skips blocks that a mask hides.

    Args:
        soft_cap: bound of the scores; None for none.
        interpret: run it as plain jax, as tests do where there is no TPU.
    """

    soft_cap: float | None
    interpret: bool

    def forward(self, queries: Queries, keys: Keys, sight: Sight) -> Mixed:
        """Attend from a chunk to a chunk."""
        owners = splash.SegmentIds(queries.segments, keys.segments)
        kernel = self._kernel(queries.query, sight)
        flat = _flat(queries.query)
        out, (log_sum,) = jax.vmap(kernel)(flat, keys.key, keys.value, owners)
        # Splash divides by zero where no key of a block of queries is in the window.
        there = jnp.isfinite(log_sum)
        out = jnp.where(there[..., None], out, 0.0).astype(jnp.float32)
        log_sum = jnp.where(there, log_sum, kernels.DEFAULT_MASK_VALUE)
        shape = queries.query.shape
        return Mixed(out.reshape(shape), log_sum.reshape(shape[:-1]))

    def backward(
        self, queries: Queries, keys: Keys, slope: Slope, sight: Sight
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Compute the gradients of queries, and of keys and values, in float32.

        Splash's own backward pass takes the sum of all its keys; here it is that of all chunks.
        """
        kernel = self._kernel(queries.query, sight)
        owners = splash.SegmentIds(queries.segments, keys.segments)
        of_row = (_flat(x) for x in (queries.query, slope.log_sum, slope.d_out, slope.shared))
        query, log_sum, d_out, shared = of_row
        run = jax.vmap(partial(_gradients, kernel))
        d_query, d_key, d_value = run(query, keys.key, keys.value, owners, log_sum, d_out, shared)
        d_query = d_query.reshape(queries.query.shape)
        d_query, d_key, d_value = (x.astype(jnp.float32) for x in (d_query, d_key, d_value))
        return d_query, (d_key, d_value)

    def _kernel(self, query: jax.Array, sight: Sight) -> kernels.SplashAttentionKernel:
        groups, per_group, length, width = query.shape[1:]
        window = None if sight.distance is None else sight.window
        return splash.make_splash_mha(
            splash.MultiHeadMask([splash_mask(length, sight)] * (groups * per_group)),
            block_sizes=splash_blocks(length, width, sight.causal, window),
            head_shards=1,
            q_seq_shards=1,
            save_residuals=True,
            attn_logits_soft_cap=self.soft_cap,
            interpret=self.interpret,
        )


def _flat(x: jax.Array) -> jax.Array:
    """Join the heads: [B, G, M, T, ...] -> [B, G M, T, ...]."""
    return x.reshape(x.shape[0], -1, *x.shape[3:])


def _gradients(
    kernel: kernels.SplashAttentionKernel,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    owners: splash.SegmentIds,
    log_sum: jax.Array,
    d_out: jax.Array,
    shared: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Run splash's backward kernels on one row: gradients of query, key and value."""
    options, of_keys, of_queries = kernel.kwargs, kernel.dkv_mask_info, kernel.dq_mask_info
    assert of_keys is not None  # the block sizes are also of the backward pass
    sizes = options["block_sizes"]
    arrays = query, key, value, owners, None, log_sum, d_out, shared
    settings: dict[str, Any] = {
        name: options[name]
        for name in ("is_mqa", "mask_value", "attn_logits_soft_cap", "mask_function", "interpret")
    }
    settings |= {name: getattr(sizes, name) for name in ("q_layout", "k_layout", "v_layout")}
    d_query, d_key, d_value = kernels._splash_attention_bwd_dkv(
        *arrays,
        bq=sizes.block_q_dkv,
        bkv=sizes.block_kv_dkv,
        bkv_compute=sizes.block_kv_dkv_compute,
        mask_info=of_keys,
        use_fused_bwd_kernel=sizes.use_fused_bwd_kernel,
        **settings,
    )
    if d_query is None:
        assert of_queries is not None  # without a fused kernel there are two
        d_query = kernels._splash_attention_bwd_dq(
            *arrays,
            bq=sizes.block_q_dq,
            bkv=sizes.block_kv_dq,
            mask_info=of_queries,
            **settings,
        )
    return d_query, d_key, d_value
