"""Mixture of experts in place of a block's MLP: each token goes through the few that it chooses.

No token is dropped: the rows of all tokens are sorted by expert, and each expert's rows are one
group of a ragged matmul, however many they are.

B rows, T positions, N tokens, K experts that a token chooses, M = N K rows sorted by expert, E
experts, D width, F width inside of an expert.

Source: Shazeer et al. (2017), https://arxiv.org/abs/1701.06538; without capacities, as Gale et al.
(2022), https://arxiv.org/abs/2211.15841; router, softmax and choice in the order of `transformers`'
`modeling_qwen3_moe.py`, `modeling_mixtral.py`, `modeling_olmoe.py` and `modeling_gpt_oss.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, PartitionSpec

from jaxft.models.layers.kernels import CONTEXT, HEADS, ROWS, context_of
from jaxft.models.layers.loss import Routed
from jaxft.models.layers.math import ACTIVATIONS, PRODUCT, linear
from jaxft.models.layers.modules import Leaf, parameter
from jaxft.models.layers.partition import EXPERT, SHARDS, over_shards, own_share, partition

INSIDE, OUTSIDE = "mlp", "expert_embed"  # the logical axes of F and D
Kernels = Sequence[jax.Array]  # a map's kernel [E, I, O], or its bias [E, O]


@dataclass(frozen=True)
class Choice:
    """Choice of experts for each token.

    Args:
        scores: of all experts, [B, T, E] float32.
        experts: those that are chosen, [B, T, K] int32.
        weights: what each one's output is multiplied by, [B, T, K] float32.
    """

    scores: jax.Array
    experts: jax.Array
    weights: jax.Array

    def use(self, true: jax.Array) -> Routed:
        """Sum up the use of each expert; `true` [B, T] is 0 for padding, else 1."""
        count = self.scores.shape[-1]
        chosen = jax.nn.one_hot(self.experts, count).sum(-2)  # [B, T, E]
        likely = jax.nn.softmax(self.scores)
        chosen, likely = ((part * true[..., None]).sum((0, 1)) for part in (chosen, likely))
        return Routed(chosen, likely, true.sum())


class Router(nnx.Module):
    """Choice of experts by scores that are linear in the token, in float32.

    Args:
        width, count: D and E.
        chosen: K.
        normalized: whether the weights of the chosen experts add up to 1, as those of a softmax
            over their scores alone do.
        std: the standard deviation of a fresh kernel.
        bias: whether the scores have one.
    """

    def __init__(
        self, width: int, count: int, chosen: int, normalized: bool, std: float, bias: bool = False
    ):
        self.kernel = parameter(Leaf((width, count), ("embed", "scores"), std=std))
        self.bias = parameter(Leaf((count,), ("scores",), decay=False)) if bias else None
        self.chosen, self.normalized = chosen, normalized

    def __call__(self, x: jax.Array) -> Choice:
        bias = None if self.bias is None else self.bias[...].astype(jnp.float32)
        scores = linear(x.astype(jnp.float32), self.kernel[...].astype(jnp.float32), bias)
        weights, experts = lax.top_k(jax.nn.softmax(scores), self.chosen)
        if self.normalized:
            weights = weights / weights.sum(-1, keepdims=True)
        return Choice(scores, experts, weights)


class Stack(nnx.Module):
    """Linear maps of all experts: [E, I, O]; arguments as of `Linear`."""

    def __init__(
        self,
        count: int,
        inside: int,
        outside: int,
        axes: tuple[str, str],
        std: float,
        bias: bool = False,
    ):
        self.kernel = parameter(Leaf((count, inside, outside), ("experts", *axes), std=std))
        of_bias = Leaf((count, outside), ("experts", axes[1]), decay=False)
        self.bias = parameter(of_bias) if bias else None
        self.axes = (("experts", *axes), *((of_bias.axes,) if bias else ()))

    @property
    def values(self) -> Kernels:
        """Return the kernel, and the bias if there is one."""
        return [part[...] for part in (self.kernel, self.bias) if part is not None]


@dataclass(frozen=True)
class Groups:
    """Rows sorted by expert.

    Args:
        experts: of each row, [M] int32.
        sizes: how many rows each expert has, [E] int32.
        own: whether a row is of one of these experts, [M, 1]; None where all are.
    """

    experts: jax.Array
    sizes: jax.Array
    own: jax.Array | None

    def through(
        self, rows: jax.Array, kernel: jax.Array, bias: jax.Array | None = None
    ) -> jax.Array:
        """Map each row by its expert's kernel: [M, I] -> [M, O]."""
        out = lax.ragged_dot(rows, kernel, self.sizes)
        out = out if bias is None else out + jnp.take(bias, self.experts, axis=0, mode="clip")
        return checkpoint_name(self.only_own(out), PRODUCT)

    def only_own(self, rows: jax.Array) -> jax.Array:
        """Set rows of other devices' experts to 0; a kernel leaves anything in them."""
        return rows if self.own is None else jnp.where(self.own, rows, 0.0)


Inner = Callable[[Kernels, jax.Array, Groups], jax.Array]  # kernels, rows [M, D] -> [M, D]


class Experts(nnx.Module):
    """Gated MLPs, of which each token goes through those that it chooses: [B, T, D] -> [B, T, D].

    Args:
        count: E.
        width, inner: D and F.
        std: the standard deviation of a fresh kernel.
        activation: the name of the gate's function.
    """

    def __init__(self, count: int, width: int, inner: int, std: float, activation: str):
        self.gate = Stack(count, width, inner, (OUTSIDE, INSIDE), std)
        self.up = Stack(count, width, inner, (OUTSIDE, INSIDE), std)
        self.down = Stack(count, inner, width, (INSIDE, OUTSIDE), std)
        self.activation = activation

    def __call__(self, x: jax.Array, choice: Choice, mesh: Mesh | None) -> jax.Array:
        return _run((self.gate, self.up, self.down), x, choice, mesh, self._inner, splits=True)

    def _inner(self, kernels: Kernels, rows: jax.Array, groups: Groups) -> jax.Array:
        gate, up, down = kernels
        activated = ACTIVATIONS[self.activation](groups.through(rows, gate))
        return groups.through(activated * groups.through(rows, up), down)


class ClampedExperts(nnx.Module):
    """Likewise as gpt-oss has them: with biases, gate and up bounded, and 1 added to up.

    Gate and up are one map, the columns of which they have by turns.

    Args:
        count: E.
        width, inner: D and F.
        std: the standard deviation of a fresh kernel.
        slope: what the gate is multiplied by inside of its sigmoid.
        most: the bound of the gate from above, and of up both ways.
    """

    def __init__(self, count: int, width: int, inner: int, std: float, slope: float, most: float):
        self.gate_up = Stack(count, width, 2 * inner, (OUTSIDE, INSIDE), std, bias=True)
        self.down = Stack(count, inner, width, (INSIDE, OUTSIDE), std, bias=True)
        self.slope, self.most = slope, most

    def __call__(self, x: jax.Array, choice: Choice, mesh: Mesh | None) -> jax.Array:
        # A bias of `down` would be added on each device that has a part of F.
        return _run((self.gate_up, self.down), x, choice, mesh, self._inner, splits=False)

    def _inner(self, kernels: Kernels, rows: jax.Array, groups: Groups) -> jax.Array:
        both = groups.through(rows, *kernels[:2])
        gate, up = both[..., ::2], both[..., 1::2]
        gate, up = jnp.minimum(gate, self.most), jnp.clip(up, -self.most, self.most)
        return groups.through((up + 1) * gate * jax.nn.sigmoid(gate * self.slope), *kernels[2:])


def _run(
    stacks: Sequence[Stack],
    x: jax.Array,
    choice: Choice,
    mesh: Mesh | None,
    inner: Inner,
    splits: bool,
) -> jax.Array:
    """Run tokens [B, T, D] through their experts, on one device or on those of a mesh.

    Args:
        stacks: the maps of the experts.
        x: the tokens.
        choice: of experts for each.
        mesh: the devices; None for one.
        inner: what an expert computes.
        splits: whether F may be divided over devices, whose outputs are then added up.
    """
    kernels = [value for stack in stacks for value in stack.values]
    if mesh is None or mesh.size == 1:
        tokens, experts, weights = _flat(x, choice.experts, choice.weights)
        return mixed(kernels, tokens, experts, weights, inner).reshape(x.shape)
    axes = [own for stack in stacks for own in stack.axes]
    division = divide(mesh, axes, kernels, x.shape[:2], splits)
    return _on_devices(division, kernels, x, choice, inner)


def _flat(*values: jax.Array) -> list[jax.Array]:
    """Join rows and positions into tokens: [B, T, ...] -> [N, ...]."""
    return [value.reshape(-1, value.shape[-1]) for value in values]


def mixed(
    kernels: Kernels,
    x: jax.Array,
    experts: jax.Array,
    weights: jax.Array,
    inner: Inner,
    ways: int = 1,
) -> jax.Array:
    """Sum over its chosen experts what each gives of a token, times its weight.

    Args:
        kernels: of the experts, the first [E, D, F].
        x: [N, D].
        experts: [N, K] int32; one that is not among the kernels' gives 0.
        weights: [N, K] float32.
        inner: what an expert computes.
        ways: over how many devices the experts are divided, of which these are one's.

    Returns:
        [N, D].
    """
    order, inverse, sizes = _by_expert(experts.reshape(-1), len(kernels[0]))
    own = None if ways == 1 else (jnp.arange(len(order)) < sizes.sum())[:, None]
    groups = Groups(experts.reshape(-1)[order], sizes, own)
    with own_share(ways):
        rows = groups.only_own(_sorted_rows(x, order, inverse))  # [M, D]
        out = inner(kernels, rows, groups)
    by_token = _permuted(out, inverse, order).reshape(*experts.shape, -1)  # [N, K, D]
    return (by_token.astype(jnp.float32) * weights[..., None]).sum(1).astype(x.dtype)


def _by_expert(experts: jax.Array, count: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sort rows by expert, [M] int32: the order, the way back, and how many each of E has."""
    order = jnp.argsort(experts)
    numbers = jnp.arange(count, dtype=experts.dtype)
    ends = jnp.searchsorted(experts[order], numbers, side="right")
    return order, jnp.argsort(order), jnp.diff(ends, prepend=0).astype(jnp.int32)


@jax.custom_vjp
def _sorted_rows(x: jax.Array, order: jax.Array, inverse: jax.Array) -> jax.Array:
    """Repeat each token [N, D] for its K experts, sorted by expert: [M, D].

    Its backward pass, and that of `_permuted`, gathers rows: jax's own would scatter them.
    """
    return x[order // (len(order) // len(x))]


def _sorted_rows_backward(saved: Any, d_rows: jax.Array) -> tuple[Any, ...]:
    inverse, tokens = saved
    by_token = d_rows[inverse].reshape(len(tokens), -1, d_rows.shape[-1])  # [N, K, D]
    return by_token.astype(jnp.float32).sum(1).astype(d_rows.dtype), None, None


_sorted_rows.defvjp(
    lambda x, order, inverse: (_sorted_rows(x, order, inverse), (inverse, x[:, :0])),
    _sorted_rows_backward,
)


@jax.custom_vjp
def _permuted(rows: jax.Array, order: jax.Array, inverse: jax.Array) -> jax.Array:
    """Put rows [M, D] in another order, of which `inverse` is the way back."""
    return rows[order]


_permuted.defvjp(
    lambda rows, order, inverse: (rows[order], inverse),
    lambda inverse, d_out: (d_out[inverse], None, None),
)


@dataclass(frozen=True)
class Division:
    """Division of a block's experts, and of the tokens that they read, over devices.

    Args:
        mesh: the devices.
        rows, positions: the axes that rows and positions are cut over; none where they do not
            divide.
        specs: how each kernel comes to a device.
        ways: over how many devices experts are divided.
        inside: whether F is divided too, so that outputs are sums over `tensor`.
    """

    mesh: Mesh
    rows: tuple[str, ...]
    positions: tuple[str, ...]
    specs: tuple[PartitionSpec, ...]
    ways: int
    inside: bool

    def tokens_of_group(self, values: Sequence[jax.Array]) -> list[jax.Array]:
        """Gather what each device along `expert` has of its own tokens, [N, ...] each."""
        if self.ways == 1:
            return list(values)
        if self.rows:
            return [lax.all_gather(value, EXPERT, tiled=True) for value in values]
        return [lax.pcast(value, EXPERT, to="varying") for value in values]

    def summed(self, out: jax.Array) -> jax.Array:
        """Add up what all devices give of each token, and return that of a device's own."""
        out = lax.psum(out, HEADS) if self.inside else out
        if self.ways == 1:
            return out
        return lax.psum_scatter(out, EXPERT, tiled=True) if self.rows else lax.psum(out, EXPERT)


def divide(
    mesh: Mesh,
    axes: Sequence[tuple[str, ...]],
    kernels: Kernels,
    shape: Sequence[int],
    splits: bool,
) -> Division:
    """Divide experts and tokens over devices as `partition` does the kernels.

    Args:
        mesh: the devices.
        axes: the logical axes of each kernel.
        kernels: of the experts.
        shape: rows and positions, [B, T].
        splits: whether F may be divided.
    """
    count, length = shape
    rows = ROWS if count % math.prod(mesh.shape[axis] for axis in ROWS) == 0 else ()
    positions = (CONTEXT,) if length % context_of(mesh) == 0 else ()
    cuts = [partition(kernel.shape, own, mesh) for kernel, own in zip(kernels, axes, strict=True)]
    inside = splits and all(
        cut[own.index(INSIDE)] == HEADS for cut, own in zip(cuts, axes, strict=True)
    )
    # What else a kernel is cut over is gathered before: each device has the tokens of all of it.
    shards = SHARDS if rows and positions else ()
    local = {EXPERT, *((HEADS,) if inside else ())}
    specs = tuple(
        PartitionSpec(*(a if a in local or (shards and over_shards(a)) else None for a in cut))
        for cut in cuts
    )
    ways = mesh.shape[EXPERT] if cuts[0][0] == EXPERT else 1
    return Division(mesh, rows, positions, specs, ways, inside)


def _on_devices(
    division: Division,
    kernels: Kernels,
    x: jax.Array,
    choice: Choice,
    inner: Inner,
) -> jax.Array:
    """Run the experts where they are: each device those that it has, for its group's tokens.

    The devices of a group, along `expert`, gather each other's tokens, and each sums up what its
    experts give. How many tokens choose them is known only then: a device has room for all.
    """

    def local(kernels: Kernels, x: jax.Array, *chosen: jax.Array) -> jax.Array:
        specs = division.specs
        whole = [_over_shards(kernel, spec) for kernel, spec in zip(kernels, specs, strict=True)]
        tokens, experts, weights = division.tokens_of_group(_flat(x, *chosen))
        if division.ways > 1:
            experts = _among_own(experts, len(whole[0]))
        out = mixed(whole, tokens, experts, weights, inner, division.ways)
        return division.summed(out).reshape(x.shape)

    cut = PartitionSpec(division.rows, division.positions)
    specs = (division.specs, cut, cut, cut)
    run = jax.shard_map(local, mesh=division.mesh, in_specs=specs, out_specs=cut)
    return run(tuple(kernels), x, choice.experts, choice.weights)


def _over_shards(kernel: jax.Array, spec: PartitionSpec) -> jax.Array:
    """Gather a kernel over `SHARDS`; its gradient is then scattered as it is summed."""
    for dimension, cut in enumerate(spec):
        if axes := over_shards(cut):
            kernel = lax.all_gather(kernel, axes, axis=dimension, tiled=True)
    return kernel


def _among_own(experts: jax.Array, count: int) -> jax.Array:
    """Return the index of each expert among this device's `count`; `count` for another's."""
    index = experts - lax.axis_index(EXPERT) * count
    return jnp.where((index >= 0) & (index < count), index, count)
