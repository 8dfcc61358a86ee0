"""Image classification from files to predictions: batches, workers, a run, its page."""

import base64
import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

import jaxft
from jaxft.cli.main import main
from jaxft.data.batching.loader import batches
from jaxft.data.batching.plans import TrainPlan
from jaxft.data.image.images import decode, load_image_processor
from jaxft.data.sources.open import open_source
from jaxft.errors import UserError
from jaxft.models.families.vit.rollout import attention_rollout
from jaxft.models.load import describe
from jaxft.models.tower.tower import PLAIN
from jaxft.report.page.classes import WORST
from jaxft.report.page.page import write_page
from jaxft.tasks.image_classification.section import ImageClassificationSection as Section
from jaxft.tasks.image_classification.task import PICTURES, ImageExamples, make
from jaxft.tasks.parts import images
from jaxft.tasks.parts.images import heated
from jaxft.tasks.parts.labels import Labels
from jaxft.tasks.parts.tools import Tools
from tests.support.launch import cache  # noqa: F401 a fixture
from tests.support.tiny_images import COLOURS, SIDE, tiny_image_config, tiny_pictures, tiny_vit

pytestmark = pytest.mark.usefixtures("cache")
NAMES = tuple(COLOURS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with `checkpoint/` and `pictures/`."""
    folder = tmp_path_factory.mktemp("images")
    tiny_vit(folder / "checkpoint")
    tiny_pictures(folder / "pictures")
    return folder


@pytest.fixture
def examples(folder):
    source = open_source(f"images:{folder / 'pictures'}")
    processor = load_image_processor(folder / "checkpoint")
    labels = np.array([NAMES.index(row["label"]) for row in source.rows(range(len(source)))])
    return ImageExamples(source, "image", processor, Labels(labels))


def test_a_batch_is_the_processors_own_values(examples):
    index = np.array([[5], [-1], [0]])
    batch = pickle.loads(pickle.dumps(examples)).collate(index, 1)
    assert batch["pixel_values"].shape == (3, 3, SIDE, SIDE)
    assert batch["pixel_values"].dtype == np.float32
    for row, number in ((0, 5), (2, 0)):
        path = examples.source.folder / examples.source[number]["image"]
        expected = examples.processor(decode(path))
        np.testing.assert_array_equal(batch["pixel_values"][row], expected)
        assert NAMES[batch["labels"][row, 0]] == path.parent.name
    assert not batch["pixel_values"][1].any()
    assert batch["weights"].tolist() == [[1], [0], [1]]
    assert batch["example_ids"].tolist() == index.tolist()


def test_two_workers_give_the_same_batches_bit_for_bit(examples):
    plan = TrainPlan(examples.lengths, 0, 8, 1, 1)
    found = [list(batches(plan, examples.collate, 0, 6, workers=workers)) for workers in (0, 2)]
    assert len(found[0]) == len(found[1]) == 6
    for one, other in zip(*found, strict=True):
        assert set(one) == set(other)
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


class Colours(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Six gray images and their classes, as MNIST has them."""

    def __init__(self, folder):
        self.name = "made_colours"
        self.VERSION = tfds.core.Version("1.0.0")
        super().__init__(data_dir=folder, file_format="array_record")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(9, 9, 1)),
            "label": tfds.features.ClassLabel(names=["dark", "light"]),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for number in range(6):
            file = io.BytesIO()
            Image.new("L", (9, 9), 40 * number).save(file, "PNG")
            yield number, {"image": file.getvalue(), "label": number // 3}


def task_examples(source, folder):
    task = make(Section(kind="image_classification"))
    tools = Tools(describe(str(folder / "checkpoint")), None, None)
    return task.bind(tools, task.label_names(source)).examples(source)


def test_images_of_a_tfds_set(folder, tmp_path, capsys):
    tfds.disable_progress_bar()
    Colours(str(tmp_path)).download_and_prepare()
    source = open_source(f"tfds:{tmp_path / 'made_colours' / '1.0.0'}:train:ordered")
    examples = pickle.loads(pickle.dumps(task_examples(source, folder)))
    assert examples.labels.tolist() == [0, 0, 0, 1, 1, 1]
    values = examples.collate(np.arange(6)[:, None], 1)["pixel_values"]
    expected = (40 * np.arange(6) / 255 - 0.5) / 0.5
    np.testing.assert_allclose(values.mean(axis=(1, 2, 3)), expected, rtol=1e-5)


def test_paths_in_a_csv_start_from_its_folder(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [f"{name}/00.png,{name}" for name in NAMES]
    (folder / "pictures" / "rows.csv").write_text("\n".join(["image,label", *rows]))
    examples = task_examples(open_source(f"csv:{folder / 'pictures'}/rows.csv:ordered"), folder)
    values = examples.collate(np.arange(3)[:, None], 1)["pixel_values"]
    assert values.mean(axis=(2, 3)).argmax(axis=1).tolist() == [2, 1, 0]  # blue, green, red
    lines = [json.dumps({"image": f"{name}/00.png", "label": name}) for name in NAMES]
    (folder / "pictures" / "rows.jsonl").write_text("\n".join(lines))
    again = task_examples(open_source(f"jsonl:{folder / 'pictures'}/rows.jsonl:ordered"), folder)
    np.testing.assert_array_equal(again.collate(np.arange(3)[:, None], 1)["pixel_values"], values)


def test_images_are_looked_at_before_training(folder, tmp_path, monkeypatch):
    pictures = tiny_pictures(tmp_path / "pictures", each=2)
    file = pictures / "red" / "01.png"
    whole = file.read_bytes()
    source = open_source(f"images:{pictures}")
    for content in (whole[: len(whole) // 2], b"text"):
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"red/01\.png' cannot be decoded as an image"):
            task_examples(source, folder)
    monkeypatch.setattr(images, "DECODED_BYTES", 0)  # as behind many others: headers only
    with pytest.raises(UserError, match=r"red/01\.png' cannot be decoded as an image"):
        task_examples(source, folder)
    file.write_bytes(whole[: len(whole) // 2])
    examples = task_examples(source, folder)
    with pytest.raises(UserError, match=r"red/01\.png' cannot be decoded as an image"):
        examples.collate(np.arange(6)[:, None], 1)


@pytest.mark.parametrize(
    ("value", "said"), [("", "has no image"), (3, "has 3, which is no path or image")]
)
def test_a_row_without_an_image_is_named(value, said, folder, tmp_path):
    lines = [{"image": "a.png", "label": "x"}, {"image": value, "label": "y"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    Image.new("RGB", (3, 3)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=f"rows.jsonl:ordered: row 2 (has )?.*{said}"):
        task_examples(open_source(f"jsonl:{tmp_path / 'rows.jsonl'}:ordered"), folder)


# -------------------------------------------------------------------------------------- a whole run


@pytest.fixture(scope="module")
def run(folder, cache):  # noqa: F811 the fixture above
    """Too short to be right about everything."""
    length = {"length": "2 steps", "evaluate_every": "2 steps"}
    config = tiny_image_config(folder, train=length, optimizer={"lr": 1e-4})
    return jaxft.train(config, quiet=True)


def lines_of(run, split):
    return list(
        map(json.loads, (run.folder / f"predictions-{split}.jsonl").read_text().splitlines())
    )


def test_predictions_say_the_file_and_show_the_worst_mistakes(run, folder):
    lines = lines_of(run, "test") + lines_of(run, "eval")
    assert all((folder / "pictures" / line["file"]).is_file() for line in lines)
    assert all(line["label"] == line["file"].split("/")[0] for line in lines)
    wrong = [line for line in lines if line["label"] != line["predicted"]]
    assert wrong
    assert [line for line in lines if "image" in line] == wrong
    kind, _, content = wrong[0]["image"].partition(",")
    assert kind == "data:image/webp;base64"
    with Image.open(io.BytesIO(base64.b64decode(content))) as picture:
        assert max(picture.size) <= 96
    assert set(lines[0]["probabilities"]) == set(NAMES)


def test_the_worst_mistakes_show_where_the_model_looked(run, folder):
    """Of the rows that the run ends with; each by its own image, whatever batch it was in."""
    lines = [line for line in lines_of(run, "test") if "image" in line]
    assert len(lines) > 1
    assert [line for line in lines_of(run, "test") if "attention" in line] == lines
    model, processor = run.model(), load_image_processor(folder / "checkpoint")
    (tower,) = model.towers.values()
    for line in lines:
        image = decode(folder / "pictures" / line["file"])
        batch = {"pixel_values": processor(image)[None]}
        (shares,) = attention_rollout(tower, model.config, model.params, batch, PLAIN)
        assert pixels_of(line["attention"]) == pytest.approx(
            pixels_of(heated(processor.fit(image), np.asarray(shares))), abs=3
        )


def pixels_of(picture):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.split(",")[1]))), float)


def test_an_image_is_warm_where_the_shares_are_high():
    grey = np.full((32, 32, 3), 128, np.uint8)
    shown = pixels_of(heated(grey, np.array([[0.1, 0.1], [0.1, 0.3]])))
    warmth = shown[..., 0] - shown[..., 2]  # red over blue
    assert warmth[24:, 24:].mean() > 100
    assert abs(warmth[:8, :8]).mean() < 10
    assert np.isfinite(pixels_of(heated(grey, np.full((2, 2), 0.2)))).all()


def test_only_so_many_mistakes_have_a_picture(examples):
    count = len(examples)
    shares = np.full((count, 3), 0.2)
    said = (examples.labels + 1) % 3
    said[-1] = examples.labels[-1]  # all of them are wrong but the last
    shares[np.arange(count), said] = 0.6
    outcomes = {"probabilities": shares, "loss": np.arange(count, dtype=float)}
    task = make(Section(kind="image_classification")).bind(None, NAMES)
    lines = list(task.describe(examples.source, outcomes, examples))
    shown = [number for number, line in enumerate(lines) if "image" in line]
    assert shown == list(range(count - 1 - PICTURES, count - 1))
    assert PICTURES == WORST  # the page shows as many
    assert max(len(json.dumps(line)) for line in lines) < 12_000


def test_the_page_shows_the_pictures(run):
    page = write_page([run.folder]).read_text()
    wrong = sum(line["label"] != line["predicted"] for line in lines_of(run, "test"))
    assert page.count('<img src="data:image/webp;base64,') >= 2 * wrong > 0
    assert page.count('alt="attention map"') == wrong
    assert "Missing data" not in page


def test_predict_takes_files_and_folders(run, folder, capsys):
    red = folder / "pictures" / "red"
    assert main(["predict", str(run.folder), str(red / "03.png"), str(folder / "pictures")]) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(said) == 1 + 48
    assert said[0]["file"] == str(red / "03.png")
    again = next(line for line in said[1:] if line["file"] == said[0]["file"])
    np.testing.assert_allclose(
        list(again["probabilities"].values()), list(said[0]["probabilities"].values()), atol=1e-5
    )
    scored = {line["file"]: line for line in lines_of(run, "test")}
    for line in said[1:]:
        name = "/".join(line["file"].split("/")[-2:])
        if name in scored:
            assert line["label"] == scored[name]["predicted"]


def test_predict_names_what_is_no_image(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("nothing").mkdir()
    Path("text.png").write_text("text")
    for given, said in {
        "gone.png": "There is no image 'gone.png'.",
        "nothing": "The folder 'nothing' holds no images.",
        "text.png": "'text.png' cannot be decoded as an image",
    }.items():
        assert main(["predict", str(run.folder), given]) == 2
        refused = capsys.readouterr()
        assert refused.out == ""
        assert refused.err.startswith(f"jaxft: {said}")
        assert refused.err.count("\n") == 1
