"""The example cache: what was written comes back, whole or not at all."""

import errno
import os
import pickle
import signal
import stat
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxft.data.cache import build_or_open, cache_key
from jaxft.errors import UserError
from jaxft.storage import files


def make_examples(count=5, width=3, seed=0):
    random = np.random.default_rng(seed)
    return [
        {
            "ids": random.integers(0, 100, length).astype(np.int32),
            "hidden": random.normal(size=(length, width)).astype(np.float32),
        }
        for length in [*random.integers(1, 9, count - 1), 0]
    ]


def same(example, other):
    return example.keys() == other.keys() and all(
        np.array_equal(example[name], other[name]) and example[name].dtype == other[name].dtype
        for name in example
    )


def must_not_build():
    raise AssertionError("built again")


def test_what_was_written_comes_back(tmp_path):
    examples = make_examples()
    made = build_or_open(tmp_path / "root", "key", lambda: (examples, {"tokens": 7}))
    opened = build_or_open(tmp_path / "root", "key", must_not_build)
    for ragged in (made, opened, pickle.loads(pickle.dumps(opened))):
        assert len(ragged) == 5
        assert all(same(ragged[i], examples[i]) for i in range(5))
        assert ragged.lengths.tolist() == [len(example["ids"]) for example in examples]
        assert ragged.meta == {"tokens": 7}
        assert ragged.nbytes == sum(a.nbytes for example in examples for a in example.values())
    assert not opened[0]["ids"].flags.writeable
    assert len(pickle.dumps(opened)) < 500
    for index in (5, -1):
        with pytest.raises(IndexError):
            opened[index]


@pytest.mark.parametrize("examples", [[], [{"ids": np.zeros(0, np.int32)}] * 2])
def test_nothing_is_something_too(tmp_path, examples):
    ragged = build_or_open(tmp_path, "key", lambda: (iter(examples), {}))
    assert len(build_or_open(tmp_path, "key", must_not_build)) == len(ragged) == len(examples)


def test_only_the_user_may_read_it(tmp_path):
    build_or_open(tmp_path / "root", "key", lambda: (make_examples(), {}))
    for folder in (tmp_path / "root", tmp_path / "root" / "key"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_the_key_changes_with_every_part():
    keys = {cache_key(a=1), cache_key(a=2), cache_key(b=1), cache_key(a=1, b=1), cache_key(a="1")}
    assert len(keys) == 5
    assert cache_key(a=1, b=(2,)) == cache_key(b=[2], a=1)


@pytest.mark.parametrize("spoil", ["marker", "short", "lengths", "gone"])
def test_a_damaged_entry_is_built_again(tmp_path, spoil):
    build_or_open(tmp_path, "key", lambda: (make_examples(seed=1), {}))
    ids = tmp_path / "key" / "ids.bin"
    if spoil == "marker":
        (tmp_path / "key" / files.COMMITTED).unlink()
    elif spoil == "short":
        ids.write_bytes(ids.read_bytes()[:-1])
    elif spoil == "lengths":
        (tmp_path / "key" / "lengths.npy").write_bytes(b"\x93NUMPY")
    else:
        ids.unlink()
    examples = make_examples(seed=2)
    ragged = build_or_open(tmp_path, "key", lambda: (examples, {}))
    assert all(same(ragged[i], examples[i]) for i in range(5))


def test_a_builder_that_fails_leaves_nothing(tmp_path):
    def fail():
        yield from make_examples()
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        build_or_open(tmp_path, "key", lambda: (fail(), {}))
    assert not (tmp_path / "key").exists()
    assert not list(tmp_path.glob("*.partial"))
    build_or_open(tmp_path, "key", lambda: (make_examples(), {}))


def test_a_full_disk_is_one_sentence(tmp_path):
    def fail():
        yield from make_examples()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UserError, match="No space left on device"):
        build_or_open(tmp_path, "key", lambda: (fail(), {}))
    assert not list(tmp_path.glob("key*/"))


@pytest.mark.parametrize(
    "odd",
    [
        {"ids": np.zeros(2, np.int64), "hidden": np.zeros((2, 3), np.float32)},
        {"ids": np.zeros(2, np.int32), "hidden": np.zeros((2, 4), np.float32)},
        {"ids": np.zeros(2, np.int32), "hidden": np.zeros((1, 3), np.float32)},
        {"ids": np.zeros(2, np.int32)},
    ],
    ids=["dtype", "shape", "length", "field"],
)
def test_examples_look_alike(tmp_path, odd):
    with pytest.raises(ValueError, match="example 5"):
        build_or_open(tmp_path, "key", lambda: ([*make_examples(), odd], {}))
    assert not (tmp_path / "key").exists()


SLOW_BUILD = """
import sys, time, numpy as np
from pathlib import Path
from jaxft.data.cache import build_or_open
def examples():
    for number in range(5):
        yield {"ids": np.full(100_000, number, np.int32)}
        print(number, flush=True)
        time.sleep(float(sys.argv[2]))
build_or_open(Path(sys.argv[1]), "key", lambda: (examples(), {}))
"""


def start_building(root, seconds):
    command = [sys.executable, "-c", SLOW_BUILD, str(root), str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "0\n"
    return process


def test_a_build_killed_half_way_is_never_used(tmp_path):
    with start_building(tmp_path, 60) as process:
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "key").exists()
    examples = make_examples()
    ragged = build_or_open(tmp_path, "key", lambda: (examples, {}))
    assert all(same(ragged[i], examples[i]) for i in range(5))
    assert not list(tmp_path.glob("*.partial"))


def test_a_second_process_waits_for_the_first_and_reads_what_it_built(tmp_path):
    with start_building(tmp_path, 0.2) as process:
        ragged = build_or_open(tmp_path, "key", must_not_build)
        assert [ragged[i]["ids"][0] for i in range(5)] == [0, 1, 2, 3, 4]
        assert process.wait(10) == 0


def test_one_who_waits_too_long_is_told_for_whom(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxft.data.cache.LOCK_SECONDS", 0.1)
    with start_building(tmp_path, 60) as process:
        started = time.monotonic()
        with pytest.raises(UserError, match=f"in use by process {process.pid} on"):
            build_or_open(tmp_path, "key", must_not_build)
        assert time.monotonic() - started < 30
        process.kill()
