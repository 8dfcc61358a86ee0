"""`jaxft data show`: the rows of a batch, as training reads them."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from jaxft.analysis.batch_view.rows import TokenTargets, label_of, texts_of
from jaxft.analysis.batch_view.sheet import pixels_of
from jaxft.cli.main import main
from jaxft.data.image.images import decode, load_image_processor
from jaxft.engine.setup import build
from jaxft.training.batches import training_batches
from tests.support.launch import write_config
from tests.support.tiny import VOCABULARY, tiny_config
from tests.support.tiny_images import tiny_image_config, tiny_vit
from tests.support.tiny_masks import tiny_mask_fields
from tests.tasks.test_detection_run import write_photos

NAMES = ("[PAD]", "a", "b", "c", "d", "<e>")


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """As on a laptop: of eight devices, the rows of a batch would be a multiple of eight."""
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: list(devices))


def shown(capsys, *words):
    """What the command prints."""
    code = main(["data", "show", *map(str, words)])
    out, err = capsys.readouterr()
    assert code == 0, err
    return out


def batch_of(**arrays):
    """A batch of one row with one example."""
    marks = {"weights": np.ones((1, 1)), "example_ids": np.zeros((1, 1), int)}
    return marks | {name: np.array([value]) for name, value in arrays.items()}


def as_text(batch, classes=None):
    """The tokens of each sequence: scored ones in brackets, targets after an arrow."""
    texts = texts_of(batch, 0, TokenTargets(NAMES.__getitem__, classes))
    return [
        " ".join(
            (f"[{one.piece}]" if one.scored else one.piece)
            + (f">{one.target}" if one.target else "")
            for one in text.tokens
        )
        for text in texts
    ]


def test_the_token_that_is_predicted_is_marked_and_not_the_position_before_it():
    packed = batch_of(
        input_ids=[1, 2, 3, 1, 4, 0], segment_ids=[1, 1, 1, 2, 2, 0], targets=[-1, 3, -1, 4, -1, -1]
    )
    assert as_text(packed) == ["a b [c]", "a [d]"]


def test_the_end_of_a_decoders_text_is_a_target_that_no_position_holds():
    batch = batch_of(
        input_ids=[1, 2, 0],
        attention_mask=[1, 1, 0],
        decoder_input_ids=[0, 3, 4],
        decoder_attention_mask=[1, 1, 1],
        targets=[3, 4, 5],
    )
    assert as_text(batch) == ["a b", "[PAD] [c] [d]><e>"]


def test_masked_tokens_have_their_original_and_tags_their_class():
    masked = batch_of(
        input_ids=[1, 2, 3], segment_ids=[1, 1, 1], masked_positions=[1, 0], targets=[4, -1]
    )
    assert as_text(masked) == ["a [b]>d c"]
    tagged = batch_of(input_ids=[1, 2, 3], segment_ids=[1, 1, 1], targets=[1, -1, 0])
    assert as_text(tagged, ("O", "B-LOC")) == ["[a]>B-LOC b [c]>O"]


def test_a_mixture_of_two_classes_has_both_shares():
    labels = np.array([1])
    mixed = batch_of(labels=[1], mixed_labels=[0], mixed_shares=[0.25])
    assert label_of(mixed, labels, ("cat", "dog"), (0, 0)) == {"dog": 0.75, "cat": 0.25}
    assert label_of(batch_of(labels=[1]), labels, ("cat", "dog"), (0, 0)) == "dog"
    several = batch_of(labels=[[1.0, 0.0, 1.0]])
    assert label_of(several, np.ones((1, 3)), ("a", "b", "c"), (0, 0)) == ["a", "c"]


def test_the_rows_are_those_that_training_reads(tmp_path, capsys):
    config = tiny_config(tmp_path)
    (tmp_path / "checkpoint/model.safetensors").unlink()  # no weights are read
    file = write_config(config, tmp_path / "c.yaml")
    view = json.loads(shown(capsys, file, "-n", 3, "--step", 2, "--json"))
    setup = build(config, weights=False)
    collate = setup.splits["train"].examples.collate
    _, batch = training_batches(setup, collate, 0, 2)
    assert len(view["rows"]) == 3
    for row, described in enumerate(view["rows"]):
        numbers = [one["number"] for text in described["texts"] for one in text["tokens"]]
        read = batch["segment_ids"][row] > 0
        assert numbers == batch["input_ids"][row][read].tolist()
        assert described["padding"] == int((~read).sum())
        ids = batch["example_ids"][row]
        assert [one["example"] for one in described["examples"]] == ids[ids >= 0].tolist()
        labels = [setup.label_names[one] for one in batch["labels"][row][ids >= 0]]
        assert [one["label"] for one in described["examples"]] == labels
    assert len(view["rows"][0]["examples"]) > 1, "several examples share a row"


def test_masks_are_those_of_the_epoch(tmp_path, capsys):
    words = tiny_config(tmp_path)  # makes the files
    with_mask = json.loads((tmp_path / "checkpoint/tokenizer_config.json").read_text())
    (tmp_path / "checkpoint/tokenizer_config.json").write_text(
        json.dumps(with_mask | {"mask_token": "[UNK]"})
    )
    config = tiny_config(tmp_path, task={"kind": "masked_lm"})
    file = write_config(config, tmp_path / "c.yaml")
    steps = build(config, weights=False).plan.steps_per_epoch
    first, second = (
        json.loads(shown(capsys, file, "--step", step, "--json", "-n", 8))
        for step in (1, 1 + steps)
    )
    targets = [
        token["target"]
        for view in (first, second)
        for row in view["rows"]
        for text in row["texts"]
        for token in text["tokens"]
        if token["scored"]
    ]
    assert targets
    assert set(targets) <= set(VOCABULARY)
    assert first["rows"] != second["rows"]
    assert words.task.kind == "text_classification"


def test_a_terminal_has_rows_labels_padding_and_brackets(tmp_path, capsys):
    file = write_config(tiny_config(tmp_path, data={"max_length": 8}), tmp_path / "c.yaml")
    out = " ".join(shown(capsys, file, "-n", 2).split())
    assert "train: 2 of the" in out
    assert "examples in one row" in out
    assert "padding" in out
    assert "label 1" in out
    assert "[CLS]" in out
    assert "tokens cut" in out
    assert "The loss scores" not in out, "the label is scored, and no token"


def test_hostile_labels_and_tokens_are_written_out(tmp_path, capsys):
    config = tiny_config(tmp_path)
    rows = "text,label\n" + "".join(f"a film \u202e,x\x1b[31m{n % 2}\n" for n in range(40))
    (tmp_path / "reviews.csv").write_text(rows)
    out = shown(capsys, write_config(config, tmp_path / "c.yaml"), "-n", 2)
    assert "\x1b" not in out
    assert "\\u001b[31m" in out.replace("\n", "")  # a narrow terminal folds the line


def test_a_number_is_a_label_and_the_eval_rows_can_be_shown(tmp_path, capsys):
    rows = "text,label\n" + "".join(f"a film,{n}.5\n" for n in range(40))
    config = tiny_config(tmp_path, task={"problem": "regression"})
    (tmp_path / "reviews.csv").write_text(rows)
    file = write_config(config, tmp_path / "c.yaml")
    view = json.loads(shown(capsys, file, "--split", "eval", "--json", "-n", 1))
    assert view["split"]["split"] == "eval"
    for one in view["rows"][0]["examples"]:
        number = int(one["row"].rpartition(" ")[2])
        assert one["label"] == number - 0.5, "row 1 of the file has 0.5"


def test_images_are_drawn_as_the_model_reads_them(tmp_path, capsys):
    config = tiny_image_config(tmp_path)
    file, sheet = write_config(config, tmp_path / "c.yaml"), tmp_path / "sheet.png"
    out = " ".join(shown(capsys, file, "-n", 3, "--out", sheet).split())
    assert "an image of 16 x 16 pixels" in out
    setup = build(config, weights=False)
    batch = next(training_batches(setup, setup.splits["train"].examples.collate, 0, 1))
    processor = load_image_processor(tmp_path / "checkpoint")
    drawn = np.asarray(Image.open(sheet))
    first = pixels_of(batch["pixel_values"][0], processor)
    assert first.std() > 0
    assert (drawn[12 : 12 + 144, 12 : 12 + 144][::9, ::9] == first).all(), "enlarged nine times"


def test_boxes_are_outlined(tmp_path, capsys):
    write_photos(tmp_path)
    data = f"boxes:{tmp_path / 'boxes.csv'}"
    config = {
        "run": {"name": "run", "dir": str(tmp_path / "runs")},
        "model": {"checkpoint": str(tiny_vit(tmp_path / "vit")), "detection_tokens": 4},
        "task": {"kind": "object_detection", "tile": 20, "overlap": 0.0},
        "data": {"train": data, "eval": data, "batch_size": 8},
        "optimizer": {"lr": 1e-3},
    }
    (tmp_path / "c.yaml").write_text(json.dumps(config))
    sheet = tmp_path / "sheet.png"
    file = tmp_path / "c.yaml"
    view = json.loads(shown(capsys, file, "-n", 1, "--out", sheet, "--json"))
    (box,) = view["rows"][0]["boxes"]
    assert box["label"] == "square"
    assert box["box"] == pytest.approx([3.2, 3.2, 11.2, 11.2], abs=0.1), "4 of 20 is 3.2 of 16"
    assert (np.asarray(Image.open(sheet)) == (80, 220, 120)).all(-1).any()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--out", "sheet.png"], "--out draws images, and the model reads none here."),
        (["--out", "sheet.txt"], "the sheet of images is a PNG"),
        (["--out", "mine.png"], "mine.png exists and was not written by jaxft"),
        (["--step", "999"], "--step: train has batches 1 to"),
        (["--split", "test"], "The config has no data.test. Set data.test."),
    ],
)
def test_what_is_missing_is_one_sentence(words, sentence, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.png").write_bytes(b"mine")
    file = write_config(tiny_config(tmp_path, data={"test": None}), tmp_path / "c.yaml")
    assert main(["data", "show", file, *words]) == 2
    assert sentence in capsys.readouterr().err
    assert Path("mine.png").read_bytes() == b"mine"


def test_masks_are_laid_over_their_images(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text(json.dumps(tiny_mask_fields(tmp_path)))
    sheet, file = tmp_path / "sheet.png", tmp_path / "c.yaml"
    view = json.loads(shown(capsys, file, "-n", 1, "--out", sheet, "--json"))
    shares = view["rows"][0]["shares"]
    assert set(shares) == {"background", "blue", "red"}
    assert sum(shares.values()) == pytest.approx(1, abs=1e-3)
    out = shown(capsys, file, "-n", 1)
    assert f"  red: {shares['red']:.1%} of the pixels" in out
    drawn = decode(sheet).convert("RGB").getcolors(10**6)
    assert any(color[1] > 1.5 * color[0] for _, color in drawn), "the color of a class"
