"""Rows of any source as a TFDS data set, in array_record, without TensorFlow."""

from __future__ import annotations

import io
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image, UnidentifiedImageError

from jaxft.data.sources.reader import ClassId, Row
from jaxft.data.sources.source import Source
from jaxft.errors import UserError

VERSION = "1.0.0"
NAME = re.compile(r"[a-z][a-z0-9_]*")
KINDS: Mapping[str, Any] = {"bool": np.bool_, "int": np.int64, "float": np.float64}


def write_tfds(splits: Mapping[str, Source], out: Path) -> Path:
    """Write a data set of these splits, each row as its source gives it.

    Args:
        splits: split name -> rows; all have the columns of the first.
        out: the data set's folder, which is its name; a folder `1.0.0` comes into it.

    Returns:
        The version's folder, which `tfds:FOLDER:SPLIT` reads.

    Raises:
        UserError: a name that TFDS does not take, a folder that is there already, or a value that
            TFDS cannot hold; nothing is left of what was written.
    """
    if not NAME.fullmatch(out.name):
        raise UserError(
            f"--out: '{out.name}' is not a valid name of a TFDS data set.",
            "Use lowercase letters, digits and _, beginning with a letter.",
        )
    folder = out / VERSION
    if folder.exists():
        raise UserError(f"{folder} exists already.", "Remove it, or write to another folder.")
    features = _features(splits)
    was_there = out.exists()
    builder = _Rows(out.resolve(), splits, features)
    try:
        tfds.disable_progress_bar()
        with (
            tempfile.TemporaryDirectory(prefix="jaxft-") as downloads,  # else beside the set
            redirect_stdout(io.StringIO()),
        ):
            builder.download_and_prepare(download_dir=downloads)
    except BaseException:
        if not was_there and out.exists() and not any(out.iterdir()):
            out.rmdir()
        raise
    return folder


class _Rows(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """A TFDS builder; setting the name first keeps TFDS from naming the set after the class."""

    def __init__(self, out: Path, splits: Mapping[str, Source], features: Mapping[str, Any]):
        self.name = out.name
        self.VERSION = tfds.core.Version(VERSION)
        self._splits, self._columns = splits, features
        super().__init__(data_dir=str(out.parent), file_format="array_record")

    def _info(self) -> Any:
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(dict(self._columns)),
            disable_shuffling=True,  # else TFDS orders rows by a hash
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        return {name: self._generate_examples(source) for name, source in self._splits.items()}

    def _generate_examples(self, source: Source) -> Iterator[tuple[int, Row]]:
        for number, row in source.each(list(self._columns)):
            yield number, _encoded(row, self._columns, source, number)


def _features(splits: Mapping[str, Source]) -> dict[str, Any]:
    """Return the TFDS feature of each column, after checking every value."""
    first = next(iter(splits.values()))
    for source in splits.values():
        missing = [name for name in first.columns if name not in source.columns]
        if missing:
            raise UserError(f"{source.spec}: there is no column '{missing[0]}'.")
    kinds: dict[str, set[str]] = {name: set() for name in first.columns}
    for source in splits.values():
        for number, row in source.each(first.columns):
            for name, value in row.items():
                kinds[name].add(_kind(value, name, source, number))
    return {name: _feature(name, kinds[name], first) for name in first.columns}


def _kind(value: Any, name: str, source: Source, number: int) -> str:
    """Return a value's kind in words; UserError where TFDS has none that reads back the same."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, ClassId):
        return "int"
    if type(value).__name__ in KINDS:
        return type(value).__name__
    if isinstance(value, str):
        return "image" if _is_file(value, source, number) else "str"
    if isinstance(value, bytes) and _is_image(value):
        return "image"
    if isinstance(value, list | np.ndarray):
        inner = {_kind(one, name, source, number) for one in value}
        if inner <= {*KINDS, "str"}:
            return f"list of {_widest(inner)}" if inner else "list"
    problem = "is empty" if value is None else f"is {type(value).__name__}"
    raise UserError(
        f"{source.place(number)}: '{name}' {problem}, which a TFDS data set cannot hold.",
        "Fill it in, or write it as text.",
    )


def _widest(kinds: set[str]) -> str:
    return "float" if kinds == {"int", "float"} else " or ".join(sorted(kinds))


def _feature(name: str, kinds: set[str], source: Source) -> Any:
    names = source.class_names(name)
    lists = {kind.removeprefix("list").removeprefix(" of ") for kind in kinds if "list" in kind}
    if lists and len(kinds) == len([kind for kind in kinds if "list" in kind]):
        inner = _widest(lists - {""}) or "str"
        if names:
            return tfds.features.Sequence(tfds.features.ClassLabel(names=list(names)))
        if inner in (*KINDS, "str"):
            return tfds.features.Sequence(_scalar(inner))
    kind = _widest(kinds)
    if names and kind == "int":
        return tfds.features.ClassLabel(names=list(names))
    if kind in (*KINDS, "str", "image"):
        return _scalar(kind)
    raise UserError(f"{source.spec}: '{name}' holds {kind}; a TFDS column has one type.")


def _scalar(kind: str) -> Any:
    if kind == "str":
        return tfds.features.Text()
    return tfds.features.Image() if kind == "image" else tfds.features.Scalar(KINDS[kind])


def _encoded(row: Row, features: Mapping[str, Any], source: Source, number: int) -> Row:
    """Return a row as TFDS takes it: an image as the bytes of its file, which stay as they are."""
    encoded = dict(row)
    for name, feature in features.items():
        if isinstance(feature, tfds.features.Image) and isinstance(row[name], str):
            encoded[name] = source.path_of(number, row[name]).read_bytes()
    return encoded


def _is_file(value: str, source: Source, number: int) -> bool:
    """Return whether a text is the path of an image, from the rows' folder.

    Raises:
        UserError: it is one, and leads out of that folder.
    """
    if not re.search(r"\.(png|jpe?g)$", value, re.IGNORECASE) or "\n" in value:
        return False
    if not (source.folder_of(number) / value).is_file():
        return False
    return _is_image(source.path_of(number, value).read_bytes())


def _is_image(content: bytes) -> bool:
    """Return whether TFDS can keep these bytes as an image: PNG or JPEG."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.format in ("PNG", "JPEG")
    except (UnidentifiedImageError, OSError):
        return False
