"""Packing examples into rows of a fixed length, and choosing few row lengths for examples."""

from __future__ import annotations

import math

import numpy as np

BUCKET_STEP = 8  # buckets' row lengths are multiples of this many positions
MOST_BUCKETS = 6
BUCKET_WASTE = 0.15
MOST_SEGMENTS = 64
SEGMENT_LOSS = 0.002  # share of rows that a cap on the segments of a row may cost


def best_fit(lengths: np.ndarray, row_length: int, segments: int) -> tuple[np.ndarray, int]:
    """Pack examples into rows, best-fit decreasing.

    Returns:
        `[examples]` slot (row x segments + segment) of the longest example, the next, and so on,
        and the number of rows. Both depend on nothing but the lengths.
    """
    slots = np.empty(len(lengths), np.int64)
    by_space: list[list[int]] = [[] for _ in range(row_length + 1)]  # open rows by free positions
    spaces = 0  # bit n is set where by_space[n] is not empty
    used: list[int] = []  # segments of each row
    for number, length in enumerate(np.sort(lengths)[::-1].tolist()):
        fitting = spaces >> length
        if fitting:
            space = length + (fitting & -fitting).bit_length() - 1  # the tightest that fits
            row = by_space[space].pop()
            if not by_space[space]:
                spaces &= ~(1 << space)
        else:
            space, row = row_length, len(used)
            used.append(0)
        slots[number] = row * segments + used[row]
        used[row] += 1
        left = space - length
        if left and used[row] < segments:
            by_space[left].append(row)
            spaces |= 1 << left
    return slots, len(used)


def count_rows(lengths: np.ndarray, row_length: int, segments: int) -> int:
    return best_fit(lengths, row_length, segments)[1]


def cap_segments(lengths: np.ndarray, row_length: int) -> int:
    """Return the smallest cap on the examples of a row that costs next to no rows."""
    fewest = count_rows(lengths, row_length, MOST_SEGMENTS)
    segments = math.ceil(len(lengths) / fewest)
    while count_rows(lengths, row_length, segments) > fewest * (1 + SEGMENT_LOSS):
        segments += 1
    return segments


def bucket_edges(lengths: np.ndarray, rows: int, row_length: int, divide_by: int = 1) -> list[int]:
    """Return row lengths, shortest first: the fewest that keep padding low, at most 6.

    Each is a multiple of `divide_by` where `row_length` is.
    """
    step = math.lcm(BUCKET_STEP, divide_by)
    edges = list(range(step, int(lengths.max()) + step, step))
    edges[-1] = min(edges[-1], row_length)
    counts = np.searchsorted(np.sort(lengths), [0, *edges], side="right")  # lengths up to an edge

    def positions(first: int, last: int) -> int:
        """Return the positions that a bucket of the edges first..last - 1 computes."""
        return round_up(int(counts[last] - counts[first]), rows) * edges[last - 1]

    # best[k]: (positions, edges chosen) for the lengths up to edge k
    best = [(positions(0, last), [edges[last - 1]]) for last in range(1, len(edges) + 1)]
    best.insert(0, (0, []))
    total = int(lengths.sum())
    for _ in range(MOST_BUCKETS - 1):
        if 1 - total / best[-1][0] <= BUCKET_WASTE:
            break
        best = [best[0]] + [
            min(
                [best[last]]
                + [
                    (best[first][0] + positions(first, last), [*best[first][1], edges[last - 1]])
                    for first in range(1, last)
                ]
            )
            for last in range(1, len(edges) + 1)
        ]
    return best[-1][1]


def round_up(number: int, step: int) -> int:
    return -(-number // step) * step
