"""Augmentation of images with boxes: what a box is round stays in it."""

import csv

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pydantic import ValidationError

from jaxft.config.augment import AugmentBoxesSection
from jaxft.data.image.augment_boxes import BoxAugmentation, window
from jaxft.data.image.images import ImageProcessor
from jaxft.data.random import EpochRandom, ExampleRandom
from jaxft.data.sources.open import open_source
from jaxft.tasks.object_detection.boxes import read_examples

SIDE = 60
PROCESSOR = ImageProcessor("ViTImageProcessor", False, (SIDE, SIDE), 0, None, 1 / 255, None, None)
# A red and a blue rectangle in each of two images of 120 x 120 pixels.
RED, BLUE = (200, 0, 0), (0, 0, 200)
OBJECTS = {
    "a.png": (((10, 20, 50, 60), "red"), ((70, 80, 110, 100), "blue")),
    "b.png": (((60, 10, 100, 50), "red"), ((20, 70, 50, 110), "blue")),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder, rows = tmp_path_factory.mktemp("boxes"), []
    for name, objects in OBJECTS.items():
        image = Image.new("RGB", (120, 120), (0, 120, 0))
        for (left, top, right, bottom), label in objects:
            color = RED if label == "red" else BLUE
            ImageDraw.Draw(image).rectangle((left, top, right - 1, bottom - 1), color)
            rows.append((name, left, top, right, bottom, label))
        image.save(folder / name)
    with (folder / "boxes.csv").open("w", newline="") as file:
        head = ("image_path", "xmin", "ymin", "xmax", "ymax", "label")
        csv.writer(file).writerows([head, *rows])
    return open_source(f"boxes:{folder / 'boxes.csv'}")


def examples(source, augment, tile=None, most=40):
    cutting = {"tile": tile, "overlap": 0.0, "form": "pascal_voc"}
    columns = ("image", "objects")
    return read_examples(source, columns, ["blue", "red"], PROCESSOR, most, augment, **cutting)


def seen(values, label) -> list[np.ndarray]:
    """Which pixels [H, W] are of a label's color."""
    channel = 0 if label == 1 else 2
    return (values[channel] > 0.5) & (values[1] < 0.3)


WAYS = {
    "flip": BoxAugmentation(flip=1.0),
    "turn": BoxAugmentation(flip_vertical=1.0),
    "crop": BoxAugmentation(scale=(1.2, 2.0)),
    "small": BoxAugmentation(scale=(0.4, 0.6)),
    "mosaic": BoxAugmentation(mosaic=1.0),
    "all": BoxAugmentation(scale=(0.5, 2.0), flip=0.5, flip_vertical=0.5, mosaic=0.5),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("tile", [None, 60])
def test_boxes_are_round_what_they_were(way, tile, source):
    """Inside every box is its color; what is of a color and in no box was cut off."""
    made = examples(source, WAYS[way], tile)
    count = len(made)
    for epoch in range(4):
        batch = made.collate(np.arange(count)[:, None], 1, EpochRandom(0, epoch))
        for values, boxes, labels in zip(
            batch["pixel_values"], batch["boxes"], batch["box_labels"], strict=True
        ):
            for box, label in zip(boxes[labels >= 0], labels[labels >= 0], strict=True):
                center, half = box[:2] * SIDE, box[2:] * SIDE / 2
                left, top = np.round(center - half).astype(int)
                right, bottom = np.round(center + half).astype(int)
                assert 0 <= left < right <= SIDE
                assert 0 <= top < bottom <= SIDE
                inner = seen(values, label)[top + 1 : bottom - 1, left + 1 : right - 1]
                assert inner.all()


def test_a_flip_is_exact(source):
    plain, flipped = (
        examples(source, way).collate(np.array([[0]]), 1) for way in (None, WAYS["flip"])
    )
    np.testing.assert_array_equal(flipped["pixel_values"][0], plain["pixel_values"][0][:, :, ::-1])
    np.testing.assert_allclose(flipped["boxes"][0, 0], [1 - 0.25, 1 / 3, 1 / 3, 1 / 3], atol=1e-6)
    assert plain["boxes"][0, 0] == pytest.approx([0.25, 1 / 3, 1 / 3, 1 / 3])


def test_a_window_is_inside_its_piece_or_around_it():
    piece = np.array([10, 20, 100, 50])
    for number in range(20):
        for scale in ((1.5, 2.0), (0.5, 0.9)):
            chance = ExampleRandom(0, 0, number)
            left, _, width, height = window(piece, (1, 1), BoxAugmentation(scale=scale), chance)
            assert width == pytest.approx(2 * height, abs=2)
            inner, outer = ((left, left + width), (10, 110))
            inner, outer = (inner, outer) if scale[0] > 1 else (outer, inner)
            assert outer[0] <= inner[0] <= inner[1] <= outer[1]
            assert 1.5 - 0.1 <= 100 / width <= 2.1 if scale[0] > 1 else 0.49 <= 100 / width <= 0.92


def test_an_example_depends_on_its_number_and_epoch_alone(source):
    made = examples(source, WAYS["all"])
    both = made.collate(np.array([[0], [1]]), 1, EpochRandom(3, 1))
    alone = made.collate(np.array([[1], [-1]]), 1, EpochRandom(3, 1))
    for name in ("pixel_values", "boxes", "box_labels"):
        np.testing.assert_array_equal(both[name][1], alone[name][0])
    assert not alone["pixel_values"][1].any()
    assert (alone["box_labels"][1] == -1).all()
    other = made.collate(np.array([[1]]), 1, EpochRandom(3, 2))
    assert np.any(other["pixel_values"][0] != alone["pixel_values"][0])
    assert made.random
    assert not made.scored().random
    np.testing.assert_array_equal(
        made.scored().collate(np.array([[1]]), 1)["pixel_values"],
        examples(source, None).collate(np.array([[1]]), 1)["pixel_values"],
    )


def test_there_is_room_for_as_many_boxes_as_a_larger_window_sees(source):
    assert examples(source, WAYS["flip"]).boxes.shape[1] == 8
    assert examples(source, BoxAugmentation(scale=(0.4, 1.0))).boxes.shape[1] == 16
    few = examples(source, BoxAugmentation(mosaic=1.0, scale=(0.4, 0.5)), most=2)
    batch = few.collate(np.array([[0]]), 1, EpochRandom(0, 0))
    assert batch["boxes"].shape == (1, 2, 4)  # the largest two


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "it does nothing"),
        ({"scale": [2.0, 1.0]}, "scale must be"),
        ({"scale": [0.0, 1.0]}, "greater than or equal to 0.1"),
        ({"flip": 1.5}, "less than or equal to 1"),
        ({"mosaic": -0.1}, "greater than or equal to 0"),
    ],
)
def test_settings_that_are_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        AugmentBoxesSection(**fields)
