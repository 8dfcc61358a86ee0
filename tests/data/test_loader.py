"""The loader: the same rows in the same order whoever makes them, from any step on."""

import os
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest

from jaxft.data.batching.eval_plans import plan_eval
from jaxft.data.batching.loader import batches, collate_rows
from jaxft.data.batching.plans import TrainPlan
from jaxft.data.batching.workers import state, watched
from jaxft.data.cache import build_or_open
from jaxft.errors import UserError


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """150 examples of 2 to 9 tokens; the ids of example i are i x 10 and up."""
    rows = [
        {
            "input_ids": np.arange(10 * i, 10 * i + 2 + i % 8, dtype=np.int32),
            "token_type_ids": (np.arange(2 + i % 8) > 1).astype(np.int32),
        }
        for i in range(150)
    ]
    return build_or_open(tmp_path_factory.mktemp("cache"), "examples", lambda: (rows, {}))


@pytest.fixture
def plan(examples):
    return TrainPlan(examples.lengths, 0, 4, 16, 5)


@pytest.fixture
def collate(examples):
    return partial(collate_rows, examples)


def collect(plan, collate, start, stop, **options):
    return list(batches(plan, collate, start, stop, **options))


def assert_equal(found, wanted):
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert np.array_equal(one[name], other[name]), name
            assert one[name].dtype == other[name].dtype


def test_a_packed_row_is_its_examples_end_to_end(examples):
    index = np.array([[3, 0, -1], [9, -1, -1], [-1, -1, -1]], np.int32)
    batch = collate_rows(examples, index, 12, pad_id=7)
    assert batch["input_ids"].tolist() == [
        [30, 31, 32, 33, 34, 0, 1, 7, 7, 7, 7, 7],
        [90, 91, 92] + [7] * 9,
        [7] * 12,
    ]
    assert batch["position_ids"][0].tolist() == [0, 1, 2, 3, 4, 0, 1, 0, 0, 0, 0, 0]
    assert batch["segment_ids"][0].tolist() == [1, 1, 1, 1, 1, 2, 2, 0, 0, 0, 0, 0]
    assert batch["token_type_ids"][0].tolist() == [0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0]
    assert batch["read_positions"].tolist() == [[0, 5, 0], [0, 0, 0], [0, 0, 0]]
    assert batch["weights"].tolist() == [[1, 1, 0], [1, 0, 0], [0, 0, 0]]
    assert batch["example_ids"].tolist() == index.tolist()
    assert {name: array.dtype.name for name, array in batch.items()} == {
        name: "float32" if name == "weights" else "int32" for name in batch
    }


def test_every_segment_reads_its_own_first_token(plan, collate):
    for batch in collect(plan, collate, 0, plan.steps_per_epoch):
        rows, segments = np.nonzero(batch["weights"])
        read = batch["read_positions"][rows, segments]
        assert np.array_equal(
            batch["input_ids"][rows, read], 10 * batch["example_ids"][rows, segments]
        )
        assert np.array_equal(batch["segment_ids"][rows, read], segments + 1)
        assert not batch["position_ids"][rows, read].any()


def test_examples_without_token_types_have_type_zero(tmp_path):
    bare = build_or_open(tmp_path, "bare", lambda: ([{"input_ids": np.ones(3, np.int32)}], {}))
    batch = collate_rows(bare, np.zeros((1, 1), np.int32), 4)
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 0]]


def test_the_batches_are_the_plans_from_any_step_on(plan, collate):
    stop = 2 * plan.steps_per_epoch + 3
    whole = collect(plan, collate, 0, stop)
    assert_equal(whole, [collate(plan.batch(step), 16) for step in range(stop)])
    for start in (1, plan.steps_per_epoch - 1, plan.steps_per_epoch, stop - 1, stop):
        assert_equal(collect(plan, collate, start, stop), whole[start:])


@pytest.mark.parametrize("process_count", [1, 2, 4])
def test_processes_share_each_batch_by_blocks_of_rows(plan, collate, process_count):
    whole = collect(plan, collate, 3, 12)
    parts = [
        collect(plan, collate, 3, 12, process_index=index, process_count=process_count)
        for index in range(process_count)
    ]
    joined = [
        {name: np.concatenate([part[name] for part in step]) for name in step[0]}
        for step in zip(*parts, strict=True)
    ]
    assert_equal(joined, whole)


def test_rows_that_do_not_divide_are_refused(plan, collate):
    with pytest.raises(ValueError, match="4 rows do not divide over 3 processes"):
        collect(plan, collate, 0, 1, process_count=3)


@pytest.mark.parametrize("prefetch", [0, 1, 7])
def test_prefetching_changes_nothing(plan, collate, prefetch):
    wanted = collect(plan, collate, 0, 9)
    assert_equal(collect(plan, collate, 0, 9, prefetch=prefetch), wanted)


def test_evaluation_batches_have_their_own_row_length(examples, collate):
    plan = plan_eval(examples.lengths, 4, 16, None)
    found = collect(plan, collate, 0, len(plan))
    assert [batch["input_ids"].shape for batch in found] == [
        (4, plan.row_length_at(step)) for step in range(len(plan))
    ]
    seen = np.concatenate([batch["example_ids"][batch["weights"] > 0] for batch in found])
    assert np.array_equal(np.sort(seen), np.arange(150))


@pytest.mark.parametrize("workers", [2, *(pytest.param(n, marks=pytest.mark.full) for n in (1, 3))])
def test_workers_change_nothing(plan, collate, workers):
    wanted = collect(plan, collate, 5, 12)
    assert_equal(collect(plan, collate, 5, 12, workers=workers), wanted)


def collate_and_look(index, row_length):
    """What a worker is: its process, and the platforms that jax would use in it."""
    jax = sys.modules["jax"]
    return {"process": os.getpid(), "platforms": jax.config.jax_platforms}


def test_a_worker_is_a_process_off_the_accelerator(plan, monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS")  # as where there is an accelerator
    made = collect(plan, collate_and_look, 0, 4, workers=2)
    assert {batch["platforms"] for batch in made} == {"cpu"}
    processes = [batch["process"] for batch in made]
    assert processes[:2] == processes[2:]
    assert len({*processes, os.getpid()}) == 3


def fail(index, row_length):
    raise ValueError(f"no such row {index[0, 0]}")


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.full)])
def test_an_error_while_making_a_batch_reaches_the_loop(plan, workers):
    with pytest.raises(Exception, match="no such row"):
        collect(plan, fail, 0, 3, workers=workers)


def reporting(index, row_length):
    return {"process": os.getpid()}


def test_a_worker_that_dies_is_one_sentence(plan):
    made = batches(plan, reporting, 0, 200, workers=1, prefetch=1)
    process = next(made)["process"]
    os.kill(process, signal.SIGKILL)
    with pytest.raises(UserError, match=r"A data worker was killed by SIGKILL\. .* lower data"):
        list(made)


class Slow:
    """An iterator whose first batch takes a second."""

    def __next__(self):
        time.sleep(1.2)
        return 7


def test_workers_without_a_batch_are_reported_once_and_waited_for():
    sentences = []
    made = watched(Slow(), 0.1, sentences.append)
    assert next(made) == 7
    made.close()
    assert len(sentences) == 1
    assert sentences[0].startswith("waiting for a batch from the data workers for 0 s (processes: ")


def test_a_worker_that_is_stopped_is_named(plan):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert state(process.pid) == ""
        os.kill(process.pid, signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        assert state(process.pid) == " (stopped)"
        process.kill()


ABANDON = """
from functools import partial
from pathlib import Path
import sys
from jaxft.data.cache import Ragged
from jaxft.data.batching.loader import batches, collate_rows
from jaxft.data.batching.plans import TrainPlan
if __name__ == "__main__":
    examples = Ragged(Path(sys.argv[1]))
    plan = TrainPlan(examples.lengths, 0, 4, 16, 5)
    made = batches(plan, partial(collate_rows, examples), 0, 1000, workers=int(sys.argv[2]))
    print(len(next(made)["input_ids"]))
"""


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.full)])
def test_a_loop_that_stops_early_ends(examples, tmp_path, workers):
    script = tmp_path / "script.py"
    script.write_text(ABANDON)
    command = [sys.executable, str(script), str(examples.folder), str(workers)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "4\n"
