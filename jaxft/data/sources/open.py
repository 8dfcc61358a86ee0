"""Sources of examples: every kind of data as one random-access `Source`.

A source string is `KIND:PLACE`, then an optional slice, then an optional `:ordered`:
`csv:reviews.csv[:80%]`, `jsonl:rows.jsonl[1000:]:ordered`, `tfds:my_set:1.0.0:train[90%:]`,
`parquet:part-*.parquet`, `arrow:rows.feather`, `hf:saved:train` (a data set that `datasets` has
saved), `conll:tagged.txt` (a word and its tag a line), `images:photos/train` (a sub-folder a
class), `masks:scenes` (images and masks), `boxes:trees.csv` and `coco:instances.json` (and boxes).
Rows are filtered by `where`, then shuffled by the seed, then sliced; so slices of one file are
random samples and overlap only if their bounds do.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxft.data.sources.arrow import open_arrow, open_parquet, open_saved
from jaxft.data.sources.boxes import open_boxes, open_coco
from jaxft.data.sources.files import open_conll, open_csv, open_jsonl
from jaxft.data.sources.images import open_image_folder
from jaxft.data.sources.joined import JoinedReader, check_local, open_files
from jaxft.data.sources.masks import open_mask_folder
from jaxft.data.sources.reader import MemoryReader, Reader, Row
from jaxft.data.sources.source import Source
from jaxft.data.sources.squad import open_squad
from jaxft.errors import UserError, did_you_mean

SPEC = re.compile(
    r"(?P<kind>\w+):(?P<place>.+?)(?P<slice>\[(?P<start>[^:\[\]]*):(?P<stop>[^:\[\]]*)\])?"
    r"(?P<ordered>:ordered)?",
    re.DOTALL,
)
# The path of a file that is written without its format.
FILE = re.compile(r"(?!\w+:(?!//)).+\.(csv|jsonl|parquet|arrow|conll)(\[[^]]*\])?(:ordered)?", re.S)
BOUND = re.compile(r"(\d{1,18})|(\d{1,18}(?:\.\d{1,18})?)%")

Open = Callable[[Path], Reader]
# Kinds of one file, or of the files of a pattern; of a folder; and the others.
FILES: dict[str, Open] = {
    "csv": open_csv,
    "jsonl": open_jsonl,
    "conll": open_conll,
    "boxes": open_boxes,
    "coco": open_coco,
    "squad": open_squad,
    "parquet": open_parquet,
    "arrow": open_arrow,
}
TABLES = ("csv", "jsonl", "parquet")  # kinds whose files commands take by their endings
FOLDERS: dict[str, Open] = {"images": open_image_folder, "masks": open_mask_folder}
KINDS = (*FILES, "hf", "tfds", *FOLDERS)


def open_source(
    spec: str,
    *,
    where: Mapping[str, Any] | None = None,
    seed: int = 0,
    image_folder: str | Path | None = None,
) -> Source:
    """Return the rows that a source string names.

    Args:
        spec: the kind and place of the rows, then optionally `[a:b]` (row numbers or percent) and
            `:ordered` (no shuffle), as at the beginning of this file.
        where: column -> the value, or list of values, that a row must have.
        seed: of the shuffle.
        image_folder: see `Source`.

    Raises:
        UserError: a string of another form, missing data, malformed rows, a column of `where`
            that is not there, or a selection without rows.
    """
    parts = SPEC.fullmatch(spec)
    if parts is None or parts["kind"] not in KINDS:
        kind = spec.partition(":")[0]
        if file := FILE.fullmatch(spec):
            named = f"Did you mean '{file[1]}:{spec}'?"
            raise UserError(f"'{spec}' is not a data source: it names no format.", named)
        raise UserError(
            f"'{spec}' is not a data source: it must start with "
            f"{', '.join(f'{name}:' for name in KINDS[:-1])} or {KINDS[-1]}:.",
            did_you_mean(kind, KINDS) if ":" in spec else "Write csv:reviews.csv[:80%].",
        )
    reader = _open_reader(parts["kind"], parts["place"])
    where = dict(where or {})
    order = _matching(reader, where, spec)
    if not parts["ordered"]:
        # Raw Philox output is the same in every numpy, which its `permutation` need not be.
        keys = np.random.Philox(seed).random_raw(len(order))
        order = order[np.argsort(keys, kind="stable")]
    if parts["slice"]:
        start = _bound(parts["start"] or "0", len(order), spec)
        stop = _bound(parts["stop"] or "100%", len(order), spec)
        order = order[start:stop]
    if not len(order):
        raise UserError(f"{spec}: the selection has no rows.", "Check the slice and data.where.")
    selection = [parts["slice"], parts["ordered"], where, seed]
    identity = json.dumps([reader.identity, *selection], sort_keys=True, default=str)
    allowed = None if image_folder is None else Path(image_folder).expanduser()
    return Source(spec, hashlib.sha256(identity.encode()).hexdigest(), order, reader, allowed)


def open_mixture(specs: Sequence[str], **options: Any) -> Source:
    """Return the rows of several source strings as one source; options as of `open_source`."""
    joined = JoinedReader([open_source(spec, **options) for spec in specs], tuple(specs))
    return Source(" + ".join(specs), joined.identity, np.arange(len(joined)), joined)


def given_rows(rows: Sequence[Row], spec: str = "input") -> Source:
    """Return a source of rows in memory, in their order."""
    return Source(spec, "", np.arange(len(rows)), MemoryReader(rows))


def _open_reader(kind: str, path: str) -> Reader:
    if kind in FILES:
        return open_files(kind, path, FILES[kind])
    check_local(kind, path)
    if kind in FOLDERS:
        return FOLDERS[kind](Path(path).expanduser())
    if kind == "hf":
        return open_saved(path)
    from jaxft.data.sources.tfds import open_tfds

    return open_tfds(path)


def _matching(reader: Reader, where: Mapping[str, Any], spec: str) -> np.ndarray:
    """Return the numbers of the rows with the wanted values: `[rows]`."""
    for column in where:
        if column not in reader.columns:
            raise UserError(
                f"{spec}: data.where names the column '{column}', which is not there.",
                f"Its columns: {', '.join(reader.columns)}.",
            )
    numbers = np.arange(len(reader))
    if not where:
        return numbers
    rows = reader.rows(numbers, list(where))
    for column, wanted in where.items():
        allowed = _allowed(wanted, reader.class_names(column))
        values = [str(row[column]) for row in rows]
        mask = np.array([value in allowed for value in values], bool)
        if not mask.any():
            raise UserError(
                f"{spec}: data.where wants {column} = {wanted}, and no row has it.",
                f"Values there: {', '.join(sorted(set(values))[:10])}.",
            )
        numbers, rows = numbers[mask], [row for row, keep in zip(rows, mask, strict=True) if keep]
    return numbers


def _allowed(wanted: Any, classes: Sequence[str] | None) -> set[str]:
    """Return the wanted values as text (a CSV holds nothing else), class names as their ids."""
    values = [str(value) for value in (wanted if isinstance(wanted, list | tuple) else [wanted])]
    if classes is None:
        return set(values)
    return {str(classes.index(value)) if value in classes else value for value in values}


def _bound(text: str, rows: int, spec: str) -> int:
    """Return a bound of a slice as a row number."""
    match = BOUND.fullmatch(text.strip())
    if match is None:
        raise UserError(f"{spec}: '{text}' is not a bound of a slice.", "Use a row or percentage.")
    bound = int(match[1]) if match[1] else round(rows * float(match[2]) / 100)
    if bound > rows:
        raise UserError(f"{spec}: the slice ends at {text}, and there are {rows} rows.")
    return bound
