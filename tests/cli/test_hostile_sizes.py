"""Values and files that would take hours or gigabytes, and a cache that is damaged."""

import json
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxft.analysis import checkpoint_fit
from jaxft.analysis.build_data import build_data
from jaxft.data.cache import build_or_open
from jaxft.engine.inputs import data_cache
from jaxft.errors import UserError
from jaxft.inference.score import shares_of
from jaxft.inference.search import _Index
from jaxft.models.weights.files import open_tensors
from jaxft.runs.folder import run_path
from tests.cli.test_bad_input import folder, refused  # noqa: F401 fixtures
from tests.support.launch import cache  # noqa: F401 a fixture

pytestmark = pytest.mark.usefixtures("cache")


def test_interpolation_in_steps_of_nothing():
    with pytest.raises(UserError, match=r"'0:1:1e-12' has more than 1,000 steps"):
        shares_of("0:1:1e-12")
    assert len(shares_of("0:1:0.001")) == 1001


def test_a_config_of_many_groups(refused):  # noqa: F811 the fixture above
    config = Path("c.yaml").read_text().replace("groups: []", "")
    groups = [f"- {{name: g{number}, match: a}}" for number in range(1001)]
    Path("many.yaml").write_text(f"{config}\ngroups:\n" + "\n".join(groups))
    assert "must be a list of 1,000 or fewer" in refused("train", "many.yaml")


def test_a_config_of_many_keys(refused):  # noqa: F811 the fixture above
    Path("many.yaml").write_text("".join(f"k{number}: 1\n" for number in range(30_000)))
    assert "many.yaml is larger than 262 kB" in refused("config", "many.yaml")


def test_home_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run_path("one", "~/runs") == tmp_path / "runs" / "one"
    assert data_cache("~/cache") == tmp_path / "cache"
    (tmp_path / "r.csv").write_text("text\na\nb\n")
    assert build_data([f"csv:{tmp_path}/r.csv"], Path("~/sets/mine")).startswith(
        f"tfds:{tmp_path}/sets/mine"
    )


def test_pickled_weights_that_unpack_to_gigabytes(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data/0", bytes(50_000_000))
    with pytest.raises(UserError, match=r"model\.bin has .* kB and unpacks to 50\.0 MB"):
        open_tensors([path])


def test_a_long_text_is_shortened_and_that_is_said(monkeypatch):
    class Stop(Exception):
        pass

    def stop(tools, texts):
        assert [len(text) for text in texts] == [1, 10]
        raise Stop

    monkeypatch.setattr(checkpoint_fit, "MOST_SAMPLE_CHARACTERS", 10)
    monkeypatch.setattr(
        checkpoint_fit, "load", lambda *_, **__: type("Model", (), {"vocab_size": 1})
    )
    monkeypatch.setattr(checkpoint_fit, "Tools", lambda *_: None)
    monkeypatch.setattr(checkpoint_fit, "token_facts", stop)
    with pytest.raises(Stop):
        checkpoint_fit.hold_against("checkpoint", ["a", "b" * 11])
    tokens = {"pieces_per_word": 1, "unknown": 0, "cut": 0}
    (sentence,) = checkpoint_fit.advice({"tokens": tokens, "shortened": 1})
    assert sentence == "Of 1 long text(s) only the first 10 characters were read."


DAMAGED = {
    "objects": {"fields": {"ids": {"dtype": "|O", "shape": []}}, "meta": {}},
    "no type": {"fields": {"ids": {"dtype": 5, "shape": "x"}}, "meta": {}},
    "no fields": {"fields": 5, "meta": {}},
    "a list": [1],
    "no meta": {"fields": {}, "meta": 5},
}


@pytest.mark.parametrize("name", [*DAMAGED, "cut", "deep"])
def test_a_damaged_cache_is_built_again(tmp_path, name):
    """An array of objects of a file's bytes would end the process."""
    examples = [{"ids": np.arange(4, dtype=np.int64)}]
    entry = build_or_open(tmp_path, "key", lambda: (examples, {}))
    others = {"cut": '{"fields"', "deep": "[" * 100_000}
    content = json.dumps(DAMAGED[name]) if name in DAMAGED else others[name]
    (entry.folder / "cache.json").write_text(content)
    again = build_or_open(tmp_path, "key", lambda: (examples, {"new": True}))
    assert again.meta == {"new": True}
    assert again[0]["ids"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["cut", "noise", "empty", "flat", "numbers"])
def test_a_damaged_search_index_is_made_again(tmp_path, name):
    index = _Index(tmp_path, "fingerprint")
    index.write({"a.png": ((1, 2), np.ones(3, np.float32))})
    (entry,) = index.read().values()
    assert entry[1].tolist() == [1, 1, 1]
    content = index.path.read_bytes()
    if name in ("flat", "numbers"):
        stats = np.array([1, 2]) if name == "flat" else np.array([[1, 2, 3]])
        np.savez(index.path, files=np.array(["a.png"]), stats=stats, vectors=np.ones((1, 3)))
    else:
        damaged = {"cut": content[: len(content) // 2], "noise": b"PK" + bytes(99), "empty": b""}
        index.path.write_bytes(damaged[name])
    assert index.read() == {}


def test_odd_tags_of_a_tiff_say_nothing(tmp_path):
    """Pillow warns of a tag with too many values, on standard error."""
    path = tmp_path / "odd.tif"
    Image.new("RGB", (4, 4)).save(path, dpi=(72, 72))
    content = path.read_bytes()
    unit = struct.pack("<HHI", 296, 3, 1)  # the unit of the resolution: one short integer
    assert unit in content
    path.write_bytes(content.replace(unit, struct.pack("<HHI", 296, 3, 2)))
    program = f"from jaxft.data.image.images import decode; print(decode({str(path)!r}).size)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("(4, 4)\n", "")
