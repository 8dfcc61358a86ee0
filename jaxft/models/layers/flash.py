"""Attention by a kernel: cuDNN's flash attention on GPUs, jax's splash attention on TPUs.

And over the devices of a row, where it has several: `ring.attention`.

B rows, T positions, H heads, G heads of keys and values, K width of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import PartitionSpec

from jaxft.models.layers.kernels import ATTENTION_OUTPUT, HEADS, LANES, RING, ROWS, Kernel
from jaxft.models.layers.ring.attention import ring_attention

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


def run_kernel(
    kernel: Kernel,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    visibility: jax.Array,
    *,
    causal: bool,
    window: int | None,
    soft_cap: float | None = None,
) -> jax.Array:
    """Attend with a kernel, each device on its own rows and heads.

    Args:
        kernel: as `choose` gives it.
        query: [B, H, T, K], scaled.
        key, value: [B, G, T, K].
        visibility: what the kernel reads of who sees whom: a bias [B, 1, T, T], or segments [B, T].
        causal, window: as of a mask.
        soft_cap: bound of the scores.

    Returns:
        [B, H, T, K].
    """
    if window is not None and window >= query.shape[2]:
        window = None  # no position of the row lies that far away
    if kernel.name == RING:
        arrays = query, key, value, visibility
        return ring_attention(kernel, *arrays, causal=causal, window=window, soft_cap=soft_cap)
    local: Callable[..., jax.Array]
    if kernel.name == "cudnn":
        local = partial(_cudnn, causal=causal, window=window)
    else:
        local = partial(
            _splash, causal=causal, window=window, soft_cap=soft_cap, interpret=kernel.interpret
        )
    if kernel.mesh is None:
        return local(query, key, value, visibility)
    cut = PartitionSpec(ROWS, HEADS)
    over_devices = jax.shard_map(
        local,
        mesh=kernel.mesh,
        in_specs=(cut, cut, cut, PartitionSpec(ROWS)),
        out_specs=cut,
        check_vma=False,  # a kernel does not say over which axes its output varies
    )
    return over_devices(query, key, value, visibility)


def _cudnn(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array,
    *,
    causal: bool,
    window: int | None,
) -> jax.Array:
    """Attend with cuDNN's flash attention, through jax."""
    query, key, value = (x.transpose(0, 2, 1, 3) for x in (query, key, value))  # [B, T, H, K]
    out = jax.nn.dot_product_attention(
        query,
        key,
        value,
        bias=jax.lax.stop_gradient(bias).astype(query.dtype),
        scale=1.0,
        # The bias says both too; this way what is hidden is not computed. cuDNN has windows to
        # the left of a causal mask only.
        is_causal=causal,
        local_window_size=(window - 1, 0) if causal and window is not None else None,
        implementation="cudnn",
    )
    return out.transpose(0, 2, 1, 3)


def _splash(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segments: jax.Array,
    *,
    causal: bool,
    window: int | None,
    soft_cap: float | None,
    interpret: bool,
) -> jax.Array:
    """Attend with jax's splash attention, which skips blocks that are masked out."""
    heads, length, width = query.shape[1:]
    spare = (0, -length % LANES)
    if spare[1]:
        query, key, value = (
            jnp.pad(x, ((0, 0), (0, 0), spare, (0, 0))) for x in (query, key, value)
        )
        segments = jnp.pad(segments, ((0, 0), spare), constant_values=-1)  # seen by itself only
    whole = length + spare[1]
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([_seen(whole, causal, window)] * heads),
        block_sizes=splash_blocks(whole, width, causal, window),
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=soft_cap,
        residual_checkpoint_name=ATTENTION_OUTPUT,
        interpret=interpret,
    )
    out = jax.vmap(kernel)(query, key, value, splash.SegmentIds(segments, segments))
    return out[:, :, :length]


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


def _seen(length: int, causal: bool, window: int | None) -> splash.Mask:
    """Return splash's mask within a segment."""
    shape = (length, length)
    if window is not None:
        return splash.LocalMask(shape, (window - 1, 0 if causal else window - 1), 0)
    return splash.CausalMask(shape) if causal else splash.FullMask(shape)
