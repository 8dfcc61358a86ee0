"""Slices of TPUs: which devices are of which, what joins them, and what crosses between them."""

import os
from dataclasses import dataclass
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxft.cli.main import main
from jaxft.config.load import to_yaml
from jaxft.device.chips import parse_topology
from jaxft.device.collectives import Collective, collectives
from jaxft.device.mesh import batch_sharding, make_mesh
from jaxft.device.slices import by_slice, check_slices
from jaxft.errors import UserError
from jaxft.planning.pod import plan_on
from tests.support.tiny import tiny_config


@dataclass(frozen=True)
class Chip:
    """What a TPU's device tells."""

    id: int
    slice_index: int
    platform: str = "tpu"


def chips(*slices: int) -> list[Chip]:
    return [Chip(number, of) for number, of in enumerate(slices)]


def test_devices_are_ordered_slice_by_slice_and_within_one_as_they_are():
    mixed = by_slice(chips(1, 0, 1, 0), 2)
    assert [chip.id for chip in mixed] == [1, 3, 0, 2]
    assert by_slice(chips(0, 0), 1) == chips(0, 0)
    assert by_slice(jax.devices(), 2) == jax.devices()


@pytest.mark.parametrize(
    ("devices", "slices", "why"),
    [
        (chips(0, 0, 0, 0), 2, "2 where the devices are of 1 slice"),
        (chips(0, 0, 1, 1), 1, "1 where the devices are of 2 slice"),
        (chips(0, 0, 0, 1), 2, "4 devices do not divide over 2 slices"),
    ],
)
def test_slices_that_are_not_the_devices_are_refused(devices, slices, why):
    with pytest.raises(UserError, match=rf"mesh\.slices: {why}"):
        by_slice(devices, slices)


def test_slices_are_the_outermost_part_of_data():
    mesh = make_mesh(-1, 2, 1, slices=2)
    assert mesh.devices.shape == (4, 2, 1, 1, 1)
    assert list(mesh.devices.flat) == jax.devices()
    with pytest.raises(UserError, match=r"2 slices do not divide the 1 device\(s\) along data"):
        make_mesh(1, 8, 1, slices=2)
    with pytest.raises(UserError, match="8 devices do not divide over 3 slices"):
        make_mesh(-1, 1, 1, slices=3)


JOINED = {
    "MEGASCALE_NUM_SLICES": "2",
    "MEGASCALE_SLICE_ID": "1",
    "MEGASCALE_COORDINATOR_ADDRESS": "10.0.0.2:8080",
}


def without(name: str) -> dict[str, str]:
    return {other: value for other, value in JOINED.items() if other != name}


@pytest.mark.parametrize(
    ("environment", "why"),
    [
        (without("MEGASCALE_COORDINATOR_ADDRESS"), "MEGASCALE_COORDINATOR_ADDRESS is not"),
        (without("MEGASCALE_NUM_SLICES"), "MEGASCALE_SLICE_ID is set, and MEGASCALE_NUM_SLICES is"),
        (JOINED | {"MEGASCALE_SLICE_ID": "2"}, "MEGASCALE_SLICE_ID=2 is no slice of"),
        (JOINED | {"MEGASCALE_NUM_SLICES": "two"}, "is no slice of MEGASCALE_NUM_SLICES=two"),
        (JOINED | {"MEGASCALE_NUM_SLICES": "4"}, r"mesh\.slices: 2 where MEGASCALE_NUM_SLICES=4"),
    ],
)
def test_what_joins_slices_is_checked(environment, why):
    check_slices(2, JOINED)
    check_slices(2, {})
    with pytest.raises(UserError, match=why):
        check_slices(2, environment)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (["mesh.data=3", "mesh.slices=2"], "data: 3 is no multiple of slices: 2"),
        (["mesh.slices=0"], "mesh.slices"),
        (["mesh.slices=3"], "8 devices do not divide over 3 slices"),
        (["mesh={layout: auto, slices: 2}"], "remove all other keys of mesh"),
    ],
)
def test_what_is_refused(override, sentence, tmp_path, capsys):
    file = tmp_path / "c.yaml"
    file.write_text(to_yaml(tiny_config(tmp_path).dump()))
    assert main(["train", str(file), *override, "--quiet"]) == 2
    assert sentence in capsys.readouterr().err


def test_a_run_says_what_joins_its_slices(tmp_path, capsys, monkeypatch):
    for name, value in JOINED.items():
        monkeypatch.setenv(name, value)
    file = tmp_path / "c.yaml"
    file.write_text(to_yaml(tiny_config(tmp_path).dump()))
    assert main(["train", str(file), "--quiet"]) == 2
    assert "mesh.slices: 1 where MEGASCALE_NUM_SLICES=2" in capsys.readouterr().err


def test_sums_of_gradients_alone_cross_between_slices():
    """Eight CPU devices as two slices of four: one all-reduce of what each device has a part of."""
    mesh = make_mesh(2, 4, 1, slices=2)
    cut, rows = NamedSharding(mesh, P("fsdp")), batch_sharding(mesh)
    shapes = [
        jax.ShapeDtypeStruct((64, 48), jnp.float32, sharding=cut),
        jax.ShapeDtypeStruct((16, 64), jnp.float32, sharding=rows),
    ]
    step = jax.jit(jax.grad(lambda w, x: jnp.square(x @ w).mean()), out_shardings=cut)
    text = step.lower(*shapes).compile().as_text()
    sent = collectives(text, mesh.shape, slices=2)
    crossing = [one for one in sent if one.between_slices]
    assert {one.kind for one in crossing} == {"all-reduce"}
    assert {axis for one in crossing for axis in one.axes.split("+")} <= {"data", "fsdp"}
    assert {one.axes for one in sent if not one.between_slices} == {"fsdp"}
    assert not [one for one in collectives(text, mesh.shape) if one.between_slices]


PERMUTED = """
ENTRY %main (x: f32[4]) -> f32[4] {
  %ppermute.1 = f32[4]{0} collective-permute(%x), channel_id=1, source_target_pairs={{0,1},{3,4}}
  %ppermute.2 = f32[4]{0} collective-permute(%x), channel_id=1, source_target_pairs={{0,1},{1,0}}
  %c = f32[8]{0} all-gather(%x), channel_id=2, replica_groups={{0,1},{3,4}}
  %s = (f32[6]{0}, u32[], token[]) send(%x, %t), is_host_transfer=true, \
frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
}
"""


def test_any_group_of_a_collective_may_cross():
    """And what a TPU's program sends through its hosts is told as it is."""
    mesh = {"data": 2, "fsdp": 4}
    far = {one for one in collectives(PERMUTED, mesh, slices=2) if one.between_slices}
    assert far == {
        Collective("collective-permute", "fsdp", 1, 16, True),
        Collective("all-gather", "fsdp", 1, 16, True),
        Collective("all-reduce", "data", 1, 24, True),
    }


@pytest.mark.full  # half a minute of the compiler
@pytest.mark.skipif(
    find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ,
    reason="libtpu is not installed (Linux on x86-64)",
)
def test_a_plan_for_two_slices_tells_the_sums_that_cross(tmp_path):
    config = tiny_config(tmp_path, mesh={"data": 2, "fsdp": 4, "slices": 2})
    facts = plan_on(config, topology=parse_topology("v5e:2x2")).facts
    assert (facts["devices"], facts["slices"]) == (8, 2)
    (crossing,) = (one for one in facts["collectives"] if one["between_slices"])
    assert (crossing["kind"], crossing["axes"]) == ("all-reduce", "data")
    # Matrices a quarter on each device, vectors whole, in float32.
    assert 1 <= crossing["sent"] / facts["parameters"] <= 2
    assert np.isfinite(facts["roofline"]["links"])
