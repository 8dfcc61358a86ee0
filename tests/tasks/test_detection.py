"""Object detection: the loss against transformers', the matching against scipy, COCO's scores."""

import csv
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.optimize import linear_sum_assignment
from transformers import AutoImageProcessor, YolosConfig
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss

from jaxft.data.image.images import ImageProcessor, decode, load_image_processor, to_rgb
from jaxft.data.image.tiles import absolute, cut, cut_image, relative, unlike, within
from jaxft.data.sources.open import open_source
from jaxft.errors import UserError
from jaxft.metrics.boxes import box_scores
from jaxft.tasks.object_detection.boxes import read_examples
from jaxft.tasks.object_detection.detection_loss import box_loss, detection_loss, match, on_box
from jaxft.tasks.object_detection.section import ObjectDetectionSection as Section
from jaxft.tasks.object_detection.task import make
from jaxft.tasks.object_detection.truth import read_boxes
from jaxft.tasks.semantic_segmentation.section import (
    SemanticSegmentationSection as SegmentationSection,
)
from jaxft.tasks.semantic_segmentation.task import make as make_segmentation

CLASSES, QUERIES = 3, 7
COUNTS = (4, 0, 1, 7)  # boxes of each image: some, none, one, as many as can be found


def example(seed: int = 0, room: int = 7) -> tuple[dict, dict]:
    """Random outputs, and a batch of images with `COUNTS` boxes."""
    draw = np.random.default_rng(seed)
    rows = len(COUNTS)
    outputs = {
        "logits": draw.normal(size=(rows, QUERIES, CLASSES + 1)).astype(np.float32),
        "pred_boxes": draw.uniform(0.1, 0.9, (rows, QUERIES, 4)).astype(np.float32),
    }
    boxes = draw.uniform(0.1, 0.9, (rows, room, 4)).astype(np.float32)
    labels = draw.integers(0, CLASSES, (rows, room)).astype(np.int32)
    there = np.arange(room) < np.array(COUNTS)[:, None]
    batch = {
        "boxes": np.where(there[..., None], boxes, 0.0).astype(np.float32),
        "box_labels": np.where(there, labels, -1),
        "weights": np.ones((rows, 1), np.float32),
    }
    return outputs, batch


@jax.jit
def loss_of(outputs, batch):
    return detection_loss(outputs, batch)


@jax.jit
@jax.value_and_grad
def mean_loss(outputs, batch):
    total, weight = detection_loss(outputs, batch)
    return total / weight


def transformers_loss(outputs: dict, batch: dict) -> tuple[float, dict[str, np.ndarray]]:
    """The loss and its gradients with respect to both outputs."""
    given = {name: torch.tensor(value, requires_grad=True) for name, value in outputs.items()}
    labels = [
        {
            "class_labels": torch.tensor(classes[classes >= 0], dtype=torch.int64),
            "boxes": torch.tensor(boxes[classes >= 0]),
        }
        for boxes, classes in zip(batch["boxes"], batch["box_labels"], strict=True)
    ]
    config = YolosConfig(num_labels=CLASSES)
    loss, _, _ = ForObjectDetectionLoss(given["logits"], labels, "cpu", given["pred_boxes"], config)
    loss.backward()
    return float(loss.detach()), {name: value.grad.numpy() for name, value in given.items()}


@pytest.mark.parametrize("seed", [0, 1])
def test_the_loss_is_that_of_transformers(seed):
    outputs, batch = example(seed)
    value, slopes = mean_loss(outputs, batch)
    expected, theirs = transformers_loss(outputs, batch)
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    for name, slope in theirs.items():
        np.testing.assert_allclose(slopes[name], slope, atol=1e-6)
    assert float(loss_of(outputs, batch)[1]) == sum(COUNTS)


def test_images_without_boxes_learn_to_find_nothing():
    outputs, batch = example()
    empty = batch | {"box_labels": np.full_like(batch["box_labels"], -1)}
    total, weight = loss_of(outputs, empty)
    nothing = -jax.nn.log_softmax(outputs["logits"])[..., -1].mean()
    assert (float(total), float(weight)) == (pytest.approx(float(nothing), rel=1e-6), 1.0)


def test_rows_without_an_example_and_less_room_change_nothing():
    outputs, batch = example()
    three = [0, 1, 2]  # of at most four boxes: room for four is as good as for seven
    few = {name: value[three] for name, value in outputs.items()}
    narrow = {name: value[three] for name, value in batch.items()}
    expected, _ = transformers_loss(few, narrow)
    narrow = {n: v[:, :4] if n.startswith("box") else v for n, v in narrow.items()}
    spare = {name: np.concatenate([value, value[:2]]) for name, value in few.items()}
    padded = {name: np.concatenate([value, value[:2] * 0]) for name, value in narrow.items()}
    padded["box_labels"][3:] = -1
    total, weight = loss_of(spare, padded)
    assert float(weight) == sum(COUNTS[:3])
    assert float(total / weight) == pytest.approx(float(expected), rel=1e-5)


def test_eight_devices_compute_the_loss_of_one():
    outputs, batch = example()
    many = {n: np.concatenate([v, v]) for n, v in (outputs | batch).items()}
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    placed = {n: jax.device_put(v, rows) for n, v in many.items()}
    (one, count), (eight, counts) = loss_of(outputs, batch), loss_of(placed, placed)
    assert float(eight / counts) == pytest.approx(float(one / count), rel=1e-6)
    assert float(counts) == 2 * float(count) == 2 * sum(COUNTS)


def test_no_other_matching_costs_less():
    """The costs are written out again, in numpy, for scipy."""
    outputs, batch = example(3)
    labels = batch["box_labels"]
    found = np.asarray(jax.jit(match)(*outputs.values(), batch["boxes"], labels))
    odds = np.exp(outputs["logits"])
    shares = odds / odds.sum(-1, keepdims=True)
    for row, count in enumerate(COUNTS):
        assert sorted(found[row].tolist()) == list(range(QUERIES))
        costs = np.zeros((count, QUERIES))
        for box in range(count):
            for query in range(QUERIES):
                given, true = outputs["pred_boxes"][row, query], batch["boxes"][row, box]
                a, b = ([*(o[:2] - o[2:] / 2), *(o[:2] + o[2:] / 2)] for o in (given, true))
                a, b = np.array(a), np.array(b)
                low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
                shared = np.prod(np.maximum(high - low, 0))
                union = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared
                around = np.prod(np.maximum(a[2:], b[2:]) - np.minimum(a[:2], b[:2]))
                near = shared / union - (around - union) / around
                likely = shares[row, query, labels[row, box]]
                costs[box, query] = 5 * np.abs(given - true).sum() - likely - 2 * near
        ours = costs[np.arange(count), found[row, :count]].sum()
        assert ours == pytest.approx(costs[linear_sum_assignment(costs)].sum(), abs=1e-5)


def test_a_place_is_on_the_box_whose_centre_is_nearest():
    places = np.array([[[0.1, 0.1], [0.5, 0.5], [0.62, 0.5], [0.9, 0.9], [0.9, 0.1]]])
    boxes = [[0.5, 0.5, 0.3, 0.3], [0.65, 0.5, 0.2, 0.2], [0.8, 0.98, 0.02, 0.02], [0, 0, 0, 0]]
    labels = np.array([[0, 1, 0, -1]])
    # The third is so small that no place is on it: it has the nearest. The last is none.
    found = on_box(places, np.array([boxes]), labels)
    assert found.tolist() == [[-1, 0, 1, 2, -1]]
    assert on_box(places, np.array([boxes]), np.full((1, 4), -1)).tolist() == [[-1] * 5]


def test_by_place_every_detection_on_a_box_learns_it():
    """Written out again for two images, the second of which has no example."""
    outputs, batch = example()
    two = {name: value[[0, 3]] for name, value in (outputs | batch).items()}
    two["weights"] = np.array([[1.0], [0.0]], np.float32)
    two["places"] = np.random.default_rng(1).uniform(size=(2, QUERIES, 2)).astype(np.float32)
    box = np.asarray(on_box(two["places"], two["boxes"], two["box_labels"]))[0]
    assert 0 < (box >= 0).sum() < QUERIES
    target = np.where(box >= 0, two["box_labels"][0][box], CLASSES)
    shares = np.asarray(jax.nn.log_softmax(two["logits"][0]))
    expected = -shares[np.arange(QUERIES), target].mean()
    on = np.flatnonzero(box >= 0)
    expected += float(box_loss(two["pred_boxes"][0][on], two["boxes"][0][box[on]]).mean())
    total, weight = loss_of(two, two)
    assert float(weight) == len(on)
    assert float(total / weight) == pytest.approx(float(expected), rel=1e-5)


def gold(*boxes, labels=None, crowd=None) -> dict:
    return {
        "boxes": np.array(boxes, float).reshape(-1, 4),
        "labels": np.array(labels or [0] * len(boxes), int),
        "crowd": np.array(crowd or [False] * len(boxes)),
    }


def found(*boxes, scores, labels=None) -> dict:
    return gold(*boxes, labels=labels) | {"scores": np.array(scores)}


BOX, FAR = (0, 0, 10, 10), (50, 50, 60, 60)


@pytest.mark.parametrize(
    ("there", "said", "expected"),
    [
        ([gold(BOX)], [found(BOX, scores=[0.3])], (1.0, 1.0, 1.0)),
        # 6 of 10 rows are shared: right up to an overlap of 0.6, three of the ten thresholds.
        ([gold(BOX)], [found((0, 0, 10, 6), scores=[0.9])], (0.3, 1.0, 0.0)),
        ([gold(BOX)], [found(scores=[])], (0.0, 0.0, 0.0)),
        # A better guess that is wrong halves the precision; a worse one costs nothing.
        ([gold(BOX)], [found(FAR, BOX, scores=[0.9, 0.8])], (0.5, 0.5, 0.5)),
        ([gold(BOX)], [found(BOX, FAR, scores=[0.9, 0.8])], (1.0, 1.0, 1.0)),
        # One of two found: 51 of COCO's 101 recalls are reached.
        ([gold(BOX, FAR)], [found(BOX, scores=[0.9])], (51 / 101, 51 / 101, 51 / 101)),
        # What lies on a crowd is not wrong, however often.
        (
            [gold(BOX, FAR, crowd=[False, True])],
            [found(FAR, FAR, BOX, scores=[0.9, 0.85, 0.8])],
            (1.0, 1.0, 1.0),
        ),
        # The picture counts: the same box in another one is wrong.
        ([gold(BOX), gold()], [found(scores=[]), found(BOX, scores=[0.9])], (0.0, 0.0, 0.0)),
    ],
)
def test_scores_of_boxes_made_by_hand(there, said, expected):
    scores = box_scores(there, said, ["tree"])
    assert tuple(scores[name] for name in ("map", "map_50", "map_75")) == pytest.approx(expected)


def test_boxes_are_scored_by_their_size():
    """Below 32 x 32 pixels, up to 96 x 96, and above; one of which there is none has no score."""
    small, large = (0, 0, 20, 20), (100, 100, 300, 300)
    scores = box_scores([gold(small, large)], [found(large, scores=[0.9])], ["tree"])
    assert (scores["map_small"], scores["map_large"]) == (0.0, pytest.approx(1.0))
    assert "map_medium" not in scores


def test_classes_are_scored_by_themselves_and_more_than_a_hundred_boxes_count():
    many = [(x, 0, x + 5, 5) for x in range(0, 1200, 10)]
    there = [gold(*many, FAR, labels=[0] * 120 + [1])]
    said = [found(*many, FAR, scores=[0.5] * 121, labels=[0] * 120 + [0])]
    scores = box_scores(there, said, ["tree", "car", "boat"])
    assert scores["map/tree"] == pytest.approx(1.0, abs=0.01)
    assert (scores["map/car"], scores["map"]) == (0.0, scores["map/tree"] / 2)
    assert "map/boat" not in scores, "nan, which result.json cannot hold"


def test_pieces_cover_a_picture_and_boxes_come_back():
    size = (250, 410)
    pieces = cut(size, (64, 64), 100, 0.25)
    covered = np.zeros(size, int)
    for left, top, width, height in pieces:
        assert (width, height) == (100, 100)
        assert left + width <= 410
        assert top + height <= 250
        covered[top : top + height, left : left + width] += 1
    assert covered.min() == 1
    assert cut(size, (64, 64), None, 0.25).tolist() == [[0, 0, 410, 250]]
    assert cut((30, 20), (64, 128), 40, 0.25).tolist() == [[0, 0, 80, 40]]
    boxes = np.array([[105, 60, 130, 90], [80, 60, 101, 90], [0, 0, 20, 20]], float)
    shown, kept = within(boxes, np.array([100, 50, 100, 100]))
    assert kept.tolist() == [0]  # of the second hardly anything is inside, of the third nothing
    assert shown.tolist() == [[5, 10, 30, 40]]
    piece = np.array([100, 50, 100, 100])
    np.testing.assert_allclose(absolute(relative(shown, piece), piece, size), boxes[:1])


def test_a_thing_that_two_pieces_show_is_one():
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [1, 0, 11, 10], [40, 0, 50, 10]], float)
    kept = unlike(boxes, np.array([0, 0, 1, 0]), np.array([0.5, 0.9, 0.4, 0.1]), 0.5)
    assert kept.tolist() == [1, 2, 3]


PROCESSOR = ImageProcessor("ViTImageProcessor", False, (20, 20), 2, None, 1 / 255, None, None)


def write_boxes(folder, *rows):
    Image.new("RGB", (40, 30), (10, 20, 30)).save(folder / "a.png")
    with (folder / "boxes.csv").open("w", newline="") as file:
        head = ("image_path", "xmin", "ymin", "xmax", "ymax", "label")
        csv.writer(file).writerows([head, *rows])
    return open_source(f"boxes:{folder / 'boxes.csv'}")


def test_boxes_of_a_csv_go_with_their_piece(tmp_path):
    source = write_boxes(tmp_path, ("a.png", 2, 4, 12, 14, "tree"), ("a.png", 25, 5, 40, 25, "car"))
    examples = read_examples(
        source,
        ("image", "objects"),
        ["car", "tree"],
        PROCESSOR,
        5,
        tile=20,
        overlap=0.0,
        form="pascal_voc",
    )
    assert examples.pieces[:, 1:3].tolist() == [[0, 0], [20, 0], [0, 10], [20, 10]]
    batch = examples.collate(np.array([[1], [0], [-1]]), 1)
    assert batch["box_labels"][:, :2].tolist() == [[0, -1], [1, -1], [-1, -1]]
    np.testing.assert_allclose(batch["boxes"][0, 0], [0.625, 0.625, 0.75, 0.75])
    np.testing.assert_allclose(batch["boxes"][1, 0], [0.35, 0.45, 0.5, 0.5])
    np.testing.assert_allclose(batch["pixel_values"][0, :, 3, 3], np.array([10, 20, 30]) / 255)
    assert not batch["pixel_values"][2].any()
    assert examples.counts == {"pictures": 1, "boxes": 4}  # each is in two pieces


@pytest.mark.parametrize(
    ("form", "boxes"),
    [
        ("pascal_voc", [[4, 3, 20, 15]]),
        ("coco", [[4, 3, 16, 12]]),
        ("tfds", [[0.1, 0.1, 0.5, 0.5]]),
    ],
)
def test_boxes_are_told_in_three_ways(form, boxes):
    read = read_boxes({"bbox": boxes, "label": [1]}, ["a", "b"], (30, 40), form, "row 1")
    np.testing.assert_allclose(read.corners, [[4, 3, 20, 15]])
    assert read.labels.tolist() == [1]


def test_coco_names_its_classes_and_crowds(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    content = {
        "images": [{"id": 7, "file_name": "a.png"}, {"id": 8, "file_name": "b.png"}],
        "categories": [{"id": 3, "name": "car"}, {"id": 1, "name": "tree"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 2, 10, 20], "iscrowd": 1}
        ],
    }
    (tmp_path / "coco.json").write_text(json.dumps(content))
    source = open_source(f"coco:{tmp_path / 'coco.json'}:ordered")
    assert source.class_names("objects") == ("tree", "car")
    assert [row["image"] for row in source.rows(range(2))] == ["a.png", "b.png"]
    objects = source.rows([0])[0]["objects"]
    for form in ("pascal_voc", "coco", "tfds"):  # the file has a format of its own
        read = read_boxes(objects, ("tree", "car"), (30, 40), form, "")
        assert read.corners.tolist() == [[1, 2, 11, 22]]
    assert (read.labels.tolist(), read.crowd.tolist()) == ([1], [True])


@pytest.mark.parametrize("images", ["val2017", "images/val2017", "images", "annotations"])
def test_the_images_of_coco_lie_as_coco_has_them(images, tmp_path):
    for folder in {images, "annotations"}:
        (tmp_path / folder).mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(tmp_path / images / "1.png")
    content = {"images": [{"id": 1, "file_name": "1.png"}], "categories": [], "annotations": []}
    path = tmp_path / "annotations" / "instances_val2017.json"
    path.write_text(json.dumps(content))
    source = open_source(f"coco:{path}")
    assert source.path_of(0, source[0]["image"]) == tmp_path / images / "1.png"
    with pytest.raises(UserError, match="leads out of the folder"):
        source.path_of(0, "../../1.png")


def test_categories_of_one_name_are_a_class_and_a_number_is_a_name(tmp_path):
    names = ("car", 7, "tree", "car")
    content = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "categories": [{"id": number, "name": name} for number, name in enumerate(names)],
        "annotations": [
            {"id": n, "image_id": 1, "category_id": n, "bbox": [1, 2, 10, 20]} for n in range(4)
        ],
    }
    (tmp_path / "coco.json").write_text(json.dumps(content))
    source = open_source(f"coco:{tmp_path / 'coco.json'}:ordered")
    classes = source.class_names("objects")
    assert classes == ("car", "7", "tree")
    read = read_boxes(source.rows([0])[0]["objects"], classes, (30, 40), "pascal_voc", "")
    assert read.labels.tolist() == [0, 1, 2, 0]


BAD_BOXES = [
    ((2, 4, 60, 14, "tree"), r"boxes.csv: row 2: the box \(2, 4, 60, 14\) is partly outside its"),
    ((-9, 4, 10, 14, "tree"), r"row 2: the box \(-9, 4, 10, 14\) is partly outside its image of"),
    ((8, 4, 8, 14, "tree"), r"boxes.csv: row 2: the box \(8, 4, 8, 14\) has no area"),
    ((8, 14, 12, 4, "tree"), r"row 2: the box \(8, 14, 12, 4\) has no area"),
    (("nan", 4, 8, 14, "tree"), r"row 2: the box \(nan, 4, 8, 14\) has no area"),
    (
        ("x", 4, 8, 14, "tree"),
        r"boxes.csv: row 2 has a corner that is not a number \(x, 4, 8, 14\)",
    ),
    ((2, 4, 8, 14, "bush"), r"row 2 has the label 'bush', which is not among .* \(tree\)\."),
]


def test_a_number_is_the_class_of_that_name_and_else_of_that_id():
    objects = {"bbox": [[1, 2, 11, 22]] * 3, "label": [1, 2, 10]}
    named = read_boxes(objects, ("1", "10", "2"), (30, 40), "pascal_voc", "")
    assert named.labels.tolist() == [0, 2, 1]
    objects["label"] = [0, 1, np.int64(1)]
    by_id = read_boxes(objects, ("tree", "car"), (30, 40), "pascal_voc", "")
    assert by_id.labels.tolist() == [0, 1, 1]


def test_objects_are_lists_of_fields_or_a_list_of_tables(tmp_path):
    """As COCO's annotations, and data sets made of them, have objects and call their classes."""
    box = [1, 2, 11, 22]
    for objects in (
        {"bbox": [box, box], "categories": ["car", "tree"], "is_crowd": [0, 1]},
        [{"bbox": box, "category": "car"}, {"bbox": box, "category": "tree", "is_crowd": 1}],
        ({"label": "car", "bbox": box}, {"label": "tree", "bbox": np.array(box), "crowd": True}),
    ):
        boxes = read_boxes(objects, ("tree", "car"), (30, 40), "pascal_voc", "")
        assert (boxes.labels.tolist(), boxes.crowd.tolist()) == ([1, 0], [False, True])
        assert boxes.corners.tolist() == [box, box]
    for empty in (None, {}, [], {"bbox": [], "label": []}):
        assert len(read_boxes(empty, ("tree",), (30, 40), "coco", "").corners) == 0
    (tmp_path / "r.jsonl").write_text(
        json.dumps({"image": "a.png", "objects": [{"bbox": box, "category": "car"}]}) + "\n"
        '{"image": "a.png", "objects": null}\n'
    )
    task = make(Section(kind="object_detection"))
    assert task.label_names(open_source(f"jsonl:{tmp_path}/r.jsonl")) == ("car",)


@pytest.mark.parametrize(
    ("objects", "said"),
    [
        ("bbox", "row 1: its objects are no table"),
        ([[1, 2, 3, 4]], "row 1: its objects are no table"),
        ({"label": ["tree"]}, "row 1: 0 boxes have 1 of label"),
        ({"bbox": [[1, 1, 9, 9]] * 2, "label": ["tree"]}, "row 1: 2 boxes have 1 of label"),
        ({"bbox": [[1, 1, 9, 9]], "label": ["tree"], "crowd": [0, 1]}, "boxes have 2 of crowd"),
        ({"bbox": [[1, 1, 9]], "label": ["tree"]}, r"row 1: a box is \[1, 1, 9\], and no four"),
        ({"bbox": [["x", 1, 9, 9]], "label": ["tree"]}, "and no four numbers"),
        ({"bbox": 7, "label": ["tree"]}, "row 1: the objects' bbox is no list"),
    ],
)
def test_objects_of_another_form_are_a_sentence(objects, said):
    with pytest.raises(UserError, match=said):
        read_boxes(objects, ("tree",), (30, 40), "pascal_voc", "row 1")


@pytest.mark.parametrize(("bad", "said"), BAD_BOXES)
def test_a_bad_box_is_named_by_file_and_row(bad, said, tmp_path):
    rows = (("a.png", 1, 1, 9, 9, "tree"), ("a.png", *bad))
    with pytest.raises(UserError, match=said):
        read(write_boxes(tmp_path, *rows), 5)


def read(source, most):
    return read_examples(
        source,
        ("image", "objects"),
        ["tree"],
        PROCESSOR,
        most,
        tile=None,
        overlap=0.0,
        form="pascal_voc",
    )


def test_more_boxes_than_detection_tokens_are_refused(tmp_path):
    source = write_boxes(tmp_path, *[("a.png", n, 1, n + 9, 9, "tree") for n in range(3)])
    with pytest.raises(UserError, match="has 3 boxes, and the model has 2 detection tokens"):
        read(source, 2)


@pytest.mark.parametrize("mode", ["P", "L", "LA", "CMYK", "I;16", "1"])
def test_images_of_other_modes_are_read_as_rgb(mode, tmp_path):
    white = Image.new("L", (40, 30), 255).convert("RGB" if mode in ("P", "CMYK") else "L")
    white.convert(mode).save(tmp_path / "a.tif")
    head = "image_path,xmin,ymin,xmax,ymax,label\n"
    (tmp_path / "boxes.csv").write_text(f"{head}a.tif,1,1,9,9,tree\n")
    batch = read(open_source(f"boxes:{tmp_path / 'boxes.csv'}"), 5).collate(np.array([[0]]), 1)
    np.testing.assert_allclose(batch["pixel_values"][0, :, :9, :9], 1.0, atol=0.02)


def test_a_whole_image_is_read_as_the_exports_processor_reads_it(tmp_path):
    """The proportions of 40 x 30 pixels change to those of the model, and the boxes with them."""
    source = write_boxes(tmp_path, ("a.png", 10, 15, 30, 30, "tree"))
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    batch = read(source, 5).collate(np.array([[0]]), 1)
    expected = PROCESSOR(decode(tmp_path / "a.png"))
    np.testing.assert_array_equal(batch["pixel_values"][0], expected)
    np.testing.assert_allclose(batch["boxes"][0, 0], [0.5, 0.75, 0.5, 0.5])


@pytest.mark.parametrize("make_task", [make, make_segmentation])
@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
def test_the_processor_of_an_export_crops_nothing(make_task, file, tmp_path):
    """Of a DINOv2, whose own processor cuts the middle out; a detector's makes boxes too."""
    fields = {"image_processor_type": "BitImageProcessor", "do_center_crop": True, "resample": 3}
    fields |= {"size": {"shortest_edge": 24}, "crop_size": {"height": 20, "width": 20}}
    fields |= {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
    nested = {"image_processor": fields, "processor_class": "X"}
    (tmp_path / file).write_text(json.dumps(nested if file.startswith("processor") else fields))
    kind = "object_detection" if make_task is make else "semantic_segmentation"
    model_type = "yolos" if make_task is make else "dinov2"
    model = SimpleNamespace(
        source=SimpleNamespace(folder=tmp_path), asked_size=None, model_type=model_type
    )
    task = make_task((Section if make_task is make else SegmentationSection)(kind=kind))
    written = task.export_files(model, ())
    assert list(written) == [file]
    used = load_image_processor(tmp_path).whole
    (tmp_path / file).write_text(json.dumps(written[file]))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8))
    own = written[file].get("image_processor", written[file])
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(own))
    theirs = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    values = theirs(images=image, return_tensors="np")["pixel_values"][0]
    np.testing.assert_array_equal(used(image), values)
    assert hasattr(theirs, "post_process_object_detection") == (make_task is make)
    assert not task.export_files(model, ()), "the files say it already"


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "L"])
@pytest.mark.parametrize("window", [(-5, -4, 20, 20), (30, 20, 20, 20), (50, 0, 5, 5)])
def test_beyond_the_edge_of_an_image_it_is_black(mode, window):
    """Pillow's own filling is transparent in some modes, which becomes white."""
    left, top, width, height = window
    shown = np.asarray(to_rgb(cut_image(Image.new("RGB", (40, 30), "red").convert(mode), window)))
    inside = np.zeros((30 + 40, 40 + 40), bool)
    inside[10:40, 10:50] = True  # moved by 10 to each side
    own = inside[10 + top : 10 + top + height, 10 + left : 10 + left + width]
    assert shown.shape == (height, width, 3)
    np.testing.assert_array_equal(shown.any(2), own)


def test_a_broken_image_is_named(tmp_path):
    source = write_boxes(tmp_path, ("a.png", 1, 1, 9, 9, "tree"))
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"a.png' cannot be decoded as an image"):
        read(source, 5)
