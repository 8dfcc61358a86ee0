"""`jaxft init`: what it decides about a data set, what it asks, and what it refuses."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jaxft.analysis.first_config import sample as samples
from jaxft.analysis.first_config.columns import describe_columns
from jaxft.analysis.first_config.decide import decide_task
from jaxft.analysis.first_config.locate import locate
from jaxft.analysis.first_config.questions import Answers
from jaxft.analysis.first_config.sample import Sample, take_sample
from jaxft.analysis.first_config.story import first_config
from jaxft.cli.main import main
from jaxft.config.load import load_config
from jaxft.data.sources.open import open_source
from jaxft.engine.setup import build
from jaxft.errors import UserError
from tests.support.tiny import BAD, GOOD, PLAIN, tiny_checkpoint
from tests.support.tiny_images import COLOURS, SIDE, tiny_vit
from tests.support.tiny_masks import tiny_scenes, tiny_segformer


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with a tiny BERT in `bert` and a tiny ViT in `vit`."""
    tiny_checkpoint(tmp_path / "bert")
    tiny_vit(tmp_path / "vit")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def reviews(rows: int = 60, seed: int = 0) -> list[dict]:
    """Rows of a text of some words and its label, `good` or `bad`."""
    draw = np.random.default_rng(seed)
    made = []
    for number in range(rows):
        words = GOOD if number % 3 else BAD
        text = " ".join(draw.choice([*words, *PLAIN], size=6))
        made.append({"number": number, "review": text, "verdict": "good" if number % 3 else "bad"})
    return made


def write_csv(path: Path, rows: list[dict]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def pictures(folder: Path, classes: int = 3, each: int = 10) -> Path:
    for name, colour in list(COLOURS.items())[:classes]:
        (folder / name).mkdir(parents=True)
        for number in range(each):
            shade = tuple(min(255, value + number) for value in colour)
            Image.new("RGB", (SIDE // 2, SIDE // 2), shade).save(folder / name / f"{number}.png")
    return folder


def init(capsys, *words, checkpoint="bert"):
    """The config that `jaxft init` writes."""
    assert main(["init", *words, "--checkpoint", checkpoint, "--out", "made.yaml"]) == 0
    assert "jaxft train made.yaml" in capsys.readouterr().out
    return load_config("made.yaml")


def refused(capsys, *words):
    assert main(["init", *words]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err.strip()


# ------------------------------------------------------------------------------ what it decides


def test_texts_and_labels(here, capsys):
    write_csv(here / "films.csv", reviews())
    config = init(capsys, "films.csv")
    assert (config.run.name, config.model.checkpoint) == ("films", "bert")
    assert (config.task.kind, config.task.text, config.task.label) == (
        "text_classification",
        "review",
        "verdict",
    )
    assert config.data.train == "csv:films.csv[:80%]"
    assert config.data.max_length == 16
    assert config.data.on_bad_row == "error"
    assert [group.name for group in config.groups] == ["head", "trunk"]
    text = Path("made.yaml").read_text()
    assert "2 classes, good 66.7%, bad 33.3%" in text, "the reason stands beside the choice"
    build(config)  # the splits, the columns and the model fit


def decided(columns: dict[str, list]) -> dict:
    """The task section that columns lead to."""
    rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    sample = Sample(tuple(columns), rows, len(rows), True, {}, None, Path())
    return decide_task(describe_columns(sample), "jsonl", Answers({}, defaults=True)).task


def test_columns_named_by_languages_are_a_translation():
    texts = [[f"the {word} film number {n}" for n in range(30)] for word in ("good", "bad")]
    found = decided({"id": list(range(30)), "en": texts[0], "pt-BR": texts[1]})
    assert found == {"kind": "seq2seq", "source": "en", "target": "pt-BR"}
    labels = ["good", "bad"] * 15
    assert decided({"en": texts[0], "is_bad": labels})["kind"] == "text_classification"
    with pytest.raises(UserError, match="texts and no labels"):
        decided({"en": texts[0], "it_says": texts[1]})


def test_a_column_of_translations_is_a_column_a_language(tmp_path):
    pairs = [{"en": f"the film was {n}", "fr": f"le film fut {n}"} for n in range(30)]
    rows = [{"id": str(n), "translation": pair} for n, pair in enumerate(pairs)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for kind in ("parquet", "jsonl"):
        sample = take_sample(f"{kind}:{tmp_path}/rows.{kind}")
        task = decide_task(describe_columns(sample), kind, Answers({}, defaults=True)).task
        assert task == {"kind": "seq2seq", "source": "translation.en", "target": "translation.fr"}


def test_sharegpt_messages_are_a_conversation():
    talk = [{"from": "human", "value": "a film?"}, {"from": "gpt", "value": "a good film"}]
    assert decided({"conversations": [talk] * 30}) == {
        "kind": "causal_lm",
        "messages": "conversations",
    }
    with pytest.raises(UserError, match="images are the task vision_language") as caught:
        decided({"image": [f"{n}.png" for n in range(30)], "conversations": [talk] * 30})
    assert "{kind: vision_language, image: image, messages: conversations}" in caught.value.hint


def test_rows_without_a_text_are_left_out(here, capsys):
    rows = reviews()
    rows[3]["review"] = ""
    write_csv(here / "films.csv", rows)
    config = init(capsys, "films.csv")
    assert config.data.on_bad_row == "skip"
    text = Path("made.yaml").read_text()
    assert "of 60 rows 1 have no review: they are left out" in text
    assert "for about 47 training rows" in text, "59 of 60 rows, and 80% of these"
    build(config)


@pytest.mark.slow
def test_what_is_written_trains_and_predicts(here, capsys):
    write_csv(here / "films.csv", reviews())
    init(capsys, "films.csv")
    assert main(["train", "made.yaml", "--quiet"]) == 0
    result = json.loads(Path("runs/films/result.json").read_text())
    assert result["metrics"]["accuracy"] > 0.5
    capsys.readouterr()
    assert main(["predict", "runs/films", "a bright witty film", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["label"] in ("good", "bad")


@pytest.mark.parametrize("form", ["jsonl", "parquet", "arrow"])
def test_other_files(form, here, capsys):
    rows = reviews()
    if form == "jsonl":
        Path("films.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), "films.parquet")
    else:
        table = pa.Table.from_pylist(rows)
        with pa.OSFile("films.arrow", "wb") as file, pa.ipc.new_file(file, table.schema) as out:
            out.write_table(table)
    config = init(capsys, f"films.{form}")
    assert (config.task.text, config.task.label) == ("review", "verdict")
    assert config.data.train == f"{form}:films.{form}[:80%]"


def test_images_in_class_folders(here, capsys):
    pictures(here / "shots")
    config = init(capsys, "shots", checkpoint="vit")
    assert config.task.kind == "image_classification"
    assert config.data.train == "images:shots[:80%]"
    build(config)


def test_images_and_masks(here, capsys):
    tiny_scenes(here / "scenes" / "train", 24)
    tiny_scenes(here / "scenes" / "val", 4)
    tiny_segformer(here / "segformer")
    config = init(capsys, "scenes", checkpoint="segformer")
    assert config.task.kind == "semantic_segmentation"
    assert (config.task.image, config.task.mask) == ("image", "mask")
    assert (config.data.train, config.data.eval) == ("masks:scenes/train", "masks:scenes/val")
    assert build(config).bound.label_names == ("background", "blue", "red")


def test_folders_named_by_number_are_classes(here, capsys):
    for number, folder in enumerate(sorted(pictures(here / "shots").iterdir())):
        folder.rename(folder.with_name(str(number)))
    assert init(capsys, "shots", checkpoint="vit").task.problem == "single_label"


def test_splits_by_folder_and_by_file(here, capsys):
    pictures(here / "shots" / "train")
    pictures(here / "shots" / "test")
    config = init(capsys, "shots", checkpoint="vit")
    assert config.data.train == "images:shots/train[:90%]"
    assert config.data.eval == "images:shots/train[90%:]"
    assert config.data.test == "images:shots/test"
    folder = here / "films"
    folder.mkdir()
    for name in ("train", "val", "test"):
        write_csv(folder / f"{name}.csv", reviews())
    located = locate("films")
    assert (located.name, located.eval, located.test) == (
        "films",
        "csv:films/val.csv",
        "csv:films/test.csv",
    )


def coco(path: Path, folder: Path) -> None:
    """Images of a folder with a box each, in COCO's JSON."""
    ids = range(1, 21)
    for each in (path.parent, folder):
        each.mkdir(parents=True, exist_ok=True)
    for number in ids:
        Image.new("RGB", (SIDE, SIDE)).save(folder / f"{number}.png")
    images = [{"id": n, "file_name": f"{n}.png"} for n in ids]
    boxes = [{"id": n, "image_id": n, "category_id": 3, "bbox": [0, 0, 9, 9]} for n in ids]
    names = [{"id": 3, "name": "car"}, {"id": 4, "name": "tree"}]
    content = {"images": images, "annotations": boxes, "categories": names}
    path.write_text(json.dumps(content, indent=1))


def test_boxes_in_the_folders_of_coco_and_of_roboflow(here, capsys):
    for split in ("train2017", "val2017"):
        coco(here / "street" / "annotations" / f"instances_{split}.json", here / "street" / split)
    config = init(capsys, "street", checkpoint="vit")
    assert config.task.kind == "object_detection"
    assert config.data.train == "coco:street/annotations/instances_train2017.json"
    assert config.data.eval == "coco:street/annotations/instances_val2017.json"
    build(config)
    for split in ("train", "valid", "test"):
        coco(here / "robo" / split / "_annotations.coco.json", here / "robo" / split)
    located = locate("robo")
    assert located.train == "coco:robo/train/_annotations.coco.json"
    assert located.eval == "coco:robo/valid/_annotations.coco.json"
    assert locate("robo/train/_annotations.coco.json").train == located.train


def test_a_json_file_is_known_by_what_is_in_it(here):
    Path("squad.json").write_text('{"version": "1.1", "data": []}')
    Path("rows.json").write_text('{"images": 1, "annotations": 2, "categories": 3}\n{"a": 1}\n')
    Path("array.json").write_text('[{"data": 1}]')
    kinds = [locate(f"{name}.json").train for name in ("squad", "rows", "array")]
    assert kinds == ["squad:squad.json", "jsonl:rows.json", "jsonl:array.json"]


def test_a_folder_as_the_hub_has_it(here, capsys):
    (here / "films" / "data").mkdir(parents=True)
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        table = pa.Table.from_pylist(reviews())
        pq.write_table(table, here / "films" / "data" / f"{name}.parquet")
    config = init(capsys, "films", "--label", "verdict")
    assert config.data.train == "parquet:films/data/train-*.parquet[:90%]"
    assert config.data.test == "parquet:films/data/test-*.parquet"
    assert "for about 108 training rows" in Path("made.yaml").read_text()
    build(config)


def test_a_table_with_a_number_to_predict(here, capsys):
    draw = np.random.default_rng(0)
    rows = [
        {"age": 20 + n % 50, "bmi": round(draw.normal(25, 3), 3), "city": "ABC"[n % 3], "cost": c}
        for n, c in enumerate(np.round(draw.normal(100, 20, 60), 2).tolist())
    ]
    write_csv(here / "costs.csv", rows)
    config = init(capsys, "costs.csv", "--label", "cost")
    assert config.task.problem == "regression"
    assert config.task.template == "age {age:.0f}, bmi {bmi:.1f}, city {city}"
    build(config)


def test_several_columns_of_labels(here, capsys):
    rows = [row | {"short": n % 2, "new": n % 3 % 2} for n, row in enumerate(reviews())]
    write_csv(here / "films.csv", rows)
    config = init(capsys, "films.csv", "--label", "short,new")
    assert (config.task.problem, config.task.label) == ("multi_label", ["short", "new"])


def test_words_with_tags(here, capsys):
    lines = ["a O\nfilm B-THING\n\n", "the O\nstory B-THING\n\n"] * 20
    Path("tagged.conll").write_text("".join(lines))
    config = init(capsys, "tagged.conll")
    assert (config.task.kind, config.task.tokens, config.task.tags) == (
        "token_classification",
        "tokens",
        "tags",
    )
    build(config)


def test_the_seed_keeps_rare_classes_in_every_split(here, capsys):
    rows = reviews(60)
    for row in rows[:4]:
        row["verdict"] = "mixed"
    write_csv(here / "films.csv", rows)
    config = init(capsys, "films.csv")
    seed = config.run.seed.data
    for spec in (config.data.eval, config.data.test):
        source = open_source(spec, seed=seed)
        assert {row["verdict"] for _, row in source.each(["verdict"])} == {"good", "bad", "mixed"}


@pytest.mark.parametrize(
    ("freeze", "depth"),
    [("none", None), ("embeddings", [0, 0]), ("half", [0, 1]), ("head-only", [0, 2])],
)
def test_what_is_frozen(freeze, depth, here, capsys):
    write_csv(here / "films.csv", reviews())
    config = init(capsys, "films.csv", "--freeze", freeze)
    trunk = [group.depth for group in config.groups if group.name == "trunk"]
    assert [list(one) for one in trunk] == ([depth] if depth else [])
    build(config)


def test_lora(here, capsys):
    write_csv(here / "films.csv", reviews())
    assert init(capsys, "films.csv", "--freeze", "lora").adapter.kind == "lora"


# --------------------------------------------------------------------------- large files


def test_a_large_file_is_looked_at_in_parts(here, monkeypatch):
    """All classes are there although the rows are sorted, and the number of rows is estimated."""
    rows = sorted(reviews(6000), key=lambda row: row["verdict"])
    write_csv(here / "films.csv", rows)
    for name, value in {"MOST_BYTES": 20_000, "HEAD": 8_000, "CHUNK": 2_000}.items():
        monkeypatch.setattr(samples, name, value)
    sample = take_sample("csv:films.csv")
    assert len(sample.rows) < 1000
    assert not sample.whole
    assert {row["verdict"] for row in sample.rows} == {"good", "bad"}
    assert sample.total == pytest.approx(6000, rel=0.05)


def test_records_of_several_lines_are_not_cut(here, monkeypatch):
    rows = [row | {"review": f'{row["review"]},\n"and" more'} for row in reviews(600)]
    write_csv(here / "films.csv", rows)
    for name, value in {"MOST_BYTES": 20_000, "HEAD": 8_000, "CHUNK": 2_000}.items():
        monkeypatch.setattr(samples, name, value)
    sample = take_sample("csv:films.csv")
    texts = {row["review"] for row in rows}
    assert all(row["review"] in texts for row in sample.rows)


def test_few_rows_of_a_large_parquet_file_are_read(here, monkeypatch):
    pq.write_table(pa.Table.from_pylist(reviews(4000)), "films.parquet", row_group_size=500)
    monkeypatch.setattr(samples, "MOST_ROWS", 80)
    sample = take_sample("parquet:films.parquet")
    assert len(sample.rows) == 80
    assert sample.total == 4000
    assert {row["number"] // 500 for row in sample.rows} == set(range(8))


# ----------------------------------------------------------------------- what it asks and refuses


def test_what_is_open_is_asked(here):
    rows = [row | {"kind": "AB"[n % 2]} for n, row in enumerate(reviews())]
    write_csv(here / "films.csv", rows)
    asked = []

    def ask(question):
        asked.append(question.option)
        return {"--label": "kind", "--checkpoint": "bert"}.get(question.option, question.default)

    made = first_config("films.csv", Answers({}, ask))
    assert asked == ["--task", "--text", "--label", "--checkpoint", "--freeze"]
    assert load_config(made.path).task.label == "kind"


def test_a_terminal_asks_again_until_it_is_an_answer(here, capsys, monkeypatch):
    rows = [row | {"kind": "AB"[n % 2]} for n, row in enumerate(reviews())]
    write_csv(here / "films.csv", rows)
    typed = iter(["", "", "knd", "kind", ""])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.prompt", lambda *_, default, **__: next(typed) or default)
    config = init(capsys, "films.csv")
    assert config.task.label == "kind"
    assert next(typed, None) is None


@pytest.mark.parametrize("yes", [(), ("--yes",)])
def test_two_columns_that_could_be_the_label(yes, here, capsys):
    rows = [row | {"kind": "AB"[n % 2]} for n, row in enumerate(reviews())]
    write_csv(here / "films.csv", rows)
    message = refused(capsys, "films.csv", *yes)
    assert "2 columns could be the column of the labels: verdict, kind" in message
    assert "--label" in message
    assert not Path("films.yaml").exists()


def test_whole_numbers_may_be_classes_or_a_quantity(here, capsys):
    rows = [row | {"verdict": 1 + n % 5} for n, row in enumerate(reviews())]
    write_csv(here / "films.csv", rows)
    words = ("films.csv", "--label", "verdict")
    message = refused(capsys, *words, "--checkpoint", "bert")
    assert "5 different whole numbers, which may be classes or a quantity" in message
    assert "Add --problem single_label or regression, or --yes for single_label." in message
    assert init(capsys, *words, "--problem", "regression").task.problem == "regression"
    Path("made.yaml").unlink()
    assert init(capsys, *words, "--yes").task.problem == "single_label"


def test_a_row_is_no_header(here, capsys):
    Path("films.csv").write_text("".join(f"a {w} film,{n % 2}\n" for n, w in enumerate(PLAIN * 4)))
    message = refused(capsys, "films.csv", "--checkpoint", "bert")
    assert "The first line does not name the columns: '0' is also a value below it." in message
    rows = [{"0": n % 2, "1": n % 3, "2": n % 5} for n in range(60)]  # an array's columns
    write_csv(here / "array.csv", rows)
    assert init(capsys, "array.csv", "--label", "0", "--yes").task.label == "0"


def test_texts_alone_may_be_masked_or_continued(here, capsys):
    write_csv(here / "films.csv", [{"review": row["review"]} for row in reviews()])
    assert "which fits masked_lm or causal_lm. Add --task" in refused(capsys, "films.csv", "--yes")


BAD_INPUTS = {
    "an empty file": (lambda p: p.write_text(""), "films.csv"),
    "no rows": (lambda p: p.write_text("review,verdict\n"), "films.csv"),
    "few rows": (lambda p: write_csv(p, reviews(5)), "has 5 rows, of which none can be held out"),
    "one column of numbers": (
        lambda p: p.write_text("size\n" + "".join(f"{n * 0.7}\n" for n in range(40))),
        "There is one column, 'size' (number)",
    ),
    "mixed encodings": (
        lambda p: p.write_bytes("review,verdict\ncafé noir chaud,good\n".encode() + b"caf\xe9,x\n"),
        "not UTF-8",
    ),
    "one class": (
        lambda p: write_csv(p, [row | {"verdict": "good"} for row in reviews()]),
        "All rows have the same label in 'verdict', 'good'",
    ),
}


@pytest.mark.parametrize(("write", "message"), BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_bad_files_are_one_sentence(write, message, here, capsys):
    write(here / "films.csv")
    assert message in refused(capsys, "films.csv", "--checkpoint", "bert", "--yes")
    assert not Path("films.yaml").exists()


def test_images_of_one_class_are_one_sentence(here, capsys):
    pictures(here / "shots", classes=1)
    message = refused(capsys, "shots", "--checkpoint", "vit")
    assert "All rows have the same label in 'label', 'blue'" in message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("absent",), "There is no file or folder 'absent', and no prepared TFDS data set"),
        (("empty",), "'empty' holds neither tables nor images"),
        (("bert/model.safetensors",), "has no ending that says what it holds"),
        (("csv:films.csv[:10%]",), "Leave the slice and :ordered out"),
        (("films.csv", "--label", "verdct"), "no column 'verdct'. Did you mean 'verdict'?"),
        (("films.csv", "--task", "sorting"), "--task: 'sorting' is not one of"),
        (("films.csv", "--freeze", "tenth"), "--freeze: 'tenth' is not one of"),
        (("films.csv", "--column", "prompt"), "'prompt' is not of the form KEY=COLUMN"),
        (("films.csv", "--checkpoint", "./none"), "there is no folder './none'"),
        (("films.csv", "--checkpoint", "vit"), "has no head on vit"),
    ],
)
def test_what_is_not_there_is_one_sentence(words, message, here, capsys):
    (here / "empty").mkdir()
    write_csv(here / "films.csv", reviews())
    checkpoint = () if "--checkpoint" in words else ("--checkpoint", "bert")
    assert message in refused(capsys, *words, *checkpoint)


def test_a_usual_checkpoint_that_is_out_of_reach_names_one_that_needs_no_hub(here, capsys):
    write_csv(here / "films.csv", reviews())
    message = refused(capsys, "films.csv", "--yes")
    assert "all-MiniLM-L6-v2' is neither a folder nor in the hub's cache" in message
    assert "add --checkpoint assets/minilm, which needs no hub" in message


def test_a_file_that_is_there_stays(here, capsys):
    write_csv(here / "films.csv", reviews())
    Path("films.yaml").write_text("mine")
    assert "films.yaml exists already" in refused(capsys, "films.csv", "--checkpoint", "bert")
    assert Path("films.yaml").read_text() == "mine"


def test_a_folder_of_tfds(here, capsys):
    write_csv(here / "films.csv", reviews())
    assert main(["data", "build", "train=csv:films.csv", "--out", "films_set"]) == 0
    capsys.readouterr()
    config = init(capsys, "films_set")
    version = next(Path("films_set").iterdir())
    assert config.data.train == f"tfds:{version}:train[:80%]"
    assert (config.task.text, config.task.label) == ("review", "verdict")


@pytest.mark.parametrize(
    ("row", "section"),
    [
        (
            {"query": "a film", "positive": "the plot", "negatives": ["a story", "the cast"]},
            {"kind": "reranking", "positive": "positive", "negatives": "negatives"},
        ),
        (
            {"prompt": "a film", "choices": ["the plot", "a story"], "label": 1},
            {"kind": "multiple_choice", "choices": "choices", "label": "label"},
        ),
        (
            {
                "id": "1",
                "question": "which plot",
                "context": "the plot of a film",
                "answers": {"text": ["plot"], "answer_start": [4]},
            },
            {"kind": "question_answering", "context": "context", "no_answer": True},
        ),
    ],
)
def test_columns_that_name_their_task(row, section, here, capsys):
    rows = [row] * 30
    if "answers" in row:
        rows[7] = {**row, "answers": {"text": [], "answer_start": []}}
    Path("rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    task = init(capsys, "rows.jsonl").task
    assert {name: getattr(task, name) for name in section} == section
