"""Candidates: pairs of a query and a passage, read from rows, by themselves or side by side."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxft.data.batching.loader import collate_rows
from jaxft.data.cache import fingerprint
from jaxft.data.random import FIRST_EPOCH, EpochRandom
from jaxft.metrics.ranking import RELEVANT
from jaxft.tasks.parts.examples import row_marks, values_of
from jaxft.tasks.parts.labels import FILL, BadValue, number_of, text_of
from jaxft.tasks.parts.token_examples import CachedExamples
from jaxft.tasks.reranking.section import RerankingSection as Section


@dataclass(frozen=True)
class Candidate:
    """A passage that may answer a query.

    Attributes:
        passage: its text.
        relevance: of the passage; None where it is not known.
        score: by another cross-encoder, if there is one.
    """

    passage: str
    relevance: float | None = None
    score: float | None = None


@dataclass(frozen=True)
class Table:
    """The pairs of a source, in order of rows and, within a row, of candidates.

    Attributes:
        queries: `[pairs]` int32, the number of each one's query.
        rows: `[pairs]` int32, the source row of each.
        relevance: `[pairs]` float32; None where it is not known.
        scores: `[pairs]` float32 by another cross-encoder; None without.
    """

    queries: np.ndarray
    rows: np.ndarray
    relevance: np.ndarray | None
    scores: np.ndarray | None


def read_candidates(
    row: Mapping[str, Any], section: Section, labelled: bool = True
) -> tuple[str, list[Candidate]]:
    """Read the query of a row and its candidates.

    Args:
        row: its cells.
        section: the config's `task`.
        labelled: whether it has labels; without them the passages may be a list.

    Raises:
        BadValue: a text is missing or empty, or a label or a score is no number that fits the loss.
    """
    query = text_of(row[section.query], section.query)
    if section.positive is not None and section.negatives is not None:
        positive = _passages(row[section.positive], section.positive)
        negatives = _passages(row[section.negatives], section.negatives, empty=not labelled)
        return query, [
            *(Candidate(passage, 1.0) for passage in positive),
            *(Candidate(passage, 0.0) for passage in negatives),
        ]
    if not labelled:
        passages = _passages(row[section.passage], section.passage)
        return query, [Candidate(passage) for passage in passages]
    passage = text_of(row[section.passage], section.passage)
    column, scored = label_column(section), section.score
    relevance = None if column is None else _relevance(row[column], column, section)
    return query, [
        Candidate(passage, relevance, None if scored is None else number_of(row[scored], scored))
    ]


def label_column(section: Section) -> str | None:
    """Return the column of the relevance of a pair, if there is one."""
    if section.positive is not None:
        return None
    return section.label or (None if section.loss == "mse" else "label")


def _passages(cell: Any, column: str, empty: bool = False) -> list[str]:
    """Return the passages in a cell: a text, or a list of texts."""
    if not isinstance(cell, list | tuple | np.ndarray):
        return [text_of(cell, column)]
    if not len(cell) and not empty:
        raise BadValue(f"has no {column}", FILL)
    return [text_of(one, column) for one in cell]


def _relevance(cell: Any, column: str, section: Section) -> float:
    """Return the relevance in a cell."""
    value = number_of(cell, column)
    if value < 0:
        raise BadValue(f"has {value:g} in {column}, and a relevance is 0 or more")
    if value > 1 and section.loss == "binary_cross_entropy":
        raise BadValue(
            f"has {value:g} in {column}, which is not from 0 to 1",
            "Grades of relevance need task.loss=softmax.",
        )
    return value


def tabulate(rows: Sequence[tuple[str, Sequence[Candidate]]], by_text: bool) -> Table:
    """Number the queries of some rows and collect what is known of their candidates.

    Args:
        rows: each row's query and candidates.
        by_text: whether rows with the same query belong together.
    """
    numbers: dict[Any, int] = {}
    queries = [
        numbers.setdefault(query if by_text else row, len(numbers))
        for row, (query, candidates) in enumerate(rows)
        for _ in candidates
    ]
    flat = [one for _, candidates in rows for one in candidates]
    return Table(
        np.array(queries, np.int32),
        np.repeat(np.arange(len(rows), dtype=np.int32), [len(each) for _, each in rows]),
        _array([one.relevance for one in flat]),
        _array([one.score for one in flat]),
    )


def _array(values: Sequence[float | None]) -> np.ndarray | None:
    return None if None in values else np.array(values, np.float32)


@dataclass(frozen=True)
class Candidates(CachedExamples):
    """Pairs as token ids, one an example or several; see `jaxft.tasks.parts.examples.Examples`.

    The pairs of an example are side by side in a row, where none attends to another.

    Args:
        tokens: `input_ids` and `token_type_ids` of each pair.
        table: what is known of the pairs.
        numbers: `[examples, K]` int32, the pairs of each example; -1 for none.
        learned: `[pairs]` float32, what the loss compares a score with; None without labels.
    """

    table: Table
    numbers: np.ndarray
    learned: np.ndarray | None

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def fingerprint(self) -> str:
        numbers = hashlib.sha256(self.numbers.tobytes()).hexdigest()  # of the labels
        return f"{fingerprint(self.tokens)}-{self.numbers.shape[1]}-{numbers}"

    @property
    def lengths(self) -> np.ndarray:
        own = np.append(self.tokens.lengths, 0)  # -1 is the last
        return own[self.numbers].sum(axis=1)

    @property
    def rows(self) -> np.ndarray:
        return self.table.rows[self.numbers[:, 0]]

    @property
    def remarks(self) -> dict[int, dict[str, Any]]:
        """The number of truncated tokens of a query's pairs, where there are any."""
        totals: dict[int, int] = {}
        for pair, cut in self.tokens.meta["cut"].items():
            query = int(self.table.queries[int(pair)])
            totals[query] = totals.get(query, 0) + cut
        return {query: {"cut": cut} for query, cut in totals.items()}

    def scored(self) -> Candidates:
        """Return the pairs one by one: an evaluation scores every candidate of a query."""
        return replace(self, numbers=one_by_one(len(self.tokens)))

    def collate(
        self, index: np.ndarray, row_length: int, epoch_random: EpochRandom = FIRST_EPOCH
    ) -> dict[str, np.ndarray]:
        """Collate one batch: K pairs an example, so that N = S K sequences are in a row.

        Returns:
            The arrays of `collate_rows`, whose `read_positions` are `[R, N]`; `present` (1 for a
            pair), `groups` (the number of its query, -1 for no pair) and, with labels, `relevance`
            (what is learned) `[R, N]`.
        """
        pairs = values_of(self.numbers, index)  # [R, S, K]
        pairs = np.where(index[..., None] >= 0, pairs, -1).reshape(len(index), -1)
        batch = collate_rows(self.tokens.take(pairs), pairs, row_length) | row_marks(index)
        batch["present"] = (pairs >= 0).astype(np.float32)
        batch["groups"] = np.where(pairs >= 0, values_of(self.table.queries, pairs), -1)
        if self.learned is not None:
            batch["relevance"] = values_of(self.learned, pairs)
        return batch


def one_by_one(count: int) -> np.ndarray:
    """Return the examples of one pair each: `[pairs, 1]` int32."""
    return np.arange(count, dtype=np.int32)[:, None]


def side_by_side(table: Table, most: int) -> np.ndarray:
    """Choose the pairs of each query that a training step compares: `[queries, K]` int32.

    The most relevant come first, half of K at most while there are others; those follow in order.
    A query without a relevant candidate or with no other is left out; -1 fills up.

    Args:
        table: the pairs.
        most: K at most.
    """
    assert table.relevance is not None
    order = np.lexsort((-table.relevance, table.queries))  # stable within equals
    chosen = []
    for own in np.split(order, np.flatnonzero(np.diff(table.queries[order])) + 1):
        relevant = int((table.relevance[own] >= RELEVANT).sum())
        if 0 < relevant < len(own):
            first = min(relevant, max(most // 2, most - (len(own) - relevant)))
            chosen.append(np.concatenate([own[:first], own[relevant : relevant + most - first]]))
    width = max(map(len, chosen), default=1)
    rows = [np.pad(own, (0, width - len(own)), constant_values=-1) for own in chosen]
    return np.array(rows, np.int32).reshape(-1, width)
