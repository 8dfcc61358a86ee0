"""Texts about an image: what is learned, scored, written by the command, and refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sacrebleu.metrics import CHRF
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.gemma3.processing_gemma3 import Gemma3Processor
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
from transformers.models.llava.processing_llava import LlavaProcessor
from transformers.models.paligemma.processing_paligemma import PaliGemmaProcessor
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from jaxft.cli.main import main
from jaxft.config.load import parse_config
from jaxft.data.image.grid import Grid, check_grid, grid_fields
from jaxft.data.image.images import load_image_processor
from jaxft.engine.setup import build
from jaxft.errors import UserError
from jaxft.export.export import export
from jaxft.inference.generate import _encode, open_writer
from jaxft.models.load import load
from jaxft.report.page.run import read_run
from jaxft.report.page.views import view
from jaxft.tasks.parts.labels import BadValue
from jaxft.tasks.vision_language.conversations import IMAGE, conversation_of
from jaxft.tasks.vision_language.section import VisionLanguageSection
from jaxft.training.story import train
from tests.support.small_assets import write_emoji
from tests.support.small_vlm import (
    END,
    PIECES,
    TEMPLATE,
    write_gemma3,
    write_llava,
    write_paligemma,
    write_vlm,
)

SHAPES = ((40, 60, 3), (60, 40, 3), (50, 50, 3), (7, 100, 4), (33, 32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A checkpoint, and plain squares whose captions say their colour."""
    folder = tmp_path_factory.mktemp("vision_language")
    write_vlm(folder / "vlm")
    write_emoji(folder / "emoji")
    return folder


def config_of(folder: Path, **sections):
    return parse_config(
        {
            "run": {"name": "run", "dir": str(folder / "runs")},
            "model": {"checkpoint": str(folder / "vlm"), "dropout": 0.0},
            "task": {"kind": "vision_language"},
            "data": {
                "train": f"csv:{folder}/emoji/train.csv",
                "eval": f"csv:{folder}/emoji/test.csv[:5]",
                "batch_size": 8,
                "cache": str(folder / "cache"),
            },
            "optimizer": {"lr": 1e-2},
            "groups": [
                {"name": "connector", "match": "vision/connector/.*", "lr": 2e-2},
                {"name": "eyes", "match": "vision/.*", "freeze": True},
            ],
            "train": {"length": "60 steps", "evaluate_every": 30, "trunk_cache": "on"},
            "checkpoint": {"every": 60},
            "report": {"tensorboard": False, "before": True},
        }
        | sections
    )


@pytest.fixture(scope="module")
def run(folder):
    """The connector and the decoder trained, above a frozen image tower."""
    return train(config_of(folder), quiet=True)


def lines_in(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def lines_of(run) -> list[dict]:
    return lines_in(run.folder / "predictions-eval.jsonl")


@pytest.mark.slow
def test_it_learns_to_say_the_colour(run):
    """Above a frozen image tower, whose output is kept: no image is read in a step."""
    evals = [e for e in lines_in(run.folder / "metrics.jsonl") if e["kind"] == "eval"]
    assert evals[-1]["loss"] < 0.5 * evals[0]["loss"]
    assert {"chrf", "cider", "exact_match", "accuracy"} <= evals[-1].keys()
    lines = lines_of(run)
    assert len(lines) == 5
    for line in lines:
        assert line["written"].split()[0] == line["target"].split()[0]
    wanted = [[line["target"] for line in lines]]
    best = max(e["chrf"] for e in evals if e.get("split") == "eval")
    assert CHRF().corpus_score([line["written"] for line in lines], wanted).score == best


def test_the_export_is_what_transformers_writes_the_same_with(run, folder):
    """The texts of the evaluation: of its own prompts and images, by the exported processor."""
    out = export(run.folder, folder / "export")
    # The base's own file stops at 2 alone, and answers end at the tokenizer's end.
    ends = json.loads((out / "generation_config.json").read_text())["eos_token_id"]
    assert ends == [2, PIECES.index(END)]
    assert open_writer(str(run.folder), None, {}).settings.eos_token_id == tuple(ends)
    model = AutoModelForImageTextToText.from_pretrained(out).eval()
    processor = AutoProcessor.from_pretrained(out)
    images = Idefics3ImageProcessorPil.from_pretrained(out)
    content = [{"type": "image"}, {"type": "text", "text": "Describe this image."}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    ours = load(str(out))
    for line in lines_of(run):
        image = Image.open(folder / "emoji" / line["file"]).convert("RGB")
        inputs = dict(processor(text=text, images=[image], return_tensors="pt"))
        inputs["pixel_values"] = images([[image]], return_tensors="pt")["pixel_values"]
        del inputs["pixel_attention_mask"]
        with torch.no_grad():
            theirs = model(**inputs).logits.numpy()
        np.testing.assert_allclose(
            ours(**{name: value.numpy() for name, value in inputs.items()})["logits"],
            theirs,
            atol=2e-5,
        )
        generated = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        new = generated[0, inputs["input_ids"].shape[1] :]
        assert processor.decode(new, skip_special_tokens=True).strip() == line["written"]


def test_the_command_answers_about_an_image(run, folder, tmp_path, capsys):
    line = lines_of(run)[0]
    file = folder / "emoji" / line["file"]
    assert main(["predict", str(run.folder), str(file), f"{file}\tWhat is it?"]) == 0
    said = [json.loads(one) for one in capsys.readouterr().out.splitlines()]
    assert said[0]["text"].strip() == line["written"]
    assert [one["file"] for one in said] == [str(file), f"{file}\tWhat is it?"]
    # A checkpoint is asked as a run is, without a word on its task.
    export(run.folder, tmp_path / "export")
    assert main(["predict", str(tmp_path / "export"), str(file), "--max-new-tokens", "9"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == said[0]["text"]
    (tmp_path / "x.png").write_text("no image")
    assert main(["predict", str(run.folder), str(tmp_path / "x.png")]) == 2
    assert "x.png' cannot be decoded as an image" in capsys.readouterr().err


def test_the_page_shows_images_with_what_was_wanted_and_written(run):
    (shown,) = view(read_run(run.folder, "run"), 0)["written"]
    for line, one in zip(lines_of(run), shown["texts"], strict=True):
        assert one["image"] == line["image"]
        assert (one["target"], one["predictions"][-1]["written"]) == (
            line["target"],
            line["written"],
        )


def test_the_connector_trains_beside_an_adapter_of_the_decoder(folder):
    """First the connector alone; it has a group, and so a rate, of its own."""
    connector = "vision/connector/kernel"
    sections = {
        "adapter": {"kind": "lora", "rank": 2, "match": ["text/blocks/.*/query/kernel"]},
        "groups": [{"name": "connector", "match": connector, "lr": 2e-2}],
        "phases": [{"until": "2 steps", "unfreeze": [connector]}, {"until": "4 steps"}],
        "train": {"length": "4 steps"},
    }
    setup = build(config_of(folder, **sections))
    first, second = (set(one.table.trainable) for one in setup.phases)
    assert first == {connector}
    own = second - first
    assert len(own) == 4
    assert all(name.startswith("text/blocks/") and "/query/" in name for name in own)
    rates = {group.name: group.peak_rate for group in setup.phases[1].table.groups}
    assert (rates["connector"], rates["rest"]) == (2e-2, 1e-2)


def their_processor(folder: Path, grid: int, to: Path) -> Idefics3Processor:
    """The checkpoint's processor in transformers, with a grid."""
    ((name, fields),) = grid_fields(folder, grid).items()
    to.mkdir(exist_ok=True)
    (to / name).write_text(json.dumps(fields))
    return Idefics3Processor(
        Idefics3ImageProcessorPil.from_pretrained(to),
        AutoTokenizer.from_pretrained(folder),
        image_seq_len=4,
        chat_template=TEMPLATE,
    )


def images_of(folder: Path) -> list[str]:
    """Random images of several shapes and modes, in files."""
    draw, names = np.random.default_rng(0), []
    for number, shape in enumerate(SHAPES):
        names.append(f"{number}.png")
        Image.fromarray(draw.integers(0, 256, shape, dtype=np.uint8)).save(folder / names[-1])
    return names


def test_a_checkpoint_reads_images_in_the_tiles_that_its_processor_states(folder, tmp_path):
    shutil.copytree(folder / "vlm", tmp_path / "vlm")
    (name,) = images_of(tmp_path)[:1]
    for grid, tiles in ((1, 1), (2, 5)):
        theirs = their_processor(folder / "vlm", grid, tmp_path / "vlm")
        writer = open_writer(str(tmp_path / "vlm"), None, {})
        asked = [{"role": "user", "content": f"{tmp_path / name}\tWhat is it?"}]
        (ids,), images = _encode(writer, [asked])
        messages = [{"role": "user", "content": CONTENTS[0]}]
        text = theirs.apply_chat_template(messages, add_generation_prompt=True)
        image = Image.open(tmp_path / name)
        expected = theirs(text=text, images=[image], return_tensors="np")
        assert ids == expected["input_ids"][0].tolist()
        assert expected["pixel_values"].shape[1] == tiles
        np.testing.assert_array_equal(
            images["pixel_values"][0, :tiles], expected["pixel_values"][0]
        )


CONTENTS = [
    [{"type": "image"}, {"type": "text", "text": "What is it?"}],
    [{"type": "text", "text": "What is this"}, {"type": "image", "url": None}],
]


@pytest.mark.parametrize("grid", [1, 2, 3])
def test_tokens_and_pixels_are_the_processors_own(grid, folder, tmp_path):
    """Of conversations whose image comes first, or behind words; tiles that lack are zeros."""
    rows = [
        {
            "image": name,
            "chat": [
                {"role": "user", "content": CONTENTS[number % 2]},
                {"role": "assistant", "content": "red car"},
                {"role": "user", "content": "Describe it."},
                {"role": "assistant", "content": [{"type": "text", "text": "blue fish"}]},
            ],
        }
        for number, name in enumerate(images_of(tmp_path))
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    positions = write_vlm(tmp_path / "vlm", positions=512)
    data = {"train": f"jsonl:{file}:ordered", "eval": f"jsonl:{file}:ordered", "batch_size": 8}
    task = {"kind": "vision_language", "messages": "chat", "grid": grid}
    model = {"checkpoint": str(positions)}
    setup = build(config_of(folder, model=model, task=task, data=data | {"cache": None}))
    examples = setup.splits["eval"].examples
    batch = examples.collate(np.arange(5)[:, None], 1)
    theirs = their_processor(positions, grid, tmp_path / "theirs")
    for number, row in enumerate(rows):
        image = Image.open(tmp_path / row["image"])
        messages = [
            {**one, "content": [{"type": "text", "text": one["content"]}]}
            if isinstance(one["content"], str)
            else one
            for one in row["chat"]
        ]
        whole = theirs.apply_chat_template(messages)
        asked = theirs.apply_chat_template(messages[:-1], add_generation_prompt=True)
        out = theirs(text=whole, images=[image], return_tensors="np")
        ids = batch["input_ids"][number][batch["attention_mask"][number] == 1]
        np.testing.assert_array_equal(ids, out["input_ids"][0])
        prompt = batch["prompt_ids"][number][batch["prompt_mask"][number] == 1]
        np.testing.assert_array_equal(
            prompt, theirs(text=asked, images=[image], return_tensors="np")["input_ids"][0]
        )
        tiles = out["pixel_values"][0]
        np.testing.assert_array_equal(batch["pixel_values"][number, : len(tiles)], tiles)
        assert not batch["pixel_values"][number, len(tiles) :].any()
        pieces = [
            setup.bound.tools.tokenizer.piece(one) for one in batch["targets"][number] if one >= 0
        ]
        assert pieces == ["red", "car", END, "blue", "fish", END]
    assert batch["pixel_values"].shape[1] == (1 if grid == 1 else grid**2 + 1)


def rows_of(folder: Path, answers: list[str]) -> Path:
    """A file of random images with a question and an answer each."""
    rows = [
        {"image": name, "asked": "What is it?", "said": said}
        for name, said in zip(images_of(folder), answers, strict=True)
    ]
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize("kind", ["gemma3", "llava", "paligemma"])
def test_whole_images_are_the_processors_own(kind, folder, tmp_path):
    """Of Gemma 3, of LLaVA, which crops them, and of PaliGemma, whose words have types."""
    answers = ["red car", "blue", "green fish", "red", "blue star"]
    file = rows_of(tmp_path, answers)
    if kind == "gemma3":
        own = write_gemma3(tmp_path / kind)
        images, words = Gemma3ImageProcessorPil, AutoTokenizer.from_pretrained(own)
        theirs = Gemma3Processor(
            images.from_pretrained(own), words, words.chat_template, image_seq_length=4
        )
    elif kind == "llava":
        own = write_llava(tmp_path / kind)
        images, words = (
            CLIPImageProcessorPil.from_pretrained(own),
            AutoTokenizer.from_pretrained(own),
        )
        theirs = LlavaProcessor(
            images, words, 7, "default", words.chat_template, num_additional_image_tokens=1
        )
    else:
        own = write_paligemma(tmp_path / kind)
        images = SiglipImageProcessorPil.from_pretrained(own)
        images.image_seq_length = 16
        theirs = PaliGemmaProcessor(images, AutoTokenizer.from_pretrained(own))
    task = {"kind": "vision_language", "prompt": "asked", "answer": "said"}
    data = {"train": f"jsonl:{file}:ordered", "eval": f"jsonl:{file}:ordered", "batch_size": 8}
    model = {"checkpoint": str(own), "dropout": 0.0}
    setup = build(config_of(folder, model=model, task=task, data=data | {"cache": None}))
    batch = setup.splits["eval"].examples.collate(np.arange(5)[:, None], 1)
    for number, said in enumerate(answers):
        image = Image.open(tmp_path / f"{number}.png")
        if kind != "paligemma":
            messages = [{"role": "user", "content": CONTENTS[0]}]
            messages += [{"role": "assistant", "content": [{"type": "text", "text": said}]}]
            text = theirs.apply_chat_template(messages)
            out = theirs(text=text, images=[image], return_tensors="np")
        else:
            out = theirs(
                text="<image>What is it?", images=[image], suffix=said, return_tensors="np"
            )
        true = batch["attention_mask"][number] == 1
        np.testing.assert_array_equal(batch["input_ids"][number][true], out["input_ids"][0])
        np.testing.assert_array_equal(batch["pixel_values"][number], out["pixel_values"][0])
        if kind == "paligemma":
            types = batch["token_type_ids"][number][true]
            np.testing.assert_array_equal(types, out["token_type_ids"][0])
            targets = np.append(batch["targets"][number][true][:-1], -1)
            labels = np.append(np.where(types == 1, out["labels"][0], -1)[1:], -1)
            np.testing.assert_array_equal(targets, labels)
    assert ("token_type_ids" in batch) == (kind == "paligemma")


def test_answers_without_an_end_are_warned_of(folder, tmp_path):
    """As LLaVA's own template writes them; SmolVLM's ends them."""
    model = {"checkpoint": str(write_llava(tmp_path / "llava")), "dropout": 0.0}
    ends = [
        build(config_of(folder, **changed)).splits["train"].examples.warnings
        for changed in ({}, {"model": model})
    ]
    assert not ends[0]
    assert "let the template write an end token after each answer" in " ".join(ends[1])


def test_a_row_without_an_example_is_padding(folder):
    examples = build(config_of(folder)).splits["eval"].examples
    batch = examples.collate(np.array([[1], [-1]]), 1)
    assert (batch["targets"][1] == -1).all()
    assert not batch["pixel_values"][1].any()
    assert batch["prompt_mask"][1].sum() == batch["attention_mask"][1].sum() == 1
    assert batch["prompt_mask"][0, -1] == batch["attention_mask"][0, 0] == 1
    assert "pixel_values" not in examples.without({"pixel_values"}).collate(np.array([[1]]), 1)


def test_questions_and_answers_of_columns(folder, tmp_path):
    (name, *_) = images_of(tmp_path)
    file = tmp_path / "rows.csv"
    file.write_text(f"image,asked,said\n{name},What is it?,red car\n{name},Describe it.,fish\n")
    task = {"kind": "vision_language", "prompt": "asked", "answer": "said"}
    data = {"train": f"csv:{file}:ordered", "eval": f"csv:{file}:ordered", "batch_size": 8}
    setup = build(config_of(folder, task=task, data=data | {"cache": None}))
    batch = setup.splits["eval"].examples.collate(np.array([[0], [1]]), 1)
    tokenizer = setup.bound.tools.tokenizer
    for row, said in enumerate(("red car", "fish")):
        targets = batch["targets"][row]
        assert tokenizer.decode(targets[targets >= 0].tolist()) == said
    assert "What is it" in tokenizer.decode(batch["prompt_ids"][0].tolist())


CHAT = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "car"}]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, "row 3 has no place for its image in chat."),
        ({"content": [{"type": "image"}] * 2}, "row 3 has 2 images in chat."),
        ({"content": [{"type": "video"}]}, "row 3 has a message whose content is no text and no"),
        (
            {"content": [{"type": "image"}, {"type": "text", "text": "<image>"}]},
            "row 3: its text spells '<image>', which stands for an image.",
        ),
        (
            {"content": [{"type": "image"}, {"type": "text", "text": "What " * 90}]},
            "row 3: its prompt has 104 tokens, those of the image among them, and data.max_length "
            "is 96.",
        ),
        ({"role": "assistant"}, "row 3 has no place for its image in chat."),
    ],
    ids=["no-image", "two-images", "video", "spelled", "too-long", "no-question"],
)
def test_a_bad_conversation_is_named(changed, said, folder, tmp_path):
    (name, *_) = images_of(tmp_path)
    good = [{**CHAT[0], "content": CONTENTS[0]}, CHAT[1]]
    rows = [{"image": name, "chat": chat} for chat in (good, good, [CHAT[0] | changed, CHAT[1]])]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"kind": "vision_language", "messages": "chat"}
    data = {"train": f"jsonl:{file}:ordered", "eval": f"jsonl:{file}:ordered", "cache": None}
    with pytest.raises(UserError) as caught:
        build(config_of(folder, task=task, data=data))
    assert said in caught.value.message


def test_llavas_conversations_are_read_as_they_are():
    section = VisionLanguageSection(kind="vision_language", image="image", messages="m")
    talk = [{"from": "gpt", "value": "a red car"}, {"from": "human", "value": "its colour?"}]
    for asked in ("<image>\nwhat is it?", "what is it?\n<image>"):
        read = conversation_of(section, {"m": [{"from": "human", "value": asked}, *talk]})
        words = {"type": "text", "text": "what is it?"}
        wanted = [IMAGE, words] if asked.startswith("<") else [words, IMAGE]
        assert read == [
            {"role": "user", "content": wanted},
            {"role": "assistant", "content": [{"type": "text", "text": "a red car"}]},
            {"role": "user", "content": [{"type": "text", "text": "its colour?"}]},
        ]
    alone = conversation_of(section, {"m": [{"from": "human", "value": "<image>"}, *talk]})
    assert alone[0]["content"] == [IMAGE]
    for value, problem in (("<image> <image>", "2 images"), ("no", "no place"), (7, "no text")):
        with pytest.raises(BadValue, match=problem):
            conversation_of(section, {"m": [{"from": "human", "value": value}, *talk]})


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("images/red-0.png, ", "row 3 has no text."),
        (",red car", "row 3 has no image."),
        ("images/none.png,red car", "There is no image"),
        ("bad.csv,red car", "cannot be decoded as an image"),
    ],
    ids=["no-caption", "no-image", "missing-image", "no-image-file"],
)
def test_a_bad_row_of_a_caption_is_named(row, said, folder):
    file = folder / "emoji" / "bad.csv"
    rows = ["image,text", *["images/red-1.png,red car"] * 2, row]
    file.write_text("\n".join(rows) + "\n")
    data = {"train": f"csv:{file}:ordered", "eval": f"csv:{file}:ordered", "cache": None}
    with pytest.raises(UserError) as caught:
        build(config_of(folder, data=data))
    assert said in caught.value.message


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("preprocessor_config.json", None, "holds no image processor"),
        ("chat_template.jinja", None, "has no chat template"),
        ("chat_template.jinja", "{{ messages[0]['role'] }}Assistant:", "writes no place for an"),
        (
            "preprocessor_config.json",
            json.dumps({"image_processor_type": "ViTImageProcessor"}),
            "its image processor is a ViTImageProcessor, which cuts no tiles.",
        ),
        (
            "preprocessor_config.json",
            json.dumps(
                {
                    "image_processor_type": "Idefics3ImageProcessor",
                    "max_image_size": {"longest_edge": 56},
                }
            ),
            "its image processor makes images of 56 pixels, and the model takes 28.",
        ),
    ],
    ids=["no-processor", "no-template", "blind-template", "other-processor", "other-tile"],
)
def test_a_checkpoint_that_does_not_fit_is_refused(file, content, said, folder, tmp_path):
    write_vlm(tmp_path)
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_text(content)
    with pytest.raises(UserError) as caught:
        build(config_of(folder, model={"checkpoint": str(tmp_path)}))
    assert said in caught.value.message


def test_a_grid_of_more_than_4096_pixels_is_refused(tmp_path):
    Idefics3ImageProcessorPil(max_image_size={"longest_edge": 448}).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"task\.grid: 10 tiles of 448 pixels are more than 4,096"):
        check_grid(Grid(load_image_processor(tmp_path), 10), True, "task.grid")
