"""A prepared TFDS folder, checked as data before TFDS reads it.

Its JSON files name Python classes, which TFDS imports, and files, which it opens; so every class
has to be one of TFDS's own, and every file has to lie in the folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from array_record.python.array_record_module import ArrayRecordReader
from etils import epath

from jaxft.bounds import MOST_CLASSES, MOST_ROWS, MOST_SHARDS
from jaxft.errors import UserError
from jaxft.storage.files import check_inside, is_bucket
from jaxft.storage.json_files import TOO_DEEP, json_fault, read_json_object

FEATURES, INFO = "features.json", "dataset_info.json"
OWN_CLASSES = "tensorflow_datasets.core.features."
# How features.json spells "class": protobuf's two spellings and the one before protobuf.
CLASS_KEYS = ("pythonClassName", "python_class_name", "type")
COUNT_KEYS = ("numClasses", "num_classes")  # of a ClassLabel
AGAIN = "Prepare the set again, or fetch it again."
DATASET_NAME = re.compile(r"[\w-]+")
TEMPLATE = re.compile(
    r"(\$?\{(DATASET|SPLIT|FILEFORMAT|SHARD_X_OF_Y|SHARD_INDEX|NUM_SHARDS)\}|[\w/-]|\.(?!\.))+"
)


def check_folder(folder: epath.Path) -> None:
    """Check the files of a version's folder before TFDS reads any of them.

    Raises:
        UserError: one is a link out of the folder, features.json names a class that is not TFDS's
            own, or dataset_info.json is not what TFDS writes.
    """
    if not is_bucket(folder):
        for path in folder.iterdir():
            check_inside(Path(path), Path(folder), str(path))
    features = read_json_object(folder / FEATURES)
    if not any(features.get(key) for key in CLASS_KEYS):
        raise UserError(f"{folder / FEATURES} names no class of features.", AGAIN)
    for key, value in _fields(features, folder / FEATURES):
        if key in CLASS_KEYS and isinstance(value, str) and not value.startswith(OWN_CLASSES):
            raise UserError(
                f"{folder / FEATURES} names the class '{value}', which is not TFDS's own; opening "
                "the folder would import it, so it was not opened.",
                "Rebuild the set with features of tensorflow_datasets.features only.",
            )
        if key in COUNT_KEYS and not _is_count(value, MOST_CLASSES):
            raise UserError(
                f"{folder / FEATURES}: {key} is {json.dumps(value)}, and must be a whole number up "
                f"to {MOST_CLASSES:,}.",
                AGAIN,
            )
        if key == "encoding" and value == "zlib":
            raise UserError(
                f"{folder / FEATURES}: a feature is compressed by zlib, which has no bound.",
                "Prepare the set again without encoding='zlib'.",
            )
    _check_info(folder / INFO)


def _check_info(path: epath.Path) -> None:
    """Check the fields of dataset_info.json that TFDS makes paths and arrays of."""
    if not path.exists():
        raise UserError(f"There is no file '{path}'.", AGAIN)
    info = _camel(read_json_object(path), path)
    if not DATASET_NAME.fullmatch(str(info.get("name"))):
        raise UserError(f"{path}: {json.dumps(info.get('name'))} is not a data set's name.", AGAIN)
    splits = info.get("splits", [])
    if not isinstance(splits, list) or not all(isinstance(one, dict) for one in splits):
        raise UserError(f"{path}: splits is no list of objects.", AGAIN)
    for split in splits:
        about = _camel(split, path)
        lengths = about.get("shardLengths", [])
        if not isinstance(lengths, list) or not all(_is_count(n, MOST_ROWS) for n in lengths):
            raise UserError(f"{path}: shardLengths is no list of numbers of rows.", AGAIN)
        if len(lengths) > MOST_SHARDS or sum(map(int, lengths)) > MOST_ROWS:
            raise UserError(
                f"{path}: a split has {len(lengths):,} files and {sum(map(int, lengths)):,} rows; "
                f"at most {MOST_SHARDS:,} and {MOST_ROWS:,} are read."
            )
        template = about.get("filepathTemplate", "{DATASET}")
        if not isinstance(template, str) or not TEMPLATE.fullmatch(template) or template[0] == "/":
            raise UserError(
                f"{path}: filepathTemplate {json.dumps(template)} does not name files of the "
                "folder.",
                AGAIN,
            )


def check_shards(files: Sequence[epath.PathLike], rows: Sequence[int], folder: epath.Path) -> None:
    """Check that the files of a split are there, whole, and of as many rows as the folder says.

    Args:
        files: the array_record files.
        rows: the number of rows of each.
        folder: the version's folder.

    Raises:
        UserError: a file is missing, a link out of the folder, cut short or damaged.
    """
    for file, count in zip(files, rows, strict=True):
        path = epath.Path(file)
        if not is_bucket(path):
            check_inside(Path(path), Path(folder), str(path))
        if not path.is_file():
            raise UserError(f"There is no file '{path}', which {folder / INFO} names.", AGAIN)
        with refused(f"{path} cannot be read as array_record"):
            reader = ArrayRecordReader(str(path))
            there = reader.num_records()
            reader.close()
        if there != count:
            raise UserError(f"{path} has {there:,} rows, and {INFO} says {count:,}.", AGAIN)


@contextmanager
def refused(what: str) -> Iterator[None]:
    """Turn whatever TFDS and array_record raise of a damaged folder into a UserError.

    Args:
        what: the sentence without the library's reason.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # protobuf's, zlib's, ValueError, RuntimeError ...
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(f"{what} ({reason[:200]}).", AGAIN) from None


def _fields(value: Any, path: epath.Path) -> Iterator[tuple[str, Any]]:
    """Yield every key and value in a description, JSON kept inside strings included."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key, inner  # a column may be called `type`
            yield from _fields(inner, path)
    elif isinstance(value, list):
        for inner in value:
            yield from _fields(inner, path)
    elif isinstance(value, str) and value.lstrip().startswith(("{", "[", '"')):
        try:
            inner = json.loads(value)
        except ValueError:
            return
        except RecursionError:
            raise UserError(f"{path} {TOO_DEEP}.") from None
        if json_fault(inner, value) == TOO_DEEP:  # TFDS might read deeper than this function can
            raise UserError(f"{path} {TOO_DEEP}.")
        yield from _fields(inner, path)


def _camel(fields: Mapping[str, Any], path: epath.Path) -> dict[str, Any]:
    """Return the fields of a protobuf message in camel case, of the two spellings that it has."""
    spelled = {re.sub("_([a-z])", lambda m: m[1].upper(), key): key for key in fields}
    if len(spelled) < len(fields):
        raise UserError(f"{path} has a field twice.", AGAIN)
    return {name: fields[key] for name, key in spelled.items()}


def _is_count(value: Any, most: int) -> bool:
    """Return whether a JSON value is a number up to `most`; protobuf writes long ones as text."""
    is_text = isinstance(value, str) and value.isdecimal() and len(value) < 20
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return (is_text or is_number) and 0 <= int(value) <= most
