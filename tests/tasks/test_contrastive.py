"""The contrastive task and the search with it: loss, recall, a run, its index and its sheet."""

import csv
import json
import pickle
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

import jaxft
from jaxft.cli.main import main
from jaxft.config.load import parse_config
from jaxft.data.image.images import decode
from jaxft.data.sources.open import given_rows, open_source
from jaxft.engine.setup import build
from jaxft.errors import UserError
from jaxft.inference import search as story
from jaxft.inference.search import search
from jaxft.metrics.retrieval import retrieval_scores, wrong_before
from jaxft.models.load import LoadOptions, describe, load
from jaxft.models.tower.tower import Compute
from jaxft.report.page.page import write_page
from jaxft.tasks.contrastive.losses import SCALE
from jaxft.tasks.contrastive.nearest_pairs import nearest_pairs
from jaxft.tasks.contrastive.numbers import numbers_of
from jaxft.tasks.contrastive.section import ContrastiveSection as Section
from jaxft.tasks.contrastive.task import Contrastive, make
from jaxft.tasks.parts.padded_texts import text_batch
from jaxft.tasks.parts.tools import Tools
from tests.support.launch import cache  # noqa: F401 a fixture
from tests.support.tiny import tiny_checkpoint
from tests.support.tiny_images import SIDE, tiny_pictures, tiny_vit

pytestmark = pytest.mark.usefixtures("cache")
WORDS = {"blue": "cold", "green": "fine", "red": "warm"}


def write_pictures(folder):
    """`vision/`, `text/`, `pictures/`, and `rows.csv` that says what each shows."""
    tiny_vit(folder / "vision")
    tiny_checkpoint(folder / "text")
    tiny_pictures(folder / "pictures", each=8)
    with (folder / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "text"])
        for path in sorted((folder / "pictures").rglob("*.png")):
            words = f"a {WORDS[path.parent.name]} film" + " story" * (int(path.stem) % 2)
            writer.writerow([f"pictures/{path.parent.name}/{path.name}", words])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("contrastive")
    write_pictures(folder)
    return folder


def config_of(folder, phases=(), **train):
    return parse_config(
        {
            "run": {"name": "tiny", "dir": str(folder / "runs")},
            "model": {
                "checkpoint": {"vision": str(folder / "vision"), "text": str(folder / "text")}
            },
            "task": {"kind": "contrastive"},
            "data": {
                "train": f"csv:{folder / 'rows.csv'}[:16]",
                "eval": f"csv:{folder / 'rows.csv'}[16:]",
                "test": f"csv:{folder / 'rows.csv'}[16:]",
                "batch_size": 8,
            },
            "optimizer": {"lr": 3e-3},
            "phases": phases or [],
            "train": {"length": "4 steps", "evaluate_every": "4 steps"} | train,
            "checkpoint": {"every": "4 steps"},
            "report": {"tensorboard": False},
        }
    )


@pytest.fixture(scope="module")
def run(folder, cache):  # noqa: F811 the fixture above
    return jaxft.train(config_of(folder), quiet=True)


# ----------------------------------------------------------------------------------------- the loss
def drawn(size):
    return np.random.default_rng(0).normal(size=(size, size)).astype(np.float32) * 3


def loss_of(section, scores, weights):
    """The summed loss of a batch with these scores of images `[R]` with texts `[R]`."""
    texts = jnp.eye(len(scores))  # so that the images' vectors are their scores
    outputs, params = {"image_embeds": scores, "text_embeds": texts}, {SCALE: jnp.zeros(())}
    task, batch = make(section).bind(None, ()), {"weights": jnp.asarray(weights)}
    return task.loss(task.represent(params, outputs, batch, Compute()), batch)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("padding", [0, 3])
def test_loss_is_transformers_own_of_the_true_examples(kind, padding):
    """Padding is no wrong answer, and has no loss."""
    true = 5
    scores = drawn(true + padding)
    weights = (np.arange(true + padding) < true).astype(np.float32)[:, None]
    total, weight = loss_of(Section(kind="contrastive", loss=kind), scores, weights)
    texts = torch.tensor(scores[:true, :true].T)
    if kind == "softmax":
        expected = image_text_contrastive_loss(texts)
    else:  # as in SiglipModel.forward
        signs = 2 * torch.eye(true) - 1
        expected = -torch.nn.functional.logsigmoid(signs * texts).sum(-1).mean()
    assert float(weight) == true
    assert float(total / weight) == pytest.approx(float(expected), rel=1e-6)


def test_hard_negatives_weigh_more_and_one_in_the_mean():
    """As the paper writes it, over the true examples alone."""
    true, beta = 5, 0.7
    scores = drawn(true + 3)
    weights = jnp.asarray((np.arange(true + 3) < true).astype(np.float32)[:, None])
    section = Section(kind="contrastive", hard_negatives=beta)
    total, weight = loss_of(section, scores, weights)
    losses = []
    for way in (scores[:true, :true].astype(float), scores[:true, :true].T.astype(float)):
        for i in range(true):
            wrong = np.delete(way[i], i)
            heavy = (true - 1) * np.exp(beta * wrong) / np.exp(beta * wrong).sum()
            assert heavy.mean() == pytest.approx(1)
            right = np.exp(way[i, i])
            losses.append(-np.log(right / (right + (np.exp(wrong) * heavy).sum())))
    assert float(total / weight) == pytest.approx(np.mean(losses), rel=1e-6)
    slopes = jax.grad(lambda given: loss_of(section, given, weights)[0])
    assert np.isfinite(slopes(jnp.asarray(scores))).all()
    alone = loss_of(section, scores, weights * (jnp.arange(8)[:, None] < 1))
    assert float(alone[0]) == pytest.approx(0), "an example without others has no wrong answer"
    with pytest.raises(UserError, match="hard_negatives weights the negatives of a softmax"):
        parse_config(
            {
                "run": {"name": "t"},
                "model": {"checkpoint": "none"},
                "task": {"kind": "contrastive", "loss": "sigmoid", "hard_negatives": 0.25},
                "data": {"train": "csv:a.csv", "eval": "csv:a.csv"},
            }
        )


def test_siglips_loss_is_siglips_and_it_reads_its_padding(folder, tmp_path):
    """It was trained on texts of one length, and is told nothing of a mask."""
    config = transformers.SiglipConfig(
        text_config={"hidden_size": 8, "intermediate_size": 9, "num_hidden_layers": 1}
        | {"num_attention_heads": 2, "vocab_size": 32, "max_position_embeddings": 9},
        vision_config={"hidden_size": 8, "intermediate_size": 9, "num_hidden_layers": 1}
        | {"num_attention_heads": 2, "image_size": 4, "patch_size": 2},
    )
    torch.manual_seed(0)
    theirs = transformers.SiglipModel(config).eval()
    theirs.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / "text" / name, tmp_path)
    model = load(str(tmp_path))
    texts = ["a warm film", "cold", "the plot", "fine story"]
    batch = text_batch(texts, Tools(model, None, None))
    assert set(batch) == {"input_ids"}
    assert batch["input_ids"].shape == (4, 9)
    assert batch["input_ids"][0, 5:].tolist() == [0] * 4
    pixels = np.random.default_rng(0).normal(size=(4, 3, 4, 4)).astype(np.float32)
    batch = batch | {"pixel_values": pixels}
    inputs = {name: torch.tensor(value) for name, value in batch.items()}
    expected = theirs(**inputs, return_loss=True).loss.item()
    task = make(Section(kind="contrastive", loss="sigmoid")).bind(None, ())
    weights = {"weights": jnp.ones((4, 1))}
    outputs = task.represent(model.params, model(**batch), weights, Compute())
    total, weight = task.loss(outputs, weights)
    assert float(total / weight) == pytest.approx(expected, rel=1e-5)


# ----------------------------------------------------------------------------------------- recall
def test_recall_counts_equal_texts_as_right():
    angles = np.array([0.0, 0.3, 2.0, 3.0])
    items = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    queries = items[[1, 0, 2, 3]]  # the first two find each other's text
    apart = np.stack([np.arange(4)] * 2, axis=1)  # an image and a text each
    assert wrong_before(queries, items, apart, apart[:, 1]).tolist() == [1, 1, 0, 0]
    alike = np.stack([np.arange(4), [0, 0, 2, 3]], axis=1)
    assert retrieval_scores(queries, items[[0, 0, 2, 3]], alike)["image_to_text_recall_at_1"] == 1.0
    assert wrong_before(items, queries, alike[:, ::-1], alike[:, 0]).tolist() == [0, 0, 0, 0]
    scores = retrieval_scores(queries, items, apart)
    assert scores["image_to_text_recall_at_1"] == scores["text_to_image_recall_at_1"] == 0.5
    assert scores["image_to_text_recall_at_5"] == scores["recall_at_10"] == 1.0
    assert {"loss", *scores} == set(Contrastive.metrics)


def test_an_image_with_several_texts_is_one_image():
    """As in COCO's captions, a row each: the image is not wrong beside itself, nor its texts."""
    draw = np.random.default_rng(0)
    images = np.repeat(draw.normal(size=(20, 16)), 5, axis=0)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    texts = images + 0.01 * draw.normal(size=images.shape)
    scores = retrieval_scores(images, texts, np.stack([np.arange(100) // 5, np.arange(100)], 1))
    assert set(scores.values()) == {1.0}
    # One wrong image before the right one is one, and not five.
    closer = texts.copy()
    closer[:5] = images[5]
    worse = retrieval_scores(images, closer, np.stack([np.arange(100) // 5, np.arange(100)], 1))
    assert worse["text_to_image_recall_at_1"] == pytest.approx(0.95)
    assert worse["text_to_image_recall_at_5"] >= 0.95


def test_rows_of_one_image_have_one_number(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "b.png")
    rows = [("a.png", "x"), ("./a.png", "y"), ("b.png", "x"), ("a.png", "y")]
    (tmp_path / "rows.csv").write_text("image,text\n" + "".join(f"{a},{b}\n" for a, b in rows))
    source = open_source(f"csv:{tmp_path / 'rows.csv'}:ordered")
    assert numbers_of(source, ("image", "text")).tolist() == [[0, 0], [0, 1], [1, 0], [0, 1]]
    content = (tmp_path / "a.png").read_bytes(), np.zeros((4, 4, 3), np.uint8), b"other"
    cells = [{"image": content[n], "text": "x"} for n in (0, 1, 0, 1, 2)]
    in_memory = given_rows(cells)
    assert numbers_of(in_memory, ("image", "text"))[:, 0].tolist() == [0, 1, 0, 1, 2]


@pytest.mark.parametrize("value", [1.0, np.nan])
def test_embeddings_that_say_nothing_find_nothing(value):
    same = np.full((20, 3), value, np.float32)
    numbers = np.stack([np.arange(20)] * 2, axis=1)
    assert retrieval_scores(same, same, numbers)["recall_at_10"] == 0.0


# ------------------------------------------------------------------------------------- the batches
def examples_of(folder, checkpoint=None):
    source = open_source(f"csv:{folder / 'rows.csv'}:ordered")
    towers = {"vision": str(folder / "vision"), "text": str(folder / "text")}
    model = describe(checkpoint or towers, LoadOptions(task="contrastive"))
    return make(Section(kind="contrastive")).bind(Tools(model, None, None), ()).examples(source)


def test_a_batch_is_images_and_their_texts(folder):
    examples = pickle.loads(pickle.dumps(examples_of(folder)))
    index = np.array([[3], [-1], [0]])
    batch = examples.collate(index, 1)
    assert batch["pixel_values"].shape == (3, 3, SIDE, SIDE)
    path = folder / examples.source[3]["image"]
    np.testing.assert_array_equal(batch["pixel_values"][0], examples.processor(decode(path)))
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (3, 8)
    assert batch["attention_mask"].sum(1).tolist() == [6, 1, 5]  # [CLS] a cold film story [SEP]
    assert batch["weights"].tolist() == [[1], [0], [1]]
    assert examples.counts["tokens"] == 12 * 5 + 12 * 6
    assert [len(set(column)) for column in examples.numbers.T] == [24, 6]


# -------------------------------------------------------------------------------------- a whole run
@pytest.mark.slow
def test_a_run_is_scored_by_recall(run, folder):
    assert set(run.metrics) == set(Contrastive.metrics)
    lines = (run.folder / "predictions-test.jsonl").read_text().splitlines()
    said = json.loads(lines[0])
    assert said["text"].startswith("a ")
    assert (folder / said["file"]).is_file()
    assert len(said["found"]) == 3
    exported = transformers.AutoModel.from_pretrained(
        (run.folder / "base"), attn_implementation="eager"
    )
    assert type(exported).__name__ == "VisionTextDualEncoderModel"


def test_a_text_is_kept_with_the_images_it_finds(run):
    lines = (run.folder / "predictions-test.jsonl").read_text().splitlines()
    said = [json.loads(line) for line in lines]
    assert all(one["image"].startswith("data:image/webp;base64,") for one in said[:24])
    for one in said[:24]:
        scores = [image["similarity"] for image in one["images"]]
        assert scores == sorted(scores, reverse=True)
        own = [image["own"] for image in one["images"]]
        assert own == [image["text"] == one["text"] for image in one["images"]]
        # What is as similar as its own comes before it, so the place is at least that number.
        assert own.index(True) <= one["images_before"] if any(own) else one["images_before"] >= 6
    assert {one["images_before"] == 0 for one in said} == {True, False}, "some are found"


def test_the_images_found_are_those_of_the_vectors(folder):
    source = open_source(f"csv:{folder / 'rows.csv'}:ordered")
    turns = np.linspace(0, 1, len(source))
    images = np.stack([np.cos(turns), np.sin(turns)], 1).astype(np.float32)
    same = np.arange(len(source))
    numbers = np.stack([same, same], axis=1)
    wanted = {"image": images, "text": images[::-1]}
    lines = list(nearest_pairs(source, ("image", "text"), wanted, numbers))
    files = [source[number]["image"] for number in same]
    assert [image["file"] for image in lines[0]["images"]] == files[:-7:-1]
    assert (lines[0]["images_before"], lines[0]["before"]) == (len(source) - 1,) * 2
    assert not any(image["own"] for image in lines[0]["images"])


def test_the_first_queries_rank_among_all_items():
    draw = np.random.default_rng(0)
    queries, items = draw.normal(size=(2, 40, 4))
    numbers = np.stack([np.arange(40), np.arange(40) // 2], axis=1)
    distinct = wrong_before(queries, items, numbers, numbers[:, 1])
    repeated = wrong_before(queries, items, numbers, numbers[:, 1], repeated=True)
    np.testing.assert_array_equal(repeated, 2 * distinct)
    every = wrong_before(queries, items, numbers, numbers[:, 1])
    first = wrong_before(queries[:7], items, numbers, numbers[:, 1])
    np.testing.assert_array_equal(first, every[:7])


def test_what_compares_layers_wants_one_tower(folder):
    with pytest.raises(UserError, match="auto_freeze compares the layers of one tower"):
        build(config_of(folder, phases="auto_freeze"))


def test_the_page_has_nothing_to_complain_of(run):
    page = write_page([run.folder]).read_text()
    assert "recall_at_10" in page
    assert "Missing data" not in page
    files = [run.folder / f"predictions-{split}.jsonl" for split in ("eval", "test")]
    queries = sum(min(24, len(file.read_text().splitlines())) for file in files)
    assert page.count('<div class="nearest">') == queries
    assert "own image ranks first" in page


def test_a_page_of_a_run_without_found_images_leaves_them_out(run, tmp_path):
    older = shutil.copytree(run.folder, tmp_path / "older")
    (older / "digests.json").unlink()  # an earlier version wrote none
    for split in ("eval", "test"):
        file = older / f"predictions-{split}.jsonl"
        lines = map(json.loads, file.read_text().splitlines())
        kept = ("id", "file", "text", "before", "found")
        file.write_text("".join(json.dumps({k: one[k] for k in kept}) + "\n" for one in lines))
    page = write_page([older]).read_text()
    assert "Retrieved images" not in page
    assert "Predictions on" not in page
    assert "Missing data" not in page


def test_predict_points_to_search(run, capsys):
    assert main(["predict", str(run.folder), "a warm film"]) == 2
    assert "jaxft search RUN" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------- search
def test_search_is_the_models_own_similarity(run, folder):
    found = search(run.folder, "a warm film", folder / "pictures", best=24)
    assert [match["rank"] for match in found.matches] == list(range(1, 25))
    assert found.searched == 24
    model = run.model()
    tools = Tools(model, None, None)
    pixels = [tools.images(decode(match["file"])) for match in found.matches]
    outputs = model(pixel_values=np.stack(pixels), **text_batch(["a warm film"], tools))
    cosines = outputs["image_embeds"] @ outputs["text_embeds"][0]
    said = [match["similarity"] for match in found.matches]
    np.testing.assert_allclose(said, cosines, atol=1e-5)
    assert said == sorted(said, reverse=True)


def test_images_are_embedded_once(run, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(story, "cache_dir", lambda: tmp_path / "cache")  # of this test alone
    pictures = tiny_pictures(tmp_path / "pictures", each=2)
    first = search(run.folder, "a warm film", pictures)
    again = search(run.folder, "a warm film", pictures)
    assert (first.embedded, again.embedded) == (6, 0)
    assert first.matches == again.matches
    Image.new("RGB", (20, 20), "white").save(pictures / "red" / "00.png")
    (pictures / "blue" / "01.png").unlink()
    changed = search(run.folder, "a warm film", pictures)
    assert (changed.embedded, changed.searched) == (1, 5)
    (kept,) = (
        path
        for path in (story.cache_dir() / "search").iterdir()
        if len(np.load(path)["files"]) == 5
    )
    kept.write_bytes(b"broken")  # whatever became of it
    assert search(run.folder, "a warm film", pictures).embedded == 5


def test_an_image_finds_itself_first(run, folder):
    query = folder / "pictures" / "green" / "03.png"
    found = search(run.folder, None, folder / "pictures", image=query, best=1)
    assert found.matches == [{"rank": 1, "similarity": 1.0, "file": str(query)}]


def test_an_image_that_does_not_decode_is_left_out(run, tmp_path, capsys):
    pictures = tiny_pictures(tmp_path / "pictures", each=1)
    (pictures / "red" / "odd.png").write_bytes(b"no image")
    command = ["search", str(run.folder), "a warm film", "--images", str(pictures), "--json"]
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 3
    assert set(json.loads(out.splitlines()[0])) == {"rank", "similarity", "file"}
    assert f"jaxft: skipped: '{pictures / 'red' / 'odd.png'}' cannot be decoded" in err
    for path in pictures.rglob("*.png"):
        path.write_bytes(b"no image")
    assert main(command) == 2
    assert "None of the 4 images" in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["png", "html"])
def test_a_contact_sheet_shows_what_was_found(run, folder, tmp_path, ending, capsys):
    sheet = tmp_path / f"sheet.{ending}"
    words = "a <b>warm</b> film"
    command = ["search", str(run.folder), words, "--images", str(folder / "pictures")]
    assert main([*command, "--best", "7", "--out", str(sheet)]) == 0
    out = capsys.readouterr().out
    assert "24 images" in out
    assert out.count(".png") >= 7
    if ending == "html":
        page = sheet.read_text()
        assert page.count("data:image/webp;base64,") == 7
        assert "<b>" not in page
        assert "&lt;b&gt;warm" in page
    else:
        with Image.open(sheet) as image:
            assert image.width > 5 * 144
            assert len(image.convert("L").getcolors(1 << 16)) > 50
    assert main([*command, "--out", str(sheet)]) == 0  # over one of ours
    sheet.write_bytes(b"somebody's")
    assert main([*command, "--out", str(sheet)]) == 2
    assert "exists and was not written by jaxft" in capsys.readouterr().err
    assert sheet.read_bytes() == b"somebody's"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["warm", "--images", "nowhere"], "There is no folder 'nowhere'"),
        (["--images", "."], "A search needs one query"),
        (["warm", "--image", "a.png", "--images", "."], "A search needs one query"),
        (["warm", "--images", ".", "--out", "sheet.gif"], "neither .png nor .html"),
        (["warm", "--images", "."], "holds no images"),
    ],
)
def test_what_is_wrong_with_a_search(run, words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["search", str(run.folder), *words]) == 2
    assert said in capsys.readouterr().err


def test_another_tasks_run_is_refused(run, folder, monkeypatch):
    task = SimpleNamespace(kind="text_classification", searches=None)
    other = SimpleNamespace(task=task)
    monkeypatch.setattr(story, "open_trained", lambda _folder, **_how: other)
    with pytest.raises(UserError, match="is a run of text_classification, which does not compare"):
        search(run.folder, "warm", folder / "pictures")
