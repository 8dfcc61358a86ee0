"""Parquet and Arrow files, and saved Hugging Face `datasets`, as random-access rows.

All are read as memory-mapped Arrow, so that files larger than memory will do. Parquet is
compressed by blocks of rows and gives no single row cheaply: it is unpacked once, into the user's
cache folder, under the hash of its content.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from jaxft.data.sources.arrow_files import check_file, first_line, is_sound, read_table, refused
from jaxft.data.sources.files import check_columns, check_is_file
from jaxft.data.sources.parquet.unpack import unpack_parquet
from jaxft.data.sources.reader import OBJECT_CLASSES, Row, as_class_ids
from jaxft.errors import UserError, did_you_mean
from jaxft.storage.files import cache_dir, sha256
from jaxft.storage.json_files import parse_json, read_json_object

FEATURES = b"huggingface"  # where `datasets` keeps its features in an Arrow schema
STATE, SPLITS = "state.json", "dataset_dict.json"  # what `save_to_disk` writes


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
        batches = [batch for file in self.files for batch in read_table(file).to_batches()]
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
            taken = batches[owner].select(wanted).take(pa.array(inside))
            for name, column in zip(wanted, taken.columns, strict=True):
                values = self._values(name, column, positions, asked)
                for position, value in zip(positions.tolist(), values, strict=True):
                    rows[position][name] = value
        return rows

    def class_names(self, column: str) -> tuple[str, ...] | None:
        """Return the classes of a column of ClassLabels, one or more per row; None for others.

        For a column of objects they are those of its `label` or `category`.
        """
        names = _class_names(self.features.get(column))
        if names and not (isinstance(names, list) and all(isinstance(one, str) for one in names)):
            raise UserError(f"{self.folder}: the classes of '{column}' are no list of names.")
        return tuple(names) if names else None

    def _values(self, name: str, column: pa.Array, positions: np.ndarray, asked: np.ndarray) -> Any:
        """Return a column's values as Python has them; of an image its bytes, else its path.

        Raises:
            UserError: one is outside what Python holds, such as a time in the year 100,000.
        """
        try:
            values = column.to_pylist()
        except (ValueError, OverflowError, pa.ArrowException) as error:
            first, last = asked[positions].min() + 1, asked[positions].max() + 1
            raise UserError(
                f"{self.folder}: rows {first:,} to {last:,}: a value of the column '{name}' cannot "
                f"be read ({first_line(error)}).",
                "Correct it, or write the column as text.",
            ) from None
        feature = self.features.get(name)
        if isinstance(feature, dict) and feature.get("_type") == "Image":
            return [_image(value) for value in values]
        return values if self.class_names(name) is None else [*map(as_class_ids, values)]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_batches"}


def _class_names(feature: Any) -> Any:
    """Return what a feature's description has for its classes, an inner one's or its objects'."""
    if isinstance(feature, list):  # as older files have a list
        feature = {"feature": feature[0]} if feature else None
    if not isinstance(feature, dict):
        return None
    if "feature" in feature:
        return _class_names(feature["feature"])
    if feature.get("_type") == "ClassLabel":
        return feature.get("names")
    return next((_class_names(feature[one]) for one in OBJECT_CLASSES if one in feature), None)


def _image(value: Any) -> Any:
    """Return the bytes of an image that `datasets` describes, else its path."""
    if not isinstance(value, dict):
        return value
    return value.get("path") if value.get("bytes") is None else value["bytes"]


def open_parquet(path: Path) -> ArrowReader:
    """Open a Parquet file.

    Raises:
        UserError: no such file, or it is no Parquet.
    """
    check_is_file(path)
    identity = sha256(path)
    unpacked = cache_dir() / "arrow" / f"{identity}.arrow"
    if not is_sound(unpacked):
        unpack_parquet(path, unpacked)
    return _open(path.parent, (unpacked,), identity)


def open_arrow(path: Path) -> ArrowReader:
    """Open an Arrow file or stream; Feather is one.

    Raises:
        UserError: no such file, or it is no Arrow.
    """
    check_is_file(path)
    with refused(path, "Arrow"):
        check_file(path)
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
        with refused(file, "Arrow"):
            check_file(file)
    with refused(folder, "Arrow"):
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
    schemas = [read_table(file).schema for file in files]
    if not schemas:
        raise UserError(f"'{folder}' holds no rows.")
    columns = tuple(schemas[0].names)
    check_columns(columns, folder)
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


def _inside(name: str, folder: Path) -> str:
    """Return a file's name, which may not lead out of its folder."""
    if Path(name).name != name:
        raise UserError(f"{folder / STATE} names the file '{name}', which is not in its folder.")
    return name
