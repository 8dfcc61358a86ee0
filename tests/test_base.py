"""The parameters a run started from come back bit for bit, on any mesh, or not at all."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxft.engine import base
from jaxft.engine.base import read_base, write_base
from jaxft.errors import UserError

MESH = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
SPLIT = NamedSharding(MESH, PartitionSpec("fsdp", "tensor"))
WHOLE = NamedSharding(MESH, PartitionSpec())


def params() -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    return {
        "blocks/10/kernel": jnp.asarray(rng.normal(size=(16, 8)), jnp.float32),
        "blocks/2/kernel": jnp.asarray(rng.normal(size=(8, 16)), jnp.bfloat16),
        "scale": jnp.float32(1.5),
        "head/bias": jnp.asarray(rng.normal(size=(3,)), jnp.float32),
    }


def assert_same(found, wanted):
    assert set(found) == set(wanted)
    for name, leaf in wanted.items():
        assert (found[name].dtype, found[name].shape) == (leaf.dtype, leaf.shape)
        assert np.asarray(found[name]).tobytes() == np.asarray(leaf).tobytes()


def test_parameters_return_from_one_device_to_many_and_back(tmp_path):
    wanted = params()
    write_base(tmp_path / "one", wanted)
    places = {name: SPLIT if leaf.ndim == 2 else WHOLE for name, leaf in wanted.items()}
    many = read_base(tmp_path / "one", places)
    assert_same(many, wanted)
    assert all(many[name].sharding == places[name] for name in wanted)
    write_base(tmp_path / "many", many)
    assert_same(read_base(tmp_path / "many"), wanted)


def test_several_files_where_one_would_be_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "FILE_BYTES", 300)
    write_base(tmp_path, params())
    index = json.loads((tmp_path / "base.json").read_text())
    assert list(index["leaves"].items()) == [
        ("blocks/2/kernel", "base-00000.safetensors"),
        ("blocks/10/kernel", "base-00001.safetensors"),
        ("head/bias", "base-00002.safetensors"),
        ("scale", "base-00002.safetensors"),
    ]
    assert_same(read_base(tmp_path), params())


def test_only_the_names_asked_for_are_written_and_read(tmp_path):
    write_base(tmp_path, params(), ["scale", "head/bias"])
    assert set(read_base(tmp_path)) == {"scale", "head/bias"}
    assert set(read_base(tmp_path, {"scale": WHOLE})) == {"scale"}
    with pytest.raises(UserError, match=r"lacks 'blocks/2/kernel', which this run needs"):
        read_base(tmp_path, {"blocks/2/kernel": WHOLE})


def test_what_is_committed_stays_and_what_is_not_is_written_again(tmp_path):
    write_base(tmp_path, params())
    write_base(tmp_path, {"other": jnp.zeros(3)})
    assert_same(read_base(tmp_path), params())
    os.remove(tmp_path / "COMMITTED")
    with pytest.raises(UserError, match="was not written to the end"):
        read_base(tmp_path)
    write_base(tmp_path, {"other": jnp.zeros(3)})
    assert set(read_base(tmp_path)) == {"other"}


def test_a_changed_file_is_found(tmp_path):
    write_base(tmp_path, params())
    file = tmp_path / "base-00000.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"base-00000\.safetensors is missing or not what"):
        read_base(tmp_path)
    file.unlink()
    with pytest.raises(UserError, match=r"base-00000\.safetensors is missing or not what"):
        read_base(tmp_path)
