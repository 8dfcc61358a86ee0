"""A data set as one of several hosts has it: the rows of its share, encoded and cached.

All hosts know the length of every example, so that all plan the same batches, whose rows are in one
order over the whole data set. A host makes the arrays of another host's rows when a batch of its
own takes them, and does not keep them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np

from jaxft.data.cache import Encoded, Example, ExampleArrays, fingerprint
from jaxft.data.sources.source import Source
from jaxft.errors import UserError


@dataclass(frozen=True)
class Share:
    """Share of one of several hosts.

    Attributes:
        index, count: which host, and how many there are.
        gather: called by all hosts with a text each; returns the text of every host, in order.
    """

    index: int
    count: int
    gather: Callable[[str], list[str]]

    def block(self, rows: int) -> range:
        """Return the numbers of the rows that are this host's: a block, as large as the others."""
        return range(rows * self.index // self.count, rows * (self.index + 1) // self.count)


class SharedRows(ExampleArrays):
    """Examples of all rows, of which one host's are cached.

    Args:
        source: all rows.
        encode: makes the examples of any rows.
        own: those of this host's rows.
        begin: the number of its first example.
        parts: what each host says of its rows, in order; see `_described`.

    Attributes:
        own: see there.
    """

    def __init__(
        self,
        source: Source,
        encode: Callable[[Source], Encoded],
        own: ExampleArrays,
        begin: int,
        parts: Sequence[Mapping[str, Any]],
    ):
        self._source, self._encode, self.own, self._begin = source, encode, own, begin
        self.lengths = np.concatenate([np.array(part["lengths"], np.int64) for part in parts])
        self._rows = np.concatenate([np.array(part["rows"], np.int64) for part in parts])
        self.meta = reduce(_joined, (part["meta"] for part in parts))
        prints = "".join(part["fingerprint"] for part in parts)
        self.identity = hashlib.sha256(prints.encode()).hexdigest()

    def __getitem__(self, index: int) -> Example:
        return self.take(np.array([index]))[index]

    def take(self, index: np.ndarray) -> Mapping[int, Example]:
        """Return the examples of a batch by their numbers: those of other hosts are made together.

        Args:
            index: example numbers, -1 for none.
        """
        numbers = {number for number in index.ravel().tolist() if number >= 0}
        own = {number for number in numbers if 0 <= number - self._begin < len(self.own)}
        return {
            **{number: self.own[number - self._begin] for number in own},
            **self._encoded(sorted(numbers - own)),
        }

    def _encoded(self, numbers: Sequence[int]) -> dict[int, Example]:
        """Encode the rows of some examples of other hosts: number -> example."""
        if not numbers:
            return {}
        rows = np.unique(self._rows[numbers]).tolist()
        encoded, meta = self._encode(_part(self._source, rows))
        examples = list(encoded)
        made: dict[int, list[Example]] = {row: [] for row in rows}
        for row, example in zip(_rows_of(meta, len(examples)), examples, strict=True):
            made[rows[row]].append(example)
        firsts = np.searchsorted(self._rows, self._rows[numbers]).tolist()
        return {
            number: made[int(self._rows[number])][number - first]
            for number, first in zip(numbers, firsts, strict=True)
        }


def read_share(
    share: Share,
    source: Source,
    encode: Callable[[Source], Encoded],
    once: Callable[[Source], ExampleArrays],
) -> SharedRows:
    """Encode the rows of this host's share, and learn from the others how long theirs are.

    Args:
        share: this host's.
        source: all rows, as many as there are hosts or more.
        encode: makes the examples of any rows, of each as if it were alone.
        once: encodes rows, or opens what an earlier run has cached of them.

    Raises:
        UserError: a row of some host is invalid; all hosts raise it.
    """
    block = share.block(len(source))
    try:
        own = once(_part(source, block))
        answer = _described(own, block.start)
    except UserError as error:
        answer = {"error": [error.message, error.hint]}
    packed = zlib.compress(json.dumps(answer).encode())
    texts = share.gather(base64.b64encode(packed).decode())
    parts = [json.loads(zlib.decompress(base64.b64decode(text))) for text in texts]
    for part in parts:
        if "error" in part:
            raise UserError(*part["error"])
    begin = sum(len(part["lengths"]) for part in parts[: share.index])
    return SharedRows(source, encode, own, begin, parts)


def _part(source: Source, rows: Sequence[int]) -> Source:
    """Return the source of some rows."""
    digest = hashlib.sha256(f"{source.fingerprint} rows {list(rows)}".encode()).hexdigest()
    return replace(source, fingerprint=digest, order=source.order[np.array(rows, np.int64)])


def _described(own: ExampleArrays, first: int) -> dict[str, Any]:
    """Describe a host's examples to the others.

    Args:
        own: the examples.
        first: the number of its first row.
    """
    rows = [first + row for row in _rows_of(own.meta, len(own))]
    cut = own.meta.get("cut", {})
    meta = {**own.meta, "cut": {int(number): count for number, count in cut.items()}}
    meta |= {"rows": rows, "examples": len(own)}
    return {
        "lengths": own.lengths.tolist(),
        "rows": rows,
        "meta": meta,
        "fingerprint": fingerprint(own),
    }


def _rows_of(meta: Mapping[str, Any], examples: int) -> Sequence[int]:
    """Return the row that each example is from; where none is named, each is a row."""
    return meta.get("rows", range(examples))


def _joined(left: Mapping[str, Any], right: Mapping[str, Any]) -> dict[str, Any]:
    """Join the metadata of one block of rows and of the next."""
    before = left["examples"]
    cut = {int(number) + before: count for number, count in right["cut"].items()}
    return {
        "examples": before + right["examples"],
        "rows": [*left["rows"], *right["rows"]],
        "cut": {**left["cut"], **cut},
        "counts": {n: count + right["counts"][n] for n, count in left["counts"].items()},
        "longest": {
            name: max(length, right["longest"][name])
            for name, length in left.get("longest", {}).items()
        },
        "bytes": left.get("bytes", 0) + right.get("bytes", 0),
        "warnings": list(dict.fromkeys([*left.get("warnings", ()), *right.get("warnings", ())])),
    }
