"""Attention over rows cut over devices, which exchange positions for heads: Ulysses.

B rows, T positions, H heads, G heads of keys and values, K width of a head; N devices have the
positions of a row. Each sends the others their heads of its positions, attends over whole rows with
the heads that it then has, and sends the results back: four exchanges, where a ring passes keys and
values around N - 1 times. The heads of keys must divide over the devices, and the positions lie in
the order of the row.

Source: Jacobs et al. (2023), https://arxiv.org/abs/2309.14509.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxft.models.layers.kernels import ATTENTION_OUTPUT, CONTEXT, SPLASH, Kernel
from jaxft.models.layers.math import matmul_precision
from jaxft.models.layers.ring.attention import CUT, CUT_SEGMENTS
from jaxft.models.layers.ring.chunks import ByXla, Keys, Queries, Sight, Slope
from jaxft.models.layers.ring.splash import BySplash

HEAD, POSITION = 1, 2  # axes of [B, H, T, K]


def exchanged_attention(
    kernel: Kernel,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segments: jax.Array,
    *,
    causal: bool,
    window: int | None,
    soft_cap: float | None,
) -> jax.Array:
    """Attend over rows that are cut over `context`, in their order.

    Args:
        kernel: with the mesh.
        query: [B, H, T, K], scaled.
        key, value: [B, G, T, K].
        segments: [B, T] int32.
        causal, window: as of a mask.
        soft_cap: bound of the scores; None for none.

    Returns:
        [B, H, T, K].
    """
    whole: ByXla | BySplash = ByXla(soft_cap, matmul_precision())
    if kernel.chunks == SPLASH:
        whole = BySplash(soft_cap, kernel.interpret)
    sight = Sight(0, causal, window) if causal or window is not None else Sight()

    def local(*arrays: jax.Array) -> jax.Array:
        heads = (
            lax.all_to_all(x, CONTEXT, split_axis=HEAD, concat_axis=POSITION, tiled=True)
            for x in arrays[:3]
        )
        owners = lax.all_gather(arrays[3], CONTEXT, axis=1, tiled=True)  # [B, T]
        mixed = _attend(*heads, owners, whole, sight)
        return lax.all_to_all(mixed, CONTEXT, split_axis=POSITION, concat_axis=HEAD, tiled=True)

    over_devices = jax.shard_map(
        local,
        mesh=kernel.mesh,
        in_specs=(CUT, CUT, CUT, CUT_SEGMENTS),
        out_specs=CUT,
        check_vma=False,  # a kernel does not say over which axes its output varies
    )
    return over_devices(query, key, value, segments)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attend(*inputs: Any) -> jax.Array:
    """Attend over whole rows with some of the heads: [B, H / N, T, K]."""
    return _forward(*inputs)[0]


def _forward(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segments: jax.Array,
    whole: ByXla | BySplash,
    sight: Sight,
) -> tuple[jax.Array, Any]:
    grouped = _grouped(query, key.shape[HEAD])
    mixed = whole.forward(Queries(grouped, segments), Keys(key, value, segments), sight)
    out = mixed.out.reshape(query.shape).astype(query.dtype)
    out, log_sum = (checkpoint_name(x, ATTENTION_OUTPUT) for x in (out, mixed.log_sum))
    return out, (query, key, value, segments, out, log_sum)


def _backward(
    whole: ByXla | BySplash, sight: Sight, residuals: Any, d_out: jax.Array
) -> tuple[Any, ...]:
    query, key, value, segments, out, log_sum = residuals
    shared = (d_out.astype(jnp.float32) * out).sum(-1).reshape(log_sum.shape)
    query, d_out = (_grouped(x, key.shape[HEAD]) for x in (query, d_out))
    queries, keys = Queries(query, segments), Keys(key, value, segments)
    slope = Slope(d_out, log_sum, shared)
    d_query, (d_key, d_value) = whole.backward(queries, keys, slope, sight)
    gradients = zip((d_query.reshape(out.shape), d_key, d_value), (out, key, value), strict=True)
    return *(gradient.astype(x.dtype) for gradient, x in gradients), None


_attend.defvjp(_forward, _backward)


def _grouped(x: jax.Array, groups: int) -> jax.Array:
    """Split the heads [B, G M, T, K] by the head of keys that serves them: [B, G, M, T, K]."""
    rows, heads, *rest = x.shape
    return x.reshape(rows, groups, heads // groups, *rest)
