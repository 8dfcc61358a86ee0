"""The table of accelerators, and the names of slices."""

import pytest

from jaxft.device.chips import GPUS, TPUS, find_chip, parse_topology
from jaxft.errors import UserError


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        # As libtpu's topologies spell them.
        *(("TPU v4", "v4"), ("TPU v5 lite", "v5e"), ("TPU v5", "v5p"), ("TPU v5p", "v5p")),
        *(("TPU v6 lite", "v6e"), ("TPU7x", "tpu7x"), ("TPU v3", None), ("cpu", None)),
        # As CUDA spells them.
        *(("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA H200", "h200"), ("NVIDIA L4", "l4")),
        *(("NVIDIA L40S", "l40s"), ("NVIDIA A100-SXM4-40GB", "a100-40")),
        ("NVIDIA A100-SXM4-80GB", "a100"),
    ],
)
def test_a_device_kind_is_found(kind, name):
    chip = find_chip(kind)
    assert (chip and chip.name) == name


def test_a_slice_counts_its_chips_and_what_jax_sees_of_them():
    small, large = parse_topology("v5e:4x4"), parse_topology("tpu7x:2x2x1")
    assert (small.chips, small.devices, small.name) == (16, 16, "v5e:4x4")
    assert (large.chips, large.devices) == (4, 8)
    assert large.chip.device_peak == large.chip.peak / 2


def test_what_a_program_may_have_is_less_than_what_is_there():
    for chip in (*TPUS, *GPUS):
        assert 0.9 * chip.memory < chip.device_memory * chip.devices <= chip.memory, chip.name


@pytest.mark.parametrize("name", ["v9:2x2", "v5", "", "4x4"])
def test_an_unknown_tpu_is_answered_with_all_there_are(name):
    with pytest.raises(UserError) as raised:
        parse_topology(name)
    assert all(f"{chip.name}" in str(raised.value) for chip in TPUS)
    assert ":16x16" in str(raised.value)
    assert ":4x4x4" in str(raised.value)


@pytest.mark.parametrize("name", ["v5e:3x3", "v5e", "v5e:32x16", "v4:4x4"])
def test_an_unknown_slice_is_answered_with_the_chips_own(name):
    with pytest.raises(UserError, match="no slice") as raised:
        parse_topology(name)
    assert parse_topology("v5e:4x4").chip.shapes[0] in str(raised.value)
