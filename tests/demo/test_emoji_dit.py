"""The DiT of the demo: the emoji by group that it is made of, and how it begins."""

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
from jaxft.demo.images import DRAWINGS
from jaxft.models import load as registry

ROOT = Path(__file__).parents[2]
SMALL = {"side": 8, "width": 16, "blocks": 2, "heads": 2}


@pytest.fixture
def tarball(tmp_path) -> Path:
    """The package with two flags, a flag of another size, a fruit, and what is in no group."""
    entries = {"a": "Flags", "b": "Flags", "c": "Food & Drink", "d": "Component"}
    described = [{"image": f"{name}.png", "category": group} for name, group in entries.items()]
    image = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 40, 50)).save(image, "png")
    files = {f"{DRAWINGS}/{name}.png": image.getvalue() for name in entries}
    files |= {
        "package/img/twitter/sheets/a.png": b"no emoji",
        "package/emoji.json": json.dumps(described).encode(),
    }
    path = tmp_path / "package.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_emoji_lie_in_the_folder_of_their_group(tarball, tmp_path):
    (to := tmp_path / "groups").mkdir()
    demo.write_groups(tarball, to)
    pictures = sorted(path.relative_to(to).as_posix() for path in to.rglob("*.png"))
    assert pictures == ["flags/a.png", "flags/b.png", "food/c.png"]
    assert "Twemoji" in (to / "ATTRIBUTION.txt").read_text()


def test_it_begins_with_drawn_weights_and_a_number_for_each_group(tmp_path):
    models = [
        registry.load(str(demo.blank(tmp_path / f"{seed}", **SMALL, seed=seed))) for seed in (0, 1)
    ]
    assert models[0].report.new == models[0].report.unused == ()
    assert models[0].config.fields["num_embeds_ada_norm"] == len(demo.CLASSES) == 9
    kernel = "blocks/1/attention/query/kernel"
    assert np.abs(models[0].params[kernel] - models[1].params[kernel]).max() > 0.01


def test_the_asset_is_what_a_run_exports(tmp_path, monkeypatch):
    """Of all groups but the flags; nothing else of the run is kept."""
    configs = []

    def run_here(*words):
        if words[0] == "train":
            configs.append(parse_config(yaml.safe_load(Path(words[1]).read_text())))
        else:
            demo.blank(Path(words[words.index("--out") + 1]), **SMALL)

    monkeypatch.setattr(demo_pretrain, "jaxft", run_here)
    (to := tmp_path / "asset").mkdir()
    demo._pretrain(tmp_path / "groups", to)
    assert registry.describe(str(to)).head == "diffusion"
    (config,) = configs
    assert set(demo.CLASSES) - set(config.data.where["label"]) == {"flags"}
    assert not Path(config.model.checkpoint).exists()


def test_the_config_names_the_groups():
    config = yaml.safe_load((ROOT / "configs/generate_images.yaml").read_text())
    assert config["task"]["labels"] == demo.CLASSES
    assert config["data"]["where"] == {"label": demo.HELD_OUT}
