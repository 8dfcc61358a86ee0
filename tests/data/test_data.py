"""Looking at data and writing it down: what is counted and warned of, and what reads back equal."""

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import scipy.linalg
from PIL import Image

from jaxft.analysis.checkpoint_fit import advice, probe
from jaxft.cli.main import main
from jaxft.data.profile import guess_columns, profile, rare_class, row_digests
from jaxft.data.sources.open import given_rows, open_source
from jaxft.metrics.frechet import frechet
from tests.support.launch import write_config
from tests.support.tiny import tiny_checkpoint, tiny_config, tiny_reviews


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows(rows)
    return path


def said_by(capsys, *words):
    """What a command prints, its lines joined."""
    code = main(list(words))
    out, err = capsys.readouterr()
    assert code == 0, err
    return " ".join(out.split())


# ----------------------------------------------------------------------------------- what rows are


def test_a_profile_counts_what_is_there():
    rows = [{"text": "a b c", "label": "x", "n": 1}, {"text": "", "label": "y", "n": 2.5}]
    rows += [{"text": "ones " * 50, "label": "x", "n": None}]
    source = given_rows(rows)
    found = profile(source, guess_columns(source))
    assert found["rows"] == 3
    assert found["columns"] == [
        {"name": "text", "type": "str", "empty": 1},
        {"name": "label", "type": "str", "empty": 0},
        {"name": "n", "type": "int, float", "empty": 1},
    ]
    assert found["labels"] == {"x": 2, "y": 1}
    words = found["words"]
    assert (words["mean"], words["median"], words["longest"]) == (pytest.approx(53 / 3), 3, 50)
    assert [one["rows"] for one in words["histogram"]] == [2, 0, 0, 0, 1]
    assert found["examples"][0] == rows[0]
    assert len(found["examples"][2]["text"]) == 203, "long cells are cut"


def test_labels_that_are_numbers_have_a_mean_and_no_classes():
    rows = [{"text": "a", "label": str(number * 1.5)} for number in range(40)]
    found = profile(given_rows(rows), guess_columns(given_rows(rows)))
    assert found["labels"] == {}
    assert found["numbers"] == {
        "mean": pytest.approx(29.25),
        "deviation": pytest.approx(np.std(np.arange(40) * 1.5)),
        "least": 0.0,
        "greatest": 58.5,
    }
    assert found["columns"][1] == {"name": "label", "type": "number", "empty": 0}
    few = given_rows(rows[:4])
    assert profile(few, guess_columns(few))["numbers"] is None, "a few numbers are classes"


def test_describe_shows_fields_that_the_task_reads(tmp_path, capsys):
    cells = [{"body": f"film {n}", "verdict": "good" if n % 3 else "bad"} for n in range(30)]
    rows = "\n".join(json.dumps({"id": n, "review": cell}) for n, cell in enumerate(cells))
    (tmp_path / "rows.jsonl").write_text(rows)
    task = {"kind": "text_classification", "text": "review.body", "label": "review.verdict"}
    data = dict.fromkeys(("train", "eval"), f"jsonl:{tmp_path}/rows.jsonl") | {"test": None}
    file = str(write_config(tiny_config(tmp_path, task=task, data=data), tmp_path / "own.yaml"))
    named = ("--text", "review.body", "--label", "review.verdict")
    for words in ((file,), (f"jsonl:{tmp_path}/rows.jsonl", *named)):
        found = json.loads(said_by(capsys, "data", "describe", *words, "--json"))["splits"][0]
        assert found["labels"] == {"good": 20, "bad": 10}
        assert found["words"]["mean"] == 2
        names = [column["name"] for column in found["columns"]]
        assert names == ["id", "review", "review.body", "review.verdict"]


def test_describe_shows_the_text_that_the_model_reads(tmp_path, capsys):
    """The template is applied, a target is a number, and shares are of all rows."""
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["age", "bmi", "score"])
        writer.writerows([[20 + n, 30.5, 100 + n] for n in range(40)])
    rows = f"csv:{tmp_path}/rows.csv"
    task = {"template": "a patient of {age} years, BMI {bmi}", "label": "score"}
    config = tiny_config(
        tmp_path,
        data={"train": rows, "eval": rows, "test": None},
        task={"problem": "regression", **task},
    )
    file = write_config(config, tmp_path / "c.yaml")
    found = json.loads(said_by(capsys, "data", "describe", file, "--json"))["splits"][0]
    assert "a patient of" in found["examples"][0]["text"]
    assert "BMI 30.5" in found["examples"][0]["text"]
    assert found["words"]["mean"] == 7
    assert found["numbers"]["mean"] == pytest.approx(119.5)
    said = said_by(capsys, "data", "describe", file)
    assert "label: mean 119.5, standard deviation 11.5434, from 100 to 139" in said


def test_shares_are_of_all_rows(tmp_path, capsys):
    write_rows(tmp_path / "rows.csv", [(f"film {n}", f"class {n % 20}") for n in range(100)])
    said = said_by(capsys, "data", "describe", f"csv:{tmp_path}/rows.csv")
    assert "class 0 5 5.0%" in said
    assert "and 8 more labels" in said


def test_advice_does_not_contradict_a_good_probe():
    tokens = {"pieces_per_word": 3.1, "unknown": 0.0, "cut": 0.0}
    good = {"accuracy": 0.967, "guessing": 0.7, "margin": 0.01}
    assert advice({"tokens": tokens, "probe": good}) == [
        "The labels can be predicted from the frozen features: freezing costs little."
    ]
    (sentence,) = advice({"tokens": tokens, "probe": None})
    assert "train the embeddings too" in sentence


def test_the_text_is_found_by_its_name_or_its_length():
    assert guess_columns(given_rows([{"id": "a" * 9, "verse": "b" * 20}])).texts == ("verse",)
    assert guess_columns(given_rows([{"id": "a" * 9, "text": "b"}])).texts == ("text",)
    assert guess_columns(given_rows([{"id": 1}])).texts == ()


def test_digests_pass_over_case_and_spaces_and_nothing_else():
    rows = [{"a": one, "b": "x"} for one in ("The  film", "the film ", "the films", "th e film")]
    found = row_digests(given_rows(rows), ("a", "b"))
    assert found[0] == found[1]
    assert len(set(found.tolist())) == 3
    both = row_digests(given_rows([{"a": "x y", "b": "z"}, {"a": "x", "b": "y z"}]), ("a", "b"))
    assert both[0] != both[1]


def test_images_of_one_name_in_two_folders_are_two(tmp_path):
    for name in ("train", "test"):
        (tmp_path / name / "one").mkdir(parents=True)
        Image.new("RGB", (2, 2)).save(tmp_path / name / "one" / "0.png")
    train, test = (open_source(f"images:{tmp_path / name}") for name in ("train", "test"))
    columns = ("image", "label")
    assert row_digests(train, columns) != row_digests(test, columns)
    assert row_digests(train, columns) == row_digests(open_source(train.spec), columns)


def test_a_class_is_rare_from_a_tenth_of_the_commonest_on():
    assert rare_class({"a": 100, "b": 10}) == ("b", pytest.approx(10 / 110))
    assert rare_class({"a": 99, "b": 10}) is None
    assert rare_class({"a": 5}) is None
    assert rare_class({"a": 5, "b": 0}) is None


# -------------------------------------------------------------------------------- what is warned of


@pytest.fixture
def spoilt(tmp_path):
    """A run whose train rows are rare of one class, and come again in its test rows."""
    train = [(f"warm film {i}", 0) for i in range(60)] + [(f"cold film {i}", 1) for i in range(4)]
    write_rows(tmp_path / "train.csv", train)
    write_rows(tmp_path / "eval.csv", [("fine plot", 0), ("grim plot", 1)])
    write_rows(tmp_path / "test.csv", [("WARM  film 7", 0), ("dull cast", 1), ("cold film 2", 1)])
    splits = {name: f"csv:{tmp_path}/{name}.csv" for name in ("train", "eval", "test")}
    return tiny_config(tmp_path, data=splits)


def test_leaks_and_rare_classes_are_said_before_training_once(spoilt, tmp_path, capsys):
    said = said_by(capsys, "plan", write_config(spoilt, tmp_path / "c.yaml"))
    assert said.count("test: 2 rows are in train too (66.7%, such as csv:") == 1
    assert said.count("train: '1' is 6.2% of the examples, and guessing is right 93.8%") == 1
    assert "eval:" not in said
    assert "guessing" not in said_by(capsys, "plan", str(tmp_path / "c.yaml"), "data.balance=true")


def test_describe_shows_a_config_and_its_faults(spoilt, tmp_path, capsys):
    file = write_config(spoilt, tmp_path / "c.yaml")
    said = said_by(capsys, "data", "describe", file)
    assert "train: 64 rows of csv:" in said
    assert "test: 2 rows are in train too (66.7%" in said
    assert "train: '1' is 6.2% of the labels" in said
    found = json.loads(said_by(capsys, "data", "describe", file, "--json"))
    assert [split["split"] for split in found["splits"]] == ["train", "eval", "test"]
    assert {"of": "test", "also_in": "train", "rows": 2} in found["repeated"]
    assert found["splits"][0]["labels"] == {"0": 60, "1": 4}
    write_rows(tmp_path / "eval.csv", [("fine plot", 1), ("grim plot", 1), ("grim plot", 1)])
    found = json.loads(said_by(capsys, "data", "describe", file, "--json"))
    assert "all rows have the same class, '1'" in found["splits"][1]["warnings"][0]
    assert {"of": "eval", "also_in": "eval", "rows": 1} in found["repeated"]
    assert main(["plan", file]) == 2
    assert "the split has only one class ('1')" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["csv:{}/reviews.csv", "--text", "txet"], "no column 'txet'. Did you mean 'text'?"),
        (["csv:{}/reviews.csv", "a=b"], "is a source; KEY=VALUE is only for a config file"),
        (["csv:{}/reviews.csv", "--reference", "csv:x"], "Add --against"),
        (["csv:{}/gone.csv"], "There is no file"),
        (["csv:{}/*.tsv"], "no file matches this pattern"),
        (["{}/gone.yaml"], "There is no config file"),
    ],
)
def test_what_cannot_be_described_is_one_sentence(tmp_path, capsys, words, said):
    tiny_reviews(tmp_path)
    assert main(["data", "describe", *[word.format(tmp_path) for word in words]]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert said in err
    assert err.count("\n") == 1


# ----------------------------------------------------------------------------- against a checkpoint


def test_the_frechet_distance_is_that_of_scipys_root():
    draw = np.random.default_rng(0)
    one = draw.normal(size=(200, 6)) @ draw.normal(size=(6, 6))
    other = draw.normal(1, 2, size=(150, 6))
    means, spreads = zip(*[(x.mean(0), np.cov(x, rowvar=False)) for x in (one, other)], strict=True)
    root = scipy.linalg.sqrtm(spreads[0] @ spreads[1]).real
    wanted = ((means[0] - means[1]) ** 2).sum() + np.trace(spreads[0] + spreads[1] - 2 * root)
    assert frechet(one, other) == pytest.approx(wanted, rel=1e-6)
    assert frechet(one, one) == pytest.approx(0, abs=1e-8)


def test_the_probe_reads_what_is_there_and_no_more():
    draw = np.random.default_rng(1)
    labels = [str(i % 2) for i in range(200)]
    noise = draw.normal(size=(200, 5))
    telling = noise + np.array([[int(one)] * 5 for one in labels]) * 3
    assert probe(telling, labels)["accuracy"] > 0.95
    found = probe(noise, labels)
    assert abs(found["accuracy"] - found["guessing"]) < 3 * found["margin"]
    assert probe(noise[:6], ["a", "b", "a", "a", "a", "a"]) is None, "one of a class is too few"


def test_advice_follows_from_the_figures():
    good = {"pieces_per_word": 1.2, "unknown": 0.0, "cut": 0.0}
    near, far = {"times": 1.1}, {"times": 2.5}
    probes = {"accuracy": 0.9, "guessing": 0.5}, {"accuracy": 0.55, "guessing": 0.5}
    assert "No sign of a domain mismatch" in advice({"tokens": good})[0]
    assert "freezing costs little" in advice({"tokens": good, "probe": probes[0]})[0]
    assert "train more layers, and label more" in advice({"tokens": good, "probe": probes[1]})[0]
    (said,) = advice({"tokens": good, "distance": far})
    assert "adapt to the domain first" in said
    assert "No sign" in advice({"tokens": good, "distance": near})[0]
    assert "many tokens" in advice({"tokens": good | {"pieces_per_word": 2.1}})[0]
    assert "longer than the context" in advice({"tokens": good | {"cut": 0.2}})[0]


def test_texts_are_held_against_a_checkpoint(tmp_path, capsys):
    tiny_checkpoint(tmp_path / "checkpoint")
    rows = [row["text"] for row in open_source(f"csv:{tiny_reviews(tmp_path)}").rows(range(96))]
    foreign = write_rows(tmp_path / "foreign.csv", [("casts films zzz " * 9, "0")] * 30)
    words = ["--against", str(tmp_path / "checkpoint"), "--json"]
    words += ["--reference", f"csv:{tmp_path}/reviews.csv[:50%]"]

    def held(spec):
        return json.loads(said_by(capsys, "data", "describe", spec, *words))["against"]

    near, far = held(f"csv:{tmp_path}/reviews.csv[50%:]"), held(f"csv:{foreign}")
    assert near["tokens"]["unknown"] == 0
    assert near["tokens"]["pieces_per_word"] == 1
    assert near["distance"]["times"] < 3 < far["distance"]["times"]
    assert near["probe"]["guessing"] < 0.7
    assert far["probe"] is None, "it has one class"
    # Of "casts films zzz" two words are two pieces each and one is unknown.
    assert far["tokens"]["pieces_per_word"] == pytest.approx(5 / 3)
    assert far["tokens"]["unknown"] == pytest.approx(1 / 5)
    assert far["tokens"]["cut"] == 1.0
    assert near["pretraining"] is None, "this checkpoint has no head of its own"
    assert len(rows) == 96


def test_the_checkpoints_own_head_tells_texts_from_their_shuffled_words(tiny_mlm, tmp_path, capsys):
    texts = ["the man went to the store to buy some milk", "she was born in the city of new york"]
    words = np.random.default_rng(0)
    mixed = [" ".join(words.permutation(text.split())) for text in texts]
    found = []
    for name, rows in (("told", texts), ("mixed", mixed)):
        write_rows(tmp_path / f"{name}.csv", [(row, 0) for row in rows * 10])
        asked = ["data", "describe", f"csv:{tmp_path}/{name}.csv", "--against", str(tiny_mlm)]
        found.append(json.loads(said_by(capsys, *asked, "--json"))["against"]["pretraining"])
    assert {one["objective"] for one in found} == {"masked_lm"}
    assert found[0]["perplexity"] < found[1]["perplexity"]
    assert found[0]["perplexity"] == pytest.approx(np.exp(found[0]["loss"]))


# ------------------------------------------------------------------------------------- written down


def test_a_source_written_as_tfds_reads_back_equal(tmp_path, capsys):
    rows = [
        {"text": f"naïve {i}", "n": i, "x": i / 2, "ok": i % 2 == 0, "tags": ["é"] * (i % 3)}
        | {"ids": [i, 2], "mixed": [1, 2.5][i % 2]}
        for i in range(25)
    ]
    (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, rows)))
    spec = f"jsonl:{tmp_path}/r.jsonl"
    asked = [f"train={spec}[:20]:ordered", f"test={spec}[20:]"]
    said = said_by(capsys, "data", "build", *asked, "--out", str(tmp_path / "made_set"))
    assert said == f"tfds:{tmp_path}/made_set/1.0.0"
    for split, own in (("train", f"{spec}[:20]:ordered"), ("test", f"{spec}[20:]")):
        read, wanted = open_source(f"{said}:{split}:ordered"), open_source(own)
        assert set(read.columns) == set(wanted.columns)
        assert read.rows(range(len(read))) == wanted.rows(range(len(wanted)))
    assert main(["data", "build", *asked, "--out", str(tmp_path / "made_set")]) == 2
    assert "exists already" in capsys.readouterr().err


def test_images_and_class_names_are_written_too(tmp_path, capsys):
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (3, 2), "red").save(tmp_path / "photos" / name / "1.png")
    asked = ["data", "build", f"images:{tmp_path}/photos:ordered"]
    first = said_by(capsys, *asked, "--out", str(tmp_path / "one"))
    rows = open_source(f"{first}:train:ordered").rows(range(2))
    assert rows[1] == {"label": "dog", "image": (tmp_path / "photos/dog/1.png").read_bytes()}
    # From TFDS to TFDS: class names stay.
    (tmp_path / "r.jsonl").write_text('{"label": 1}\n{"label": 0}\n')
    again = said_by(
        capsys, "data", "build", f"{first}:train:ordered", "--out", str(tmp_path / "two")
    )
    assert open_source(f"{again}:train:ordered").rows(range(2)) == rows


@pytest.mark.parametrize(
    ("content", "out", "said"),
    [
        ('{"text": "a"}\n{"text": null}', "made", "row 2: 'text' is empty, which a TFDS data set"),
        ('{"text": {"a": 1}}', "made", "row 1: 'text' is dict, which a TFDS data set cannot hold"),
        (
            '{"text": "a"}\n{"text": 1}',
            "made",
            "'text' holds int or str; a TFDS column has one type",
        ),
        ('{"text": "a"}', "My-set", "'My-set' is not a valid name of a TFDS data set"),
        ('{"text": "a"}', None, "--out is missing: name a folder"),
    ],
)
def test_what_tfds_cannot_hold_is_one_sentence(tmp_path, capsys, content, out, said):
    (tmp_path / "r.jsonl").write_text(content)
    asked = ["data", "build", f"jsonl:{tmp_path}/r.jsonl:ordered"]
    assert main([*asked, *([] if out is None else ["--out", str(tmp_path / out)])]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["r.jsonl"]


def test_an_official_set_is_prepared_by_tfds_itself(tmp_path, capsys):
    """With a stand-in for TensorFlow and TFDS's program, in a process that finds them first."""
    assert main(["data", "build", "tfds:mnist"]) == 2
    assert "with TensorFlow, which is not installed" in capsys.readouterr().err
    (tmp_path / "tensorflow.py").write_text("")
    program = tmp_path / "tensorflow_datasets" / "scripts" / "cli"
    program.mkdir(parents=True)
    for package in (program, program.parent, program.parent.parent):
        (package / "__init__.py").write_text("")
    (program / "main.py").write_text("import sys; print(sys.argv[1:]); sys.exit('x' in sys.argv)")
    code = "from jaxft.analysis.build_data import _prepare; print(_prepare('{}', None))"
    for name, wanted in (("mnist", 0), ("x", 1)):
        done = subprocess.run(
            [sys.executable, "-c", STUBBED + code.format(name)],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        )
        assert "--file_format=array_record" in done.stderr
        assert done.returncode == wanted
    assert "tfds:x could not be prepared" in done.stderr


# The stand-in is the subprocess's only: this process imports the true TFDS before it is hidden.
STUBBED = """
import sys
stand_in = sys.path.pop(1)
import jaxft.analysis.build_data
sys.path.insert(1, stand_in)
"""
