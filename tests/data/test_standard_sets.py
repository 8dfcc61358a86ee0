"""The line that a config's head comment has for a standard set, on a mock of that set's schema."""

import io
import re
import shlex
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jaxft.config.load import load_config
from jaxft.engine.inputs import bad_rows, open_sources
from jaxft.engine.setup import make_task
from tests.support.bare_tools import bare_tools

CONFIGS = Path(__file__).parents[2] / "configs"
NER = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC")


def text():
    return tfds.features.Text()


def words(*names):
    return tfds.features.Sequence(tfds.features.ClassLabel(names=[*names]) if names else text())


def png(side, channels=3):
    file = io.BytesIO()  # of an array TensorFlow would make the file
    pixels = np.arange(side * side * channels, dtype=np.uint8).reshape(side, side, channels)
    Image.fromarray(pixels.squeeze()).save(file, "PNG")
    file.seek(0)
    return file


def classes(count):
    return tfds.features.ClassLabel(num_classes=count)


def sentence(number):
    tags = ["B-PER", "I-PER", "O"]
    return {"tokens": ["New", "York", "won"], "pos": ["A"] * 3, "chunks": ["A"] * 3, "ner": tags}


def laion(number):
    numbers = {"original_width": 8, "original_height": 8, "similarity": 0.5, "nsfw": number % 2}
    told = dict.fromkeys(("license", "url"), "x")
    return {"caption": f"a cat {number}", "image": png(8), **numbers, **told}


# Of each set: its version, its features and splits as TFDS defines them, and a row of ours.
SETS = {
    "glue/sst2": (
        {
            "sentence": text,
            "label": lambda: tfds.features.ClassLabel(names=["negative", "positive"]),
            "idx": lambda: np.int32,
        },
        ("train", "validation", "test"),
        lambda i: {"sentence": f"film {i}", "label": i % 2, "idx": i},
    ),
    "glue/stsb": (
        {
            "sentence1": text,
            "sentence2": text,
            "label": lambda: np.float32,
            "idx": lambda: np.int32,
        },
        ("train", "validation", "test"),
        lambda i: {"sentence1": f"a {i}", "sentence2": "b", "label": i % 6, "idx": i},
    ),
    "conll2003": (
        {
            "tokens": words,
            "pos": lambda: words("A", "B"),
            "chunks": lambda: words("A", "B"),
            "ner": lambda: words(*NER),
        },
        ("train", "dev", "test"),
        sentence,
    ),
    "imdb_reviews": (
        {"text": text, "label": lambda: tfds.features.ClassLabel(names=["neg", "pos"])},
        ("train", "test", "unsupervised"),
        lambda i: {"text": f"film {i}", "label": -1},
    ),
    "databricks_dolly": (
        dict.fromkeys(("instruction", "context", "response", "category"), text),
        ("train",),
        lambda i: {"instruction": f"ask {i}", "context": "", "response": "so", "category": "c"},
    ),
    "mnist": (
        {"image": lambda: tfds.features.Image(shape=(28, 28, 1)), "label": lambda: classes(10)},
        ("train", "test"),
        lambda i: {"image": png(28, 1), "label": i % 10},
    ),
    "imagenet2012": (
        {
            "image": lambda: tfds.features.Image(encoding_format="jpeg"),
            "label": lambda: classes(1000),
            "file_name": text,
        },
        ("train", "validation", "test"),
        lambda i: {"image": png(9), "label": i, "file_name": f"n{i}.JPEG"},
    ),
    "laion400m/images": (
        {
            "caption": text,
            "nsfw": lambda: classes(5),
            "similarity": lambda: np.float64,
            "license": text,
            "url": text,
            "original_width": lambda: np.int32,
            "original_height": lambda: np.int32,
            "image": tfds.features.Image,
        },
        ("train",),
        laion,
    ),
}


class Mock(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A set of 100 rows a split, without TensorFlow."""

    def __init__(self, home, name):
        place, _, self.name = name.rpartition("/")
        self.VERSION = tfds.core.Version("1.0.0")
        self.made = SETS[name]
        super().__init__(data_dir=str(home / place), file_format="array_record")

    def _info(self):
        features = {name: feature() for name, feature in self.made[0].items()}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, manager):
        return {split: self._generate_examples() for split in self.made[1]}

    def _generate_examples(self):
        for number in range(100):
            yield number, self.made[2](number)


def lines_of(config):
    """The commands of a config's head comment that name a set of TFDS."""
    head = config.read_text().partition("\nrun:")[0].replace("\\\n#", "")
    commands = [line[1:] for line in head.splitlines() if line.startswith("#   jaxft train")]
    return [shlex.split(line) for line in commands if "tfds:" in line]


LINES = [(path, line) for path in sorted(CONFIGS.glob("*.yaml")) for line in lines_of(path)]
NAMED = [re.search(r"data\.train=tfds:(.*?):", " ".join(line)).group(1) for _, line in LINES]


def test_every_set_is_named_by_a_config():
    assert set(NAMED) == set(SETS)


@pytest.mark.parametrize(
    ("path", "line", "name"), [(*one, name) for one, name in zip(LINES, NAMED, strict=True)]
)
def test_the_line_reads_the_set(path, line, name, tmp_path, monkeypatch):
    assert line[:3] == ["jaxft", "train", f"configs/{path.name}"]
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    tfds.disable_progress_bar()
    with redirect_stdout(io.StringIO()):
        Mock(tmp_path, name).download_and_prepare()
    config = load_config(path, line[3:])
    task = make_task(config)
    sources = open_sources(task, config.data.specs, config.data.where, 0)
    bound = task.bind(bare_tools(tmp_path, task.kind), task.label_names(sources["train"]))
    assert {"train", "eval"} <= sources.keys()
    assert all(source.spec.startswith(f"tfds:{name}:") for source in sources.values())
    assert [bad_rows(bound, source) for source in sources.values()] == [[] for _ in sources]
    assert set(sources["train"].columns) == set(SETS[name][0])
