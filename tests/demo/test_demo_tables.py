"""The demo's tables: pinned rows, out of Debian's packages without R."""

import csv
import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from jaxft.demo import assets as demo_assets
from jaxft.demo import tables as demo_tables
from jaxft.errors import UserError

PINNED = {
    "lending_club": ("ed4fc0098452837c", "5ee485344c76b84a", 6872, 1983, "Class", "bad", 458),
    "credit_data": ("8138666eafed219e", "f400eda0fb1a933b", 3527, 925, "Status", "bad", 1253),
    "breast_cancer": ("c476adbf7b5af4a1", "af656540ab4a7dcc", 465, 104, "diagnosis", "malignant"),
}
FILES = {"./usr/share/word/en.txt": b"house", "./usr/share/word/more/es.txt": b"casa"}


def rows_of(file: Path) -> list[dict]:
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def check_pinned(folder: Path) -> None:
    """The figures in the README are about these rows and no others."""
    *digests, trained, held, label, wanted, count = (*PINNED[folder.name], 212)[:7]
    files = [folder / "train.csv", folder / "test.csv"]
    assert [hashlib.sha256(file.read_bytes()).hexdigest()[:16] for file in files] == digests
    train, test = map(rows_of, files)
    assert (len(train), len(test)) == (trained, held)
    assert sum(row[label] == wanted for row in train + test) == count


def test_the_tumours_are_the_pinned_rows(breast_cancer):
    check_pinned(breast_cancer)


@pytest.mark.full
@pytest.mark.parametrize("name", ["lending_club", "credit_data"])
def test_the_loans_are_the_pinned_rows(name):
    check_pinned(getattr(demo_tables, name)())


@pytest.mark.full
def test_loans_that_choose_are_not_trained_on_and_good_ones_are_thinned():
    folder = demo_tables.lending_club()
    rows = {
        name: [*map(str, rows_of(folder / f"{name}.csv"))] for name in ("train", "eval", "test")
    }
    thinned = rows_of(folder / "train_thinned.csv")
    assert len(rows["eval"]) == 1002
    assert not set(rows["train"]) & {*rows["eval"], *rows["test"]}
    assert set(map(str, thinned)) < set(rows["train"])
    kinds = [row["Class"] for row in thinned]
    assert (kinds.count("bad"), kinds.count("good")) == (347, 1684)


def test_a_loan_is_written_as_a_person_would():
    row = {"term": "term_36", "emp_length": "emp_ge_10", "verification_status": "Not_Verified"}
    assert list(demo_tables._loan(row).values()) == [36, "10 or more", "not verified"]
    assert demo_tables._loan(row | {"emp_length": "emp_unk"})["emp_length"] == ""
    assert demo_tables._loan(row | {"emp_length": "emp_5"})["emp_length"] == "5"


def test_a_row_is_there_once_and_on_one_side(tmp_path):
    rows = [{"a": number % 40, "b": float("nan")} for number in range(60)]
    demo_tables._write_rows(tmp_path, rows)
    found = {name: rows_of(tmp_path / f"{name}.csv") for name in ("train", "test")}
    assert sorted(int(row["a"]) for split in found.values() for row in split) == list(range(40))
    assert {row["b"] for split in found.values() for row in split} == {""}
    assert 0 < len(found["test"]) < len(found["train"])


# --------------------------------------------------------------------------------- Debian packages


def ar_member(name: str, content: bytes) -> bytes:
    head = f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
    return head + content + b"\n" * (len(content) % 2)


def debian_package(path: Path) -> Path:
    """A `.deb` as dpkg writes it, its control member of odd length."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz") as archive:
        for name, content in FILES.items():
            about = tarfile.TarInfo(name)
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))
    members = {
        "debian-binary": b"2.0\n",
        "control.tar.gz": b"odd",
        "data.tar.xz": packed.getvalue(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(demo_assets.AR + b"".join(ar_member(*each) for each in members.items()))
    return path


def test_a_debian_package_gives_its_files(tmp_path):
    deb = debian_package(tmp_path / "word.deb")
    demo_assets.unpack_deb(deb, "usr/share/word", tmp_path / "to")
    assert (tmp_path / "to/en.txt").read_text() == "house"
    assert (tmp_path / "to/more/es.txt").read_text() == "casa"
    with pytest.raises(UserError, match=r"word\.deb holds no files in usr/share/other"):
        demo_assets.unpack_deb(deb, "usr/share/other", tmp_path / "to")
    deb.write_bytes(b"<html>not found</html>")
    with pytest.raises(UserError, match=r"word\.deb is not a Debian package"):
        demo_assets.unpack_deb(deb, "usr/share/word", tmp_path / "to")


def test_an_asset_is_made_of_several_packages_with_the_right_hash(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(demo_assets, "DEBIAN", tmp_path.as_uri())
    file = debian_package(tmp_path / "pool/main/w/word/word_1.deb")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    right = demo_assets.Deb("word", "1", "w/word/word_1.deb", digest)

    def write(first, second, to):
        demo_assets.unpack_deb(first, "usr/share/word", to / "first")
        demo_assets.unpack_deb(second, "usr/share/word/more", to / "second")

    for wrong, said in (
        (demo_assets.Deb("word", "1", right.pool, "0" * 64), "its sha256 differs"),
        (demo_assets.Deb("gone", "1", "g/gone_1.deb", digest), "gone 1 could not be downloaded"),
    ):
        with pytest.raises(UserError, match=said):
            demo_assets.once("words", (right, wrong), write)
        assert not (tmp_path / "cache/assets/words").exists()
    folder = demo_assets.once("words", (right, right), write)
    assert (folder / "first/en.txt").read_text() == "house"
    assert (folder / "second/es.txt").read_text() == "casa"
