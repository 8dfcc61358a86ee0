"""Sources: every row of every kind of data, in the order that seed and slice say."""

import csv
import io
import json
import pickle
import subprocess
import sys
from contextlib import redirect_stdout

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jaxft.data.sources.open import given_rows, open_mixture, open_source
from jaxft.data.sources.reader import ClassId
from jaxft.errors import UserError

ROWS = [
    {"text": 'plain, with a comma and a "quote"', "label": "0", "source": "a"},
    {"text": "two\nlines, and\r\nmore", "label": "1", "source": "b"},
    {"text": "naïve café 日本 🎬", "label": "1", "source": "a"},
    {"text": "", "label": "0", "source": "b"},
]


def write_csv(path, rows, **options):
    with path.open("w", newline="", encoding=options.pop("encoding", "utf-8")) as file:
        writer = csv.DictWriter(file, list(rows[0]), **options)
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def numbers(tmp_path):
    """A CSV of 100 rows; the number of each is its text."""
    rows = [{"text": str(i), "label": str(i % 2), "source": "ab"[i >= 60]} for i in range(100)]
    return write_csv(tmp_path / "numbers.csv", rows)


def texts(source):
    return [row["text"] for row in source.rows(range(len(source)), ["text"])]


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_csv_rows_are_what_was_written(tmp_path, line_end, encoding):
    path = write_csv(tmp_path / "r.csv", ROWS, lineterminator=line_end, encoding=encoding)
    source = open_source(f"csv:{path}:ordered")
    assert source.columns == ("text", "label", "source")
    assert source.rows(range(4)) == ROWS
    assert [source[i] for i in (3, 1)] == [ROWS[3], ROWS[1]]


@pytest.mark.parametrize(("name", "separator"), [("r.csv", ";"), ("r.csv", "|"), ("r.tsv", "\t")])
def test_fields_stand_between_what_stands_in_the_header(tmp_path, name, separator):
    path = write_csv(tmp_path / name, ROWS, delimiter=separator, encoding="utf-8-sig")
    source = pickle.loads(pickle.dumps(open_source(f"csv:{path}:ordered")))
    assert source.columns == ("text", "label", "source")
    assert source.rows(range(4)) == ROWS


def test_a_header_with_a_comma_is_of_commas(tmp_path):
    (tmp_path / "r.csv").write_text('text;x,"a|b"\n1;2,3\n')
    assert open_source(f"csv:{tmp_path / 'r.csv'}").rows([0]) == [{"text;x": "1;2", "a|b": "3"}]
    (tmp_path / "r.tsv").write_text("one, two\n1\t2\n")
    with pytest.raises(UserError, match=r"row 1 \(line 2\) has 2 fields, and the header has 1"):
        open_source(f"csv:{tmp_path / 'r.tsv'}")


def test_csv_blank_lines_and_a_missing_last_line_end(tmp_path):
    path = tmp_path / "r.csv"
    path.write_text("text,label\n\na,0\n\n\nb,1")
    assert texts(open_source(f"csv:{path}:ordered")) == ["a", "b"]


def test_csv_reads_a_field_longer_than_the_modules_limit_and_puts_the_limit_back(tmp_path):
    csv.field_size_limit(1000)
    path = write_csv(tmp_path / "r.csv", [{"text": "x" * 200_000, "label": "0"}])
    assert len(open_source(f"csv:{path}")[0]["text"]) == 200_000
    assert csv.field_size_limit(131_072) == 1000


def test_jsonl_rows_keep_their_types_and_columns_are_what_every_row_has(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"text": "a", "label": 1, "x": [1]}\n\n{"label": 0, "text": "b\\n"}\n')
    source = open_source(f"jsonl:{path}:ordered")
    assert source.columns == ("text", "label")
    assert source.rows([1, 0]) == [{"text": "b\n", "label": 0}, {"text": "a", "label": 1}]


def test_a_field_of_a_column_is_a_column(tmp_path):
    pairs = [{"en": "yes", "de": "ja"}, None, {"en": "no"}]
    lines = [json.dumps({"id": n, "translation": pair}) for n, pair in enumerate(pairs)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    source = open_source(f"jsonl:{tmp_path}/rows.jsonl:ordered")
    columns = ["translation.de", "id"]
    assert source.rows(range(3), columns) == [
        {"translation.de": "ja", "id": 0},
        {"translation.de": None, "id": 1},
        {"translation.de": None, "id": 2},
    ]
    mixed = open_mixture([f"jsonl:{tmp_path}/rows.jsonl:ordered"] * 2)
    assert [row["translation.en"] for _, row in mixed.each(["translation.en"])] == [
        *("yes", None, "no"),
        *("yes", None, "no"),
    ]
    for made in (source, mixed):
        named = ("id", "translation.de", "translation", "translation.fr", "id.de", "text.de")
        assert [made.has(name) for name in named] == [True, True, True, False, False, False]
        asked = made.with_fields(["id", "translation.de", "translation.de", "text.de"])
        assert asked.columns == (*made.columns, "translation.de")
        assert asked[0] == made[0] | {"translation.de": "ja"}
    dotted = given_rows([{"translation.de": "nein", "translation": {"de": "ja"}}])
    assert dotted.rows([0], ["translation.de"]) == [{"translation.de": "nein"}]


def test_the_shuffle_is_seeded_and_the_same_in_every_numpy(numbers):
    shuffled = texts(open_source(f"csv:{numbers}"))
    assert shuffled[:6] == ["0", "72", "31", "8", "51", "19"]
    assert sorted(shuffled, key=int) == [str(i) for i in range(100)]
    assert texts(open_source(f"csv:{numbers}", seed=1)) != shuffled
    assert texts(open_source(f"csv:{numbers}:ordered", seed=1)) == [str(i) for i in range(100)]


@pytest.mark.parametrize("bounds", [(33.3, 66.6), (1, 2), (98.5, 99.2), (50, 50.6)])
def test_slices_of_one_shuffle_share_no_row_and_miss_none(numbers, bounds):
    a, b = bounds
    parts = [f"[:{a}%]", f"[{a}%:{b}%]", f"[{b}%:]"]
    found = [text for part in parts for text in texts(open_source(f"csv:{numbers}{part}", seed=3))]
    assert found == texts(open_source(f"csv:{numbers}", seed=3))


def test_slices_by_row_number(numbers):
    assert texts(open_source(f"csv:{numbers}[95:]:ordered")) == ["95", "96", "97", "98", "99"]
    assert texts(open_source(f"csv:{numbers}[2:4]:ordered")) == ["2", "3"]
    assert texts(open_source(f"csv:{numbers}[98:100%]:ordered")) == ["98", "99"]


def test_where_comes_before_the_slice(numbers):
    source = open_source(f"csv:{numbers}[50%:]:ordered", where={"source": "a"})
    assert texts(source) == [str(i) for i in range(30, 60)]
    both = open_source(f"csv:{numbers}:ordered", where={"source": ["a", "b"], "label": 1})
    assert texts(both) == [str(i) for i in range(1, 100, 2)]


def test_the_fingerprint_knows_content_and_selection_but_not_the_place(tmp_path, numbers):
    moved = tmp_path / "elsewhere.csv"
    moved.write_bytes(numbers.read_bytes())
    same = open_source(f"csv:{numbers}[:50%]").fingerprint
    assert open_source(f"csv:{moved}[:50%]").fingerprint == same
    assert open_source(f"csv:{numbers}[50%:]").fingerprint != same
    assert open_source(f"csv:{numbers}[:50%]:ordered").fingerprint != same
    assert open_source(f"csv:{numbers}[:50%]", seed=1).fingerprint != same
    assert open_source(f"csv:{numbers}[:50%]", where={"label": 1}).fingerprint != same
    moved.write_bytes(numbers.read_bytes().replace(b"99,1,b", b"99,0,b"))
    assert open_source(f"csv:{moved}[:50%]").fingerprint != same


def test_a_source_can_be_sent_to_another_process(numbers):
    source = open_source(f"csv:{numbers}")
    assert texts(pickle.loads(pickle.dumps(source))) == texts(source)


BAD_FILES = {
    "not utf-8": (b"text,label\ngood,0\nb\xe9b\xe9,1\n", "row 2 (line 3) is not UTF-8: byte 0xe9"),
    "in quotes": (b'text,label\n"a\n\xff",0\n', "row 1 (line 3) is not UTF-8"),
    "few fields": (b"text,label\ngood,0\nbad\n", "row 2 (line 3) has 1 fields, and the header"),
    "many fields": (b"text,label\n\ngood,0,1\n", "row 1 (line 3) has 3 fields"),
    "open quote": (b'text,label\ngood,0\n"never,1\nclosed,0\n', "row 2 is not CSV"),
    "lone return in the header": (b"te\rxt,label\ngood,0\n", " is not CSV (new-line character"),
    "garbled quote": (b'text,label\n"twas" the night,0\n', "row 1 is not CSV"),
    "empty": (b"", "the file is empty"),
    "twice": (b"text,text\na,b\n", "two columns are named 'text'"),
    "no rows": (b"text,label\n", "has no rows"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_csv_is_named_by_row(tmp_path, case):
    content, said = BAD_FILES[case]
    path = tmp_path / "bad.csv"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        open_source(f"csv:{path}")
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"a": 1}\n{"a": }\n', "row 2 (line 2) is not JSON (Expecting value at column 7)"),
        (b'{"a": 1}\n\n[1]\n', "row 2 (line 3) is not a JSON object but list"),
        (b'{"a": "\xe9"}\n', "row 1 (line 1) is not UTF-8"),
    ],
)
def test_a_bad_jsonl_is_named_by_row(tmp_path, content, said):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        open_source(f"jsonl:{path}")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "where", "said"),
    [
        ("csv:{folder}/number.csv", {}, "Did you mean 'numbers.csv'?"),
        ("cvs:{folder}/numbers.csv", {}, "Did you mean 'csv'?"),
        (
            "{folder}/numbers.csv",
            {},
            "numbers.csv' is not a data source: it names no format. Did you mean 'csv:/",
        ),
        ("{folder}/numbers", {}, "must start with csv:, jsonl:, conll:, boxes:, coco:, "),
        ("csv:{folder}/numbers.csv[:9o%]", {}, "'9o%' is not a bound of a slice"),
        (f"csv:{{folder}}/numbers.csv[:{'9' * 5000}]", {}, "9' is not a bound of a slice"),
        ("csv:{folder}/numbers.csv[:101]", {}, "the slice ends at 101, and there are 100 rows"),
        ("csv:{folder}/numbers.csv[:120%]", {}, "the slice ends at 120%"),
        ("csv:{folder}/numbers.csv[50%:10%]", {}, "has no rows"),
        ("csv:{folder}/numbers.csv", {"sauce": "a"}, "Its columns: text, label, source."),
        ("csv:{folder}/numbers.csv", {"source": "c"}, "Values there: a, b."),
        ("tfds:train", {}, "the split is missing"),
    ],
)
def test_a_bad_source_string_is_one_sentence(numbers, spec, where, said):
    with pytest.raises(UserError) as caught:
        open_source(spec.format(folder=numbers.parent), where=where)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("csv:assets/reviews/train.csv", "no file 'assets/reviews/train.csv'. .*assets reviews$"),
        ("images:assets/digits/train", "no folder 'assets/digits/train'. .*jaxft assets digits$"),
        ("masks:assets/cells/train", "no folder 'assets/cells/train'. .*jaxft assets cells$"),
        ("images:there/twu", r"no folder 'there/twu'. Did you mean 'two'\?$"),
        ("csv:assets/there/on.csv", r"no file 'assets/there/on.csv'. Did you mean 'one.csv'\?$"),
    ],
)
def test_data_that_are_not_there_are_fetched_by_a_command(spec, said, tmp_path, monkeypatch):
    """Where the data are an example config's, and where the asset is not there as a whole."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there/two").mkdir(parents=True)
    (tmp_path / "assets/there").mkdir(parents=True)
    (tmp_path / "assets/there/one.csv").touch()
    with pytest.raises(UserError, match=said):
        open_source(spec)


def as_png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


PICTURE = as_png(np.arange(12, dtype=np.uint8).reshape(2, 2, 3))
BROKEN = PICTURE[:-30]


class Reviews(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Ten rows a split, without TensorFlow."""

    def __init__(self, folder):
        self.name = "made_reviews"
        self.VERSION = tfds.core.Version("1.2.0")
        super().__init__(data_dir=folder, file_format="array_record")

    def _info(self):
        features = {
            "text": tfds.features.Text(),
            "type": tfds.features.ClassLabel(names=["neg", "pos"]),
            "tags": tfds.features.Sequence(tfds.features.Text()),
            "turns": tfds.features.Sequence({"who": tfds.features.Text(), "n": np.int64}),
            "things": tfds.features.Sequence(
                {"label": tfds.features.ClassLabel(names=["1", "2"]), "n": np.int64}
            ),
            "score": np.float32,
            "picture": tfds.features.Image(shape=(2, 2, 3)),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(0), "test": self._generate_examples(100)}

    def _generate_examples(self, first):
        for i in range(first, first + 10):
            turns = {"who": ["é", "b"], "n": [i, i + 1]}
            row = {"text": f"naïve {i}", "type": i % 2, "tags": ["日", "x"], "turns": turns}
            row["things"] = {"label": [i % 2], "n": [i]}
            yield i, {**row, "score": i / 2, "picture": PICTURE if i != 107 else BROKEN}


@pytest.fixture(scope="module")
def tfds_home(tmp_path_factory):
    home = tmp_path_factory.mktemp("tfds")
    tfds.disable_progress_bar()
    with redirect_stdout(io.StringIO()):
        Reviews(str(home)).download_and_prepare()
    return home


@pytest.fixture
def tfds_folder(tfds_home):
    return tfds_home / "made_reviews" / "1.2.0"


def test_a_tfds_row_is_plain_python(tfds_folder):
    source = open_source(f"tfds:{tfds_folder}:test:ordered")
    row = source[3]
    assert row["text"] == "naïve 103"
    assert row["type"] == 1
    assert type(row["type"]) is ClassId
    assert [type(one) for one in row["things"]["label"]] == [ClassId]
    assert type(row["things"]["n"][0]) is int
    assert row["tags"] == ["日", "x"]
    assert row["turns"]["who"] == ["é", "b"]
    assert list(row["turns"]["n"]) == [103, 104]
    assert row["score"] == 51.5
    assert row["picture"] == PICTURE  # an image stays encoded
    assert source.class_names("type") == ("neg", "pos")
    assert source.class_names("things") == ("1", "2")
    for column in ("text", "turns", "pixels of masks"):
        assert source.class_names(column) is None


@pytest.mark.parametrize("spec", ["made_reviews:train", "made_reviews:1.2.0:train", "{}:train"])
def test_tfds_by_name_by_version_and_by_folder(tfds_home, tfds_folder, spec, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_home))
    source = open_source(f"tfds:{spec.format(tfds_folder)}[:80%]", where={"type": "pos"})
    assert len(source) == 4
    assert set(texts(source)) < {f"naïve {i}" for i in (1, 3, 5, 7, 9)}
    by_id = open_source(f"tfds:{tfds_folder}:train", where={"type": 1})
    assert len(by_id) == 5


def test_a_broken_image_is_nobodys_trouble_until_it_is_decoded(tfds_folder):
    source = open_source(f"tfds:{tfds_folder}:test:ordered", where={"type": "pos"})
    assert len(source) == 5
    assert source[3]["picture"] == BROKEN
    again = pickle.loads(pickle.dumps(source))
    assert again[2]["picture"] == PICTURE


def test_the_latest_version_counts_numbers_as_numbers(tfds_home, tmp_path, monkeypatch):
    for version in ("1.2.0", "1.10.0", "1.9.0"):
        folder = tmp_path / "made_reviews" / version
        folder.mkdir(parents=True)
        for file in (tfds_home / "made_reviews" / "1.2.0").iterdir():
            content = file.read_bytes()
            if file.suffix == ".json":
                content = content.replace(b"1.2.0", version.encode())
            (folder / file.name).write_bytes(content)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    source = open_source("tfds:made_reviews:train")
    assert source.reader.folder.name == "1.10.0"


def test_the_two_splits_of_a_set_have_fingerprints_of_their_own(tfds_folder):
    prints = {open_source(f"tfds:{tfds_folder}:{split}").fingerprint for split in ("train", "test")}
    assert len(prints) == 2


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("made_reviews:trian", "Did you mean 'train'?"),
        ("made_reviews:2.0.0:train", "Prepared: 1.2.0."),
        ("made_review:train", "The TFDS data set 'made_review' is not prepared in"),
        ("./nowhere:train", "is not the folder of a prepared data set"),
    ],
)
def test_what_tfds_lacks_is_one_sentence(tfds_home, spec, said, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_home))
    with pytest.raises(UserError) as caught:
        open_source(f"tfds:{spec}")
    assert said in str(caught.value)


def copy_with_features(folder, to, features):
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    (to / "features.json").write_text(json.dumps(features))
    return to


FOREIGN = "foreign_features.Evil"


@pytest.mark.parametrize(
    "described",
    [
        {"pythonClassName": FOREIGN, "text": {}},
        {"python_class_name": FOREIGN, "text": {}},
        {"type": FOREIGN, "content": {}},
        {"pythonClassName": FOREIGN, "jsonFeature": {"json": "{}"}},
    ],
    ids=["now", "protobuf", "legacy", "json"],
)
@pytest.mark.parametrize("depth", ["top", "column", "string"])
def test_a_foreign_class_is_not_imported(tfds_folder, tmp_path, monkeypatch, described, depth):
    (tmp_path / "foreign_features.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    whole = json.loads((tfds_folder / "features.json").read_text())
    if depth == "top":
        whole = described
    elif depth == "column":
        whole["featuresDict"]["features"]["text"] = described
    else:
        own = "tensorflow_datasets.core.features.sequence_feature.Sequence"
        legacy = json.dumps({"feature": described, "length": None})
        inner = {"pythonClassName": own, "jsonFeature": {"json": legacy}}
        whole["featuresDict"]["features"]["text"] = inner
    folder = copy_with_features(tfds_folder, tmp_path / "set", whole)
    with pytest.raises(UserError, match="was not opened"):
        open_source(f"tfds:{folder}:train")
    assert "foreign_features" not in sys.modules


def test_files_that_only_tensorflow_reads_are_refused(tfds_folder, tmp_path):
    described = json.loads((tfds_folder / "features.json").read_text())
    folder = copy_with_features(tfds_folder, tmp_path / "set", described)
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match="the files are tfrecord"):
        open_source(f"tfds:{folder}:train")


def test_tfds_needs_no_tensorflow(tfds_folder):
    program = (
        "import sys; from jaxft.data.sources.open import given_rows, open_mixture, open_source; "
        f"print(open_source('tfds:{tfds_folder}:train:ordered')[0]['text']); "
        "sys.exit('tensorflow' in sys.modules or 'jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().strip() == "naïve 0"


@pytest.fixture
def photos(tmp_path):
    """Three classes of three images each, one of them a folder further down."""
    for name in ("10", "9", "cat"):
        for number in range(3):
            below = tmp_path / name / ("more" if number == 2 else "")
            below.mkdir(parents=True, exist_ok=True)
            (below / f"{number}.{'PNG' if number else 'png'}").write_bytes(PICTURE + name.encode())
        (tmp_path / name / "notes.txt").write_text("no image")
    (tmp_path / ".hidden").mkdir()
    return tmp_path


def test_a_folder_of_images_is_rows_of_path_and_class(photos):
    source = open_source(f"images:{photos}:ordered")
    assert source.columns == ("image", "label")
    assert source.folder == photos
    assert [row["image"] for row in source.rows(range(4))] == [
        "10/0.png",
        "10/1.PNG",
        "10/more/2.PNG",
        "9/0.png",
    ]
    assert [row["label"] for row in source.rows([0, 2, 8], ["label"])] == ["10", "10", "cat"]
    halves = [open_source(f"images:{photos}[{part}]") for part in (":50%", "50%:")]
    found = [{row["image"] for row in half.rows(range(len(half)))} for half in halves]
    assert not found[0] & found[1]
    assert len(found[0] | found[1]) == 9
    assert len(open_source(f"images:{photos}", where={"label": ["9", "cat"]})) == 6


def test_a_folder_of_images_is_known_by_its_content_wherever_it_lies(photos, tmp_path):
    before = open_source(f"images:{photos}").fingerprint
    moved = photos.rename(photos.with_name("moved"))
    assert open_source(f"images:{moved}").fingerprint == before
    (moved / "9" / "0.png").write_bytes(PICTURE + b"8")
    assert open_source(f"images:{moved}").fingerprint != before


def test_a_folder_without_images_is_named(photos):
    (photos / "empty").mkdir()
    with pytest.raises(UserError, match=r"class folder '.*empty' holds no images"):
        open_source(f"images:{photos}")
    with pytest.raises(UserError, match="has no subfolders"):
        open_source(f"images:{photos / 'empty'}")
    with pytest.raises(UserError, match=r"There is no folder '.*gone'"):
        open_source(f"images:{photos / 'gone'}")


def test_paths_in_a_file_start_from_its_folder(numbers):
    assert open_source(f"csv:{numbers}").folder == numbers.parent
