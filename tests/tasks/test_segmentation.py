"""Semantic segmentation: loss and masks are transformers', scores counted by hand, mistakes."""

import json
import os

import jax
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from jaxft.data.image.images import decode, load_image_processor
from jaxft.data.image.overlay import exact_mask, laid_over, overlaid, palette, read_exact
from jaxft.data.random import EpochRandom
from jaxft.data.sources.open import given_rows, open_source
from jaxft.errors import UserError
from jaxft.metrics.segmentation import iou_by_class, mean_iou, mean_recall
from jaxft.tasks.semantic_segmentation.examples import MaskExamples, enlarged, read_examples
from jaxft.tasks.semantic_segmentation.masks import IGNORED, MaskAugmentation, MaskReading
from jaxft.tasks.semantic_segmentation.pixels import confusion, enlarged_logits, pixel_loss
from jaxft.tasks.semantic_segmentation.section import MaskAugmentSection
from tests.support.tiny_masks import COLORS, tiny_scenes

NAMES = tuple(COLORS)
READING = MaskReading(NAMES, 255, False)


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    """A SegFormer's, that resizes to 20 x 24."""
    folder = tmp_path_factory.mktemp("processor")
    fields = {"image_processor_type": "SegformerImageProcessor", "do_reduce_labels": True}
    fields["size"] = {"height": 20, "width": 24}
    (folder / "preprocessor_config.json").write_text(json.dumps(fields))
    return folder, load_image_processor(folder)


def random_mask(draw, height: int, width: int, most: int) -> np.ndarray:
    mask = draw.integers(0, most + 1, (height, width)).astype(np.uint8)
    return np.where(draw.random((height, width)) < 0.1, 255, mask).astype(np.uint8)


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_is_that_of_transformers(seed):
    draw = np.random.default_rng(seed)
    logits = draw.normal(size=(2, 5, 7, 9)).astype(np.float32)
    labels = random_mask(draw, 26, 31, 4)[None].repeat(2, 0)
    given = torch.tensor(logits, requires_grad=True)
    large = torch.nn.functional.interpolate(given, size=(26, 31), mode="bilinear")
    expected = torch.nn.CrossEntropyLoss(ignore_index=255)(large, torch.tensor(labels).long())
    expected.backward()
    ours = np.where(labels == 255, -1, labels.astype(np.int16))

    @jax.jit
    @jax.value_and_grad
    def mean_loss(logits):
        total, weight = pixel_loss(enlarged_logits(logits, (26, 31)), ours)
        return total / weight

    value, slope = mean_loss(logits)
    assert float(value) == pytest.approx(float(expected.detach()), rel=1e-5)
    np.testing.assert_allclose(slope, given.grad.numpy(), atol=1e-7)


def test_without_a_labeled_pixel_the_loss_is_zero():
    total, weight = pixel_loss(np.ones((1, 4, 4, 2), np.float32), np.full((1, 4, 4), -1))
    assert (float(total), float(weight)) == (0.0, 1.0)


@pytest.mark.parametrize("size", [(5, 7), (80, 90)])
def test_confusion_counts_pixels(size):
    draw = np.random.default_rng(0)
    labels = draw.integers(-1, 3, (2, *size))
    predicted = draw.integers(0, 3, (2, *size))
    counts = np.asarray(jax.jit(confusion, static_argnums=2)(labels, predicted, 3))
    for row in range(2):
        for true in range(3):
            for chosen in range(3):
                both = (labels[row] == true) & (predicted[row] == chosen)
                assert counts[row, true, chosen] == both.sum()


def test_scores_made_by_hand():
    matrix = np.array([[6, 2, 0], [0, 4, 0], [0, 0, 0]])  # no pixel of the third, true or chosen
    assert mean_iou(matrix, np.ones(())) == pytest.approx((6 / 8 + 4 / 6) / 2)
    assert mean_recall(matrix, np.ones(())) == pytest.approx((6 / 8 + 1) / 2)
    assert mean_iou(np.zeros((2, 2)), np.ones(())) == 0.0
    shared, union = np.array([[6, 4, 0], [1, 0, 0]]), np.array([[8, 6, 0], [2, 0, 0]])
    assert iou_by_class(shared, union, NAMES) == {"iou/background": 0.7, "iou/blue": 4 / 6}


@pytest.mark.parametrize("reduce", [False, True])
def test_images_and_masks_are_those_of_transformers(reduce, processor, tmp_path):
    folder, own = processor
    theirs = AutoImageProcessor.from_pretrained(folder, backend="pil", do_reduce_labels=reduce)
    draw = np.random.default_rng(1)
    names = tuple("abcdefg")
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    for number, (height, width) in enumerate(((33, 50), (20, 24), (7, 90))):
        pixels = draw.integers(0, 256, (height, width, 3)).astype(np.uint8)
        mask = random_mask(draw, height, width, 6 + reduce)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
        Image.fromarray(mask).save(tmp_path / "masks" / f"{number}.png")
    source = open_source(f"masks:{tmp_path}:ordered")
    reading = MaskReading(names, 255, reduce)
    examples = read_examples(source, ("image", "mask"), reading, own, None, 0.25)
    batch = examples.collate(np.arange(3)[:, None], 1)
    for number in range(3):
        image, mask = (
            np.asarray(decode(tmp_path / part / f"{number}.png")) for part in ("images", "masks")
        )
        expected = theirs(image, segmentation_maps=mask.copy(), return_tensors="np")
        np.testing.assert_array_equal(batch["pixel_values"][number], expected["pixel_values"][0])
        labels = expected["labels"][0]
        wanted = np.where(labels == 255, -1, labels)
        np.testing.assert_array_equal(batch["mask_labels"][number], wanted)


def scenes_of(tmp_path, processor, **more) -> MaskExamples:
    if not (tmp_path / "scenes").exists():
        tiny_scenes(tmp_path / "scenes", 4)
    source = open_source(f"masks:{tmp_path / 'scenes'}:ordered")
    options = {"tile": None, "overlap": 0.25} | more
    return read_examples(source, ("image", "mask"), READING, processor[1], **options)


def test_an_image_and_its_mask_change_alike(tmp_path, processor):
    """Where the mask has a square, the image has its color, wherever both went."""
    examples = scenes_of(tmp_path, processor)
    how = MaskAugmentation(crop=(0.3, 0.9), flip=0.5, color=0.0)
    augmented = MaskExamples(**{**vars(examples), "augment": how})
    index = np.arange(4)[:, None]
    seen = set()
    for epoch in range(4):
        batch = augmented.collate(index, 1, EpochRandom(0, epoch))
        again = augmented.collate(index[::-1], 1, EpochRandom(0, epoch))
        np.testing.assert_array_equal(batch["mask_labels"][0], again["mask_labels"][3])
        seen.add(batch["mask_labels"].tobytes())
        blue, red = (batch["pixel_values"][:, channel] for channel in (2, 0))
        difference = blue - red
        means = [difference[batch["mask_labels"] == label].mean() for label in (1, 2)]
        assert means[0] > 1 > -1 > means[1]
    assert len(seen) == 4
    plain = augmented.scored().collate(index, 1)
    np.testing.assert_array_equal(plain["mask_labels"], examples.collate(index, 1)["mask_labels"])
    assert augmented.random
    assert not examples.random


def test_color_leaves_the_mask_alone(tmp_path, processor):
    examples = scenes_of(tmp_path, processor)
    colored = MaskExamples(**{**vars(examples), "augment": MaskAugmentation(color=0.4)})
    index = np.arange(4)[:, None]
    ours, plain = colored.collate(index, 1, EpochRandom(0, 1)), examples.collate(index, 1)
    np.testing.assert_array_equal(ours["mask_labels"], plain["mask_labels"])
    assert not np.array_equal(ours["pixel_values"], plain["pixel_values"])


def test_tiles_cover_an_image_and_come_back(tmp_path, processor):
    """Pieces as large as the model's input are neither scaled nor lost."""
    examples = scenes_of(tmp_path, processor, tile=20)
    masks = examples.collate(np.arange(len(examples))[:, None], 1)["mask_labels"]
    assert len(examples) > 4
    assert sorted(set(examples.rows.tolist())) == [0, 1, 2, 3]
    for number, (_, row) in enumerate(examples.source.each(["mask"])):
        expected = np.asarray(decode(tmp_path / "scenes" / row["mask"]))
        merged = examples.merged(np.where(masks < 0, 0, masks).astype(np.uint8), number)
        np.testing.assert_array_equal(merged, expected)


def test_where_tiles_overlap_the_farther_edge_decides(tmp_path, processor):
    examples = scenes_of(tmp_path, processor)
    pieces = np.array([[0, 0, 0, 8, 4], [0, 4, 0, 8, 4]])
    two = MaskExamples(**{**vars(examples), "pieces": pieces, "sizes": np.array([[4, 12]])})
    classes = np.stack([np.ones((4, 8), np.uint8), np.full((4, 8), 2, np.uint8)])
    assert two.merged(classes, 0)[1].tolist() == [1] * 7 + [2] * 5


def test_without_images_the_masks_are_the_same(tmp_path, processor):
    examples = scenes_of(tmp_path, processor, tile=16)
    index = np.arange(len(examples))[:, None]
    blind = examples.without(["pixel_values"]).collate(index, 1)
    assert "pixel_values" not in blind
    np.testing.assert_array_equal(blind["mask_labels"], examples.collate(index, 1)["mask_labels"])


def test_masks_are_drawn():
    names = ("background", "cat")
    classes = np.array([[0, 1], [255, 1]], np.uint8)
    image = Image.new("RGB", (2, 2), (10, 20, 30))
    drawn = np.asarray(overlaid(image, classes, palette(names)))
    assert (drawn[:, 0] == (10, 20, 30)).all()
    assert not (drawn[:, 1] == (10, 20, 30)).any()
    again = read_exact(exact_mask(classes[:1], palette(names)))
    np.testing.assert_array_equal(np.asarray(again), classes[:1])
    small = image.crop((0, 0, 2, 1))
    np.testing.assert_array_equal(np.asarray(laid_over(small, again)), drawn[:1])
    assert len(set(palette(tuple("abcdefghij")))) == 10
    np.testing.assert_array_equal(enlarged(classes, (4, 2)), classes.repeat(2, 0))


def broken(scenes, mistake: str) -> None:
    """Make a mistake in a folder of scenes."""
    mask = scenes / "masks" / "00.png"
    pixels = np.zeros((5, 4), np.uint8)
    if mistake == "class":
        pixels = np.asarray(decode(mask)).copy()
        pixels[3, 4] = 3
        Image.fromarray(pixels).save(mask)
    elif mistake == "missing":
        mask.unlink()
    elif mistake == "color":
        decode(mask).convert("RGB").save(mask)
    elif mistake == "twice":
        Image.fromarray(pixels).save(scenes / "masks" / "00.bmp")
    elif mistake == "names":
        (scenes / "labels.txt").write_text("a\nb\na\n")
    elif mistake == "no names":
        (scenes / "labels.txt").write_text("\n")
    elif mistake == "bytes":
        (scenes / "labels.txt").write_bytes(b"\xff\xfe\xff")
    elif mistake == "folder":
        os.rename(scenes / "masks", scenes / "labels")
    elif mistake == "empty":
        for file in (scenes / "images").iterdir():
            file.unlink()
    else:
        mask.write_bytes(mask.read_bytes()[:60])


@pytest.mark.parametrize(
    ("mistake", "sentence"),
    [
        ("class", r"00\.png': the pixel in row 4, column 5 has the id 3, and there are 3 classes"),
        ("missing", r"00\.png' has no mask: there is no"),
        ("color", r"00\.png' is in color \(RGB\), so its pixels are no class ids"),
        ("twice", r"00\.png' has 2 masks, such as"),
        ("names", r"labels\.txt names the class 'a' twice"),
        ("no names", r"labels\.txt names no class"),
        ("bytes", r"labels\.txt is not text in UTF-8"),
        ("folder", r"There is no folder '.*masks'"),
        ("empty", r"The folder '.*images' holds no images"),
        ("truncated", r"00\.png' cannot be decoded as an image"),
    ],
)
def test_a_mistake_is_one_sentence(mistake, sentence, tmp_path, processor):
    tiny_scenes(tmp_path / "scenes", 4)
    broken(tmp_path / "scenes", mistake)
    with pytest.raises(UserError, match=sentence):
        scenes_of(tmp_path, processor).collate(np.arange(4)[:, None], 1)


def test_no_class_is_ignored_without_an_id_for_it():
    pixels = np.array([[0, 255]], np.uint8)
    assert READING.ids(pixels, "m").tolist() == [[0, IGNORED]]
    with pytest.raises(UserError, match="m: the pixel in row 1, column 2 has the id 255"):
        MaskReading(NAMES, None, False).ids(pixels, "m")


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [({"crop": [0.5, 0.2]}, r"crop must be \[smallest, largest\]"), ({}, "it does nothing")],
)
def test_an_augmentation_has_to_do_something(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        MaskAugmentSection(**fields)


def test_a_source_of_arrays_and_bytes(tmp_path, processor):
    """As TFDS and `datasets` have them: bytes of files, and arrays with a channel."""
    draw = np.random.default_rng(0)
    image = draw.integers(0, 256, (20, 24, 3)).astype(np.uint8)
    mask = draw.integers(0, 3, (20, 24, 1)).astype(np.uint8)
    file = tmp_path / "mask.png"
    Image.fromarray(mask[:, :, 0]).save(file)
    rows = [{"image": image, "mask": mask}, {"image": image, "mask": file.read_bytes()}]
    examples = read_examples(
        given_rows(rows), ("image", "mask"), READING, processor[1], tile=None, overlap=0.0
    )
    masks = examples.collate(np.arange(2)[:, None], 1)["mask_labels"]
    np.testing.assert_array_equal(masks[0], mask[:, :, 0])
    np.testing.assert_array_equal(masks[1], mask[:, :, 0])
