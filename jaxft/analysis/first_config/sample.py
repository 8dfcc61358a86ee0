"""A bounded number of rows of a source, however large it is."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from jaxft.data.sources.open import open_source
from jaxft.data.sources.reader import Row
from jaxft.data.sources.source import Source
from jaxft.errors import UserError

MOST_ROWS = 5000  # that are looked at
MOST_BYTES = 16 << 20  # of a text file that is read whole; of a larger one, parts
HEAD = 4 << 20  # bytes from the beginning of a larger file
CHUNK = 512 << 10  # bytes of each of its other parts
CHUNKS = 7
TRANSLATION = "translation"  # the usual column of data sets of translations


@dataclass(frozen=True)
class Sample:
    """Some rows of a source.

    Attributes:
        columns: names of the columns.
        rows: at most `MOST_ROWS` of them.
        total: the number of all rows; an estimate unless `whole`.
        whole: whether the whole source was opened.
        classes: column -> the names of its classes, where the data name them.
        source: the opened source where it is `whole`, to try splits on.
        folder: the folder that relative paths in the rows start from.
    """

    columns: tuple[str, ...]
    rows: Sequence[Row]
    total: int
    whole: bool
    classes: Mapping[str, tuple[str, ...]]
    source: Source | None
    folder: Path


def take_sample(spec: str) -> Sample:
    """Return some rows of a source string without a slice, chosen over all of it.

    Raises:
        UserError: the source cannot be opened, or has no rows.
    """
    kind, _, body = spec.partition(":")
    path = Path(body).expanduser()
    if kind in ("csv", "jsonl") and path.is_file() and path.stat().st_size > MOST_BYTES:
        return with_languages(_of_large_file(kind, path))
    if kind == "parquet" and path.is_file():
        return with_languages(_of_parquet(path))
    return with_languages(_of_source(open_source(spec)))


def with_languages(sample: Sample) -> Sample:
    """Return a sample whose column of translations, {en, de}, is a column a language.

    Their names are those that a config has for fields: `translation.en`.
    """
    if TRANSLATION not in sample.columns:
        return sample
    cells = [row[TRANSLATION] for row in sample.rows]
    if not all(isinstance(cell, Mapping) for cell in cells):
        return sample
    languages = list(dict.fromkeys(key for cell in cells for key in cell))
    rows = [
        {name: value for name, value in row.items() if name != TRANSLATION}
        | {f"{TRANSLATION}.{key}": row[TRANSLATION].get(key) for key in languages}
        for row in sample.rows
    ]
    return replace(sample, columns=tuple(rows[0]), rows=rows)


def _of_source(source: Source) -> Sample:
    rows = source.rows(range(min(len(source), MOST_ROWS)))
    named = {column: source.class_names(column) for column in source.columns}
    classes = {column: names for column, names in named.items() if names}
    return Sample(source.columns, rows, len(source), True, classes, source, source.folder)


def _of_large_file(kind: str, path: Path) -> Sample:
    """Return rows of several parts of a text file."""
    size = path.stat().st_size
    excerpt = _excerpt(path, size, header=kind == "csv")
    with tempfile.TemporaryDirectory(prefix="jaxft-") as folder:
        copy = Path(folder, path.name)
        copy.write_bytes(excerpt)
        try:
            sample = _of_source(open_source(f"{kind}:{copy}"))
        except UserError as error:
            raise UserError(error.message.replace(str(copy), str(path)), error.hint) from None
    total = round(sample.total * size / len(excerpt))
    return Sample(sample.columns, sample.rows, total, False, {}, None, path.parent)


def _excerpt(path: Path, size: int, header: bool) -> bytes:
    """Return whole records of a file: its beginning, and parts at equal distances."""
    with path.open("rb") as file:
        head = file.read(HEAD)
        end = _end_of_records(head, quoted=header)
        if not end:
            raise UserError(
                f"{path}: a row is longer than {HEAD >> 20} MB.", "It does not look like a table."
            )
        parts = [head[:end]]
        # A record of several lines may begin anywhere; then only the beginning is certain.
        lines = parts[0].splitlines()
        if not header or all(line.count(b'"') % 2 == 0 for line in lines):
            for number in range(1, CHUNKS + 1):
                file.seek(HEAD + (size - HEAD - CHUNK) * number // CHUNKS)
                chunk = file.read(CHUNK)
                parts.append(chunk[chunk.find(b"\n") + 1 : chunk.rfind(b"\n") + 1])
    return b"".join(parts)


def _end_of_records(data: bytes, quoted: bool) -> int:
    """Return the end of the last whole record: a line end outside of quotes; 0 if there is none."""
    end = data.rfind(b"\n") + 1
    while quoted and end and data.count(b'"', 0, end) % 2:
        end = data.rfind(b"\n", 0, end - 1) + 1
    return end


def _of_parquet(path: Path) -> Sample:
    """Return the first rows of some row groups of a Parquet file, without unpacking it."""
    try:
        file = pq.ParquetFile(path)
        groups = range(file.num_row_groups)
        chosen = [*groups][:: max(1, len(groups) // 8)]
        most = max(1, MOST_ROWS // max(1, len(chosen)))
        rows: list[Row] = []
        for group in chosen:
            batch = next(file.iter_batches(batch_size=most, row_groups=[group]), None)
            if batch is not None:
                batch.validate(full=True)
                rows += batch.to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = (str(error).splitlines() or [""])[0].rstrip(".")
        raise UserError(f"{path} cannot be read as Parquet ({reason}).") from None
    if not rows:
        raise UserError(f"{path} has no rows.")
    names = tuple(file.schema_arrow.names)
    return Sample(names, rows, file.metadata.num_rows, False, {}, None, path.parent)
