"""A tower (stem, blocks, top) as a pure function of its flat parameters, and the segmented scan.

The stem turns a batch into a stream [B, T, D] and a context that every block reads; the blocks
turn stream into stream; the top turns the stream into named outputs. Each part is one NNX graph
definition, bound inside the step to the leaves it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.models.layers import Leaf, split_key
from jaxft.models.layers_kernels import Kernel, Needs, Setting, choose

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
        mesh: the devices that it is compiled for; None where they are not known.
        attention: `auto` takes a kernel where one can serve, else XLA; `xla`, `cudnn` or
            `splash` is that one, or a UserError.
        dropout: whether a stem is told of dropout: `run_tower` says so.
        trainable: the names that are differentiated; None for all. Blocks with different
            trainable leaves never share a scan, and a part without any has no dropout.
    """

    dtype: str = "float32"
    precision: str | None = None
    scan: bool = False
    remat: str = "none"
    platform: str = "cpu"
    mesh: jax.sharding.Mesh | None = None
    attention: str = "auto"
    dropout: bool = False
    trainable: frozenset[str] | None = None

    def trains(self, name: str) -> bool:
        """Whether the parameter `name` is differentiated."""
        return self.trainable is None or name in self.trainable

    def kernel(self, needs: Needs, shape: tuple[int, ...]) -> Kernel | None:
        """The attention kernel for rows and positions [B, T]; None for XLA's own attention.

        Raises:
            UserError: the kernel that `attention` names cannot serve.
        """
        where = (self.platform, self.dtype, self.dropout, self.mesh)
        return choose(self.attention, needs, Setting(*where, *shape))


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
        prefix: what its parameters' names start with, where a model has several towers
            (`vision/`); `ties` are told without it.
    """

    stem: Part
    blocks: tuple[Part, ...]
    top: Part
    ties: Mapping[str, str] = field(default_factory=dict)
    numbers: Mapping[str, Sequence[float]] = field(default_factory=dict)
    prefix: str = ""

    @cached_property
    def _described(self) -> dict[str, tuple[int, Leaf]]:
        """Every parameter of the tower, once: name -> depth and description."""
        found = {path: (0, leaf) for path, leaf in self.stem.leaves.items()}
        for index, block in enumerate(self.blocks):
            named = {f"blocks/{index}/{path}": leaf for path, leaf in block.leaves.items()}
            found |= {name: (index + 1, leaf) for name, leaf in named.items()}
        top = {path: leaf for path, leaf in self.top.leaves.items() if path not in self.ties}
        found |= {path: (self.last, leaf) for path, leaf in top.items()}
        return {self.prefix + name: one for name, one in found.items()}

    @property
    def last(self) -> int:
        """The depth of the top: n + 1 for n blocks."""
        return len(self.blocks) + 1

    @cached_property
    def leaves(self) -> dict[str, Leaf]:
        """Every parameter of the tower, once: name -> description."""
        return {name: leaf for name, (_, leaf) in self._described.items()}

    @cached_property
    def depths(self) -> dict[str, int]:
        """name -> depth: 0 for the stem, i + 1 for block i, n + 1 for the top."""
        return {name: depth for name, (depth, _) in self._described.items()}


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
        stem, stem_key = _bind_end(tower, tower.stem, {}, params, stem_key, compute)
        stream, context = stem(batch, stem_key, replace(compute, dropout=key is not None))
        stream = run_blocks(tower, params, stream, context, blocks_key, compute)
        top, top_key = _bind_end(tower, tower.top, tower.ties, params, top_key, compute)
        return top(stream, batch, top_key)


def run_joint(part: Part, params: Params, compute: Compute, *inputs: Any) -> Any:
    """What a part of no tower, which reads the outputs of several, makes of `inputs`.

    Args:
        part: what to run.
        params: the flat dict, under the part's own paths.
        compute: how to run.
        inputs: what the part is called with.
    """
    values = {path: params[path] for path in part.leaves}
    # What is no matrix stays whole: a scale of scores in bfloat16 would be a per cent off.
    cast = {path: v.astype(compute.dtype) if v.ndim > 1 else v for path, v in values.items()}
    with jax.default_matmul_precision(compute.precision):
        return part.bind(cast)(*inputs)


def _bind_end(
    tower: Tower,
    part: Part,
    ties: Mapping[str, str],
    params: Params,
    key: jax.Array | None,
    compute: Compute,
) -> tuple[Callable[..., Any], jax.Array | None]:
    """A stem or top bound to its leaves, and its dropout key: none where nothing is trained."""
    names = {path: tower.prefix + ties.get(path, path) for path in part.leaves}
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
        within = f"{tower.prefix}blocks/{index}/"
        return part, tuple(path for path in part.leaves if compute.trains(within + path))

    for (part, trained), run in groupby(range(len(tower.blocks)), alike):
        step = partial(_run_block, part, context, key if trained else None)
        stream = _run_alike(tower, part, step, list(run), params, stream, compute)
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
    tower: Tower,
    part: Part,
    step: Step,
    indices: list[int],
    params: Params,
    stream: jax.Array,
    compute: Compute,
) -> jax.Array:
    """The stream after a run of alike blocks: one scan over their stacked leaves, or unrolled."""

    def values(index: int) -> dict[str, jax.Array]:
        within = f"{tower.prefix}blocks/{index}/"
        return {path: params[within + path].astype(compute.dtype) for path in part.leaves}

    scanned = compute.scan and len(indices) > 1
    if compute.remat == "full":
        # Between the iterations of a scan nothing is merged, so the guard would cost for nothing.
        step = jax.checkpoint(step, prevent_cse=not scanned)
    if not scanned:
        for index in indices:
            numbers = {name: of[index] for name, of in tower.numbers.items()}
            stream = step(stream, values(index), index, numbers)
        return stream
    per_block = [values(index) for index in indices]
    stacked = {p: jnp.stack([block[p] for block in per_block]) for p in part.leaves}
    chosen = {name: jnp.asarray([of[i] for i in indices]) for name, of in tower.numbers.items()}
    stream, _ = jax.lax.scan(
        lambda x, block: (step(x, *block), None),
        stream,
        (stacked, jnp.asarray(indices), chosen),
    )
    return stream
