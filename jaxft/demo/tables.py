"""Tables as assets: loans that went bad and tumours, a row each, as train.csv and test.csv."""

from __future__ import annotations

import bz2
import csv
import lzma
import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxft.data.text.template import is_missing
from jaxft.demo.assets import Deb, once, unpack_deb
from jaxft.demo.rows import digest, write_csv
from jaxft.errors import UserError

MODELDATA = Deb(
    "r-cran-modeldata",
    "1.4.0-1",
    "r/r-cran-modeldata/r-cran-modeldata_1.4.0-1_all.deb",
    "cb9260bfc0363a85f60da89acbe4d3f97e6b389417053d67a077eeaa49cf17d7",
)
INSIDE = "usr/lib/R/site-library/modeldata/data"
HELD_OUT = 5  # one row in so many
EVAL, THINNED = 8, 4  # of the loans: one in so many of the rest; one in so many of the good ones
# R's words for years at work, as a person would write them.
YEARS = {"lt_1": "less than 1", "ge_10": "10 or more", "unk": ""}
LZMA2 = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]


def lending_club() -> Path:
    """Return the folder with train.csv (6,872 loans), eval.csv (1,002) and test.csv (1,983), 5.2%
    bad.

    22 columns of what was known when the loan was given, and `Class`: good or bad.
    train_thinned.csv has train.csv's bad loans and one in four of its good ones, by their hash.

    Source: Debian `r-cran-modeldata` (R's modeldata, MIT licence): Lending Club's public records.
    """
    return once("lending_club", MODELDATA, _write_loans)


def credit_data() -> Path:
    """Return the folder with train.csv (3,527 rows) and test.csv (925): credits, 28% of them bad.

    13 columns of who asked for how much, some cells empty, and `Status`: good or bad.

    Source: Debian `r-cran-modeldata` (R's modeldata, MIT licence), collected by Lluís A. Belanche.
    """
    return once("credit_data", MODELDATA, lambda deb, to: _write_frame(deb, to, dict))


def breast_cancer() -> Path:
    """Return the folder with train.csv (465 rows) and test.csv (104): tumours, 37% of them
    malignant.

    30 measures of the cell nuclei in an image of each, and `diagnosis`: benign or malignant.

    Source: scikit-learn's copy of the UCI set Breast Cancer Wisconsin (Diagnostic) (CC BY 4.0).
    """
    return once("breast_cancer", (), _write_breast_cancer)


def held_out(row: Mapping[str, Any]) -> bool:
    """Return whether a row belongs to test.csv: it depends on its cells alone, not on its place."""
    return _digest(row) % HELD_OUT == 0


def _digest(row: Mapping[str, Any]) -> int:
    return digest("|".join(str(cell) for cell in row.values()))


def _write_loans(deb: Path, to: Path) -> None:
    """Write the loans; the eval rows are one in eight of those that are not held out."""
    _write_frame(deb, to, _loan)
    with (to / "train.csv").open(encoding="utf-8", newline="") as file:
        head, *lines = csv.reader(file)
    named = [dict(zip(head, line, strict=True)) for line in lines]
    chosen: dict[str, list[dict[str, Any]]] = {
        "eval.csv": [row for row in named if _digest(row) // HELD_OUT % EVAL == 0],
        "train.csv": [row for row in named if _digest(row) // HELD_OUT % EVAL],
    }
    chosen["train_thinned.csv"] = [
        row
        for row in chosen["train.csv"]
        if row["Class"] == "bad" or _digest(row) // (HELD_OUT * EVAL) % THINNED == 0
    ]
    for name, rows in chosen.items():
        write_csv(to / name, head, [list(row.values()) for row in rows])


def _write_breast_cancer(to: Path) -> None:
    from sklearn.datasets import load_breast_cancer  # seconds, for this table alone

    data = load_breast_cancer()
    columns = [name.replace(" ", "_") for name in data.feature_names]
    names = list(data.target_names)
    _write_rows(
        to,
        (
            {**dict(zip(columns, values, strict=True)), "diagnosis": names[label]}
            for values, label in zip(data.data.tolist(), data.target, strict=True)
        ),
    )


def _write_frame(deb: Path, to: Path, clean: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Write the data frame that has the folder's name, each row as `clean` gives it."""
    scratch = deb.parent / "data"
    unpack_deb(deb, INSIDE, scratch)
    _write_rows(to, map(clean, lazy_frame(scratch / "Rdata", to.name)))


def _write_rows(to: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write train.csv and test.csv, each row once and in order; an unknown cell is empty."""
    chosen: dict[str, dict[tuple[Any, ...], None]] = {"train.csv": {}, "test.csv": {}}
    head: tuple[str, ...] = ()
    for raw in rows:
        row = {name: "" if is_missing(cell) else cell for name, cell in raw.items()}
        head = tuple(row)
        chosen["test.csv" if held_out(row) else "train.csv"][tuple(row.values())] = None
    for name, lines in chosen.items():
        write_csv(to / name, head, lines)


def _loan(row: dict[str, Any]) -> dict[str, Any]:
    """Return a loan with its months as a number, and R's words as a person writes them."""
    years = row["emp_length"].removeprefix("emp_")
    return row | {
        "term": int(row["term"].removeprefix("term_")),
        "emp_length": YEARS.get(years, years),
        "verification_status": row["verification_status"].replace("_", " ").lower(),
    }


def lazy_frame(base: Path, name: str) -> list[dict[str, Any]]:
    """Return the rows of a data frame in an R package's lazy-load data base, read without R.

    Source: R Internals, section 1.15 (lazy loading): an index of offsets, and each object as R
    serialises it, compressed, its length before it.

    Args:
        base: the path of the data base without its endings .rdx and .rdb.
        name: the frame's.

    Raises:
        UserError: `rdata` is not installed.
    """
    try:
        import rdata
    except ModuleNotFoundError:
        raise UserError(
            "R's tables are read by the package rdata, which is not installed.",
            "Install it: pip install '.[demos]'.",
        ) from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes of R that become plain frames
        index = rdata.read_rds(base.with_suffix(".rdx"))
        start, length = (int(number) for number in index["variables"][name])
        packed = base.with_suffix(".rdb").read_bytes()[start : start + length]
        frame = rdata.conversion.convert(rdata.parser.parse_data(_unpacked(packed)))
    columns = {str(column): frame[column].tolist() for column in frame.columns}
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def _unpacked(packed: bytes) -> bytes:
    """Return an object's bytes: behind 4 of length, a letter for xz or bzip2, or none for zlib."""
    if packed[4:5] == b"Z":
        return lzma.decompress(packed[5:], format=lzma.FORMAT_RAW, filters=LZMA2)
    if packed[4:5] == b"2":
        return bz2.decompress(packed[5:])
    return zlib.decompress(packed[4:])
