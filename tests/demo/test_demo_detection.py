"""Scenes of emoji with exact boxes, and the detector that begins as a DINOv2."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
import yaml
from PIL import Image

from jaxft.config.load import parse_config
from jaxft.demo import pretrain as demo_pretrain
from jaxft.demo.detection import detector as demo
from jaxft.demo.detection.scenes import compose, read_emoji, texture, write_scenes
from jaxft.models import load as registry

PINK = (255, 0, 255)


def emoji(folder: Path) -> Path:
    """Two emoji to train on and one to test with: a pink bar, a pink square, and a green one."""
    (folder / "images").mkdir()
    shapes = {"bar": (30, 8, PINK), "square": (20, 20, PINK), "other": (20, 20, (0, 255, 0))}
    for name, (width, height, color) in shapes.items():
        image = Image.new("RGBA", (40, 40), (*color, 0))
        image.paste((*color, 255), (5, 5, 5 + width, 5 + height))
        image.save(folder / "images" / f"{name}.png")
    for table, names in {"train": ("bar", "square"), "test": ("other",)}.items():
        rows = "".join(f"images/{name}.png\n" for name in names)
        (folder / f"{table}.csv").write_text(f"image\n{rows}")
    return folder


def test_a_box_is_what_is_seen_of_an_emoji(tmp_path):
    """Every edge of a box touches its emoji, and no emoji is outside all boxes."""
    shapes, alone = read_emoji(emoji(tmp_path), "train.csv"), 0
    for seed in range(30):
        scene, boxes = compose(shapes, 80, np.random.default_rng(seed))
        pixels = np.asarray(scene).astype(int)
        pink = np.abs(pixels - PINK).max(-1) < 60
        outside = pink.copy()
        for left, top, right, bottom in boxes:
            assert 0 <= left < right <= 80
            assert 0 <= top < bottom <= 80
            outside[top:bottom, left:right] = False
        background = np.asarray(texture(80, np.random.default_rng(seed))).astype(int)
        natural = np.abs(background - PINK).max(-1) < 60
        assert not (outside & ~natural).any()
        if len(boxes) == 1 and not natural.any():
            alone += 1
            rows, columns = np.flatnonzero(pink.any(1)), np.flatnonzero(pink.any(0))
            near = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            np.testing.assert_allclose(near, boxes[0], atol=2)
    assert alone


def test_a_scene_follows_from_its_number(tmp_path):
    folder, to = emoji(tmp_path), tmp_path / "scenes"
    for again in (to, tmp_path / "again"):
        again.mkdir()
        write_scenes(folder, again, {"train": 3, "test": 2})
    names = sorted(path.name for path in (to / "images").iterdir())
    assert names == ["test-00000.jpg", "test-00001.jpg", *(f"train-0000{n}.jpg" for n in range(3))]
    for name in ("train.csv", *(f"images/{name}" for name in names)):
        assert (to / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    with (to / "test.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["label"] for row in rows} == {"emoji"}
    # The test has the emoji that is held out: green, and no pink.
    row = rows[0]
    box = [int(row[name]) for name in ("xmin", "ymin", "xmax", "ymax")]
    middle = np.asarray(Image.open(to / row["image_path"]).crop(box)).reshape(-1, 3).mean(0)
    assert middle[1] > 150 > middle[0]


@pytest.fixture
def backbone(tmp_path, monkeypatch) -> Path:
    """A small DINOv2, of whose sizes the detector is then."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14}
    torch.manual_seed(0)
    model = transformers.Dinov2Model(transformers.Dinov2Config(**sizes, image_size=28, mlp_ratio=2))
    model.save_pretrained(tmp_path / "dinov2")
    part = demo.FIELDS["backbone_config"] | sizes
    part |= {"image_size": 28, "mlp_ratio": 2, "out_indices": [1, 2]}
    fields = demo.FIELDS | {"backbone_config": part, "d_model": 16}
    monkeypatch.setattr(demo, "FIELDS", fields)
    return tmp_path / "dinov2"


def test_a_detector_begins_with_its_backbone(backbone, tmp_path):
    model = registry.load(str(demo.untrained(backbone, tmp_path / "made")))
    known = registry.load(str(backbone)).params
    for name, value in known.items():
        own = name if not name.startswith("norm/") else f"blocks/2/backbone_{name}"
        np.testing.assert_array_equal(model.params[own], value)
    assert model.labels == ("emoji",)
    offsets = model.params["blocks/3/source_attention/offset/bias"].reshape(8, 4, 2)
    np.testing.assert_allclose(offsets[0], [[n, 0] for n in (1, 2, 3, 4)], atol=1e-6)
    np.testing.assert_allclose(offsets[1, 1], [2, 2], atol=1e-6)
    processor = json.loads((tmp_path / "made" / "preprocessor_config.json").read_text())
    assert processor["size"] == {"height": 112, "width": 112}


def test_the_asset_is_what_a_run_exports(backbone, tmp_path, monkeypatch):
    """With its scores; nothing else of the run is kept."""
    told = []

    def run_here(*words):
        if words[0] == "train":
            config = parse_config(yaml.safe_load(Path(words[1]).read_text()))
            told.append(config)
            run = Path(config.run.dir, config.run.name)
            run.mkdir()
            (run / "result.json").write_text("{}")
        else:
            demo.untrained(backbone, Path(words[words.index("--out") + 1]))

    monkeypatch.setattr(demo_pretrain, "jaxft", run_here)
    (to := tmp_path / "asset").mkdir()
    demo._pretrain(backbone, tmp_path / "scenes", to)
    assert registry.describe(str(to)).head == "object_detection"
    assert (to / "scores.json").read_text() == "{}"
    (config,) = told
    assert config.data.test == f"boxes:{tmp_path / 'scenes'}/test.csv"
    assert not Path(config.model.checkpoint).exists()
