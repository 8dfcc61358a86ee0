"""A tower (stem, blocks, top) as a pure function of its flat parameters, and the segmented scan.

The stem turns a batch into a stream [B, T, D] and a context that every block reads; the blocks
turn stream into stream; the top turns the stream into named outputs. Each part is one NNX graph
definition, bound inside the step to the leaves it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.models.layers import Leaf, split_key

Params = Mapping[str, jax.Array]
Numbers = Mapping[str, Any]
Step = Callable[[jax.Array, Params, jax.Array | int, Numbers], jax.Array]


@dataclass(frozen=True)
class Compute:
    """How to run a model: the only place that says so, and static under jit.

    Args:
        dtype: the type in which matmuls run; parameters are cast to it on use.
        precision: jax's matmul precision (`highest` keeps float32 whole); None for the default.
        scan: run equal blocks under one `lax.scan` instead of unrolled.
        remat: `full` recomputes each block on the way back instead of keeping its activations.
        platform: what the program is compiled for; nothing in a step asks the default device.
        trainable: the names that are differentiated; None for all. Blocks with different
            trainable leaves never share a scan, and a part without any has no dropout.
    """

    dtype: str = "float32"
    precision: str | None = None
    scan: bool = False
    remat: str = "none"
    platform: str = "cpu"
    trainable: frozenset[str] | None = None

    def trains(self, name: str) -> bool:
        """Whether the parameter `name` is differentiated."""
        return self.trainable is None or name in self.trainable


PLAIN = Compute()


@dataclass(frozen=True, eq=False)
class Part:
    """One NNX module without its values: a graph definition and the leaves that fill it.

    Args:
        module: the module, its parameters made by `layers.parameter`.
    """

    module: nnx.Module

    @cached_property
    def graphdef(self) -> nnx.GraphDef:
        """The module's structure and static settings."""
        return nnx.split(self.module)[0]

    @cached_property
    def leaves(self) -> dict[str, Leaf]:
        """The module's parameters: path joined by `/` -> description."""
        state = nnx.to_flat_state(nnx.split(self.module)[1])
        return {"/".join(map(str, path)): value.get_metadata()["leaf"] for path, value in state}

    def bind(self, values: Params) -> Callable[..., Any]:
        """The module with `values` (path -> array) in it, ready to be called."""
        return nnx.merge(
            self.graphdef,
            nnx.from_flat_state(
                [(tuple(path.split("/")), nnx.Param(values[path])) for path in self.leaves]
            ),
        )


@dataclass(frozen=True, eq=False)
class Tower:
    """A stack of blocks with what comes before and after it.

    Args:
        stem: called `stem(batch, key, compute) -> (stream [B, T, D], context)`; depth 0.
        blocks: each called `block(stream, context, key, **numbers) -> stream`; block i has
            depth i + 1. Equal neighbours are one object.
        top: called `top(stream, batch, key) -> dict of outputs`; depth n + 1.
        ties: names of the top that are another parameter: the top's path -> that one's name.
        numbers: what differs between blocks that are one object otherwise (an attention
            window, a scale): name -> one number a block. A scan reads it as data.
    """

    stem: Part
    blocks: tuple[Part, ...]
    top: Part
    ties: Mapping[str, str] = field(default_factory=dict)
    numbers: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @cached_property
    def leaves(self) -> dict[str, Leaf]:
        """Every parameter of the tower, once: name -> description."""
        found = dict(self.stem.leaves)
        for index, block in enumerate(self.blocks):
            found |= {f"blocks/{index}/{path}": leaf for path, leaf in block.leaves.items()}
        return found | {
            path: leaf for path, leaf in self.top.leaves.items() if path not in self.ties
        }

    @cached_property
    def depths(self) -> dict[str, int]:
        """name -> depth: 0 for the stem, i + 1 for block i, n + 1 for the top."""
        last = len(self.blocks) + 1
        found = dict.fromkeys(self.leaves, last) | dict.fromkeys(self.stem.leaves, 0)
        for index, block in enumerate(self.blocks):
            found |= {f"blocks/{index}/{path}": index + 1 for path in block.leaves}
        return found


def run_tower(
    tower: Tower,
    params: Params,
    batch: Mapping[str, jax.Array],
    key: jax.Array | None = None,
    compute: Compute = PLAIN,
) -> dict[str, jax.Array]:
    """The outputs of a tower for a batch: stem, blocks, top.

    Args:
        tower: what to run.
        params: the flat dict; names the tower does not have are not read.
        batch: what the stem and the top read.
        key: turns dropout on.
        compute: how to run.

    Returns:
        The top's outputs, by name.
    """
    stem_key, blocks_key, top_key = split_key(key, 3)
    with jax.default_matmul_precision(compute.precision):
        stem, stem_key = _bind_end(tower.stem, params, {}, stem_key, compute)
        stream, context = stem(batch, stem_key, compute)
        stream = run_blocks(tower, params, stream, context, blocks_key, compute)
        top, top_key = _bind_end(tower.top, params, tower.ties, top_key, compute)
        return top(stream, batch, top_key)


def _bind_end(
    part: Part,
    params: Params,
    ties: Mapping[str, str],
    key: jax.Array | None,
    compute: Compute,
) -> tuple[Callable[..., Any], jax.Array | None]:
    """A stem or top bound to its leaves, and its dropout key: none where nothing is trained."""
    names = {path: ties.get(path, path) for path in part.leaves}
    module = part.bind({path: params[name].astype(compute.dtype) for path, name in names.items()})
    own = [name for path, name in names.items() if path not in ties]
    return module, key if any(map(compute.trains, own)) else None


def run_blocks(
    tower: Tower,
    params: Params,
    stream: jax.Array,
    context: Any,
    key: jax.Array | None,
    compute: Compute,
) -> jax.Array:
    """The stream after a tower's `blocks/0 .. blocks/n-1`, cut into runs of alike blocks.

    Blocks are alike when they are the same part and the same of their leaves are trained: then
    their stacked leaves are wholly trained or wholly frozen, and a scan over them computes no
    gradient that nobody asked for.

    Args:
        tower: whose blocks.
        params: the flat dict.
        stream: [B, T, D].
        context: what every block reads beside the stream.
        key: turns dropout on; block i uses `fold_in(key, i)`.
        compute: how to run.

    Returns:
        [B, T, D].
    """

    def alike(index: int) -> tuple[Part, tuple[str, ...]]:
        part = tower.blocks[index]
        return part, tuple(p for p in part.leaves if compute.trains(f"blocks/{index}/{p}"))

    for (part, trained), run in groupby(range(len(tower.blocks)), alike):
        step = partial(_run_block, part, context, key if trained else None)
        stream = _run_alike(part, step, list(run), tower.numbers, params, stream, compute)
    return stream


def _run_block(
    part: Part,
    context: Any,
    key: jax.Array | None,
    stream: jax.Array,
    values: Params,
    index: jax.Array | int,
    numbers: Numbers,
) -> jax.Array:
    block_key = None if key is None else jax.random.fold_in(key, index)
    return part.bind(values)(stream, context, block_key, **numbers)


def _run_alike(
    part: Part,
    step: Step,
    indices: list[int],
    numbers: Mapping[str, Sequence[float]],
    params: Params,
    stream: jax.Array,
    compute: Compute,
) -> jax.Array:
    """The stream after a run of alike blocks: one scan over their stacked leaves, or unrolled."""

    def values(index: int) -> dict[str, jax.Array]:
        return {p: params[f"blocks/{index}/{p}"].astype(compute.dtype) for p in part.leaves}

    scanned = compute.scan and len(indices) > 1
    if compute.remat == "full":
        # Between the iterations of a scan nothing is merged, so the guard would cost for nothing.
        step = jax.checkpoint(step, prevent_cse=not scanned)
    if not scanned:
        for index in indices:
            stream = step(stream, values(index), index, {n: of[index] for n, of in numbers.items()})
        return stream
    per_block = [values(index) for index in indices]
    stacked = {p: jnp.stack([block[p] for block in per_block]) for p in part.leaves}
    chosen = {name: jnp.asarray([of[i] for i in indices]) for name, of in numbers.items()}
    stream, _ = jax.lax.scan(
        lambda x, block: (step(x, *block), None),
        stream,
        (stacked, jnp.asarray(indices), chosen),
    )
    return stream
