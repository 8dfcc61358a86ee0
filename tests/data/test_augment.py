"""Images changed by chance: what is drawn, by whom it is not changed, labels, runs."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jaxft
from jaxft.cli.main import main
from jaxft.data.batching.loader import batches
from jaxft.data.batching.plans import TrainPlan
from jaxft.data.image.augment import CHANGES, Augmentation, augment, beta, mix, piece
from jaxft.data.image.images import load_image_processor
from jaxft.data.random import EpochRandom
from jaxft.data.sources.open import open_source
from jaxft.tasks.image_classification.section import ImageClassificationSection as Section
from jaxft.tasks.image_classification.task import ImageExamples
from jaxft.tasks.parts.classes.target import make_target
from jaxft.tasks.parts.labels import Labels
from tests.support.laid_out import goes_on_to_the_same_bits
from tests.support.launch import cache  # noqa: F401 a fixture
from tests.support.tiny_images import COLOURS, SIDE, tiny_image_config, tiny_pictures, tiny_vit

pytestmark = pytest.mark.usefixtures("cache")
EVERYTHING = {"crop": [0.3, 1.0], "flip": 0.5, "changes": 2, "mixup": 0.4, "cutmix": 1.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("augment")
    tiny_vit(folder / "checkpoint")
    tiny_pictures(folder / "pictures")
    return folder


def examples_of(folder, values=None, **how):
    source = open_source(f"images:{folder / 'pictures'}")
    processor = load_image_processor(folder / "checkpoint")
    names = list(COLOURS)
    if values is None:
        values = [names.index(row["label"]) for row in source.rows(range(len(source)))]
    labels = Labels(np.array(values))
    return ImageExamples(source, "image", processor, labels, augment=Augmentation(**how))


def image(seed=0, width=20, height=12):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    return Image.fromarray(pixels)


# ---------------------------------------------------------------------------------- what is drawn


def test_pieces_have_the_area_and_shape_that_were_asked_for():
    shares, ratios, corners = [], [], set()
    for number in range(400):
        left, upper, right, lower = piece((300, 200), (0.2, 0.6), EpochRandom(0, 0).of(number))
        assert 0 <= left < right <= 300
        assert 0 <= upper < lower <= 200
        shares.append((right - left) * (lower - upper) / 60_000)
        ratios.append((right - left) / (lower - upper))
        corners.add((left, upper))
    assert min(shares) > 0.19
    assert max(shares) < 0.61
    assert np.mean(shares) == pytest.approx(0.4, abs=0.02)
    assert min(ratios) > 0.73
    assert max(ratios) < 1.36
    assert len(corners) > 380
    # No piece of this shape is so large: the middle is taken.
    assert piece((400, 10), (0.9, 1.0), EpochRandom(0, 0).of(0)) == (195, 0, 205, 10)


def test_a_flip_mirrors_and_a_crop_of_all_is_the_processors_own(folder):
    processor = load_image_processor(folder / "checkpoint")
    own = image(width=SIDE, height=SIDE)
    mirrored = augment(own, processor, Augmentation(flip=1.0), EpochRandom(0, 0).of(0))
    np.testing.assert_array_equal(mirrored, processor(own)[:, :, ::-1])
    never = augment(own, processor, Augmentation(changes=1, magnitude=0), EpochRandom(0, 0).of(3))
    assert never.shape == (3, SIDE, SIDE)
    some = [
        np.array_equal(
            augment(own, processor, Augmentation(flip=0.5), EpochRandom(0, 0).of(n)), processor(own)
        )
        for n in range(200)
    ]
    assert np.mean(some) == pytest.approx(0.5, abs=0.1)


def test_each_change_is_stronger_where_it_is_asked_to_be():
    own = image(width=32, height=32)
    pixels = np.asarray(own).astype(int)
    moved = []
    for change in CHANGES:
        weak, strong = (
            np.abs(np.asarray(change(own, s, 1.0)).astype(int) - pixels).mean() for s in (0.0, 0.9)
        )
        moved.append((weak, strong))
    assert moved[0] == (0, 0)  # nothing is among them
    for weak, strong in moved[1:12]:
        assert weak <= 1
        assert strong > weak
    for first, second in ((-1.0, 1.0),):
        for change in CHANGES[1:10]:
            one, other = (np.asarray(change(own, 0.5, sign)) for sign in (first, second))
            assert not np.array_equal(one, other)


def test_shares_are_of_the_beta_distribution():
    for alpha in (0.2, 1.0):
        found = np.array([beta(alpha, EpochRandom(0, 0).of(n)) for n in range(4000)])
        assert found.mean() == pytest.approx(0.5, abs=0.02)
        assert found.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)


def test_a_mixture_is_as_much_of_the_other_as_it_says():
    black, white = np.zeros((3, 16, 16), np.float32), np.ones((3, 16, 16), np.float32)
    for how in ({"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}):
        kinds = set()
        for number in range(40):
            mixed, share = mix(black, white, Augmentation(**how), EpochRandom(0, 0).of(number))
            assert mixed.mean() == pytest.approx(share, abs=1e-5)
            cut = set(np.unique(mixed)) <= {0.0, 1.0}
            kinds.add(cut)
        assert kinds == {c for c, name in ((False, "mixup"), (True, "cutmix")) if name in how}
    assert black.max() == 0


# ------------------------------------------------------------------------------------- the batches


def test_an_image_is_the_same_in_every_batch_and_with_workers_and_another_in_the_next_epoch(folder):
    examples = examples_of(folder, **EVERYTHING)
    draw = EpochRandom(7, 1)
    alone = examples.collate(np.array([[5]]), 1, draw)
    among = examples.collate(np.array([[0], [-1], [5]]), 1, draw)
    for name in ("pixel_values", "labels", "mixed_labels", "mixed_shares"):
        np.testing.assert_array_equal(alone[name][0], among[name][2])
    assert among["pixel_values"][1].max() == 0
    later = examples.collate(np.array([[5]]), 1, EpochRandom(7, 2))
    assert not np.array_equal(later["pixel_values"], alone["pixel_values"])
    plan = TrainPlan(examples.lengths, 3, 4, 1, 1)
    steps = plan.steps_per_epoch + 2

    def made(start):
        made = batches(plan, examples.collate, start, steps, augment=True)
        return [one["pixel_values"] for one in made]

    np.testing.assert_array_equal(made(0)[-3:], made(steps - 3))


@pytest.mark.full  # starting workers takes seconds
def test_workers_change_nothing(folder):
    examples = examples_of(folder, **EVERYTHING)
    plan = TrainPlan(examples.lengths, 3, 4, 1, 1)
    few, many = (
        [
            one["pixel_values"]
            for one in batches(plan, examples.collate, 2, 6, workers=w, augment=True)
        ]
        for w in (0, 2)
    )
    np.testing.assert_array_equal(few, many)


def test_an_evaluation_reads_images_as_they_are(folder):
    examples = examples_of(folder, **EVERYTHING)
    assert examples.random
    plain = examples.scored()
    assert not plain.random
    batch = plain.collate(np.array([[3]]), 1)
    expected = ImageExamples(plain.source, "image", plain.processor, plain.labelled)
    np.testing.assert_array_equal(
        batch["pixel_values"], expected.collate(np.array([[3]]), 1)["pixel_values"]
    )
    assert "mixed_labels" not in batch


def test_the_loss_of_a_mixture_is_that_of_both_labels():
    target = make_target(Section(kind="image_classification"))
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3)), jnp.float32)
    batch = {
        "labels": jnp.array([[0], [2]]),
        "mixed_labels": jnp.array([[1], [2]]),
        "mixed_shares": jnp.array([[0.25], [0.9]]),
        "weights": jnp.ones((2, 1)),
    }
    total, weight = target.loss({"logits": logits}, batch)
    logs = np.log(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))
    expected = -(0.75 * logs[0, 0] + 0.25 * logs[0, 1] + logs[1, 2])
    assert float(total) == pytest.approx(expected, rel=1e-6)
    assert float(weight) == 2


def test_several_labels_are_mixed_as_numbers():
    labels = Labels(np.array([[1, 0], [0, 1], [1, 1]], np.float32))
    mixed = labels.mixed(np.array([[0], [-1]]), np.array([[1], [-1]]), np.array([[0.25], [0.0]]))
    assert mixed["labels"].tolist() == [[[0.75, 0.25]], [[0.0, 0.0]]]


# --------------------------------------------------------------------------------------------- runs


@pytest.mark.slow
def test_a_run_goes_on_in_the_middle_of_an_epoch_to_the_same_bits(folder, tmp_path, cache):  # noqa: F811
    config = tiny_image_config(
        folder,
        run={"name": "changed", "dir": str(folder / "runs")},
        task={"kind": "image_classification", "augment": EVERYTHING},
        train={"length": "2 epochs", "evaluate_every": "1 epoch"},
        checkpoint={"every": "1 steps", "keep": 20},
    )
    run = jaxft.train(config, quiet=True)
    goes_on_to_the_same_bits(run, config, 2, tmp_path)  # of 3 steps an epoch


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["task.augment={flip: 1.5}"], "'task.augment.flip'"),
        (
            ["task.augment={crop: [0.9, 0.2]}"],
            "crop must be [smallest, largest], with fractions above 0",
        ),
        (["task.augment={magnitude: 3}"], "it does nothing"),
        (["task.augment={flp: 0.5}"], "Did you mean 'task.augment.flip'?"),
        (
            ["task.augment={mixup: 0.2}", "task.class_weights=balanced"],
            "class_weights does not combine with mixed images",
        ),
        (
            [
                "task.augment={flip: 0.5}",
                "train.trunk_cache=on",
                "groups=[{name: low, depth: [0, 1], freeze: true}]",
            ],
            "examples change each time they are read",
        ),
    ],
)
def test_a_config_that_cannot_be(words, said, folder, capsys):
    path = folder / "bad.yaml"
    path.write_text(jaxft.config.load.to_yaml(tiny_image_config(folder).dump()))
    assert main(["train", str(path), "run.name=bad", *words]) == 2
    assert said in capsys.readouterr().err.replace("\n", " ")
