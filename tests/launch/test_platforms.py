"""jax looks for a TPU wherever one may be, and nowhere else."""

import pytest

from jaxft.launch import platforms

CPU = {"JAX_PLATFORMS": "cpu"}


@pytest.fixture
def installed(monkeypatch):
    """The packages that are there: libtpu alone, until a test adds some."""
    there = {"libtpu"}
    monkeypatch.setattr(platforms, "find_spec", lambda name: name in there or None)
    return there


def test_without_a_chip_jax_is_asked_for_the_cpu(installed, tmp_path):
    card = tmp_path / "sys/bus/pci/devices/0000:00:04.0"
    card.mkdir(parents=True)
    (card / "vendor").write_text("0x8086\n")
    environment = {"HOME": "/root"}
    assert platforms.leave_out_absent_tpu(environment, tmp_path)
    assert environment == {"HOME": "/root"} | CPU


@pytest.mark.parametrize("said", [{"JAX_PLATFORMS": "tpu,cpu"}, {"TPU_WORKER_ID": "0"}])
def test_what_a_person_says_stands(installed, tmp_path, said):
    environment = dict(said)
    assert not platforms.leave_out_absent_tpu(environment, tmp_path)
    assert environment == said


@pytest.mark.parametrize("chip", ["dev/accel0", "dev/vfio/12", "sys/bus/pci/devices/7/vendor"])
def test_what_may_be_a_chip_is_looked_for(installed, tmp_path, chip):
    file = tmp_path / chip
    file.parent.mkdir(parents=True)
    file.write_text(f"{platforms.GOOGLE}\n")
    environment = {}
    assert not platforms.leave_out_absent_tpu(environment, tmp_path)
    assert environment == {}


@pytest.mark.parametrize("change", [{"jax_cuda13_plugin"}, {"libtpu"}])
def test_gpus_and_machines_without_libtpu_are_jaxs_affair(installed, tmp_path, change):
    installed ^= change
    environment = {}
    assert not platforms.leave_out_absent_tpu(environment, tmp_path)
    assert environment == {}
