"""What fits instead, and the largest batch that does: the searches, on a compiler of our own."""

import json

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from rich.console import Console

from jaxft.device.chips import find_chip
from jaxft.device.mesh import make_mesh
from jaxft.planning import child as plan_child
from jaxft.planning.child import Planner, make_plan
from jaxft.planning.fit import Try, largest_batch, remedies, try_remedies
from jaxft.planning.pod import PodPlan
from jaxft.planning.step import Compiled, Memory, OutOfMemory, _peak, program_text, widest_shape
from tests.support.tiny import tiny_config


def compiler(memory, room):
    """`fits`, and what it was asked: a compiler that takes rows as long as `memory(rows)` fits."""
    asked = []

    def fits(rows):
        asked.append(rows)
        taken = memory(rows)
        return taken if taken <= room else None

    return fits, asked


@pytest.mark.parametrize(
    ("memory", "start"),
    [
        (lambda rows: 100 + 3 * rows, 16),  # a line
        (lambda rows: 100 + 3 * rows, 4096),  # far too many to start with
        (lambda rows: 100 + rows**2 / 50, 16),  # no line at all
        (lambda rows: max(700, 2 * rows), 16),  # flat, then steep
        (lambda rows: 100 + 128 * (rows // 128), 32),  # in steps
    ],
)
@pytest.mark.parametrize("step", [1, 16])
def test_so_many_fit_and_a_step_more_do_not(memory, start, step):
    fits, asked = compiler(memory, 1000)
    most, refused = largest_batch(fits, step, start, 1000)
    assert refused == most + step
    assert memory(most) <= 1000 < memory(refused)
    assert {most, refused} <= set(asked)
    assert len(asked) == len(set(asked)) <= 20


def test_on_a_line_few_compilations_are_enough():
    fits, asked = compiler(lambda rows: 100 + 3 * rows, 10_000)
    assert largest_batch(fits, 16, 16, 10_000)[0] == 3296
    assert len(asked) <= 6


def test_without_a_known_room_the_distance_is_halved():
    fits, _ = compiler(lambda rows: 100 + 3 * rows, 1000)
    assert largest_batch(fits, 4, 4, None) == (300, 304)


def test_where_nothing_fits_that_is_said():
    fits, asked = compiler(lambda rows: 2000 + rows, 1000)
    assert largest_batch(fits, 16, 64, 1000) == (0, 16)
    assert asked[-1] == 16


def test_a_program_that_cannot_be_printed_has_a_plan_without_its_collectives(tmp_path, monkeypatch):
    """A libtpu of another release compiles instructions that jax cannot read back to print them."""

    class Unreadable:
        def as_text(self):
            raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure: async-update ...")

    text = program_text(Unreadable())
    assert text is None

    def compile_train_step(built, now, tell):
        return Compiled(Memory(100, 200, 300, 600), 10**9, 10**12, text, text, 0.0, 0.0, 0.0)

    monkeypatch.setattr(plan_child, "compile_train_step", compile_train_step)
    planner = Planner(tiny_config(tmp_path), jax.devices()[:2], True, lambda _: None)
    planner.chip = find_chip("TPU v6 lite")
    facts = make_plan(planner, None, largest=False) | {"note": None, "mismatch": "Another libtpu."}
    assert (facts["collectives"], facts["kernels"], facts["roofline"]["links"]) == (None,) * 3
    assert facts["roofline"]["bound"] == "memory"
    console = Console(width=200)
    with console.capture() as capture:
        console.print(PodPlan(json.loads(PodPlan(facts).to_json())).render())
    shown = capture.get()
    assert "note       Another libtpu." in shown
    assert "sent       not available: the compiler cannot print its program" in shown
    assert "links not available" in shown
    assert "600 B" in shown


def test_the_widest_array_of_a_program_is_the_one_of_most_elements():
    """As a device has it, of whatever type."""
    rows = NamedSharding(make_mesh(4, 1, 1, devices=jax.devices()[:4]), PartitionSpec("data"))
    shape = jax.ShapeDtypeStruct((64, 3), jnp.float32, sharding=rows)
    lowered = jax.jit(lambda x: ((x @ x.T) > 0).sum(axis=1)).lower(shape)
    assert widest_shape(lowered.compile().as_text()) == (16, 64)
    assert widest_shape("%a = pred[3,4]{1,0} and(pred[2,2]{1,0} %b, bf16[] %c)") == (3, 4)


def test_the_peak_of_a_cpu_has_the_temporaries():
    def chain(x):
        return jnp.sum(jnp.tanh(x @ x) @ x)

    memory = jax.jit(jax.grad(chain)).lower(jnp.ones((64, 64))).compile().memory_analysis()
    assert memory.temp_size_in_bytes >= 64 * 64 * 4
    whole = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    assert _peak(memory, "cpu") >= whole


@pytest.mark.parametrize(("pack", "room"), [(True, None), (False, None), (False, 1040)])
def test_the_largest_batch_is_that_of_a_config_that_says_so(tmp_path, monkeypatch, pack, room):
    """Also where rows are packed, and fuller in a larger batch, and on a CPU, whose compiler
    refuses nothing: there the machine's memory ends the search."""
    asked = []

    def compile_train_step(built, now, tell):
        asked.append(built.layout.shape)
        assert built.plan.batch(0).shape[0] == built.layout.rows
        if built.layout.rows > 40 and room is None:
            raise OutOfMemory(None)
        memory = Memory(0, 0, 0, peak=1000 + built.layout.rows)
        return Compiled(memory, 0, 0, (), 0, 0.0, 0.0, 0.0)

    monkeypatch.setattr(plan_child, "compile_train_step", compile_train_step)
    monkeypatch.setattr(Planner, "room", lambda self: room)
    config = tiny_config(tmp_path, data={"batch_size": 16, "pack": pack})
    planner = Planner(config, jax.devices()[:2], True, lambda _: None)
    found = make_plan(planner, None, largest=True)["largest_batch"]
    assert len(asked) == len(set(asked)), "nothing is compiled twice"
    assert (found["rows"], found["peak"]) == (40, 1040)
    assert found["refused_batch_size"] == found["batch_size"] + 2
    laid_out = {
        which: planner.set_up((f"data.batch_size={found[which]}",))[0].layout.rows
        for which in ("batch_size", "refused_batch_size")
    }
    assert laid_out == {"batch_size": 40, "refused_batch_size": 42}
    assert (found["batch_size"] > 40) is pack


def test_a_step_beyond_the_memory_of_a_cpus_machine_does_not_fit(tmp_path, monkeypatch):
    """Its compiler refuses nothing."""

    def compile_train_step(built, now, tell):
        return Compiled(Memory(0, 0, 0, peak=1000 + built.layout.rows), 0, 0, (), 0, 0.0, 0.0, 0.0)

    monkeypatch.setattr(plan_child, "compile_train_step", compile_train_step)
    monkeypatch.setattr(Planner, "room", lambda self: 1040)
    config = tiny_config(tmp_path, data={"batch_size": 64, "pack": False})
    planner = Planner(config, jax.devices()[:2], True, lambda _: None)
    facts = make_plan(planner, None, largest=False)
    assert (facts["fits"], facts["needs"]) == (False, 1064)
    assert any(one["fits"] for one in facts["tried"])


def test_changes_are_tried_cheapest_first(tmp_path):
    config = tiny_config(tmp_path, data={"batch_size": 64})
    changes = list(remedies(config, "none", devices=4, rows=32, divisor=4))
    assert changes[0] == ("train.remat=dots",)
    assert ("mesh.data=1", "mesh.fsdp=-1") in changes
    assert ("train.accumulate=8",) in changes
    assert ("data.batch_size=32",) in changes
    assert ("train.remat=dots", "data.batch_size=32") not in changes
    assert changes.index(("train.remat=full",)) < changes.index(("data.batch_size=32",))


def test_what_is_already_so_is_not_tried(tmp_path):
    config = tiny_config(
        tmp_path, mesh={"data": 1, "fsdp": -1}, train={"remat": "full", "accumulate": 2}
    )
    changes = remedies(config, "full", devices=4, rows=8, divisor=4)
    keys = [key for change in changes for key in change]
    assert not any("remat" in key or "mesh" in key or "accumulate" in key for key in keys)


def test_devices_that_share_rows_leave_batches_to_divide(tmp_path):
    """A batch of 8 has two rows for each of the 4 groups along `data`, whatever their size."""
    mesh = {"data": 4, "context": 4}
    config = tiny_config(tmp_path, mesh=mesh, data={"batch_size": 8})
    changes = list(remedies(config, "full", devices=16, rows=8, divisor=4))
    assert ("train.accumulate=2",) in changes
    assert ("data.batch_size=4",) in changes


def test_parameters_are_cut_inside_of_each_slice(tmp_path):
    config = tiny_config(tmp_path, mesh={"data": -1, "slices": 2})
    changes = list(remedies(config, "full", devices=8, rows=8, divisor=8))
    assert changes[0] == ("mesh.data=2", "mesh.fsdp=-1")


def test_what_fits_comes_first_and_the_quickest_of_it():
    told = {
        ("train.remat=full",): Try(("train.remat=full",), True, 9, 2.0),
        ("mesh.fsdp=-1",): Try(("mesh.fsdp=-1",), False, 30),
        ("train.accumulate=2",): Try(("train.accumulate=2",), True, 8, 1.0),
        ("data.batch_size=1",): Try(("data.batch_size=1",), True, 1, 0.1),
    }
    found = try_remedies(iter(told), told.__getitem__)
    assert [one.change[0] for one in found] == [
        "train.accumulate=2",
        "train.remat=full",
        "mesh.fsdp=-1",  # the fourth is not tried: two that fit are enough
    ]


def test_a_try_is_not_endless():
    changes = ((f"train.accumulate={n}",) for n in range(1000))
    found = try_remedies(changes, lambda change: Try(change, False, 1000 - int(change[0][-1])))
    assert len(found) == 8
    assert found[0].needs == min(one.needs for one in found)
