"""TFDS folders of others, damaged or made to harm: one sentence that names the file."""

import json
import shutil

import pytest

from jaxft.analysis.build_data import build_data
from jaxft.data.sources.open import open_source
from jaxft.errors import UserError

OWN = "tensorflow_datasets.core.features."
SHARD = "good_set-train.array_record-00000-of-00001"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The version's folder of a set of 3 rows."""
    home = tmp_path_factory.mktemp("prepared")
    (home / "r.csv").write_text("text,label\nfine,a\nbad,b\nso,a\n")
    build_data([f"csv:{home}/r.csv"], home / "good_set")
    return home / "good_set" / "1.0.0"


@pytest.fixture
def folder(prepared, tmp_path):
    return shutil.copytree(prepared, tmp_path / "set" / "1.0.0")


def refused(folder, sentence):
    """Open a folder and read its rows, which must end in this sentence."""
    with pytest.raises(UserError, match=sentence):
        open_source(f"tfds:{folder}:train")[0]


def of_column(name, **fields):
    """The description of a set whose column `text` is of another class."""
    text = {"pythonClassName": OWN + name, **fields}
    inner = {"features": {"text": text}}
    return {"pythonClassName": OWN + "features_dict.FeaturesDict", "featuresDict": inner}


NESTED = '{"a":' * 150 + '{"pythonClassName": "os.path"}' + "}" * 150
FEATURES = {
    "{}": "names no class of features",
    "[]": "holds an array and not a JSON object",
    "{": "is not JSON",
    json.dumps({"pythonClassName": OWN + "nope.Nope"}): "not a folder that TFDS reads",
    json.dumps({"pythonClassName": OWN + "../../evil.Evil"}): "not a folder that TFDS reads",
    json.dumps({"pythonClassName": OWN + "text_feature.os"}): "not a folder that TFDS reads",
    json.dumps({"pythonClassName": OWN + "text_feature.Text", "evil": 1}): "that TFDS reads",
    json.dumps(of_column("text_feature.Text", text={}, jsonFeature={"json": NESTED})): "100 levels",
    json.dumps(of_column("class_label_feature.ClassLabel", classLabel={"numClasses": "-1"})): (
        'numClasses is "-1", and must be'
    ),
    json.dumps(of_column("class_label_feature.ClassLabel", classLabel={"numClasses": 10**15})): (
        "up to 1,048,576"
    ),
    json.dumps(
        of_column(
            "tensor_feature.Tensor", tensor={"shape": {}, "dtype": "int64", "encoding": "zlib"}
        )
    ): "compressed by zlib",
    json.dumps(
        of_column(
            "tensor_feature.Tensor",
            tensor={"shape": {"dimensions": ["10000000000"]}, "dtype": "int64", "encoding": "none"},
        )
    ): "rows 1 to 1 of 'train' cannot be read",
    json.dumps(
        of_column(
            "image_feature.Image",
            image={"shape": {"dimensions": ["-1", "-1", "3"]}, "dtype": "float32"},
        )
    ): "not a folder that TFDS reads",
}


@pytest.mark.parametrize("number", range(len(FEATURES)))
def test_the_features_of_a_set(folder, number):
    content, sentence = list(FEATURES.items())[number]
    (folder / "features.json").write_text(content)
    refused(folder, sentence)


def split(**fields):
    return {"splits": [{"name": "train", "numBytes": "1", "shardLengths": ["3"], **fields}]}


INFO = [
    ({"name": "../.."}, "is not a data set's name"),
    ({"name": ""}, "is not a data set's name"),
    ({"version": "x"}, "not a folder that TFDS reads"),
    ({"fileFormat": "evil"}, "not a folder that TFDS reads"),
    ({"splits": 5}, "splits is no list"),
    ({"splits": [5]}, "splits is no list"),
    ({"splits": []}, "there is no split 'train'"),
    (split(shardLengths=["1000000000000000"]), "shardLengths is no list of numbers"),
    (split(shardLengths=["-1"]), "shardLengths is no list of numbers"),
    (split(shardLengths="3"), "shardLengths is no list of numbers"),
    (split(shardLengths=["1"] * 100_001), "has 100,001 files"),
    (split(shardLengths=["200000000"] * 2), "400,000,000 rows; at most"),
    (split(shardLengths=["4"]), f"{SHARD} has 3 rows, and dataset_info.json says 4"),
    (split(shardLengths=["3", "1"]), "There is no file .*00000-of-00002"),
    (split(shard_lengths=["9"]), "has a field twice"),
    (split(filepathTemplate="../../x/{DATASET}-{SPLIT}"), "filepathTemplate .* does not name"),
    (split(filepathTemplate="/etc/{DATASET}"), "filepathTemplate .* does not name"),
    (split(filepathTemplate="{evil.__class__}"), "filepathTemplate .* does not name"),
    (split(filepathTemplate=5), "filepathTemplate .* does not name"),
]


@pytest.mark.parametrize(("fields", "sentence"), INFO)
def test_the_description_of_a_set(folder, fields, sentence):
    info = folder / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | fields))
    refused(folder, sentence)


def test_no_description_of_a_set(folder):
    info = folder / "dataset_info.json"
    for content, sentence in (("", "is not JSON"), ("[]", "holds an array"), ("{}", "TFDS reads")):
        info.write_text(content)
        refused(folder, sentence)
    info.unlink()
    refused(folder, "There is no file .*dataset_info.json")


def flipped(content, at):
    return content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :]


SHARDS = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2 + 100],
    "noise": lambda content: bytes(range(256)) * 600,
    "its header flipped": lambda content: flipped(content, 100),
    "its data flipped": lambda content: flipped(content, 65616),
}


@pytest.mark.parametrize("name", SHARDS)
def test_a_shard_of_a_set(folder, name):
    shard = folder / SHARD
    shard.write_bytes(SHARDS[name](shard.read_bytes()))
    refused(folder, f"{SHARD} cannot be read as array_record|rows 1 to . of 'train' cannot be")


def test_a_shard_that_is_not_there_or_elsewhere(folder, tmp_path):
    shard = folder / SHARD
    shard.rename(tmp_path / "elsewhere")
    refused(folder, f"There is no file .*{SHARD}")
    shard.symlink_to(tmp_path / "elsewhere")
    refused(folder, f"{SHARD}' leads outside its folder")
    shard.unlink()
    shard.mkdir()
    refused(folder, f"There is no file .*{SHARD}")


def test_labels_that_are_a_link(folder, tmp_path):
    (tmp_path / "private").write_text("secret")
    (folder / "label.labels.txt").symlink_to(tmp_path / "private")
    refused(folder, r"label\.labels\.txt' leads outside its folder")


def test_the_set_itself_is_read(folder):
    assert {row["text"] for _, row in open_source(f"tfds:{folder}:train").each()} == {
        *("fine", "bad", "so")
    }
