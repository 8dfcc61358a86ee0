"""Tower: stem, blocks and top, each a description of its parameters until values are bound.

The stem turns a batch into a stream [B, T, D] and a context that every block reads; the blocks
turn stream into stream; the top turns the stream into named outputs. The stream of a U-Net is a
tuple: an image [B, H, W, D], and those that later blocks read beside it. Each part is one NNX graph
definition, bound inside the step to the leaves it needs (`tower.run`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
from flax import nnx

from jaxft.models.layers.batch import Batch, decoder_input
from jaxft.models.layers.kernels import Choice, Kernel, Needs, Setting, choose, context_of
from jaxft.models.layers.modules import Leaf, Linear
from jaxft.models.layers.partition import gathered
from jaxft.models.tower.residuals import Remat

Params = Mapping[str, jax.Array]
BLOCKS = "blocks/"  # name prefix of the parameters of a tower's blocks
WINDOW = "window"  # the one of a tower's numbers that an attention kernel is compiled for


@dataclass(frozen=True)
class Compute:
    """Options of running a model, the only place that sets them; static under jit.

    Args:
        dtype: the type in which matmuls run; parameters are cast to it on use.
        precision: jax's matmul precision (`highest` keeps float32 whole); None for the default.
        scan: run equal blocks under one `lax.scan` instead of unrolled.
        remat: `full` recomputes each block in the backward pass instead of saving its
            activations, `dots` all but the products with its weights, `tower.residuals.Residuals`
            all but those; else nothing.
        platform: the platform that the program is compiled for, not the default device's.
        mesh: the devices that it is compiled for; None where they are not known.
        attention: `auto` takes a kernel where one can serve, else XLA; `xla`, `cudnn` or
            `splash` is that one, or a UserError.
        dropout: whether dropout is on, for the choice of a kernel; `run_tower` sets it.
        whole_rows: whether attention reads whole rows where the mesh cuts them, by XLA, as where
            keys and values are cached.
        trainable: the names that are differentiated; None for all. Blocks with different
            trainable leaves never share a scan, and a part without any has no dropout.
    """

    dtype: str = "float32"
    precision: str | None = None
    scan: bool = False
    remat: Remat = "none"
    platform: str = "cpu"
    mesh: jax.sharding.Mesh | None = None
    attention: str = "auto"
    dropout: bool = False
    whole_rows: bool = False
    trainable: frozenset[str] | None = None

    def trains(self, name: str) -> bool:
        """Return whether the parameter `name` is differentiated."""
        return self.trainable is None or name in self.trainable

    def choice(self, needs: Needs, shape: tuple[int, ...]) -> Choice:
        """Choose the implementation of attention for rows and positions [B, T], and say why.

        Raises:
            UserError: the kernel that `attention` names cannot serve.
        """
        if self.whole_rows and context_of(self.mesh) > 1:
            return Choice(None, "rows are read whole")
        where = (self.platform, self.dtype, self.dropout, self.mesh)
        return choose(self.attention, needs, Setting(*where, *shape))

    def kernel(self, needs: Needs, shape: tuple[int, ...]) -> Kernel | None:
        """Choose the attention kernel as `choice` does; None for XLA's own attention."""
        return self.choice(needs, shape).kernel


PLAIN = Compute()


@dataclass(frozen=True, eq=False)
class Part:
    """NNX module without its values: a graph definition and the leaves that fill it.

    Args:
        module: the module, its parameters made by `layers.parameter`.
    """

    module: nnx.Module

    def __post_init__(self) -> None:
        for path, module in nnx.iter_modules(self.module):
            if isinstance(module, Linear):
                module.path = "/".join(map(str, path))

    @cached_property
    def graphdef(self) -> nnx.GraphDef:
        """Return the module's structure and static settings."""
        return nnx.split(self.module)[0]

    @cached_property
    def leaves(self) -> dict[str, Leaf]:
        """Return the module's parameters: path joined by `/` -> description."""
        state = nnx.to_flat_state(nnx.split(self.module)[1])
        return {"/".join(map(str, path)): value.get_metadata()["leaf"] for path, value in state}

    def bind(
        self,
        values: Params,
        *,
        mesh: jax.sharding.Mesh | None = None,
    ) -> Callable[..., Any]:
        """Return the module with `values` (path -> array) in it, ready to be called.

        Args:
            values: the parameters, gathered over `fsdp` as `gathered` does.
            mesh: the devices; None where they are not known.
        """
        values = gathered(values, self.leaves, mesh)
        leaves = [(tuple(path.split("/")), nnx.Param(values[path])) for path in self.leaves]
        return nnx.merge(self.graphdef, nnx.from_flat_state(leaves))


@dataclass(frozen=True, eq=False)
class Tower:
    """Stack of blocks, with a stem before it and a top after it.

    Args:
        stem: called `stem(batch, key, compute) -> (stream [B, T, D], context)`; depth 0.
        blocks: each called `block(stream, context, key, cache, **numbers) -> stream, cache`;
            block i has depth i + 1. Equal neighbours are one object.
        top: called `top(stream, batch, key) -> dict of outputs`; depth n + 1.
        ties: names of the top that are another parameter: the top's path -> that one's name.
        numbers: what differs between blocks that are one object otherwise (an attention
            window, a scale): name -> one number a block. A scan reads it as data, but for
            WINDOW where a kernel serves, which is compiled for it.
        prefix: what its parameters' names start with, where a model has several towers
            (`vision/`); `ties` are given without it.
        reads: the tower whose output its blocks read, where there is one: a decoder's encoder.
        borrowed: names of the stem and the top that are a parameter of `reads`: this tower's
            path -> the parameter's whole name.
        input_of: the model's batch and the output of `reads` -> the batch of the stem and the top.
        needs: what its blocks' attention to their own stream asks of a kernel, as its stem's does;
            None where that has none.
        balanced: whether a loss reads the use of the experts of all its blocks.
        uncached: whether no output of a trunk can be stored, since its input has noise that is new
            each time, or its stream is no rows of positions.
        alike: how many of its blocks pass on a stream as the stem's; None for all. No other is in a
            trunk.
    """

    stem: Part
    blocks: tuple[Part, ...]
    top: Part
    ties: Mapping[str, str] = field(default_factory=dict)
    numbers: Mapping[str, Sequence[float]] = field(default_factory=dict)
    prefix: str = ""
    reads: Tower | None = None
    borrowed: Mapping[str, str] = field(default_factory=dict)
    input_of: Callable[[Batch, jax.Array], Batch] = decoder_input
    needs: Needs | None = None
    balanced: bool = False
    uncached: bool = False
    alike: int | None = None

    @cached_property
    def _described(self) -> dict[str, tuple[int, Leaf]]:
        """Map every parameter of the tower, once, to its depth and description."""

        def own(part: Part, depth: int) -> dict[str, tuple[int, Leaf]]:
            names = {path: name for path, name in self.end_names(part).items() if self.owns(path)}
            return {name: (depth, part.leaves[path]) for path, name in names.items()}

        described = own(self.stem, 0)
        for index, block in enumerate(self.blocks):
            names = self.block_names(index)
            described |= {names[path]: (index + 1, leaf) for path, leaf in block.leaves.items()}
        return described | own(self.top, self.last)

    def owns(self, path: str) -> bool:
        """Return whether `path` of the stem or the top is a parameter of its own."""
        return path not in self.ties and path not in self.borrowed

    def end_names(self, part: Part) -> dict[str, str]:
        """Map the paths of the stem or the top to parameter names, which may be another's."""
        return {
            path: self.borrowed.get(path, self.prefix + self.ties.get(path, path))
            for path in part.leaves
        }

    def block_names(self, index: int) -> dict[str, str]:
        """Map the paths of a block to parameter names."""
        within = self.block_prefix(index)
        return {path: within + path for path in self.blocks[index].leaves}

    def block_prefix(self, index: int) -> str:
        """Return the prefix of a block's parameter names: `blocks/3/`."""
        return f"{self.prefix}{BLOCKS}{index}/"

    @property
    def last(self) -> int:
        """Return the depth of the top: n + 1 for n blocks."""
        return len(self.blocks) + 1

    def frozen_blocks(self, compute: Compute) -> int | None:
        """Count the blocks of the trunk: those below the lowest that trains anything.

        None without a trunk, if the stem trains, or anything in a tower that this one reads; and
        where a loss reads more of the blocks than their stream, positions lie on several devices,
        or it is `uncached`.
        """
        if self.balanced or self.uncached or context_of(compute.mesh) > 1:
            return None
        if self.reads is not None and any(map(compute.trains, self.reads.leaves)):
            return None
        lowest = min((d for n, d in self.depths.items() if compute.trains(n)), default=self.last)
        most = len(self.blocks) if self.alike is None else self.alike
        return min(lowest - 1, most) if lowest else None

    @cached_property
    def leaves(self) -> dict[str, Leaf]:
        """Map every parameter of the tower, once, to its description."""
        return {name: leaf for name, (_, leaf) in self._described.items()}

    @cached_property
    def depths(self) -> dict[str, int]:
        """Map every parameter to its depth: 0 the stem, i + 1 block i, n + 1 the top."""
        return {name: depth for name, (depth, _) in self._described.items()}
