"""Checkpoints come back bit for bit on any mesh, or say in one sentence why not."""

import dataclasses
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp

from jaxft.engine.state import TrainState
from jaxft.errors import UserError
from jaxft.runs import saver as checkpoint_saver
from jaxft.runs.checkpoint import Checkpoints
from jaxft.runs.leaves import checksum

ONE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


def make_state(seed: int = 0, average: bool = True, groups: str = "ab") -> TrainState:
    rng = np.random.default_rng(seed)
    trainable = {
        "blocks/2/kernel": jnp.asarray(rng.normal(size=(64, 48)), jnp.float32),
        "blocks/10/kernel": jnp.asarray(rng.normal(size=(48, 64)), jnp.bfloat16),
        "head/bias": jnp.asarray(rng.normal(size=(3,)), jnp.float32),
    }
    labels = {name: groups[name.startswith("head")] for name in trainable}
    optimizer = optax.multi_transform({"a": optax.adamw(1e-3), "b": optax.sgd(0.1)}, labels)
    opt_state = jax.tree.map(
        lambda leaf: jnp.asarray(
            rng.integers(0, 9, leaf.shape) + rng.random(leaf.shape), leaf.dtype
        ),
        optimizer.init(trainable),
    )
    return TrainState(
        step=jnp.int32(seed),
        trainable=trainable,
        opt_state=opt_state,
        key=jax.random.key(seed),
        average=jax.tree.map(lambda leaf: leaf * 0.5, trainable) if average else None,
        previously_trained={},
        bad_steps=jnp.int32(0),
    )


def like(state, sharding=ONE):
    """What is wanted back, at whatever step."""
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state
    )
    return lambda step: shapes


def assert_same(found, wanted):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert one.dtype == other.dtype
        if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def data_file(step_folder: pathlib.Path, part: str) -> pathlib.Path:
    """The largest file with array data of one part of a checkpoint."""
    return max((step_folder / part).rglob("d/*"), key=lambda file: file.stat().st_size)


def damage(file: pathlib.Path, how: str) -> None:
    content = bytearray(file.read_bytes())
    if how == "flipped":
        content[len(content) // 2] ^= 4
    elif how == "cut":
        content = content[: len(content) // 2]
    file.write_bytes(content)
    if how == "gone":
        file.unlink()


def three_saved(folder) -> list[TrainState]:
    states = [make_state(seed) for seed in range(3)]
    with Checkpoints(folder) as checkpoints:
        for step, state in enumerate(states):
            checkpoints.save(step, state)
    return states


def test_every_leaf_returns_bit_for_bit_with_its_meta(tmp_path):
    state = make_state(3)
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(7, state, meta={"epoch": 0.5, "config": {"a": ["b", None]}})
        restored = checkpoints.restore(like(state))
    assert_same(restored.state, state)
    assert restored.meta == {"epoch": 0.5, "config": {"a": ["b", None]}}
    assert restored.notes == []


def test_a_save_keeps_what_it_was_given_when_the_buffers_are_donated_at_once(tmp_path):
    state, same = make_state(1), make_state(1)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        jax.tree.map(lambda leaf: leaf.delete(), state)
        checkpoints.wait()
        assert_same(checkpoints.restore(like(same)).state, same)


def test_a_save_that_has_just_begun_holds_up_nothing_and_is_not_listed(tmp_path, monkeypatch):
    go_on, write = threading.Event(), ocp.training.Checkpointer.save_checkpointables_async

    def late(*given, **options):
        assert go_on.wait(60)
        return write(*given, **options)

    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(1))
        checkpoints.wait()
        monkeypatch.setattr(ocp.training.Checkpointer, "save_checkpointables_async", late)
        state = make_state(2)
        checkpoints.save(2, state)  # returns, though Orbax has not planned it yet
        jax.tree.map(lambda leaf: leaf.delete(), state)
        assert (checkpoints.is_saving(), checkpoints.steps()) == (True, [1])
        go_on.set()
        checkpoints.wait()
        assert (checkpoints.is_saving(), checkpoints.steps()) == (False, [1, 2])
        assert_same(checkpoints.restore(like(make_state(2))).state, make_state(2))


def test_a_save_rests_beside_the_steps_until_it_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_saver, "PIECE", 2**10)
    monkeypatch.setattr(checkpoint_saver, "REST", 1e6)  # a save is never over by itself
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, make_state(step))
            resting = tmp_path / f"{step}.orbax-checkpoint-tmp"
            deadline = time.monotonic() + 60
            while not list(resting.rglob("trainable*/**/d/*")) and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(0.5)
            saved = list(range(1, step))
            assert (checkpoints.is_saving(), checkpoints.steps()) == (True, saved)
            checkpoints.wait()
            assert (checkpoints.is_saving(), checkpoints.steps()) == (False, [*saved, step])
        assert_same(checkpoints.restore(like(make_state(2))).state, make_state(2))


@pytest.mark.parametrize("shape", [(2, 2, 2), (8, 1, 1)])
def test_eight_devices_to_one_and_back(tmp_path, shape):
    mesh = jax.make_mesh(shape, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    whole = NamedSharding(mesh, PartitionSpec())

    def spread(leaf):
        divides = leaf.ndim == 2
        return NamedSharding(mesh, PartitionSpec(("fsdp", "data"), "tensor")) if divides else whole

    state = make_state(4)
    spread_state = jax.tree.map(lambda leaf: jax.device_put(leaf, spread(leaf)), state)
    with Checkpoints(tmp_path / "8") as checkpoints:
        checkpoints.save(1, spread_state)
        one = checkpoints.restore(like(state)).state
    assert_same(one, state)
    with Checkpoints(tmp_path / "1") as checkpoints:
        checkpoints.save(1, one)
        wanted = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=spread(leaf)), state
        )
        eight = checkpoints.restore(lambda step: wanted).state
    assert_same(eight, state)
    kernel = eight.trainable["blocks/2/kernel"]
    assert kernel.sharding == spread(kernel)
    assert len(kernel.sharding.device_set) == 8


def test_fields_without_arrays_are_left_out(tmp_path):
    state = dataclasses.replace(make_state(average=False), opt_state=optax.EmptyState())
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        assert_same(checkpoints.restore(like(state)).state, state)
    assert not (tmp_path / "1" / "opt_state").exists()
    assert not (tmp_path / "1" / "average").exists()


@pytest.mark.parametrize(
    ("mode", "scores", "kept", "best"),
    [
        ("max", [0.9, 0.5, None, 0.6], [1, 3, 4], 1),
        ("min", [0.9, 0.5, None, 0.6], [2, 3, 4], 2),
        ("max", [0.9, 0.9, 0.1, 0.1], [2, 3, 4], 2),
        ("min", [0.9, 0.9, 1.1, 1.1], [2, 3, 4], 2),
        ("max", [0.1, float("nan"), 0.05, 0.05], [1, 3, 4], 1),
        ("max", [None, None, None, None], [3, 4], None),
    ],
)
def test_the_last_two_and_the_best_stay(tmp_path, mode, scores, kept, best):
    state = make_state()
    with Checkpoints(tmp_path, keep=2, best_metric="f1", mode=mode) as checkpoints:
        for step, score in enumerate(scores, start=1):
            checkpoints.save(step, state, None if score is None else {"f1": score, "loss": 1.0})
        checkpoints.wait()
        assert checkpoints.steps() == kept
        assert checkpoints.best() == best
    with Checkpoints(tmp_path, keep=2, best_metric="f1", mode=mode) as again:
        assert (again.steps(), again.best(), again.latest()) == (kept, best, 4)
        assert again.metrics(4) == (None if scores[3] is None else {"f1": scores[3], "loss": 1.0})


def test_a_changed_file_of_metrics_changes_no_best_and_no_deletion(tmp_path):
    state = make_state()
    with Checkpoints(tmp_path, keep=1, best_metric="f1") as checkpoints:
        checkpoints.save(1, state, {"f1": 0.9})
        checkpoints.save(2, state, {"f1": 0.5})
    (tmp_path / "1" / "metrics" / "metrics").write_text('{"f1": 0.1}')
    shutil.rmtree(tmp_path / "2" / "metrics")
    with Checkpoints(tmp_path, keep=1, best_metric="f1") as checkpoints:
        assert (checkpoints.best(), checkpoints.metrics(2)) == (1, {"f1": 0.5})
        checkpoints.save(3, state, {"f1": 0.6})
        checkpoints.wait()
        assert (checkpoints.steps(), checkpoints.best()) == ([1, 3], 1)


def test_a_checkpoint_whose_deletion_is_killed_is_not_listed(tmp_path, monkeypatch):
    state = make_state()
    with monkeypatch.context() as patch, Checkpoints(tmp_path, keep=1) as checkpoints:
        patch.setattr("etils.epath.gpath.PosixGPath.rmtree", lambda *_, **__: None)
        for step in (1, 2):
            checkpoints.save(step, state)
    assert len(list(tmp_path.iterdir())) == 2
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        assert checkpoints.steps() == [2]
        checkpoints.save(3, state)
    assert [path.name for path in tmp_path.iterdir()] == ["3"]


def test_another_best_metric_may_be_chosen_later(tmp_path):
    state = make_state()
    with Checkpoints(tmp_path, keep=1, best_metric="f1") as checkpoints:
        checkpoints.save(1, state, {"f1": 0.5})
    with Checkpoints(tmp_path, keep=1, best_metric="accuracy") as checkpoints:
        assert checkpoints.best() is None
        checkpoints.save(2, state, {"accuracy": 0.1})
        checkpoints.save(3, state)
        checkpoints.wait()
        assert (checkpoints.steps(), checkpoints.best()) == ([2, 3], 2)


def test_a_step_that_is_saved_gets_its_metrics_and_is_never_deleted(tmp_path):
    with Checkpoints(tmp_path, best_metric="f1") as checkpoints:
        checkpoints.save(1, make_state(1))
        checkpoints.save(1, make_state(2))
        assert_same(checkpoints.restore(like(make_state())).state, make_state(1))
        checkpoints.wait()
        before = (tmp_path / "1").stat().st_ino
        checkpoints.save(1, make_state(1), {"f1": 0.5})
        checkpoints.wait()
        assert (checkpoints.steps(), checkpoints.best()) == ([1], 1)
    # Orbax deletes a checkpoint before it writes it again: a kill meanwhile would leave none.
    assert (tmp_path / "1").stat().st_ino == before
    with Checkpoints(tmp_path, best_metric="f1") as checkpoints:
        assert (checkpoints.best(), checkpoints.metrics(1)) == (1, {"f1": 0.5})
        assert_same(checkpoints.restore(like(make_state())).state, make_state(1))


@pytest.mark.parametrize("part", ["trainable", "opt_state", "average"])
@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_damage_is_found_and_the_one_before_is_used(tmp_path, capfd, part, how):
    states = three_saved(tmp_path)
    damage(data_file(tmp_path / "2", part), how)
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(like(states[0]))
    assert_same(restored.state, states[1])
    (note,) = restored.notes
    assert note.startswith(f"Checkpoint 2 in {tmp_path} is damaged: ")
    if how == "flipped":
        assert f"'{part}/" in note
    assert capfd.readouterr() == ("", "")


def test_a_save_leaves_no_event_loop_behind(tmp_path):
    """Orbax has a thread with a loop of its own for each save, until its result is asked for."""

    def loops():
        return [thread for thread in threading.enumerate() if "_run_loop" in thread.name]

    before = len(loops())
    with Checkpoints(tmp_path) as checkpoints:
        for step in range(4):
            checkpoints.save(step, make_state(step))
        checkpoints.wait()
        assert len(loops()) == before


SAVES_BESIDE_A_HEAP = """
import sys
import jax
from benchmarks.save_memory import made, resident
from jaxft.device.process import prepare_process
from jaxft.runs.checkpoint import Checkpoints

prepare_process()
state = jax.block_until_ready(made(2**26))
before = resident()
with Checkpoints(sys.argv[1]) as checkpoints:
    for step in range(2):
        checkpoints.save(step, state)
        checkpoints.wait()
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc keeps what is freed")
def test_a_finished_save_returns_its_memory(tmp_path):
    """In a process whose heap keeps what steps free: 109 MB more of a state of 67 without it."""
    command = [sys.executable, "-c", SAVES_BESIDE_A_HEAP, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 2**25


def test_a_save_that_cannot_begin_leaves_nothing_to_wait_for(tmp_path, monkeypatch):
    """As on several hosts, where Orbax is called at once."""

    def refuse(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_saver, "can_copy", lambda _: False)
    with Checkpoints(tmp_path) as checkpoints:
        saver = checkpoints._saver
        monkeypatch.setattr(saver._orbax, "save_checkpointables_async", refuse)
        with pytest.raises(UserError, match="could not be saved"):
            checkpoints.save(0, make_state(0))
        waiting = threading.Thread(target=checkpoints.wait, daemon=True)
        waiting.start()
        waiting.join(30)
        assert not waiting.is_alive()


def test_a_key_that_is_read_as_integers_is_damage(tmp_path):
    states = three_saved(tmp_path)
    # The kind of key is there only; Orbax reads its integers without it, and says nothing.
    (tmp_path / "2/key/array_metadatas/process_0").unlink()
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(like(states[0]))
    assert_same(restored.state, states[1])
    assert restored.notes == [
        f"Checkpoint 2 in {tmp_path} is damaged: 'key' differs from what was saved."
    ]


@pytest.mark.parametrize("change", [b'"checksum": 9', b'"shape": [7'])
def test_a_damaged_description_is_damage_and_not_another_model(tmp_path, change):
    states = three_saved(tmp_path)
    file = tmp_path / "2" / "_CHECKPOINT_METADATA"
    start = change.split(b" ")[0] + b" "
    at = file.read_bytes().index(start)
    content = bytearray(file.read_bytes())
    content[at : at + len(change)] = change
    file.write_bytes(content)
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(like(states[0]))
    assert_same(restored.state, states[1])
    assert restored.notes == [
        f"Checkpoint 2 in {tmp_path} is damaged: its metadata cannot be read."
    ]


def test_where_all_are_damaged_each_is_named(tmp_path):
    states = three_saved(tmp_path)
    for step in range(3):
        damage(data_file(tmp_path / str(step), "average"), "flipped")
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(UserError, match=r"Checkpoint 2 .* Checkpoint 1 .* Checkpoint 0 .*"):
            checkpoints.restore(like(states[0]))
        with pytest.raises(UserError, match=r"Checkpoint 1 .* is damaged.* Others: 0, 2\."):
            checkpoints.load_params(1)


def test_the_first_save_after_a_restore_abandons_what_came_later(tmp_path):
    states = three_saved(tmp_path)
    damage(data_file(tmp_path / "2", "trainable"), "flipped")
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.restore(like(states[0]))
        assert checkpoints.steps() == [0, 1, 2]
        checkpoints.save(2, states[2])
        checkpoints.wait()
        restored = checkpoints.restore(like(states[0]))
    assert restored.notes == []
    assert_same(restored.state, states[2])


def test_damaged_metrics_are_one_sentence(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(), {"f1": 0.5})
    damage(tmp_path / "1" / "metrics" / "metrics", "cut")
    with pytest.raises(UserError, match="has metrics that are not JSON"):
        Checkpoints(tmp_path)


@pytest.mark.parametrize("missing", ["trainable", "_CHECKPOINT_METADATA"])
def test_a_half_checkpoint_is_passed_over_and_saved_again(tmp_path, missing):
    states = three_saved(tmp_path)
    gone = tmp_path / "2" / missing
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(like(states[0]))
        assert_same(restored.state, states[1])
        assert len(restored.notes) == 1
        checkpoints.save(2, states[2])
        assert_same(checkpoints.restore(like(states[0])).state, states[2])


def changed(state: TrainState, **leaves) -> TrainState:
    return dataclasses.replace(state, trainable={**state.trainable, **leaves})


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        (
            changed(make_state(), **{"head/bias": jnp.zeros((5,))}),
            r"'trainable/head/bias' is \(3,\) float32 in the checkpoint and \(5,\) float32 in "
            "this run",
        ),
        (
            changed(make_state(), **{"blocks/2/kernel": jnp.zeros((64, 48), jnp.bfloat16)}),
            r"'trainable/blocks/2/kernel' is \(64, 48\) float32 in the checkpoint and "
            r"\(64, 48\) bfloat16",
        ),
        (changed(make_state(), new=jnp.zeros(1)), "lacks 'trainable/new', which this run needs"),
        (make_state(average=False), "holds 'average/.*', which this run does not have"),
        (make_state(groups="ba"), "lacks 'opt_state/inner_states/a/inner_state/0/mu/head/bias'"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_by_leaf(tmp_path, capfd, wanted, sentence):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state())
        with pytest.raises(UserError, match=sentence):
            checkpoints.restore(like(wanted))
    assert capfd.readouterr() == ("", "")


def test_parameters_alone_come_from_the_average_where_there_is_one(tmp_path):
    with_average, without = make_state(1), make_state(2, average=False)
    with Checkpoints(tmp_path / "a", best_metric="f1") as checkpoints:
        checkpoints.save(1, with_average, {"f1": 0.9})
        checkpoints.save(2, make_state(3), {"f1": 0.1})
        assert_same(checkpoints.load_params("best"), with_average.average)
        assert_same(checkpoints.load_params("last"), make_state(3).average)
        assert_same(checkpoints.load_params("1"), with_average.average)
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("fsdp"))
    places = dict.fromkeys(without.trainable, NamedSharding(mesh, PartitionSpec()))
    places["blocks/2/kernel"] = rows
    with Checkpoints(tmp_path / "b") as checkpoints:
        checkpoints.save(1, without)
        loaded = checkpoints.load_params(1, places)
    assert_same(loaded, without.trainable)
    assert loaded["blocks/2/kernel"].sharding == rows


def test_parameters_alone_are_those_that_trained_before_too(tmp_path):
    """Leaves of an earlier phase come along, under their old name; `like` is called by step."""
    early, late = (
        make_state(1),
        dataclasses.replace(make_state(2), previously_trained={"old": jnp.ones(3)}),
    )
    states = {1: early, 2: late}
    with Checkpoints(tmp_path) as checkpoints:
        for step, state in states.items():
            checkpoints.save(step, state)
        assert_same(checkpoints.load_params(1), early.average)
        assert_same(checkpoints.load_params(2), late.average | late.previously_trained)
        assert (tmp_path / "2" / "settled").is_dir(), "checkpoints of earlier versions have it"
        for step, state in states.items():
            found = checkpoints.restore(lambda at: like(states[at])(at), step).state
            assert_same(found, state)


def test_a_checkpoint_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere holds no checkpoint"):
        Checkpoints(tmp_path / "nowhere", read_only=True)
    assert not (tmp_path / "nowhere").exists()
    with Checkpoints(tmp_path, best_metric="f1") as checkpoints:
        with pytest.raises(UserError, match="holds no checkpoint"):
            checkpoints.restore(like(make_state()))
        checkpoints.save(5, make_state())
        with pytest.raises(UserError, match=r"no checkpoint 6\. There are: best, last, 5\."):
            checkpoints.load_params(6)
        with pytest.raises(UserError, match=r"has been evaluated\. Ask for 'last'\."):
            checkpoints.load_params("best")


def test_reading_leaves_a_save_in_progress_alone(tmp_path):
    three_saved(tmp_path)
    unfinished = tmp_path / "3.orbax-checkpoint-tmp"
    unfinished.mkdir()
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        checkpoints.load_params("last")
    assert unfinished.exists()
    with Checkpoints(tmp_path) as checkpoints:  # the process that trains, and it alone saves
        checkpoints.save(4, make_state())
    assert not unfinished.exists()


def run_python(body: str, *arguments: str) -> subprocess.CompletedProcess:
    setup = """
        import os, resource, signal, sys, time
        import jax, jax.numpy as jnp
        from jaxft.cli.parts.process import quiet_orbax
        from jaxft.runs.checkpoint import Checkpoints
        from jaxft.engine.state import TrainState
        from jaxft.errors import UserError

        quiet_orbax()  # as the command line does

        def state(seed):
            kernel = jax.random.normal(jax.random.key(seed), (3000, 3000))
            zero = jnp.int32(0)
            return TrainState(zero, {"kernel": kernel}, (), jax.random.key(seed), None, {}, zero)

        checkpoints = Checkpoints(sys.argv[1])
        checkpoints.save(1, state(1))
        checkpoints.wait()
    """
    code = textwrap.dedent(setup) + textwrap.dedent(body)
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120
    )


def large_state(seed: int) -> TrainState:
    kernel = jax.random.normal(jax.random.key(seed), (3000, 3000))
    zero = jnp.int32(0)
    return TrainState(zero, {"kernel": kernel}, (), jax.random.key(seed), None, {}, zero)


def test_kill_in_the_middle_of_a_save(tmp_path):
    done = run_python(
        """
        checkpoints.save(2, state(2))
        print(checkpoints.steps(), checkpoints.latest(), flush=True)
        while not any("tmp" in name for name in os.listdir(sys.argv[1])):
            time.sleep(0.001)  # the save plans before it writes
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        str(tmp_path),
    )
    assert done.stdout == "[1] 1\n"  # a save counts when it is complete, not when it begins
    assert done.returncode == -signal.SIGKILL
    assert any("tmp" in name for name in os.listdir(tmp_path)), "the save was over before the kill"
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [1]
        assert_same(checkpoints.restore(like(large_state(1))).state, large_state(1))
        checkpoints.save(2, large_state(2))
        checkpoints.wait()
        assert_same(checkpoints.restore(like(large_state(2))).state, large_state(2))
    assert sorted(os.listdir(tmp_path)) == ["1", "2"]


@pytest.mark.slow
def test_a_full_disk_is_one_sentence_and_the_last_checkpoint_stays(tmp_path):
    body = """
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
        checkpoints.save(2, state(2))
        try:
            checkpoints.wait()
        except UserError as error:
            print(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        print(checkpoints.steps())
        checkpoints.close()
    """
    done = run_python(body, str(tmp_path))
    assert done.stdout == (
        f"A checkpoint could not be saved in {tmp_path}: File too large. "
        "Complete checkpoints there: 1.\n[1]\n"
    )
    assert (done.returncode, done.stderr) == (0, "")
    with Checkpoints(tmp_path) as checkpoints:
        assert_same(checkpoints.restore(like(large_state(1))).state, large_state(1))


def test_the_checksum_is_the_same_on_any_mesh():
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    for dtype in (jnp.float32, jnp.bfloat16, jnp.int8, jnp.uint32):
        array = jnp.asarray(np.random.default_rng(0).integers(0, 99, (16, 8)), dtype)
        sums = {
            checksum({"x": jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec)))})["x"]
            for spec in [(), ("a",), ("b", "a"), (("a", "b"),), (None, "b")]
        }
        assert sums == {checksum({"x": array})["x"]}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "bool"])
def test_the_checksum_sees_any_bit_and_any_exchange(dtype):
    rng = np.random.default_rng(0)
    array = np.asarray(jnp.asarray(rng.integers(0, 2, (6, 5)), dtype))
    before = checksum({"x": jnp.asarray(array)})["x"]
    bits = 1 if dtype == "bool" else 8
    for byte in range(array.nbytes):
        for bit in range(bits):
            raw = bytearray(array.tobytes())
            raw[byte] ^= 1 << bit
            other = np.frombuffer(bytes(raw), array.dtype).reshape(array.shape)
            assert checksum({"x": jnp.asarray(other)})["x"] != before
    assert checksum({"x": jnp.asarray(array[::-1])})["x"] != before
    assert checksum({"x": jnp.zeros((3,))})["x"] != checksum({"x": jnp.zeros((4,))})["x"]
