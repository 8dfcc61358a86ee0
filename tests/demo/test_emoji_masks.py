"""Scenes of emoji with the class of each pixel."""

import numpy as np
from PIL import Image

from jaxft.data.sources.masks import PIXELS
from jaxft.data.sources.open import open_source
from jaxft.demo.emoji_masks import CLASSES, by_class, compose, write_scenes

COLORS = {name: (40 * number, 255, 255 - 40 * number) for number, name in enumerate(CLASSES)}


def shapes() -> dict[str, list[Image.Image]]:
    """Of each class a square of a color of its own with clear edges."""
    made = {}
    for name in CLASSES[1:]:
        image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
        image.paste((*COLORS[name], 255), (8, 8, 56, 56))
        made[name] = [image]
    return made


def test_a_mask_has_the_class_of_what_is_seen():
    seen = set()
    for seed in range(12):
        scene, mask = compose(shapes(), 96, np.random.default_rng(seed))
        pixels = np.asarray(scene).astype(int)
        for label in np.unique(mask)[1:]:
            seen.add(int(label))
            inside = np.abs(pixels[mask == label] - COLORS[CLASSES[label]]).max(-1) < 60
            assert inside.mean() > 0.8, "but for the soft edge"
    assert seen == {1, 2, 3, 4, 5}


def test_scenes_are_a_source_and_follow_from_their_numbers(tmp_path):
    for name in ("one", "two"):
        write_scenes(shapes(), tmp_path / name, 0, 2)
    source = open_source(f"masks:{tmp_path / 'one'}:ordered")
    assert source.class_names(PIXELS) == CLASSES
    assert [row["mask"] for _, row in source.each()] == ["masks/0000.png", "masks/0001.png"]
    for file in ("images/0001.jpg", "masks/0001.png"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_emoji_of_other_groups_and_with_a_skin_tone_are_in_no_scene(tmp_path):
    (tmp_path / "images").mkdir()
    groups = {"a": "Flags", "b": "Symbols", "c": "Food & Drink", "d": "Flags"}
    for name in groups:
        Image.new("RGBA", (4, 4)).save(tmp_path / "images" / f"{name}.png")
    rows = [f"images/{name}.png,{'dark' if name == 'd' else 'none'}\n" for name in groups]
    (tmp_path / "train.csv").write_text("image,tone\n" + "".join(rows))
    by_file = {f"{name}.png": group for name, group in groups.items()}
    chosen = by_class(tmp_path, "train.csv", by_file)
    assert {name: len(emoji) for name, emoji in chosen.items() if emoji} == {"flags": 1, "food": 1}
