"""Ranks of low-rank adapters by a criterion, at the cost of one rank for all."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping


def allocate_ranks(
    scores: Mapping[str, float], shapes: Mapping[str, tuple[int, int]], rank: int, most: float
) -> dict[str, int]:
    """Divide the parameters of adapters of one rank among matrices by their scores.

    A rank is in proportion to its matrix's score per parameter of a rank, as far as whole numbers
    from 1 to the largest allow: each next rank goes to the matrix with the highest score per
    parameter that it would then have.

    Args:
        scores: matrix -> score, at least 0.
        shapes: matrix -> inputs and outputs.
        rank: of every matrix, where ranks are equal.
        most: the largest rank, in multiples of `rank`.

    Returns:
        Matrix -> rank, in the order of `scores`.
    """
    if not any(scores.values()):
        return dict.fromkeys(scores, rank)
    costs = {name: sum(shapes[name]) for name in scores}
    limits = {name: min(math.floor(most * rank), *shapes[name]) for name in scores}
    ranks = dict.fromkeys(scores, 1)
    left = (rank - 1) * sum(costs.values())

    def priority(name: str) -> float:
        return -scores[name] / (costs[name] * (ranks[name] + 1))

    order = {name: index for index, name in enumerate(scores)}
    queue = [(priority(name), order[name], name) for name in scores]
    heapq.heapify(queue)
    while queue:
        *_, name = heapq.heappop(queue)
        if ranks[name] < limits[name] and costs[name] <= left:
            ranks[name] += 1
            left -= costs[name]
            heapq.heappush(queue, (priority(name), order[name], name))
    return ranks
