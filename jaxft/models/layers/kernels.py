"""Attention kernels of accelerators: which can serve a model, and their calls.

B rows, T positions, H heads, G heads of keys and values, K width of a head. Neither kernel keeps
scores [B, H, T, T], and neither has dropout on the attention weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import Mesh, PartitionSpec

from jaxft.errors import UserError

PLATFORMS = {"cudnn": ("gpu", "cuda"), "splash": ("tpu",)}
ROWS, HEADS = ("data", "fsdp"), "tensor"  # the mesh's axes that rows and heads are cut over
LANES = 128  # splash takes positions by so many
BLOCKS = (512, 256, 128)  # positions at a time, the most that divides a row
WIDEST = 128  # head that cudnn takes on every GPU


@dataclass(frozen=True)
class Needs:
    """Requirements of a model on an attention kernel.

    Args:
        heads, groups: H and G.
        width: K.
        rate: dropout on the attention weights.
        soft_cap: bound of the scores; None for none.
        windows: whether blocks see through windows that differ, which are data.
        positions: whether something learned is added to the scores.
    """

    heads: int
    groups: int
    width: int
    rate: float = 0.0
    soft_cap: float | None = None
    windows: bool = False
    positions: bool = False


@dataclass(frozen=True)
class Setting:
    """Setting in which attention runs.

    Args:
        platform: what the program is compiled for.
        dtype: the type of queries, keys and values.
        dropout: whether dropout is on.
        mesh: the devices that rows and heads are cut over; None where it is not known.
        rows, length: B and T.
    """

    platform: str
    dtype: str
    dropout: bool
    mesh: Mesh | None
    rows: int
    length: int


@dataclass(frozen=True)
class Kernel:
    """Attention kernel that serves a model.

    Args:
        name: `cudnn` or `splash`.
        mesh: the devices that rows and heads are cut over; None for one device.
        interpret: run splash as plain jax, as tests do where there is no TPU.
    """

    name: str
    mesh: Mesh | None = None
    interpret: bool = False

    @property
    def reads_bias(self) -> bool:
        """Return whether it reads the bias of the scores; else it reads the segments."""
        return self.name == "cudnn"


def choose(asked: str, needs: Needs, setting: Setting) -> Kernel | None:
    """Choose the kernel for a model; None for XLA's own attention.

    Args:
        asked: `auto` takes a kernel where one can serve; `xla`; or a kernel's name.
        needs: what the model asks.
        setting: where it runs.

    Raises:
        UserError: the kernel that is asked for cannot serve.
    """
    if asked == "xla":
        return None
    for name in PLATFORMS if asked == "auto" else (asked,):
        why = refusal(name, needs, setting)
        if why is None and (asked != "auto" or _fits(name, setting)):
            return Kernel(name, setting.mesh)
        if asked != "auto":
            raise UserError(
                f"train.attention: {name} cannot serve this run: {why}.",
                "Use train.attention=auto, which takes a kernel only where it can serve.",
            )
    return None


def refusal(name: str, needs: Needs, setting: Setting) -> str | None:
    """Return why a kernel cannot serve a model, to follow "since"; None if it can."""
    shares = 1 if setting.mesh is None else math.prod(setting.mesh.shape[axis] for axis in ROWS)
    tensor = 1 if setting.mesh is None else setting.mesh.shape[HEADS]
    reasons = {
        f"it runs on {PLATFORMS[name][0].upper()}s, and this is for {setting.platform}": (
            setting.platform not in PLATFORMS[name]
        ),
        f"it computes in bfloat16, and this run in {setting.dtype}": setting.dtype != "bfloat16",
        f"it has no dropout on attention weights, and the rate is {needs.rate} "
        "(model.dropout=0 turns it off)": needs.rate > 0 and setting.dropout,
        "positions are learned scores, and no kernel has their gradient": needs.positions,
        f"{needs.groups} heads of keys do not divide over mesh.tensor={tensor}": (
            needs.groups % tensor != 0
        ),
        f"{setting.rows} rows do not divide over {shares} devices": setting.rows % shares != 0,
    }
    if name == "cudnn":
        reasons |= {
            "it has no soft cap on scores": needs.soft_cap is not None,
            f"heads are {needs.width} wide, and it takes multiples of 8 up to {WIDEST}": (
                needs.width % 8 != 0 or needs.width > WIDEST
            ),
            f"{setting.length} positions are an odd number": setting.length % 2 != 0,
        }
    else:
        reasons |= {
            "blocks see through windows that differ": needs.windows,
            "the mesh is not known to the model": setting.mesh is None,
        }
    return next((why for why, holds in reasons.items() if holds), None)


def _fits(name: str, setting: Setting) -> bool:
    """Return whether a row is whole blocks of the kernel, so that no padding is computed."""
    return name != "splash" or setting.length % LANES == 0


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
    local: Callable[..., jax.Array]
    if kernel.name == "cudnn":
        local = partial(_cudnn, causal=causal)
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
    query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array, *, causal: bool
) -> jax.Array:
    """Attend with cuDNN's flash attention, through jax."""
    query, key, value = (x.transpose(0, 2, 1, 3) for x in (query, key, value))  # [B, T, H, K]
    out = jax.nn.dot_product_attention(
        query,
        key,
        value,
        bias=jax.lax.stop_gradient(bias).astype(query.dtype),
        scale=1.0,
        is_causal=causal,  # the bias says so too; this way what is hidden is not computed
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
    heads, length = query.shape[1], query.shape[2]
    spare = (0, -length % LANES)
    if spare[1]:
        query, key, value = (
            jnp.pad(x, ((0, 0), (0, 0), spare, (0, 0))) for x in (query, key, value)
        )
        segments = jnp.pad(segments, ((0, 0), spare), constant_values=-1)  # seen by itself only
    whole = length + spare[1]
    size = next(size for size in BLOCKS if whole % size == 0)
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([_seen(whole, causal, window)] * heads),
        block_sizes=splash.BlockSizes(size, size, size, size, size, size, size, size),
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=soft_cap,
        interpret=interpret,
    )
    out = jax.vmap(kernel)(query, key, value, splash.SegmentIds(segments, segments))
    return out[:, :, :length]


def _seen(length: int, causal: bool, window: int | None) -> splash.Mask:
    """Return splash's mask within a segment."""
    shape = (length, length)
    if window is not None:
        return splash.LocalMask(shape, (window - 1, 0 if causal else None), 0)
    return splash.CausalMask(shape) if causal else splash.FullMask(shape)
