"""Captions: what is learned, what is scored, what the command writes, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sacrebleu.metrics import CHRF
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

from jaxft.cli.main import main
from jaxft.config.load import parse_config
from jaxft.data.image.images import load_image_processor
from jaxft.engine.setup import build
from jaxft.errors import UserError
from jaxft.metrics.captions import caption_scores, cider_scores
from jaxft.models.generate.decode import Generator
from jaxft.models.generate.settings import Settings
from jaxft.report.page.page import render
from jaxft.report.page.run import read_run
from jaxft.report.page.views import view
from jaxft.training.story import train
from tests.support.small_assets import COLOURS, SMALL, THINGS, write_emoji


def write_parts(folder: Path) -> None:
    """A ViT and a BERT of two blocks, and a tokenizer of the words in the emoji's names."""
    config = AutoConfig.for_model("vit", num_hidden_layers=2, image_size=28, patch_size=14, **SMALL)
    AutoModel.from_config(config).save_pretrained(folder / "vit")
    size = {"height": 28, "width": 28}
    described = {"image_processor_type": "ViTImageProcessor", "size": size}
    (folder / "vit" / "preprocessor_config.json").write_text(json.dumps(described))
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *COLOURS, *THINGS]
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(pieces)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    roles = {"cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]", "unk": "[UNK]"}
    PreTrainedTokenizerFast(
        tokenizer_object=words, **{f"{role}_token": token for role, token in roles.items()}
    ).save_pretrained(folder / "bert")
    config = AutoConfig.for_model(
        "bert", vocab_size=len(pieces), max_position_embeddings=9, num_hidden_layers=2, **SMALL
    )
    AutoModel.from_config(config).save_pretrained(folder / "bert")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Both parts, and plain squares whose captions say their colour."""
    folder = tmp_path_factory.mktemp("captioning")
    write_parts(folder)
    write_emoji(folder / "emoji")
    return folder


# Captions, their references, and what pycocoevalcap 1.2 (CIDEr-D, a reference each) scores them.
SCORED = (
    ("a red flag", "a red flag", 7.5),
    ("the cat sat on the mat", "a cat sat on a mat", 3.1837695505),
    ("dog", "cat", 0.0),
    ("", "an apple", 0.0),
    (
        "a man riding a horse in the rain rain",
        "a man riding a white horse in the rain",
        6.0685233263,
    ),
    ("flag of France.", "france flag", 1.8762503406),
)


def test_cider_is_that_of_the_coco_evaluation():
    written, wanted, expected = zip(*SCORED, strict=True)
    np.testing.assert_allclose(cider_scores(written, wanted), expected, atol=1e-9)
    scores = caption_scores(written, wanted)
    assert scores["cider"] == pytest.approx(np.mean(expected))
    assert scores["exact_match"] == pytest.approx(1 / 6)


def config_of(folder: Path, **sections):
    pair = {"encoder": str(folder / "vit"), "decoder": str(folder / "bert")}
    return parse_config(
        {
            "run": {"name": "run", "dir": str(folder / "runs")},
            "model": {"checkpoint": pair, "dropout": 0.0},
            "task": {"kind": "captioning"},
            "data": {
                "train": f"csv:{folder}/emoji/train.csv",
                "eval": f"csv:{folder}/emoji/test.csv[:5]",
                "batch_size": 8,
                "cache": str(folder / "cache"),
            },
            "optimizer": {"lr": 1e-2},
            "groups": [{"name": "encoder", "match": "encoder/.*", "freeze": True}],
            "train": {"length": "60 steps", "evaluate_every": 30, "trunk_cache": "on"},
            "checkpoint": {"every": 60},
            "report": {"tensorboard": False, "before": True},
        }
        | sections
    )


@pytest.fixture(scope="module")
def run(folder):
    return train(config_of(folder), quiet=True)


def lines_in(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def lines_of(run) -> list[dict]:
    return lines_in(run.folder / "predictions-eval.jsonl")


@pytest.mark.slow
def test_it_learns_to_say_the_colour(run):
    """Above a frozen encoder, whose output is kept: no image is read in a step."""
    evals = [e for e in lines_in(run.folder / "metrics.jsonl") if e["kind"] == "eval"]
    assert evals[-1]["loss"] < evals[0]["loss"]
    assert {"chrf", "cider", "exact_match", "accuracy"} <= evals[-1].keys()
    lines = lines_of(run)
    assert len(lines) == 5
    for line in lines:
        assert line["written"].split()[0] == line["target"].split()[0]


def test_what_is_scored_is_what_the_model_writes(run, folder):
    """Five rows of eight, over eight devices: the texts are those of `Generator`, one by one."""
    lines, model = lines_of(run), run.model()
    processor = load_image_processor(folder / "vit")
    settings = Settings(max_new_tokens=9, eos_token_id=(3,))
    tokenizer = build(config_of(folder)).splits["eval"].examples.writing.tokenizer
    generator = Generator(model)
    for line in lines:
        pixels = processor(Image.open(folder / "emoji" / line["file"]))
        text = tokenizer.decode(generator.generate([pixels], settings)[0])
        assert text == line["written"]
    evals = lines_in(run.folder / "metrics.jsonl")
    best = max(e["chrf"] for e in evals if e.get("split") == "eval")  # not before it trains
    wanted = [[line["target"] for line in lines]]
    assert CHRF().corpus_score([line["written"] for line in lines], wanted).score == best


def test_a_target_is_moved_on_by_one_behind_the_first_token(folder):
    """BERT's tokenizer puts that there itself: it is read, and not written."""
    examples = build(config_of(folder)).splits["eval"].examples
    batch = examples.collate(np.array([[1], [-1]]), 1)
    own = batch["targets"][0]
    own = own[own >= 0].tolist()
    assert examples.writing.tokenizer.decode(own) == examples.wanted[1]
    assert (own[0], own[-1]) != (2, 2)
    assert own[-1] == 3
    assert batch["decoder_input_ids"][0, : len(own)].tolist() == [2, *own[:-1]]
    assert (batch["targets"][1] == -1).all()
    assert batch["pixel_values"].shape == (2, 3, 28, 28)
    assert "pixel_values" not in examples.without({"pixel_values"}).collate(np.array([[1]]), 1)


@pytest.mark.slow
@pytest.mark.parametrize("beams", [1, 3])
def test_the_command_captions_an_image_and_a_folder(run, folder, tmp_path, capsys, beams):
    """Also one in another mode: CMYK, a palette, 16 bits a pixel."""
    line = lines_of(run)[0]
    image = Image.open(folder / "emoji" / line["file"])
    image.save(tmp_path / "a.png")
    image.convert("CMYK").save(tmp_path / "b.jpg", quality=100)
    image.convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "c.png")
    deep = np.full((32, 32), 200, np.uint16)
    Image.fromarray(deep).save(tmp_path / "d.png")
    words = [] if beams == 1 else ["--beams", str(beams)]
    assert main(["predict", str(run.folder), str(tmp_path), *words]) == 0
    said = [json.loads(one) for one in capsys.readouterr().out.splitlines()]
    assert [Path(one["file"]).name for one in said] == ["a.png", "b.jpg", "c.png", "d.png"]
    first = said[0]["text"]
    if beams == 1:
        assert first == line["written"]
    assert [one["text"].split()[0] for one in said[:3]] == [first.split()[0]] * 3
    assert main(["predict", str(run.folder), str(tmp_path / "a.png"), *words]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == first


def test_a_file_that_is_no_image_is_named(run, tmp_path, capsys):
    (tmp_path / "x.png").write_text("no image")
    assert main(["predict", str(run.folder), str(tmp_path / "x.png")]) == 2
    assert "x.png" in capsys.readouterr().err
    assert main(["predict", str(run.folder), str(tmp_path / "y.png")]) == 2
    assert "There is no image" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("images/red-0.png, ", "row 3 has no text."),
        ("images/red-0.png," + "red " * 9, "row 3: its text has 10 tokens, and the decoder has "),
        (",red car", "row 3 has no image."),
        ("images/none.png,red car", "There is no image"),
    ],
    ids=["empty-target", "too-long", "no-image", "missing-image"],
)
def test_a_bad_row_is_named(folder, row, said):
    rows = ["image,text", *["images/red-1.png,red car"] * 2, row]
    file = folder / "emoji" / "bad.csv"
    file.write_text("\n".join(rows) + "\n")
    config = config_of(folder)
    data = config.data.model_copy(update={"train": f"csv:{file}:ordered"})
    with pytest.raises(UserError) as caught:
        build(config.model_copy(update={"data": data}))
    assert said in caught.value.message


def test_the_page_shows_images_with_what_was_wanted_and_written(run):
    (shown,) = view(read_run(run.folder, "run"), 0)["written"]
    before = lines_in(run.folder / "predictions-before.jsonl")
    assert len(shown["texts"]) == 5
    for line, earlier, one in zip(lines_of(run), before, shown["texts"], strict=True):
        assert one["image"] == line["image"]
        assert one["image"].startswith("data:image/webp;base64,")
        assert (one["source"], one["target"]) == (line["file"], line["target"])
        assert [made["written"] for made in one["predictions"]] == [
            earlier["written"],
            line["written"],
        ]
    page = render([read_run(run.folder, "run")])
    assert page.count(shown["texts"][0]["image"]) >= 1
    assert "Generated texts" in page
