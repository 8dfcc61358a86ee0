"""What is left to us: the mesh, and what is computed again; each with its why."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxft.config.load import parse_config
from jaxft.device.chips import TPUS
from jaxft.device.mesh import batch_sharding, place_batch
from jaxft.device.mesh_auto import choose_mesh, state_bytes
from jaxft.engine.compute import copies_of
from jaxft.engine.initial_state import initial_state, load_params
from jaxft.engine.remat import first_that_fits, residual_bytes, taken, with_remat
from jaxft.engine.setup import build, phase_setup
from jaxft.errors import UserError
from jaxft.models.tower.residuals import Residuals
from tests.support.phases import phase_of, stage_of
from tests.support.tiny import tiny_config

GB = 10**9


@pytest.mark.parametrize(
    ("devices", "batch", "accumulate", "state", "room", "wanted", "word"),
    [
        (16, 64, 1, 5 * GB, 16 * GB, (16, 1, 1), "replicated"),
        (16, 64, 1, 20 * GB, 16 * GB, (4, 4, 1), "sharded 4 ways"),
        (16, 64, 1, 128 * GB, 16 * GB, (1, 16, 1), "sharded 16 ways"),
        (16, 64, 1, 900 * GB, 16 * GB, (1, 16, 1), "may not fit"),
        (16, 4, 1, 20 * GB, 16 * GB, (4, 1, 4), "tensor parallelism is 4"),
        (16, 4, 2, 20 * GB, 16 * GB, (2, 1, 8), "tensor parallelism is 8"),
        (16, 64, 1, 20 * GB, None, (16, 1, 1), "not known"),
        (1, 7, 1, 5 * GB, 16 * GB, (1, 1, 1), "replicated"),
        (6, 9, 1, 5 * GB, 16 * GB, (3, 1, 2), "tensor parallelism is 2"),
    ],
)
def test_the_layout_follows_from_model_batch_and_memory(
    devices, batch, accumulate, state, room, wanted, word
):
    sizes, why = choose_mesh(devices, batch, accumulate, state, room)
    assert sizes == wanted
    assert word in why


def test_copies_of_what_trains_are_part_of_the_state(tmp_path):
    assert state_bytes({"a": 10, "b": 100}, {"b"}, 2) == 20 + 1600
    assert state_bytes({"a": 10, "b": 100}, {"b"}, 2, copies=2) == 20 + 2400
    kept = {
        copies_of(tiny_config(tmp_path, **keys)): keys
        for keys in (
            {},
            {"train": {"ema": 0.9}},
            {"train": {"ema": 0.9}, "regularise": {"l2_sp": 0.1}},
        )
    }
    assert list(kept) == [0, 1, 2]
    free = {"name": "schedule_free_adamw"}
    assert copies_of(tiny_config(tmp_path, optimizer=free, schedule={"kind": "constant"})) == 1


def test_what_is_pulled_back_takes_room_too(tmp_path):
    plain, pulls = (
        build(tiny_config(tmp_path, regularise={"l2_sp": pull}), devices=jax.devices()[:1])
        for pull in (0.0, 0.1)
    )
    new = sum(
        leaf.parameters for leaf in phase_of(plain).table.leaves if leaf.name.startswith("head/")
    )
    whole = sum(leaf.parameters for leaf in phase_of(plain).table.leaves)
    assert taken(pulls, phase_of(pulls)) - taken(plain, phase_of(plain)) == 4 * (whole - new)


def test_mesh_auto_is_short_for_a_layout(tmp_path):
    written = tiny_config(tmp_path).dump()
    config = parse_config(written | {"mesh": "auto"})
    built = build(config)
    assert dict(built.mesh.shape) == {"data": 8, "fsdp": 1, "expert": 1, "context": 1, "tensor": 1}
    assert "not known" in built.why[0]  # a CPU's memory is in no table
    with pytest.raises(UserError, match="remove all other keys"):
        parse_config(written | {"mesh": {"layout": "auto", "fsdp": 4}})


def test_as_little_is_computed_again_as_must_be():
    kept = {"none": 900, "dots": 300, "full": 20}.__getitem__
    assert [first_that_fits(kept, room)[0] for room in (1000, 899, 300, 299, 5)] == [
        *("none", "dots", "dots", "full", "full")
    ]


def test_what_is_kept_shrinks_with_what_is_computed_again(tmp_path):
    built = build(tiny_config(tmp_path, train={"scan": True}), devices=jax.devices()[:1])
    kept = {
        name: residual_bytes(built, dataclasses.replace(built.compute, remat=name))
        for name in ("none", "dots", "full")
    }
    assert kept["full"] < kept["dots"] < kept["none"]


def test_on_a_chip_that_is_known_its_memory_decides(tmp_path, monkeypatch):
    built = build(tiny_config(tmp_path), devices=jax.devices()[:1])
    now = phase_setup(built, built.phases[0])
    assert now.compute.remat == "auto"
    decided = with_remat(built, now)
    assert (decided.compute.remat, decided.why) == ("none", "")  # a CPU is in no table
    small = dataclasses.replace(TPUS[0], usable=500_000)
    # Of what `full` computes again, only what attention mixes fits.
    attention = Residuals(("attention_output",))
    for chip, wanted in ((TPUS[0], "none"), (small, attention)):
        monkeypatch.setattr("jaxft.engine.remat.find_chip", lambda kind, chip=chip: chip)
        decided = with_remat(built, now)
        assert decided.compute.remat == wanted
        assert f"train.remat is {wanted}" in decided.why


def losses(config, devices, steps=3):
    """The losses of a run's first steps."""
    built = build(config, devices=devices)
    params = load_params(built).params
    stage, state, found = stage_of(built, params), initial_state(built, phase_of(built), params), []
    examples = built.splits["train"].examples
    for step in range(steps):
        batch = examples.collate(built.plan.batch(step), built.layout.row_length)
        placed = place_batch(batch, batch_sharding(built.mesh))
        state, metrics = stage.step(state, stage.frozen, placed, stage.inputs(step))
        found.append(float(metrics["loss"]))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_eight_devices_have_the_losses_of_one(remat, tmp_path):
    """Rows and positions are laid where the step wants them; nothing of the values changes."""
    said = {"model": {"checkpoint": str(tmp_path / "checkpoint"), "dropout": 0.0}}
    train = {"length": "2 epochs", "remat": remat, "scan": True}
    said["data"] = {"pack": False}  # the same rows, whatever must divide them
    one = tiny_config(tmp_path, **said, train=train)
    many = tiny_config(tmp_path, **said, train=train, mesh={"data": 2, "fsdp": 2, "tensor": 2})
    np.testing.assert_allclose(
        losses(many, jax.devices()), losses(one, jax.devices()[:1]), rtol=1e-5
    )
