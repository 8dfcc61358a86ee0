"""Prepared TensorFlow Datasets as random-access rows, without TensorFlow."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from jaxft.data.sources.reader import OBJECT_CLASSES, ClassId, Row
from jaxft.data.sources.tfds_folder import FEATURES, check_folder, check_shards, refused
from jaxft.errors import UserError, did_you_mean

HASHED_BYTES = 2**30  # sets up to this size are known by content, larger ones by file sizes


@dataclass(frozen=True)
class TfdsReader:
    """The rows of one split of a prepared data set.

    Attributes:
        folder: the version's folder, the one with features.json.
        split: a whole split's name.
        columns: the features' names.
        identity: sha256 of what the folder holds and the split's name.
        features: column -> TFDS feature.
        data: TFDS's random-access source; images stay encoded.
    """

    folder: epath.Path
    split: str
    columns: tuple[str, ...]
    identity: str
    features: Any
    data: Any

    def __len__(self) -> int:
        return len(self.data)

    def rows(self, numbers: Iterable[int], columns: Sequence[str] | None = None) -> list[Row]:
        """Return the rows of these numbers, in this order, with `columns` (None: all) of each."""
        wanted = self.columns if columns is None else columns
        numbers = [int(number) for number in numbers]
        if not numbers:
            return []
        rows = f"rows {min(numbers) + 1:,} to {max(numbers) + 1:,}"
        with refused(f"{self.folder}: {rows} of '{self.split}' cannot be read"):
            return [
                {name: _plain(record[name], self.features[name]) for name in wanted}
                for record in self.data.__getitems__(numbers)
            ]

    def class_names(self, column: str) -> tuple[str, ...] | None:
        """Return the classes of a column of ClassLabels, one or several per row; None for others.

        For a column of objects they are those of its `label` or `category`.
        """
        return _class_names(self.features[column]) if column in self.columns else None


def open_tfds(body: str) -> TfdsReader:
    """Open a prepared data set: `NAME:SPLIT`, `NAME:VERSION:SPLIT` or `FOLDER:SPLIT`.

    Args:
        body: NAME (`glue/cola` with a config) is looked up in $TFDS_DATA_DIR or
            ~/tensorflow_datasets, in its latest version unless one is given; FOLDER is the
            version's folder.

    Raises:
        UserError: no such set, version or split; a foreign class; files that need TensorFlow; a
            folder that is damaged or not what TFDS writes.
    """
    name, colon, split = body.rpartition(":")
    if not colon or not name or not split:
        raise UserError(
            f"tfds:{body}: the split is missing.", "Write tfds:NAME:SPLIT, such as tfds:NAME:train."
        )
    folder = _find(name)
    check_folder(folder)
    with refused(f"{folder} is not a folder that TFDS reads"):
        builder = tfds.builder_from_directory(os.fspath(folder))
        form, features = builder.info.file_format, builder.info.features
    if form is None or form.value != "array_record":
        raise UserError(
            f"{folder}: the files are {form.value if form else 'of an unknown form'}, which only "
            "TensorFlow reads.",
            "Prepare the set again with file_format='array_record'.",
        )
    if split not in builder.info.splits:
        raise UserError(
            f"{folder}: there is no split '{split}'.", did_you_mean(split, builder.info.splits)
        )
    about = builder.info.splits[split]
    check_shards(about.filepaths, about.shard_lengths, folder)
    # Images are bounded and decoded by `image.decode`, and not at all where no one looks at them.
    decoders = {
        name: tfds.decode.SkipDecoding()
        for name, feature in features.items()
        if isinstance(feature, tfds.features.Image) and feature.np_dtype == np.uint8
    }
    with refused(f"{folder} is not a folder that TFDS reads"):
        data = builder.as_data_source(split=split, decoders=decoders)
    return TfdsReader(folder, split, tuple(features), _identity(folder, split), features, data)


def prepared_splits(name_or_folder: str) -> tuple[str, ...]:
    """Return the names of the splits of a prepared data set; see `open_tfds`.

    Raises:
        UserError: there is no such set, or it names a foreign class.
    """
    folder = _find(name_or_folder)
    check_folder(folder)
    with refused(f"{folder} is not a folder that TFDS reads"):
        return tuple(tfds.builder_from_directory(os.fspath(folder)).info.splits)


def _find(name_or_folder: str) -> epath.Path:
    """Return the version folder of a data set, given by folder, or by name and optional version."""
    folder = epath.Path(name_or_folder).expanduser()
    if (folder / FEATURES).exists():
        return folder
    name, _, version = name_or_folder.partition(":")
    if name_or_folder.startswith((".", "~", "/")) or "://" in name_or_folder or folder.is_dir():
        raise UserError(
            f"'{name_or_folder}' is not the folder of a prepared data set: it has no {FEATURES}.",
            "Name the version's folder, such as my_set/1.0.0.",
        )
    home = epath.Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    versions = _versions(home / name)
    if not versions:
        raise UserError(
            f"The TFDS data set '{name}' is not prepared in {home}.",
            "Prepare it there with file_format='array_record' (or set TFDS_DATA_DIR).",
        )
    if version and version not in versions:
        raise UserError(
            f"The TFDS data set '{name}' has no version {version} in {home}.",
            f"Prepared: {', '.join(versions)}.",
        )
    return home / name / (version or versions[-1])


def _versions(folder: epath.Path) -> list[str]:
    """Return the prepared versions below a set's folder, oldest first."""
    if not folder.is_dir():
        return []
    prepared = [path.name for path in folder.iterdir() if (path / FEATURES).exists()]
    named = [name for name in prepared if all(part.isdigit() for part in name.split("."))]
    return sorted(named, key=lambda name: [int(part) for part in name.split(".")])


def _identity(folder: epath.Path, split: str) -> str:
    """Return the sha256 of split, file names and sizes, and of the content unless it is large."""
    files = sorted((path for path in folder.iterdir() if path.is_file()), key=lambda p: p.name)
    sizes = [path.stat().length for path in files]
    digest = hashlib.sha256(split.encode())
    for path, size in zip(files, sizes, strict=True):
        digest.update(f"{path.name}\0{size}\0".encode())
        if sum(sizes) <= HASHED_BYTES or path.suffix == ".json":
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _class_names(feature: Any) -> tuple[str, ...] | None:
    """Return the classes of a feature, of a list's inner one, or of the objects in it."""
    if isinstance(feature, tfds.features.Sequence):
        return _class_names(feature.feature)
    if isinstance(feature, tfds.features.FeaturesDict):
        own = (_class_names(feature[name]) for name in OBJECT_CLASSES if name in feature)
        return next(own, None)
    return tuple(feature.names) if isinstance(feature, tfds.features.ClassLabel) else None


def _plain(value: Any, feature: Any) -> Any:
    """Return a TFDS value as a Python or numpy one: text as str, a scalar as a number."""
    if isinstance(feature, tfds.features.FeaturesDict):
        return {name: _plain(inner, feature[name]) for name, inner in value.items()}
    if isinstance(feature, tfds.features.Sequence):
        inner_feature = feature.feature
        if isinstance(inner_feature, tfds.features.FeaturesDict):
            return {
                name: [_plain(inner, inner_feature[name]) for inner in values]
                for name, values in value.items()
            }
        return [_plain(inner, inner_feature) for inner in value]
    if isinstance(feature, tfds.features.Text) and isinstance(value, bytes):
        return value.decode()
    if isinstance(feature, tfds.features.ClassLabel):
        return ClassId(value)
    return value.item() if isinstance(value, np.generic) else value
