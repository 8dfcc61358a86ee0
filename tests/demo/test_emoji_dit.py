"""The DiT of the demo: the drawings by name that it is made of, and how it begins."""

import csv
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from jaxft.config.load import parse_config
from jaxft.demo import pretrain as demo_pretrain
from jaxft.demo.drawing import emoji_dit as demo
from jaxft.demo.drawing.emoji_drawings import GROUPS, HELD_OUT, write_drawings
from jaxft.models import load as registry

ROOT = Path(__file__).parents[2]
SMALL = demo.Size(side=8, patch=4, width=16, blocks=2, heads=2, classes=5)
COUNTRIES = [f"land {number:02}" for number in range(12)]


def write_package(path: Path, by: str, color: tuple[int, int, int], undrawn: set[str]) -> Path:
    """The package of a designer: twelve flags, two fruits of one name, and what is in no group."""
    entries = [(f"flag {name}", "Flags", name) for name in COUNTRIES]
    entries += [("PEAR", "Food & Drink", "pear"), ("PEAR", "Food & Drink", "green_pear")]
    entries += [("Tone", "Component", "tone")]
    described, files = [], {"package/img/sheets/a.png": b"no emoji"}
    image = io.BytesIO()
    Image.new("RGB", (64, 64), color).save(image, "png")
    for number, (name, category, short) in enumerate(entries):
        entry = {"image": f"{number}.png", "category": category, "name": name, "short_name": short}
        described.append(entry | {f"has_img_{by}": short not in undrawn})
        if short not in undrawn:
            files[f"package/img/{by}/64/{number}.png"] = image.getvalue()
    files["package/emoji.json"] = json.dumps(described).encode()
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def drawings(tmp_path) -> Path:
    """The asset of two such packages; Google has not drawn the green pear."""
    twitter = write_package(tmp_path / "twitter.tgz", "twitter", (200, 40, 50), set())
    google = write_package(tmp_path / "google.tgz", "google", (40, 60, 200), {"green_pear"})
    (to := tmp_path / "drawings").mkdir()
    write_drawings(twitter, google, to)
    return to


def rows_of(table: Path) -> list[dict[str, str]]:
    with table.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def test_of_each_flag_one_drawing_is_held_out(drawings):
    train, test = (rows_of(drawings / name) for name in ("train.csv", "test.csv"))
    flags = [row for row in train if row["group"] == HELD_OUT]
    names = [f"flag {name}" for name in COUNTRIES]
    assert sorted(row["name"] for row in flags) == sorted(row["name"] for row in test) == names
    by = {row["image"].split("-")[0] for row in test}
    assert by == {"images/twitter", "images/google"}
    assert not {row["image"] for row in flags} & {row["image"] for row in test}


def test_what_is_no_flag_is_trained_on_as_it_was_drawn(drawings):
    """Two emoji of one name have their short names, what is in no group is left out."""
    others = [row for row in rows_of(drawings / "train.csv") if row["group"] != HELD_OUT]
    assert [(row["image"].split("-")[0], row["name"]) for row in others] == [
        ("images/twitter", "pear"),
        ("images/twitter", "green pear"),
        ("images/google", "pear"),
    ]
    assert {row["group"] for row in others} == {"food"}


def test_each_drawing_is_its_designers(drawings):
    colors = {"twitter": (200, 40, 50), "google": (40, 60, 200)}
    for row in rows_of(drawings / "train.csv") + rows_of(drawings / "test.csv"):
        by = row["image"].removeprefix("images/").split("-")[0]
        with Image.open(drawings / row["image"]) as image:
            assert image.getpixel((0, 0)) == colors[by], row
    text = (drawings / "ATTRIBUTION.txt").read_text()
    assert "Twemoji" in text
    assert "Noto Emoji" in text


def test_it_begins_with_drawn_weights_and_a_number_for_each_name(tmp_path):
    models = [
        registry.load(str(demo.blank(tmp_path / f"{seed}", SMALL, seed=seed))) for seed in (0, 1)
    ]
    assert models[0].report.new == models[0].report.unused == ()
    assert models[0].config.fields["num_embeds_ada_norm"] == 5
    kernel = "blocks/1/attention/query/kernel"
    assert np.abs(models[0].params[kernel] - models[1].params[kernel]).max() > 0.01


def test_the_asset_is_what_a_run_exports(tmp_path, monkeypatch):
    """Of all groups but the flags; nothing else of the run is kept."""
    configs = []

    def run_here(*words):
        if words[0] == "train":
            configs.append(parse_config(yaml.safe_load(Path(words[1]).read_text())))
        else:
            demo.blank(Path(words[words.index("--out") + 1]), SMALL)

    monkeypatch.setattr(demo_pretrain, "jaxft", run_here)
    (to := tmp_path / "asset").mkdir()
    demo._pretrain(tmp_path / "drawings", to)
    assert registry.describe(str(to)).head == "diffusion"
    (config,) = configs
    assert set(GROUPS.values()) - set(config.data.where["group"]) == {HELD_OUT}
    assert not Path(config.model.checkpoint).exists()


def test_the_config_trains_on_the_group_that_is_held_out():
    config = yaml.safe_load((ROOT / "configs/generate_images.yaml").read_text())
    assert config["data"]["where"] == {"group": HELD_OUT}
