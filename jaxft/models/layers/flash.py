"""Attention by a kernel: cuDNN's flash attention on GPUs, jax's splash attention on TPUs.

And over the devices of a row, where it has several: `ring.attention`, `ring.exchange`.

B rows, T positions, H heads, G heads of keys and values, K width of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import PartitionSpec

from jaxft.models.layers.kernels import ATTENTION_OUTPUT, HEADS, LANES, RING, ROWS, ULYSSES, Kernel
from jaxft.models.layers.ring.attention import ring_attention
from jaxft.models.layers.ring.chunks import Sight
from jaxft.models.layers.ring.exchange import exchanged_attention
from jaxft.models.layers.ring.splash import splash_blocks, splash_mask


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
    if kernel.name in (RING, ULYSSES):
        attend = ring_attention if kernel.name == RING else exchanged_attention
        arrays = query, key, value, visibility
        return attend(kernel, *arrays, causal=causal, window=window, soft_cap=soft_cap)
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
        splash.MultiHeadMask([splash_mask(whole, Sight(0, causal, window))] * heads),
        block_sizes=splash_blocks(whole, width, causal, window),
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=soft_cap,
        residual_checkpoint_name=ATTENTION_OUTPUT,
        interpret=interpret,
    )
    out = jax.vmap(kernel)(query, key, value, splash.SegmentIds(segments, segments))
    return out[:, :, :length]
