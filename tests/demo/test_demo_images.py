"""The demo's images: pinned rows, and nothing that looks alike on both sides."""

import csv
import hashlib
from pathlib import Path

import numpy as np
import pytest

from jaxft.data.image.images import decode, to_rgb
from jaxft.demo import assets as demo_assets
from jaxft.demo import images as demo_images
from jaxft.errors import UserError


def rows_of(file: Path) -> list[dict]:
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def sums_of(folder: Path) -> str:
    """The files of an asset, whatever their PNG encoder."""
    pixels = {
        file.relative_to(folder).as_posix(): np.asarray(decode(file)).tobytes()
        for file in folder.rglob("*.png")
    }
    digest = hashlib.sha256()
    for name in sorted(pixels):
        digest.update(name.encode() + pixels[name])
    return digest.hexdigest()[:16]


def test_the_digits_are_the_pinned_images(digits):
    """The figures in the README are about these images and no others."""
    counts = {split: sum(1 for _ in (digits / split).rglob("*.png")) for split in ("train", "test")}
    assert counts == {"train": 4513, "test": 487}
    assert sorted(one.name for one in (digits / "test").iterdir()) == list("0123456789")
    assert sums_of(digits / "test") == "e1f8526b46afa4c4"
    image = decode(next((digits / "test" / "7").iterdir()))
    assert (image.mode, image.size) == ("L", (28, 28))


def test_the_emoji_are_the_pinned_rows(emoji):
    rows = {name: rows_of(emoji / f"{name}.csv") for name in ("train", "test")}
    digests = {
        name: hashlib.sha256((emoji / f"{name}.csv").read_bytes()).hexdigest()[:16] for name in rows
    }
    assert digests == {"train": "48f370a4b061970d", "test": "04f5b39c4c38b58a"}
    assert len(rows["test"]) == 500
    assert {row["tone"] for row in rows["test"]} == {"none"}
    assert "CC BY 4.0" in (emoji / "ATTRIBUTION.txt").read_text()
    texts = [row["text"] for row in rows["test"] + rows["train"]]
    assert len(set(texts)) == len(texts)
    image = decode(emoji / rows["test"][0]["image"])
    assert image.size == (64, 64)


def test_what_looks_alike_is_on_one_side(emoji):
    rows = {name: rows_of(emoji / f"{name}.csv") for name in ("train", "test")}
    seen = {
        name: {np.asarray(to_rgb(decode(emoji / row["image"]))).tobytes() for row in rows[name]}
        for name in rows
    }
    assert not seen["train"] & seen["test"]
    texts = {name: {row["text"] for row in rows[name]} for name in rows}
    for one in texts["test"]:  # the same but for the sex
        other = one.replace("woman", "man") if "woman" in one else one.replace("man", "woman")
        assert other == one or other not in texts["train"], one


def test_a_kind_leaves_out_skin_sex_and_direction():
    kinds = ["1F9D1-200D-1F4BB", "1F469-1F3FD-200D-1F4BB", "1F468-200D-1F4BB"]
    assert {demo_images._kind(points) for points in kinds} == {"1F4BB-1F9D1"}
    running = ["1F3C3", "1F3C3-1F3FB-200D-2640-FE0F-200D-27A1-FE0F"]
    assert {demo_images._kind(points) for points in running} == {"1F3C3"}


def test_a_tarball_with_another_hash_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXFT_CACHE", str(tmp_path))
    registry = tmp_path / "registry"
    (registry / "word" / "-").mkdir(parents=True)
    (registry / "word" / "-" / "word-1.0.tgz").write_bytes(b"content")
    monkeypatch.setattr(demo_assets, "NPM", registry.as_uri())
    written = []

    def write(file, to):
        written.append(file.read_bytes())
        (to / "word.txt").write_text("word")

    wrong = demo_assets.Tarball("word", "1.0", "0" * 88)
    with pytest.raises(UserError, match="its sha512 differs"):
        demo_assets.once("word", wrong, write)
    with pytest.raises(UserError, match="could not be downloaded"):
        demo_assets.once("word", demo_assets.Tarball("gone", "1.0", "0" * 88), write)
    assert not written
    right = (
        "stHShbUZnIX5iNA2ScN+RP093gHl1pxQ/vkGUZYvSBEOk0C2DUmkecTAtT9fB9aQaG3YfSSBk3pRLouF7nxhfw=="
    )
    demo_assets.once("word", demo_assets.Tarball("word", "1.0", right), write)
    assert written == [b"content"]
