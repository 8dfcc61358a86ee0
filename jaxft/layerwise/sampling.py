"""Sampling of blocks: which of a tower's blocks train in each period of a run.

A program that trains sampled blocks names them by storage position, the sampled ones first
(`models.tower.sampled`). A `Choice` maps the names of a period to those of the program.

Source: LISA, Pan et al. (2024), https://arxiv.org/abs/2403.17919; OWS, Li et al. (2024),
    https://arxiv.org/abs/2405.18380; BAdam, Luo et al. (2024), https://arxiv.org/abs/2404.02827;
    HiFT, Liu et al. (2024), https://arxiv.org/abs/2401.15207; MISA, Liu et al. (2025),
    https://arxiv.org/abs/2511.00056.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from jaxft.errors import UserError
from jaxft.layerwise.table import LayerTable, LeafRow
from jaxft.tree import natural_order

ORDER = "blocks/order"  # how the names of the program's orders begin, behind a tower's prefix
OWS, MISA = "ows", "misa"
# Methods under which embeddings and a pretrained head train too, at every step. The code of BAdam
# leaves both out.
TRAINS_ENDS = ("lisa", OWS)


@dataclass(frozen=True)
class Blocks:
    """Blocks of one tower, or one linear map of each of them.

    Attributes:
        prefix: what the tower's names start with; empty where there is one tower.
        names: for each block, the prefix of its names, `blocks/3/`.
        linear_map: its path in the block, `attention/query`; None of whole blocks.
    """

    prefix: str
    names: tuple[str, ...]
    linear_map: str | None = None

    @property
    def order(self) -> str:
        """The name of the program's input that says where each block is stored."""
        return self.prefix + (f"{ORDER}/{self.linear_map}" if self.linear_map else ORDER)

    def prefix_of(self, name: str) -> str | None:
        """Return the block that a parameter is in, by the prefix of its names; None of others'."""
        prefix = next((one for one in self.names if name.startswith(one)), None)
        if prefix is None or self.linear_map is None:
            return prefix
        path = name.removeprefix(prefix).rpartition("/")[0]
        return prefix if path == self.linear_map else None


@dataclass(frozen=True)
class Sampling:
    """A rule by which blocks are chosen.

    Attributes:
        method: `lisa`, `ows`, `badam`, `hift` or `misa`.
        blocks: how many of a tower train at once; of misa, of how many a linear map trains.
        every: steps in a period.
        order: in which badam and hift go through them: `random`, `ascending` or `descending`; None
            of the methods that choose by chance.
        keep: whether a block that is chosen again has the optimizer state that it had.
        seed: of all chance.
        weights: of ows: prefix of a block's names -> how often it is chosen.
    """

    method: str
    blocks: int
    every: int
    order: str | None
    keep: bool
    seed: int
    weights: Mapping[str, float] | None = None

    @property
    def by_map(self) -> bool:
        """Choice of linear maps one by one, and not of whole blocks."""
        return self.method == MISA

    def period(self, step: int) -> int:
        """Return the period of a step, both counted from 0."""
        return step // self.every

    def begins_at(self, step: int) -> bool:
        """Return whether other blocks are chosen before a step; the first step's already are."""
        return step > 0 and step % self.every == 0

    def choose(
        self, period: int, number: int, blocks: Blocks, scores: Mapping[str, float] | None = None
    ) -> tuple[int, ...]:
        """Choose blocks for a period, in ascending order.

        Args:
            period: from 0.
            number: of these blocks among those of the run, so that each has chances of its own.
            blocks: a tower's, or a linear map of them.
            scores: of misa: path of a linear map's parameters -> its score; others have the mean.
        """
        count = len(blocks.names)
        if self.order is not None:
            cycle, turn = divmod(period, -(-count // self.blocks))
            order = np.arange(count)
            if self.order == "random":
                order = np.random.default_rng([self.seed, cycle, number]).permutation(count)
            first = min(turn * self.blocks, count - self.blocks)
            chosen = order[::-1] if self.order == "descending" else order
            return tuple(sorted(chosen[first : first + self.blocks].tolist()))
        draw, share = np.random.default_rng([self.seed, period, number]), None
        if self.weights is not None:
            weights = [self.weights[name] for name in blocks.names]
            share = np.array(weights) / sum(weights)
        elif scores:
            unknown = sum(scores.values()) / len(scores)
            maps = [f"{name}{blocks.linear_map}" for name in blocks.names]
            share = _softmax([scores.get(path, unknown) for path in maps])
        return tuple(sorted(draw.choice(count, self.blocks, replace=False, p=share).tolist()))


def _softmax(scores: Sequence[float]) -> np.ndarray:
    """Return probabilities in proportion to exp(score / mean score)."""
    values = np.asarray(scores, np.float64)
    scaled = values / max(float(values.mean()), 1e-30)
    powers: np.ndarray = np.exp(scaled - scaled.max())
    return np.asarray(powers / powers.sum())


@dataclass(frozen=True)
class Choice:
    """Blocks that train in a period.

    Attributes:
        of: blocks of each tower, or a linear map of them, and the indices of those that train,
            ascending.
    """

    of: tuple[tuple[Blocks, tuple[int, ...]], ...]

    @cached_property
    def positions(self) -> dict[str, np.ndarray]:
        """Map each order's name to the storage position of each block: `[blocks]` int32."""
        return {blocks.order: _positions(len(blocks.names), chosen) for blocks, chosen in self.of}

    @cached_property
    def slots(self) -> dict[str, int]:
        """Number the blocks, or linear maps, that train: prefix of their names -> number."""
        chosen = [
            f"{blocks.names[index]}{blocks.linear_map or ''}"
            for blocks, indices in self.of
            for index in indices
        ]
        return {name: number for number, name in enumerate(chosen)}

    def names(self, names: Sequence[str]) -> dict[str, str]:
        """Map the names of parameters of blocks to the program's."""
        renamed = {}
        for blocks, _ in self.of:
            positions = self.positions[blocks.order]
            stored = {
                name: blocks.names[position]
                for name, position in zip(blocks.names, positions, strict=True)
            }
            for name in names:
                if (prefix := blocks.prefix_of(name)) is not None:
                    renamed[name] = stored[prefix] + name.removeprefix(prefix)
        return renamed

    def table(self, whole: LayerTable) -> LayerTable:
        """Restrict a table to what trains in this period.

        Each block of it is a cohort of its own, with the optimizer's state of its slot; linear
        maps are one.

        Args:
            whole: in which everything trains that may.
        """

        def row(leaf: LeafRow) -> LeafRow:
            if not leaf.trainable:
                return leaf
            for blocks, _ in self.of:
                if (prefix := blocks.prefix_of(leaf.name)) is None:
                    continue
                slot = self.slots.get(f"{prefix}{blocks.linear_map or ''}")
                if slot is None:
                    return replace(leaf, trainable=False, multiplier=0.0)
                return replace(leaf, since=1 if blocks.linear_map else slot + 1)
            return leaf

        return LayerTable(tuple(map(row, whole.leaves)), whole.groups)


def program_choice(choice: Choice) -> Choice:
    """Return the choice under whose names the program is made: a tower's first blocks."""
    return Choice(tuple((blocks, tuple(range(len(chosen)))) for blocks, chosen in choice.of))


def choose_blocks(
    sampling: Sampling,
    towers: Sequence[Blocks],
    period: int,
    scores: Mapping[str, float] | None = None,
) -> Choice:
    """Choose the blocks of every tower, or every linear map's, for a period; see `choose`."""
    return Choice(
        tuple(
            (blocks, sampling.choose(period, number, blocks, scores))
            for number, blocks in enumerate(towers)
        )
    )


def sampled_towers(
    sampling: Sampling, towers: Sequence[tuple[Blocks, bool]], whole: LayerTable
) -> tuple[Blocks, ...]:
    """Select the towers whose blocks are sampled: those in which a block may train.

    Args:
        sampling: the rule.
        towers: each tower's blocks, and whether they are all alike.
        whole: the run's table.

    Raises:
        UserError: blocks of a tower that differ, or that groups treat differently; or fewer of
            them than train at once.
    """
    trainable = {leaf.name for leaf in whole.leaves if leaf.trainable}
    chosen = []
    for blocks, alike in towers:
        if not any(map(blocks.prefix_of, trainable)):
            continue
        if not alike:
            raise UserError(
                "sampling: the blocks of this model are of several kinds, and sampled blocks must "
                "be of one.",
                "Use phases or groups, which take blocks of any kind.",
            )
        if sampling.blocks >= len(blocks.names):
            raise UserError(
                f"sampling.blocks is {sampling.blocks}, and the tower has {len(blocks.names)} "
                "blocks: nothing would be sampled.",
                "Lower it, or remove 'sampling' to train all blocks.",
            )
        _check_alike(whole, blocks)
        _check_weights(sampling, blocks)
        chosen += _linear_maps(whole, blocks) if sampling.by_map else [blocks]
    if not chosen:
        raise UserError("sampling: groups freeze every block, so there is nothing to sample.")
    return tuple(chosen)


def _linear_maps(whole: LayerTable, blocks: Blocks) -> list[Blocks]:
    """List the linear maps of a tower's blocks that may train."""
    first = blocks.names[0]  # the others are alike
    names = [leaf.name for leaf in whole.leaves if leaf.trainable and leaf.name.startswith(first)]
    paths = {
        name.removeprefix(first).rpartition("/")[0] for name in names if name.endswith("/kernel")
    }
    return [replace(blocks, linear_map=path) for path in natural_order(paths)]


def _check_alike(whole: LayerTable, blocks: Blocks) -> None:
    """Raise a UserError where blocks differ in more than their rates."""
    treated: dict[str, tuple[str, bool, bool]] = {}
    for leaf in whole.leaves:
        prefix = blocks.prefix_of(leaf.name)
        if prefix is None:
            continue
        path, own = leaf.name.removeprefix(prefix), (leaf.group, leaf.trainable, leaf.decays)
        if treated.setdefault(path, own) != own:
            raise UserError(
                f"sampling: groups treat '{leaf.name}' differently from '{path}' of other blocks "
                f"('{own[0]}', and '{treated[path][0]}').",
                "Let groups match the same parameters of every block; layer_decay may give each "
                "block a rate of its own.",
            )


def _check_weights(sampling: Sampling, blocks: Blocks) -> None:
    """Raise a UserError where a block has no weight by which it is chosen."""
    if sampling.weights is None:
        return
    for name in blocks.names:
        if sampling.weights.get(name, 0) <= 0:
            raise UserError(
                f"sampling.weights has no number above 0 for '{name}'.",
                "Give one to every block, or remove 'weights' to have them measured.",
            )


def _positions(count: int, chosen: Sequence[int]) -> np.ndarray:
    """Return where each block is stored: those that train first, both in ascending order."""
    stored = [*chosen, *(index for index in range(count) if index not in chosen)]
    return np.argsort(stored).astype(np.int32)
