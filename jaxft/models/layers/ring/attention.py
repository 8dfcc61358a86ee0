"""Attention over rows whose positions lie on several devices: keys and values go around them.

B rows, T positions, H heads, G heads of keys and values, K width of a head; a device has one chunk
of a row or two, which come first in its arrays.

Source: Liu et al. (2023), https://arxiv.org/abs/2310.01889, with the balance of `ring.order`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, PartitionSpec

from jaxft.models.layers.kernels import ATTENTION_OUTPUT, CONTEXT, HEADS, ROWS, SPLASH, Kernel
from jaxft.models.layers.math import matmul_precision
from jaxft.models.layers.ring.chunks import ByXla, Keys, Mixed, Queries, Slope
from jaxft.models.layers.ring.splash import BySplash
from jaxft.models.layers.ring.travel import Meeting, Route

NO_SEGMENT = 0  # of keys that are not there; those of a row count from 1


CUT = PartitionSpec(ROWS, HEADS, CONTEXT)  # of queries, keys and values, and what belongs to them
CUT_SEGMENTS = PartitionSpec(ROWS, CONTEXT)


@dataclass(frozen=True)
class Ring:
    """Static part of attention over a ring of devices.

    Args:
        mesh: the devices.
        route: of the keys.
        chunks: what attends from a chunk to a chunk.
    """

    mesh: Mesh
    route: Route
    chunks: ByXla | BySplash

    def run(self, local: Callable[..., Any], results: int, *arrays: jax.Array) -> Any:
        """Run a function of each device's part: its arrays are cut like heads, or are segments."""
        inputs = tuple(CUT_SEGMENTS if x.ndim == 2 else CUT for x in arrays)
        run = jax.shard_map(
            partial(local, self),
            mesh=self.mesh,
            in_specs=inputs,
            out_specs=(CUT,) * results,
            check_vma=False,  # a kernel does not say over which axes its output varies
        )
        return run(*arrays)


def ring_attention(
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
    """Attend over rows that are cut over `context`, dealt by `dealt_order` under a causal mask.

    Args:
        kernel: with the mesh.
        query: [B, H, T, K], scaled.
        key, value: [B, G, T, K].
        segments: [B, T] int32, not negative.
        causal, window: as of a mask.
        soft_cap: bound of the scores; None for none.

    Returns:
        [B, H, T, K].
    """
    assert kernel.mesh is not None  # it has the axis `context`
    devices = kernel.mesh.shape[CONTEXT]
    route = Route(devices, query.shape[2] // devices, causal, window)
    chunks: ByXla | BySplash = ByXla(soft_cap, matmul_precision())
    if kernel.chunks == SPLASH:
        chunks = BySplash(soft_cap, kernel.interpret)
    ring = Ring(kernel.mesh, route, chunks)
    return _ring(query, key, value, segments + (NO_SEGMENT + 1), ring)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _ring(*inputs: Any) -> jax.Array:
    return _forward(*inputs)[0]


def _forward(
    query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array, ring: Ring
) -> tuple[jax.Array, Any]:
    results = ring.run(_forward_here, 2, query, key, value, segments)
    out, log_sum = (checkpoint_name(x, ATTENTION_OUTPUT) for x in results)
    return out, (query, key, value, segments, out, log_sum)


def _backward(ring: Ring, residuals: Any, d_out: jax.Array) -> tuple[Any, ...]:
    return (*ring.run(_backward_here, 3, *residuals, d_out), None)


_ring.defvjp(_forward, _backward)


def _forward_here(
    ring: Ring, query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Attend on one device: its output [B, H, T / N, K] and log sums [B, H, T / N]."""
    count = ring.route.chunks
    queries, keys = _chunked(query, key, value, segments, count)

    def visit(sums: Mixed, keys: Keys, meetings: Sequence[Meeting]) -> tuple[Mixed, tuple]:
        for one in meetings:
            own, others = _at(queries, one.query), _at(keys, one.key)
            part = ring.chunks.forward(own, others, one.sight)
            sums = _with(sums, one.query, _merged(_at(sums, one.query), part))
        return sums, ()

    shape = queries.query.shape
    nothing = Mixed(jnp.zeros(shape, jnp.float32), jnp.full(shape[:-1], -jnp.inf, jnp.float32))
    (out, log_sum), _ = ring.route.run(visit, keys, nothing)
    out, log_sum = _heads_joined(out), _heads_joined(log_sum[..., None])[..., 0]
    return out.astype(query.dtype), log_sum


def _backward_here(
    ring: Ring,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segments: jax.Array,
    out: jax.Array,
    log_sum: jax.Array,
    d_out: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Compute the gradients of one device's queries, keys and values."""
    count, groups = ring.route.chunks, key.shape[1]
    queries, keys = _chunked(query, key, value, segments, count)
    shared = (d_out.astype(jnp.float32) * out).sum(-1, keepdims=True)
    split = partial(_heads_split, groups=groups, count=count)
    slope = Slope(split(d_out), split(log_sum[..., None])[..., 0], split(shared)[..., 0])

    def visit(sums: jax.Array, keys: Keys, meetings: Sequence[Meeting]) -> tuple[jax.Array, Any]:
        gains = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), (keys.key, keys.value))
        for one in meetings:
            own, others = _at(queries, one.query), _at(keys, one.key)
            of_query, of_keys = ring.chunks.backward(own, others, _at(slope, one.query), one.sight)
            sums = _with(sums, one.query, _at(sums, one.query) + of_query)
            more = jax.tree.map(jnp.add, _at(gains, one.key), of_keys)
            gains = _with(gains, one.key, more)
        return sums, gains

    d_query = jnp.zeros(queries.query.shape, jnp.float32)
    d_query, (d_key, d_value) = ring.route.run(visit, keys, d_query)
    d_key, d_value = (_heads_joined(x[:, :, :, None]) for x in (d_key, d_value))
    arrays = zip((_heads_joined(d_query), d_key, d_value), (query, key, value), strict=True)
    d_query, d_key, d_value = (gradient.astype(x.dtype) for gradient, x in arrays)
    return d_query, d_key, d_value


def _chunked(
    query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array, count: int
) -> tuple[Queries, Keys]:
    """Split what a device has into chunks, which come first."""
    groups = key.shape[1]
    split = partial(_heads_split, groups=groups, count=count)
    owners = jnp.moveaxis(segments.reshape(len(segments), count, -1), 1, 0)
    key, value = (split(x)[:, :, :, 0] for x in (key, value))
    return Queries(split(query), owners), Keys(key, value, owners)


def _heads_split(x: jax.Array, groups: int, count: int) -> jax.Array:
    """Split [B, G M, T, K] into [chunks, B, G, M, T / chunks, K]."""
    rows, heads, length, width = x.shape
    shape = rows, groups, heads // groups, count, length // count, width
    return jnp.moveaxis(x.reshape(shape), 3, 0)


def _heads_joined(x: jax.Array) -> jax.Array:
    """Undo `_heads_split`."""
    count, rows, groups, per_group, length, width = x.shape
    return jnp.moveaxis(x, 0, 3).reshape(rows, groups * per_group, count * length, width)


def _at(arrays: Any, index: int | jax.Array) -> Any:
    """Select a chunk of arrays."""
    if isinstance(index, int):
        return jax.tree.map(lambda x: x[index], arrays)
    return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, index, keepdims=False), arrays)


def _with(arrays: Any, index: int | jax.Array, chunk: Any) -> Any:
    """Return arrays with another chunk in one place."""
    return jax.tree.map(lambda x, one: x.at[index].set(one), arrays, chunk)


def _merged(left: Mixed, right: Mixed) -> Mixed:
    """Merge two parts of one softmax; the second has a finite sum."""
    top = jnp.maximum(left.log_sum, right.log_sum)
    shares = jnp.exp(left.log_sum - top), jnp.exp(right.log_sum - top)
    total = shares[0] + shares[1]
    parts = zip((left.out, right.out), shares, strict=True)
    out = sum(part * (share / total)[..., None] for part, share in parts)
    return Mixed(jnp.asarray(out), top + jnp.log(total))
