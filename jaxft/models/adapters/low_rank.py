"""Adapters: low-rank matrices beside the kernels of a tower's blocks, and merged into them again.

What trains is not decided here: the matrices are leaves as any other, with names, depths and
groups.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.errors import UserError
from jaxft.models.layers.adapter import LowRank, LowRankLinear, since_start
from jaxft.models.layers.modules import Leaf, Linear
from jaxft.models.tower.tower import Part, Tower
from jaxft.tree import matches_of, select

MATRICES, STARTS = ("lora_a", "lora_b"), ("start_a", "start_b")
ROWS = "token_rows"
LEAVES = (*MATRICES, "magnitude", *STARTS, ROWS)
# As the LoRA paper and PEFT choose; of a U-Net's transformers those over the text too.
DEFAULT = r"(.*/)?blocks/\d+/(transformer/\d+/(source_)?)?attention/(query|value)/kernel"


@dataclass(frozen=True)
class Adapter:
    """Adapters to put beside kernels.

    Args:
        rank: r.
        alpha: the factor on the matrices' product is alpha / r, or alpha / sqrt(r).
        match: patterns of kernels of blocks; None for the queries' and values'.
        dora: whether each column has a learned magnitude.
        dropout: of the matrices' input.
        ranks: patterns of kernels and r of those that match; the first that matches counts.
        rslora: whether the factor is alpha / sqrt(r) (https://arxiv.org/abs/2312.03732).
        principal: whether the matrices start at the kernel's largest components (PiSSA).
        tokens: tokens whose word embeddings train too, as text or ids.

    Raises:
        UserError: a rank, alpha or dropout out of its range, or a `match` that is no patterns.
    """

    rank: int
    alpha: float
    match: tuple[str, ...] | None = None
    dora: bool = False
    dropout: float = 0.0
    ranks: tuple[tuple[str, int], ...] = ()
    rslora: bool = False
    principal: bool = False
    tokens: tuple[str | int, ...] = ()

    def __post_init__(self) -> None:
        for rank in (self.rank, *(rank for _, rank in self.ranks)):
            if not isinstance(rank, int) or rank < 1:
                raise UserError(f"Adapter: a rank is {rank}, and must be a whole number from 1.")
        if not self.alpha > 0:
            raise UserError(f"Adapter: alpha is {self.alpha}, and must be above 0.")
        if not 0 <= self.dropout < 1:
            raise UserError(f"Adapter: dropout is {self.dropout}, and must be in [0, 1).")
        if self.match is not None and (isinstance(self.match, str) or not self.match):
            raise UserError(f"Adapter: match is {self.match!r}, and must be one or more patterns.")


@dataclass(frozen=True, eq=False)
class Adapted:
    """Adapters of a model.

    Args:
        kernels: kernel -> its adapter.
        plain: the towers without adapters.
        tokens: table of words -> the tokens of its rows that train.
    """

    kernels: Mapping[str, LowRank]
    plain: Mapping[str, Tower | Part]
    tokens: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def is_adapter(name: str) -> bool:
    """Return whether a parameter is an adapter's."""
    return name.rpartition("/")[2] in LEAVES


def is_start(name: str) -> bool:
    """Return whether a parameter is the start of an adapter's matrix, which never trains."""
    return name.rpartition("/")[2] in STARTS


def kernels_of(towers: Mapping[str, Tower | Part]) -> dict[str, Leaf]:
    """Return the kernels that may have an adapter, those of the blocks' linear maps, by name."""
    kernels = {}
    for tower in towers.values():
        if not isinstance(tower, Tower):
            continue
        for index, block in enumerate(tower.blocks):
            for path, module in nnx.iter_modules(block.module):
                if isinstance(module, Linear):
                    within = "/".join(map(str, path))
                    leaf = module.kernel.get_metadata()["leaf"]
                    kernels[f"{tower.block_prefix(index)}{within}/kernel"] = leaf
    return kernels


def choose(towers: Mapping[str, Tower | Part], adapter: Adapter) -> dict[str, LowRank]:
    """Return the kernels that an adapter asks for: kernel -> what goes beside it.

    Raises:
        UserError: a pattern matches no kernel of a block, or a rank is larger than a matrix.
    """
    kernels = kernels_of(towers)
    names = list(kernels)
    patterns = adapter.match or (DEFAULT,)
    _check_experts(towers, names, patterns)
    matched = {name for p in patterns for name in select(p, names, "adapter.match")}
    chosen = [name for name in names if name in matched]
    ranks = dict.fromkeys(chosen, adapter.rank)
    for pattern, rank in reversed(adapter.ranks):
        ranks |= dict.fromkeys(select(pattern, chosen, "adapter.ranks"), rank)
    for name, rank in ranks.items():
        if rank > min(kernels[name].shape):
            inside, outside = kernels[name].shape
            raise UserError(
                f"adapter.rank: {rank} is more than the rank of '{name}', which is "
                f"{inside} x {outside}.",
                "Set a rank far below both.",
            )
    return {name: _low_rank(adapter, rank) for name, rank in ranks.items()}


def _check_experts(
    towers: Mapping[str, Tower | Part], names: Sequence[str], patterns: Sequence[str]
) -> None:
    """Raise a UserError if a pattern is of a mixture's experts or router alone."""
    leaves = [name for part in towers.values() for name in part.leaves]
    routed = [name for name in leaves if re.search(r"/mlp/(experts/.*|router)/kernel$", name)]
    for pattern in patterns if routed else ():
        own, theirs = (matches_of([pattern], some, "adapter.match")[0] for some in (names, routed))
        if theirs and not own:
            raise UserError(
                f"adapter.match: '{pattern}' matches experts or routers, which have no adapters.",
                "Adapt the attention's kernels; experts and routers train whole, by `groups`.",
            )


def _low_rank(adapter: Adapter, rank: int) -> LowRank:
    scale = adapter.alpha / (math.sqrt(rank) if adapter.rslora else rank)
    return LowRank(rank, scale, adapter.dora, adapter.dropout, adapter.principal)


def inject(
    towers: Mapping[str, Tower | Part], kernels: Mapping[str, LowRank]
) -> dict[str, Tower | Part]:
    """Put adapters beside some kernels of the towers; equal blocks stay one object.

    Args:
        towers: without any.
        kernels: kernel -> its adapter.
    """
    made: dict[tuple[Part, tuple[tuple[str, LowRank], ...]], Part] = {}

    def block(tower: Tower, index: int) -> Part:
        part, within = tower.blocks[index], tower.block_prefix(index)
        own = tuple(
            (name.removeprefix(within).removesuffix("/kernel"), low_rank)
            for name, low_rank in kernels.items()
            if name.startswith(within)
        )
        if own and (part, own) not in made:
            made[part, own] = _rebuilt(part, own)
        return made.get((part, own), part)

    return {
        name: replace(tower, blocks=tuple(block(tower, i) for i in range(len(tower.blocks))))
        if isinstance(tower, Tower)
        else tower
        for name, tower in towers.items()
    }


def _rebuilt(part: Part, linears: tuple[tuple[str, LowRank], ...]) -> Part:
    """Return a block whose linear maps at some paths have adapters."""
    module = nnx.clone(part.module)
    for path, low_rank in linears:
        *above, last = path.split("/")
        owner = reduce(getattr, above, module)
        setattr(owner, last, LowRankLinear(getattr(owner, last), low_rank, path))
    return Part(module)


def beside(kernel: str, leaf: str) -> str:
    """Return the name of an adapter's leaf beside a kernel or a table."""
    return f"{kernel.removesuffix(kernel.rpartition('/')[2])}{leaf}"


def matrices_of(
    params: Mapping[str, Any], kernel: str, low_rank: LowRank
) -> tuple[jax.Array, jax.Array]:
    """Return the matrices whose product, times the scale, is added to a kernel.

    Args:
        params: the flat dict.
        kernel: the kernel.
        low_rank: its adapter.
    """
    a, b = (jnp.asarray(params[beside(kernel, leaf)]) for leaf in MATRICES)
    if not low_rank.principal:
        return a, b
    return since_start(a, b, *(params[beside(kernel, leaf)] for leaf in STARTS))
