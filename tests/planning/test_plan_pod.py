"""A plan for chips that are not there, by their own compiler; and what cannot be planned."""

import os
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import pytest

from jaxft.device.chips import TPUS, parse_topology
from jaxft.errors import UserError
from jaxft.planning import pod as plan_pod
from jaxft.planning.pod import plan_on
from tests.support.tiny import tiny_checkpoint, tiny_config

SLICE = parse_topology("v5e:2x2")
# A small slice of every generation; all but the cheapest to compile for run with `--full`.
GENERATIONS = [
    pytest.param(f"{chip.name}:{chip.shapes[1]}", id=chip.name, marks=marks)
    for chip in TPUS
    for marks in [() if chip.name == "v5e" else pytest.mark.full]
]
by_libtpu = pytest.mark.skipif(
    find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ,
    reason="libtpu is not installed (Linux on x86-64)",
)


def test_without_the_compiler_it_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(plan_pod, "find_spec", lambda name: None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    with pytest.raises(UserError, match=r"libtpu\) is not installed") as raised:
        plan_on(tiny_config(tmp_path), topology=SLICE)
    assert "pip install" in str(raised.value)


@pytest.mark.slow
@by_libtpu
def test_a_mesh_that_does_not_multiply_out_is_refused(tmp_path):
    """What the compiling process refuses is a sentence here too."""
    config = tiny_config(tmp_path, mesh={"data": 3})
    with pytest.raises(UserError, match=r"3x1x1 .* does not divide 4 device"):
        plan_on(config, topology=SLICE)


@pytest.mark.slow
@by_libtpu
@pytest.mark.parametrize("name", GENERATIONS)
def test_each_generation_has_a_plan(name, tmp_path):
    """libtpu's release decides which chips it compiles for, and whether jax can read the result."""
    config = tiny_config(tmp_path, mesh={"data": 1, "fsdp": -1})
    plan = plan_on(config, topology=parse_topology(name))
    facts = plan.facts
    assert plan.fits
    assert facts["mismatch"] is None
    assert (facts["topology"], facts["devices"]) == (name, parse_topology(name).devices)
    assert facts["memory"]["peak"] > facts["memory"]["weights"] > 0
    attention = facts["attention"]["text"]
    assert attention["by"] == "xla"
    assert attention["reason"].startswith("splash cannot serve: it has no dropout")
    assert f"attention of text by xla: {attention['reason']}" in facts["why"]
    assert "all-gather" in {one["kind"] for one in facts["collectives"]}
    assert facts["roofline"]["links"] > 0


@pytest.mark.full  # some seconds of the compiler each, and a dozen of them for the largest batch
@by_libtpu
class TestByTheCompiler:
    def test_two_plans_at_once_say_what_one_says(self, tmp_path):
        configs = [
            tiny_config(tmp_path / name, mesh={"data": 1, "fsdp": 4}) for name in ("one", "other")
        ]
        with ThreadPoolExecutor() as pool:
            both = list(pool.map(lambda config: plan_on(config, topology=SLICE).facts, configs))
        first, second = ({**told, "compile": None} for told in both)
        assert first == second
        assert first["memory"]["peak"] > first["memory"]["weights"] > 0
        kinds = {one["kind"] for one in first["collectives"]}
        assert "all-gather" in kinds
        assert {one["axes"] for one in first["collectives"]} == {"fsdp"}

    def test_the_largest_batch_fits_and_the_next_step_up_is_refused(self, tmp_path):
        # So wide inside that some hundred rows fill a chip: each number that is tried is compiled.
        tiny_checkpoint(tmp_path / "checkpoint", intermediate_size=2**17)

        def told(rows, **how):
            config = tiny_config(tmp_path, data={"batch_size": rows, "pack": False})
            return plan_on(config, topology=SLICE, **how).facts

        found = told(1024, largest_batch=True)
        largest = found["largest_batch"]
        assert largest["peak"] <= found["room"]
        assert largest["refused_batch_size"] == largest["batch_size"] + 4  # one for each chip
        assert told(largest["batch_size"])["fits"]
        assert not told(largest["refused_batch_size"])["fits"]
