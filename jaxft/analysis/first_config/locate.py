"""Sources of a person's data: a file, a folder, or a name, as source strings of each split."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from jaxft.bounds import MOST_COCO_BYTES, MOST_ROW_BYTES
from jaxft.data.sources.images import images_below
from jaxft.data.sources.masks import IMAGES, MASKS
from jaxft.data.sources.open import KINDS
from jaxft.data.sources.tfds_folder import FEATURES
from jaxft.errors import UserError
from jaxft.storage.json_files import read_json_object

ENDINGS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".conll": "conll",
}
# Files of boxes that stand among the images of their split.
COCO = "_annotations.coco.json"
# A part of a split as the hub has it: train-00000-of-00003.parquet.
SHARD = re.compile(r"(?P<split>[a-z]+)-\d+-of-\d+\.parquet", re.IGNORECASE)
# Names of splits, in files, folders and data sets.
SPLITS = {
    "train": ("train", "training"),
    "eval": ("validation", "valid", "val", "eval", "dev"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True)
class Located:
    """Source strings of the splits of a data set.

    Attributes:
        name: of the data set, for the run.
        train: the rows to train on, or all rows.
        eval, test: the other splits; None where the data have none.
    """

    name: str
    train: str
    eval: str | None = None
    test: str | None = None


def locate(what: str) -> Located:
    """Return the source strings of what a person named.

    Args:
        what: a CSV, TSV, JSON lines, COCO, Parquet, Arrow or CoNLL file; a folder with a subfolder
            of images per class, with images and masks or COCO's annotations, of such files named
            by split, of a data set that `datasets` saved, or of one prepared by TFDS; the latter's
            name; or a source string.

    Raises:
        UserError: it is none of these.
    """
    kind, colon, body = what.partition(":")
    if colon and kind in KINDS:
        return _source_string(what, kind, body)
    path = Path(what).expanduser()
    if path.is_file():
        if path.suffix.lower() not in ENDINGS:
            known = ", ".join(ENDINGS)
            raise UserError(
                f"'{what}' has no ending that says what it holds (known: {known}).",
                "Name the kind, as in csv:FILE or jsonl:FILE.",
            )
        return _with_siblings(path)
    if path.is_dir():
        return _folder(path, _name(str(path.resolve())))
    try:
        splits = _prepared_splits(what)
    except UserError:
        raise UserError(
            f"There is no file or folder '{what}', and no prepared TFDS data set of that name.",
            "Name a .csv, .jsonl or .parquet file, or a folder of images.",
        ) from None
    return _of_splits(what.replace("/", "-"), {split: f"tfds:{what}:{split}" for split in splits})


def _source_string(what: str, kind: str, body: str) -> Located:
    if what.endswith("]") or body.endswith(":ordered"):
        raise UserError(
            f"'{what}' names a part of the rows, and `jaxft init` makes the splits itself.",
            "Leave the slice and :ordered out.",
        )
    if kind in ("tfds", "hf"):
        return Located(_name(body.split(":")[0]), what)
    return Located(_name(body), what)


def _name(path: str) -> str:
    """Return a run's name from a path: its last part, without ending and odd characters."""
    stem = Path(path.rstrip("/")).name.partition(".")[0]
    letters = "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "-" for c in stem)
    return letters.strip("-_") or "run"


def _with_siblings(path: Path) -> Located:
    """Return a file, with those beside it that are named by another split."""
    kind = _kind(path)
    whole = Located(_name(str(path)), f"{kind}:{path}")
    if path.stem.lower() not in SPLITS["train"]:
        return whole
    others = {
        split: f"{kind}:{path.with_name(name + path.suffix)}"
        for split in ("eval", "test")
        for name in reversed(SPLITS[split])
        if path.with_name(name + path.suffix).is_file()
    }
    folder = _name(str(path.resolve().parent))
    return Located(folder, whole.train, others.get("eval"), others.get("test"))


def _kind(path: Path) -> str:
    """Return the kind of a file by its ending, and of a JSON file also by its keys."""
    kind = ENDINGS[path.suffix.lower()]
    if path.suffix.lower() != ".json" or not _one_object(path):
        return kind
    keys = read_json_object(path, most_bytes=MOST_COCO_BYTES).keys()
    if {"images", "annotations", "categories"} <= keys:
        return "coco"
    return "squad" if "data" in keys else kind


def _one_object(path: Path) -> bool:
    """Return whether a file holds one JSON object, rather than an object a line or an array."""
    with path.open("rb") as file:
        line = file.readline(MOST_ROW_BYTES)
        if not line.lstrip().startswith(b"{"):
            return False
        more = bool(file.read(1))
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return True  # an object of several lines
    return not more


def _prepared_splits(name_or_folder: str) -> tuple[str, ...]:
    """Return the splits of a prepared TFDS data set."""
    from jaxft.data.sources.tfds import prepared_splits

    return prepared_splits(name_or_folder)


def _folder(path: Path, name: str) -> Located:
    """Return the splits of a folder."""
    if (path / "dataset_dict.json").is_file():
        splits = read_json_object(path / "dataset_dict.json").get("splits")
        if not isinstance(splits, list) or not splits:
            raise UserError(f"{path / 'dataset_dict.json'} names no splits.")
        return _of_splits(name, {str(split): f"hf:{path}:{split}" for split in splits})
    if (path / "state.json").is_file():
        return Located(name, f"hf:{path}")
    versions = sorted(one.parent for one in path.glob(f"*/{FEATURES}"))
    for folder in (path, *reversed(versions)):
        if (folder / FEATURES).is_file():
            splits = _prepared_splits(str(folder))
            return _of_splits(name, {split: f"tfds:{folder}:{split}" for split in splits})
    if specs := _coco(path):
        return _of_splits(name, specs)
    files = [one for one in sorted(path.iterdir()) if one.suffix.lower() in ENDINGS]
    matches = [match for one in files if (match := SHARD.fullmatch(one.name))]
    if files and len(matches) == len(files):
        words = {match["split"] for match in matches}
        return _of_splits(
            name, {word.lower(): f"parquet:{path}/{word}-*.parquet" for word in words}
        )
    if not files and any((path / "data").glob("*.parquet")):
        return _folder(path / "data", name)
    trains = [one for one in files if one.stem.lower() in SPLITS["train"]]
    if len(trains) == 1 or len(files) == 1:
        return _with_siblings((trains or files)[0])
    if files:
        listed = ", ".join(one.name for one in files[:5])
        raise UserError(f"'{path}' holds several files: {listed}.", "Name one of them.")
    return _image_folder(path, name)


def _coco(path: Path) -> dict[str, str]:
    """Return the splits of a folder of images with COCO's annotations; none in another."""
    files = {one.parent.name: one for one in sorted(path.glob(f"*/{COCO}"))}
    for file in sorted((path / "annotations").glob("*.json")):
        split = file.stem.removeprefix("instances_")
        files[re.sub(r"\d+$", "", split).rstrip("_-")] = file
    return {word.lower(): f"coco:{file}" for word, file in files.items()}


def _image_folder(path: Path, name: str) -> Located:
    """Return a folder of class folders with images, or of splits with such folders."""
    folders = {one.name.lower(): one for one in path.iterdir() if one.is_dir()}
    trains = [folders[word] for word in SPLITS["train"] if word in folders]
    kind = "masks" if _has_masks(trains[0] if trains else path) else "images"
    if trains:
        return _of_splits(name, {word: f"{kind}:{one}" for word, one in folders.items()})
    if not folders and not images_below(path):
        raise UserError(
            f"'{path}' holds neither tables nor images.",
            "Name a .csv, .jsonl or .parquet file, or a folder with a subfolder of images per "
            "class.",
        )
    return Located(name, f"{kind}:{path}")


def _has_masks(folder: Path) -> bool:
    """Return whether a folder has images and masks side by side."""
    return all((folder / part).is_dir() for part in (IMAGES, MASKS))


def _of_splits(name: str, specs: dict[str, str]) -> Located:
    """Return the splits by their usual names; of a single one, that one.

    Raises:
        UserError: none of several is the training split.
    """
    by_split = {
        split: specs[word] for split, words in SPLITS.items() for word in words if word in specs
    }
    if "train" not in by_split:
        if len(specs) > 1:
            raise UserError(
                f"The data set has the splits {', '.join(specs)}, and none is called train.",
                f"Name one, as in {next(iter(specs.values()))}.",
            )
        by_split = {"train": next(iter(specs.values()))}
    return Located(name, **by_split)
