"""Images drawn pixel by pixel: as transformers draws them, by class, scored, kept and shown."""

import base64
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from transformers import (
    AutoImageProcessor,
    ImageGPTForCausalImageModeling,
)

import jaxft
from jaxft.cli.main import main
from jaxft.config.load import parse_config
from jaxft.data.image.colors import colors_of, contact_sheet, enlarged
from jaxft.data.image.images import decode, load_image_processor
from jaxft.demo import pretrain as demo_pretrain
from jaxft.demo.drawing import imagegpt as demo_imagegpt
from jaxft.demo.drawing.imagegpt import blank
from jaxft.engine.setup import build
from jaxft.errors import UserError
from jaxft.export.export import export
from jaxft.models import load as registry
from jaxft.models.generate.images import draw_images
from jaxft.models.tower.tower import PLAIN
from jaxft.report.page.page import write_page
from tests.support.launch import cache  # noqa: F401 a fixture
from tests.support.tiny_images import tiny_pictures, tiny_vit

SIDE, GREYS = 6, 5
PIXELS = SIDE * SIDE
COLOURS = ("blue", "green", "red")


def tiny_imagegpt(folder: Path, **sizes: int) -> Path:
    """A checkpoint of 2 blocks whose weights are far from zero, so that its outputs are too."""
    blank(folder, **({"side": SIDE, "levels": GREYS, "width": 16, "blocks": 2, "heads": 2} | sizes))
    model = registry.load(str(folder))
    keys = jax.random.split(jax.random.key(7), len(model.params))
    shaken = {
        name: value + 0.3 * jax.random.normal(key, value.shape)
        for key, (name, value) in zip(keys, model.params.items(), strict=True)
    }
    return model.save(folder, shaken, overwrite=True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return tiny_imagegpt(tmp_path_factory.mktemp("imagegpt"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return tiny_pictures(tmp_path_factory.mktemp("rows") / "pictures")


def config_of(folder: Path, checkpoint: Path, pictures: Path, **sections):
    given = {
        "run": {"name": "tiny", "dir": str(folder / "runs")},
        "model": {"checkpoint": str(checkpoint)},
        "task": {"kind": "image_generation", "samples": 5},
        "data": {
            "train": f"images:{pictures}[:50%]",
            "eval": f"images:{pictures}[50%:75%]",
            "test": f"images:{pictures}[75%:]",
            "batch_size": 8,
        },
        "optimizer": {"lr": 3e-3},
        "train": {"length": "4 steps", "evaluate_every": "2 steps"},
        "report": {"tensorboard": False, "before": True},
    }
    for name, keys in sections.items():
        given[name] = given.get(name, {}) | keys
    return parse_config(given)


@pytest.fixture(scope="module")
def run(tmp_path_factory, checkpoint, pictures, cache):  # noqa: F811 the fixture above
    """A run by class, over eight devices, with the Frechet distance in a tiny ViT's features."""
    folder = tmp_path_factory.mktemp("run")
    task = {"label": "label", "features": str(tiny_vit(folder / "vit"))}
    return jaxft.train(config_of(folder, checkpoint, pictures, task=task), quiet=True)


# --------------------------------------------------------------------------------- the drawing


def draw(folder, begun, keys=None, **more):
    model = registry.load(str(folder))
    (tower,) = model.towers.values()
    how = {"pixels": PIXELS, "colours": GREYS} | more
    return np.asarray(draw_images(tower, model.params, jnp.asarray(begun), keys, PLAIN, **how))


def test_the_likeliest_pixels_are_those_of_transformers(checkpoint):
    theirs = ImageGPTForCausalImageModeling.from_pretrained(checkpoint).eval()
    given = np.random.default_rng(0).integers(0, GREYS, (3, 10))
    begun = np.concatenate([np.full((3, 1), GREYS), given], axis=1)
    with torch.no_grad():
        expected = theirs.generate(
            torch.tensor(begun),
            attention_mask=torch.ones(begun.shape, dtype=torch.long),
            max_new_tokens=PIXELS - 10,
            do_sample=False,
            pad_token_id=0,
        ).numpy()[:, 1:]
    assert len(np.unique(expected[:, 10:])) > 1
    np.testing.assert_array_equal(draw(checkpoint, begun), expected)


@pytest.mark.slow
def test_an_image_is_drawn_alike_in_any_batch(checkpoint):
    keys = jax.vmap(lambda n: jax.random.fold_in(jax.random.key(3), n))(jnp.arange(4))
    begun = np.full((4, 1), GREYS, np.int32)
    together = draw(checkpoint, begun, keys)
    assert together.shape == (4, PIXELS)
    assert len({row.tobytes() for row in together}) == 4
    np.testing.assert_array_equal(draw(checkpoint, begun[2:3], keys[2:3]), together[2:3])


def test_what_is_no_colour_is_never_drawn(tmp_path, checkpoint):
    """A head that would rather have a word of a class than any colour."""
    model = registry.load(str(checkpoint), task="image_generation", labels=COLOURS)
    head = model.params["head/kernel"]
    rather = head.at[:, GREYS:].set(head[:, :GREYS].sum(1, keepdims=True) * 50)
    model.save(tmp_path, {**model.params, "head/kernel": rather})
    keys = jax.random.split(jax.random.key(0), 2)
    for chosen in (keys, None):
        found = draw(tmp_path, np.full((2, 1), GREYS), chosen)
        assert found.max() < GREYS


# -------------------------------------------------------------------------------------- classes


def test_a_checkpoint_with_classes_is_one_that_transformers_loads(checkpoint, tmp_path):
    plain = registry.load(str(checkpoint))
    model = registry.load(str(checkpoint), task="image_generation", labels=COLOURS)
    assert model.config.vocab_size == GREYS + 1 + 3
    theirs = ImageGPTForCausalImageModeling.from_pretrained(model.save(tmp_path / "made")).eval()
    assert theirs.config.id2label == dict(enumerate(COLOURS))
    ids = np.random.default_rng(0).integers(0, GREYS, (4, PIXELS))
    ids[:, 0] = GREYS + np.arange(4)  # of no class, and of each
    ours = np.asarray(model(input_ids=ids)["logits"])
    with torch.no_grad():
        np.testing.assert_allclose(ours, theirs(torch.tensor(ids)).logits.numpy(), atol=2e-5)
    # A class begins as the image of none does.
    ids[:, 0] = GREYS
    alike = np.asarray(plain(input_ids=ids)["logits"])
    np.testing.assert_allclose(ours[..., :GREYS], alike, atol=1e-5)


def test_a_class_that_is_known_keeps_its_word(checkpoint, tmp_path):
    first = registry.load(str(checkpoint), task="image_generation", labels=COLOURS)
    words = first.params["embeddings/word/embedding"]
    told = words.at[GREYS + 1 :].add(jnp.arange(1.0, 4)[:, None])
    first.save(tmp_path, {**first.params, "embeddings/word/embedding": told})
    again = registry.load(str(tmp_path), task="image_generation", labels=COLOURS)
    np.testing.assert_array_equal(again.params["embeddings/word/embedding"], told)
    other = registry.load(str(tmp_path), task="image_generation", labels=("red", "white"))
    found = other.params["embeddings/word/embedding"]
    np.testing.assert_array_equal(found[:-2], told[: GREYS + 1])
    np.testing.assert_array_equal(found[-2:], told[np.array([GREYS + 3, GREYS])])
    assert registry.load(str(tmp_path)).config.vocab_size == GREYS + 4  # as it is


# -------------------------------------------------------------------------------------- a run


@pytest.mark.slow
def test_bits_are_those_of_what_transformers_says(run, pictures):
    """Of the export, on each test image, by the files beside it."""
    folder = export(run.folder)
    theirs = ImageGPTForCausalImageModeling.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    lines = read(run.folder / "predictions-test.jsonl")
    bits = []
    for line in lines:
        image = Image.open(pictures / line["file"]).convert("RGB")
        pixels = torch.tensor(processor(images=image, return_tensors="np")["input_ids"])
        start = theirs.config.vocab_size - 3 + theirs.config.label2id[line["label"]]
        with torch.no_grad():
            ids = torch.cat([torch.tensor([[start]]), pixels[:, :-1]], dim=1)
            loss = torch.nn.functional.cross_entropy(theirs(ids).logits[0], pixels[0])
        bits.append(float(loss) / math.log(2))
        assert line["bits_per_dimension"] == pytest.approx(bits[-1], abs=1e-4)
    assert run.metrics["bits_per_dimension"] == pytest.approx(np.mean(bits), abs=1e-4)
    assert run.metrics["loss"] == pytest.approx(np.mean(bits) * math.log(2), abs=1e-4)
    assert run.metrics["frechet_distance"] > 0


def test_a_run_learns_and_keeps_what_it_drew(run):
    evals = [e for e in read(run.folder / "metrics.jsonl") if e["kind"] == "eval"]
    scores = [e["bits_per_dimension"] for e in evals]
    assert scores[-1] < scores[0]
    assert sorted(f.name for f in (run.folder / "samples").iterdir()) == [
        f"{step:08d}.png" for step in (0, 2, 4)
    ]
    sheet = decode(run.folder / "samples" / "00000004.png")
    assert sheet.size == (3 * 32 + 2, 2 * 32 + 2)  # five pictures of 30 pixels, two apart
    lines = read(run.folder / "predictions-eval.jsonl")
    assert [line["id"] for line in lines if "drawn" in line] == [0, 1, 2, 3, 4]
    for line in lines[:5]:
        held_out, completed, drawn = (pixels_of(line[n]) for n in ("image", "completed", "drawn"))
        np.testing.assert_array_equal(held_out[: SIDE // 2], completed[: SIDE // 2])
        assert held_out.shape == drawn.shape == (SIDE, SIDE, 3)


def read(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def pixels_of(uri: str) -> np.ndarray:
    return np.asarray(decode(base64.b64decode(uri.partition(",")[2])))


def test_the_page_shows_what_was_drawn(run):
    page = write_page([run.folder]).read_text()
    assert page.count('<figure><img src="data:image/png') == 3
    assert "before the first step" in page
    assert "of its class" in page
    assert (
        page.count('alt="its upper half, completed by the model"') == 10
    )  # five of eval, five of test


def test_predict_draws_by_class_and_completes(run, pictures, tmp_path, capsys):
    words = ["predict", str(run.folder), "--out", str(tmp_path)]
    assert main([*words, "--samples", "2"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["class"] for line in lines] == [c for c in COLOURS for _ in range(2)]
    assert len({Path(line["generated"]).read_bytes() for line in lines}) == 6
    assert decode(lines[0]["generated"]).size == (114, 114)  # 6 pixels a side, 19 times
    assert main([*words, "--samples", "1", "--class", "red", "--temperature", "0"]) == 0
    (line,) = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert Path(line["generated"]).name == "red-0000.png"
    file = pictures / "red" / "00.png"
    assert main([*words, str(file), "--class", "red"]) == 0
    (line,) = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    completed = np.asarray(decode(line["generated"]))[::19, ::19]
    processor = load_image_processor(run.folder / "base")
    upper = colors_of(processor(decode(file)), processor).reshape(SIDE, SIDE)[: SIDE // 2]
    np.testing.assert_array_equal(completed[: SIDE // 2, :, 0], np.rint(upper * 255 / (GREYS - 1)))


def test_pictures_of_images_of_one_name_are_two(run, pictures, tmp_path, capsys):
    both = [str(pictures / colour / "00.png") for colour in ("red", "blue")]
    words = ["predict", str(run.folder), *both, "--out"]
    assert main([*words, str(tmp_path)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["file"] for line in lines] == both
    names = ["00-completed.png", "00-completed-2.png"]
    assert [Path(line["generated"]).name for line in lines] == names
    assert main([*words, str(pictures / "red")]) == 2
    assert "holds the input" in capsys.readouterr().err
    (tmp_path / names[0]).write_bytes(b"somebody's")
    assert main([*words, str(tmp_path)]) == 2
    assert "was not written by jaxft" in capsys.readouterr().err
    assert (tmp_path / names[0]).read_bytes() == b"somebody's"


def test_a_checkpoint_draws_without_a_run(checkpoint, tmp_path, capsys):
    assert main(["predict", str(checkpoint), "--samples", "1", "--out", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out) == {"generated": str(tmp_path / "sample-0000.png")}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--samples", "1", "--class", "rde"], "'rde' is no class of this model. Did you mean"),
        (["--samples", "1", "--beams", "2"], "generates images, not text"),
        (["nowhere.png"], "There is no image 'nowhere.png'"),
    ],
)
def test_what_cannot_be_drawn(words, said, run, tmp_path, capsys):
    assert main(["predict", str(run.folder), *words, "--out", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err


def test_a_classifier_draws_nothing(tmp_path, capsys):
    vit = tiny_vit(tmp_path / "vit")
    assert main(["predict", str(vit), "--samples", "2"]) == 2
    assert "generates no images, so --samples" in capsys.readouterr().err


# ------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize("mode", ["CMYK", "P", "LA", "1"])
def test_another_mode_is_read_as_its_colours(mode, checkpoint, pictures, tmp_path):
    folder = tmp_path / "rows"
    (folder / "a").mkdir(parents=True)
    image = Image.open(pictures / "red" / "00.png").convert(mode)
    for number in range(8):
        image.save(folder / "a" / f"{number}.{'tiff' if mode == 'CMYK' else 'png'}")
    split = f"images:{folder}"
    data = {"train": split, "eval": split, "test": None}
    built = build(config_of(tmp_path, checkpoint, pictures, data=data))
    processor = load_image_processor(checkpoint)
    found = built.splits["train"].examples.tokens[0]["colours"]
    np.testing.assert_array_equal(found, colors_of(processor(image.convert("RGB")), processor))


@pytest.mark.parametrize(("dtype", "mode"), [(np.uint16, "I;16"), (np.float32, "F")])
def test_deep_images_are_told_by_their_file(dtype, mode, checkpoint, tmp_path):
    folder = tmp_path / "rows"
    (folder / "a").mkdir(parents=True)
    Image.fromarray(np.full((8, 8), 3000, dtype)).save(folder / "a" / "deep.tiff")
    config = config_of(tmp_path, checkpoint, folder)
    with pytest.raises(UserError, match=rf"a/deep\.tiff' has more than 8 bits a channel \({mode}"):
        build(config.model_copy(update={"data": config.data.model_copy(update=whole(folder))}))


def whole(folder: Path) -> dict[str, str]:
    return dict.fromkeys(("train", "eval", "test"), f"images:{folder}")


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        (
            {"model": {"image_size": 7}},
            "images of 7 x 7 are 49 pixels, and the model has positions for 36. "
            "Set model.image_size to 6",
        ),
        (
            {"task": {"label": "label", "labels": ["blue", "green"]}},
            "has the label 'red', which is not among",
        ),
        ({"task": {"label": "colour"}}, "there is no column 'colour'"),
    ],
)
def test_what_a_run_refuses(sections, said, checkpoint, pictures, tmp_path):
    with pytest.raises(UserError, match=said):
        build(config_of(tmp_path, checkpoint, pictures, **sections))


def test_a_checkpoint_that_draws_nothing_is_refused(pictures, tmp_path):
    with pytest.raises(UserError, match="'image_generation' has no head on vit"):
        build(config_of(tmp_path, tiny_vit(tmp_path / "vit"), pictures))


def test_more_colours_than_words_are_refused(pictures, tmp_path):
    folder = tiny_imagegpt(tmp_path / "made")
    fields = json.loads((folder / "preprocessor_config.json").read_text())
    fields["clusters"] += [[0.1, 0.2, 0.3]]
    (folder / "preprocessor_config.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match="has 6 colors, and the model has embeddings for 5"):
        build(config_of(tmp_path, folder, pictures))


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ({"labels": ["a"]}, "labels needs label, the column"),
        ({"features": "x", "samples": 1}, "set samples to 2 or more"),
        ({"feature_size": 9}, "feature_size needs features, the checkpoint"),
        ({"samples": -1}, "must be 0 or more, not -1"),
    ],
)
def test_sections_that_contradict_themselves(task, said, checkpoint, pictures, tmp_path):
    with pytest.raises(UserError, match=said):
        config_of(tmp_path, checkpoint, pictures, task=task)


def test_a_smaller_size_than_the_checkpoints(checkpoint, pictures, tmp_path):
    built = build(config_of(tmp_path, checkpoint, pictures, model={"image_size": 4}))
    assert len(built.splits["train"].examples.tokens[0]["colours"]) == 16


# -------------------------------------------------------------------------------------- pictures


def test_a_sheet_has_every_picture():
    pictures = [np.full((2, 3, 3), shade, np.uint8) for shade in (10, 20, 30)]
    sheet = contact_sheet(pictures, least=4)
    assert sheet.shape == (2 * (4 + 2) + 2, 2 * (6 + 2) + 2, 3)
    assert [int(sheet[y, x, 0]) for y, x in ((2, 2), (5, 15), (8, 2), (8, 12))] == [10, 20, 30, 128]
    np.testing.assert_array_equal(enlarged(pictures[0], 2), pictures[0])


# ------------------------------------------------------------------------------------- the asset


def test_the_asset_is_what_a_run_exports(tmp_path, pictures, monkeypatch):
    """Of the classes that it is trained on; nothing else of the run is kept."""
    monkeypatch.setattr(demo_imagegpt, "PRETRAINED_ON", ["red", "blue"])
    said = []

    def run_here(*words):
        if words[0] == "train":
            said.append(parse_config(yaml.safe_load(Path(words[1]).read_text())))
        else:
            tiny_imagegpt(Path(words[words.index("--out") + 1]))

    monkeypatch.setattr(demo_pretrain, "jaxft", run_here)
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "train").symlink_to(pictures)
    to = tmp_path / "asset"
    to.mkdir()
    demo_imagegpt._pretrain(tmp_path / "digits", to)
    assert registry.describe(str(to)).head == "image_generation"
    (config,) = said
    assert config.data.where == {"label": ["red", "blue"]}
    assert not Path(config.model.checkpoint).exists()


def test_a_training_that_fails_is_told(tmp_path):
    with pytest.raises(UserError, match=r"jaxft train nowhere\.yaml failed: "):
        demo_pretrain.jaxft("train", "nowhere.yaml")


@pytest.mark.slow
def test_it_learns_to_classify(checkpoint, pictures, tmp_path):
    """Its rows of colours under a head of three classes, by the true command."""
    config = {
        "run": {"name": "run", "dir": str(tmp_path / "runs")},
        "model": {"checkpoint": str(checkpoint)},
        "task": {"kind": "image_classification"},
        "data": {
            "train": f"images:{pictures}[:70%]",
            "eval": f"images:{pictures}[70%:]",
            "test": f"images:{pictures}[70%:]",
            "batch_size": 8,
        },
        "optimizer": {"lr": 1e-2},
        "train": {"length": "30 steps", "evaluate_every": "30 steps"},
        "report": {"tensorboard": False, "before": True},
    }
    (tmp_path / "classify.yaml").write_text(yaml.safe_dump(config))
    assert main(["train", str(tmp_path / "classify.yaml"), "--quiet"]) == 0
    events = (tmp_path / "runs" / "run" / "metrics.jsonl").read_text().splitlines()
    before, after = [one for one in map(json.loads, events) if one["kind"] == "eval"][:2]
    assert after["loss"] < before["loss"]
    assert after["accuracy"] > 0.6
