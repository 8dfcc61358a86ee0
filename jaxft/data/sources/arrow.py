"""Parquet and Arrow files, and saved Hugging Face `datasets`, as random-access rows.

All are read as memory-mapped Arrow, so that files larger than memory will do. Parquet is
compressed by blocks of rows and gives no single row cheaply: it is unpacked once, into the user's
cache folder, under the hash of its content.

Every value is checked when a file is opened, a batch at a time: reading one whose offset leads out
of its column would end the process, or give bytes of something else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jaxft.data.sources.files import check_is_file
from jaxft.data.sources.reader import Row
from jaxft.errors import UserError, did_you_mean
from jaxft.storage.files import cache_dir, sha256, written_aside
from jaxft.storage.json_files import parse_json, read_json_object

FILE_FORMAT = b"ARROW1"  # how an Arrow file begins that is no stream
FEATURES = b"huggingface"  # where `datasets` keeps its features in an Arrow schema
STATE, SPLITS = "state.json", "dataset_dict.json"  # what `save_to_disk` writes
UNPACKED_ROWS = 4096  # rows of a batch of unpacked Parquet


@dataclass(frozen=True)
class ArrowReader:
    """The rows of some Arrow files that share a schema.

    Attributes:
        folder: where paths in the rows start from.
        files: the Arrow files, in order.
        columns: the names in their schema.
        identity: sha256 of their content.
        features: column -> Hugging Face's description of it, where the files bring one.
    """

    folder: Path
    files: tuple[Path, ...]
    columns: tuple[str, ...]
    identity: str
    features: Mapping[str, Any]

    @cached_property
    def _batches(self) -> tuple[list[pa.RecordBatch], np.ndarray]:
        """The batches of rows, mapped, and the number of the row after each one's last."""
        batches = [batch for file in self.files for batch in _read(file).to_batches()]
        return batches, np.cumsum([batch.num_rows for batch in batches], dtype=np.int64)

    def __len__(self) -> int:
        _, ends = self._batches
        return int(ends[-1]) if len(ends) else 0

    def rows(self, numbers: Iterable[int], columns: Sequence[str] | None = None) -> list[Row]:
        """Return the rows of these numbers, in this order, with `columns` (None: all) of each."""
        wanted = list(self.columns if columns is None else columns)
        asked = np.fromiter(numbers, np.int64)
        batches, ends = self._batches
        owners = np.searchsorted(ends, asked, side="right")
        rows: list[Row] = [{} for _ in asked]
        for owner in np.unique(owners).tolist():
            positions = np.flatnonzero(owners == owner)
            inside = asked[positions] - (ends[owner] - batches[owner].num_rows)
            taken = batches[owner].select(wanted).take(pa.array(inside)).to_pylist()
            for position, row in zip(positions.tolist(), taken, strict=True):
                rows[position] = {name: self._plain(name, value) for name, value in row.items()}
        return rows

    def class_names(self, column: str) -> tuple[str, ...] | None:
        """Return the classes of a column of ClassLabels, one or more per row; None for others."""
        feature = self.features.get(column, {})
        if isinstance(feature, dict) and "feature" in feature:
            feature = feature["feature"]
        names = feature.get("names") if isinstance(feature, dict) else None
        return tuple(names) if names else None

    def _plain(self, column: str, value: Any) -> Any:
        """Return a value; of an image its bytes, else its path, as the other sources give them."""
        feature = self.features.get(column)
        if isinstance(feature, dict) and feature.get("_type") == "Image" and value is not None:
            return value["path"] if value.get("bytes") is None else value["bytes"]
        return value

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_batches"}


def open_parquet(path: Path) -> ArrowReader:
    """Open a Parquet file.

    Raises:
        UserError: no such file, or it is no Parquet.
    """
    check_is_file(path)
    identity = sha256(path)
    unpacked = cache_dir() / "arrow" / f"{identity}.arrow"
    if not _is_sound(unpacked):
        _unpack(path, unpacked)
    return _open(path.parent, (unpacked,), identity)


def _unpack(path: Path, unpacked: Path) -> None:
    """Write a Parquet file's rows as an Arrow file, whole or not at all."""
    with (
        written_aside(unpacked) as aside,
        _refused(path, "Parquet"),  # within: what cannot be read is no failure to write
        pq.ParquetFile(path) as packed,
        pa.OSFile(str(aside), "wb") as sink,
        pa.ipc.new_file(sink, packed.schema_arrow) as writer,
    ):
        for batch in _checked(packed.iter_batches(UNPACKED_ROWS), path):
            writer.write_batch(batch)


def open_arrow(path: Path) -> ArrowReader:
    """Open an Arrow file or stream; Feather is one.

    Raises:
        UserError: no such file, or it is no Arrow.
    """
    check_is_file(path)
    with _refused(path, "Arrow"):
        _check(path)
        return _open(path.parent, (path,), sha256(path))


def open_saved(body: str) -> ArrowReader:
    """Open a folder of `datasets.Dataset.save_to_disk`, or `FOLDER:SPLIT` of a DatasetDict.

    Raises:
        UserError: no such folder or split, or it is no saved data set.
    """
    folder, split = Path(body).expanduser(), ""
    if not folder.exists() and ":" in body:
        left, _, split = body.rpartition(":")
        folder = Path(left).expanduser()
    if (folder / SPLITS).is_file():
        known = read_json_object(folder / SPLITS).get("splits")
        if not isinstance(known, list) or not all(isinstance(name, str) for name in known):
            raise UserError(f"{folder / SPLITS} names no splits.", "Save the set again.")
        if split not in known:
            missing = f"no split '{split}'" if split else "no split named"
            raise UserError(
                f"hf:{body}: there is {missing}.",
                f"{did_you_mean(split, known)} Write hf:{folder}:SPLIT.",
            )
        folder, split = folder / split, ""
    if not (folder / STATE).is_file() or split:
        raise UserError(
            f"'{folder}' is not a data set saved by `datasets`"
            + (f" with a split '{split}'." if split else f": it has no {STATE}."),
            "Dataset.save_to_disk(FOLDER) writes one.",
        )
    state = read_json_object(folder / STATE)
    if state.get("_indices_data_files"):
        raise UserError(
            f"'{folder}' stores a selection of rows separately.",
            "Call flatten_indices() before save_to_disk.",
        )
    files = tuple(folder / _inside(name, folder) for name in _file_names(state, folder))
    for file in files:
        check_is_file(file)
    for file in files:
        with _refused(file, "Arrow"):
            _check(file)
    with _refused(folder, "Arrow"):
        return _open(folder, files, " ".join(map(sha256, files)))


def _file_names(state: Mapping[str, Any], folder: Path) -> list[str]:
    entries = state.get("_data_files", [])
    names: list[str] = []
    if isinstance(entries, list):
        named = [entry.get("filename") for entry in entries if isinstance(entry, dict)]
        names = [name for name in named if isinstance(name, str)]
    if not isinstance(entries, list) or len(names) != len(entries):
        raise UserError(f"{folder / STATE} names no files of rows.", "Save the set again.")
    return names


def _open(folder: Path, files: tuple[Path, ...], identity: str) -> ArrowReader:
    schemas = [_read(file).schema for file in files]
    if not schemas:
        raise UserError(f"'{folder}' holds no rows.")
    columns = tuple(schemas[0].names)
    twice = [name for number, name in enumerate(columns) if name in columns[:number]]
    if twice:
        raise UserError(f"{folder}: two columns are named '{twice[0]}'.", "Rename one.")
    return ArrowReader(folder, files, columns, identity, _features(folder, schemas[0].metadata))


def _features(folder: Path, metadata: Mapping[bytes, bytes] | None) -> dict[str, Any]:
    """Return the description of the columns that `datasets` leaves in a schema: name -> feature."""
    name = f"{folder}: the description of its columns ({FEATURES.decode()})"
    features = parse_json((metadata or {}).get(FEATURES, b"{}"), name)
    for key in ("info", "features"):
        features = (features.get(key) or {}) if isinstance(features, dict) else features
    described = features.values() if isinstance(features, dict) else [None]
    if not all(isinstance(feature, dict | list) for feature in described):
        raise UserError(f"{name} is not what `datasets` writes.", "Save the set again.")
    return features


def _read(file: Path) -> pa.Table:
    """Return a file's rows, mapped; columns that are compressed in it are read into memory."""
    return _reader(file).read_all()


def _reader(file: Path) -> pa.RecordBatchFileReader | pa.RecordBatchStreamReader:
    mapped = pa.memory_map(str(file))
    if mapped.read(len(FILE_FORMAT)) == FILE_FORMAT:
        return pa.ipc.open_file(mapped)
    mapped.seek(0)
    return pa.ipc.open_stream(mapped)


def _batches_of(file: Path) -> Iterator[pa.RecordBatch]:
    """Return a file's batches, one in memory at a time."""
    reader = _reader(file)
    if isinstance(reader, pa.RecordBatchFileReader):
        return (reader.get_batch(i) for i in range(reader.num_record_batches))
    return iter(reader)


def _check(file: Path) -> None:
    """Raise a UserError where a value of an Arrow file is damaged."""
    for _ in _checked(_batches_of(file), file):
        pass


def _is_sound(file: Path) -> bool:
    """Return whether a file of the cache is there, and as it was written."""
    try:
        _check(file)
    except (UserError, pa.ArrowException, OSError):
        return False
    return True


def _checked(batches: Iterable[pa.RecordBatch], file: Path) -> Iterator[pa.RecordBatch]:
    """Yield the same batches, each with all of its values looked at.

    Raises:
        UserError: an offset leads out of its column, a text is not UTF-8, or the like.
    """
    first = 1
    for batch in batches:
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            try:
                column.validate(full=True)
            except pa.ArrowException as error:
                reason, last = _first_line(error), first + batch.num_rows - 1
                where = f"rows {first:,} to {last:,}"
                bad = re.search(r"UTF8 sequence at string index (\d+)", reason)
                if bad and not column.type.num_fields:  # the index of a nested one is no row's
                    where, reason = f"row {first + int(bad[1]):,}", "text that is not UTF-8"
                raise UserError(
                    f"{file}: {where}: the column '{name}' is damaged ({reason}).",
                    "Rewrite the file.",
                ) from None
        first += batch.num_rows
        yield batch


@contextmanager
def _refused(path: Path, form: str) -> Iterator[None]:
    """Turn errors of reading a file into a UserError that names its form."""
    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:  # a name that is not UTF-8
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's own refusal
        raise UserError(f"{path} cannot be read as {form} ({_first_line(error)}).") from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def _inside(name: str, folder: Path) -> str:
    """Return a file's name, which may not lead out of its folder."""
    if Path(name).name != name:
        raise UserError(f"{folder / STATE} names the file '{name}', which is not in its folder.")
    return name
