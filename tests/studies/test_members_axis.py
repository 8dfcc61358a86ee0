"""Members side by side on shares of the devices, in one process and in two."""

import json
import re

import jax
import numpy as np
import pytest

from jaxft.cli.main import main
from jaxft.config.load import override_config, to_yaml
from jaxft.device.mesh import MEMBERS
from jaxft.studies.members import make_members
from jaxft.studies.parts import make_parts
from jaxft.studies.program.phase import Programs, begin, phases_of
from jaxft.studies.program.placement import build_spread, member_groups, respread
from jaxft.studies.study import study
from tests.studies.test_study import Studied, batch_at, solo
from tests.support.launch import cache, launch_hosts, write_config  # noqa: F401 a fixture
from tests.support.tiny import tiny_config

STEPS = 6
SENDS = re.compile(r" (all-\w+|reduce-scatter|collective-permute)(-start)?\(")
TRUNK = [{"name": "trunk", "depth": [0, 1], "freeze": True}]
GRID = {"layer_decay.rate": [1.0, 0.5], "optimizer.lr": [1e-3, 3e-3, 5e-3, 1e-2]}


@pytest.fixture(scope="module")
def config(tmp_path_factory, cache):  # noqa: F811 the fixture above
    return tiny_config(
        tmp_path_factory.mktemp("axis"),
        groups=TRUNK,
        data={"batch_size": 24},  # eight rows a step on any of these meshes
        train={"length": STEPS, "evaluate_every": 3, "log_every": 1},
    )


@pytest.fixture(scope="module")
def alone(config):
    """Losses of each member's own run, `[steps, members]`, on one device."""
    setups = [build_spread(one.config, 1, jax.devices()[:1]) for one in make_members(config, GRID)]
    return np.stack([solo(setup, None, STEPS)[0] for setup in setups], axis=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("groups", "mesh"),
    [(8, []), (4, ["mesh.data=2"]), (2, ["mesh.data=1", "mesh.fsdp=2", "mesh.tensor=2"])],
)
def test_members_on_shares_of_the_devices_end_where_their_own_runs_do(config, alone, groups, mesh):
    members = make_members(override_config(config, mesh), GRID)
    (part,), _ = make_parts(members, groups=groups)
    together = Studied(part, Programs(), STEPS)
    assert together.stage.setup.mesh.shape[MEMBERS] == groups
    np.testing.assert_allclose(together.losses, alone, rtol=1e-3)
    kernel = together.states.trainable["head/kernel"]
    assert kernel.sharding.shard_shape(kernel.shape)[0] == 8 // groups, "of its own members only"


def test_members_side_by_side_send_each_other_only_their_metrics(config):
    (part,), _ = make_parts(make_members(config, GRID), groups=8)
    stage, states, _ = begin(part.setups, phases_of(part.setups, 0), Programs())
    inputs = batch_at(stage.setup, 0), stage.inputs(0)
    text = stage.step.lower(states, stage.frozen, *inputs).compile().as_text()
    sent = [line.split("= ")[1].split(" ")[0] for line in text.splitlines() if SENDS.search(line)]
    assert sent
    assert {shape.split("{")[0] for shape in sent} <= {"f32[8]", "s32[8]"}


def test_devices_of_members_that_stopped_go_to_the_rest(config):
    setup = build_spread(config, 4)
    assert (member_groups(setup.mesh), setup.mesh.shape["data"]) == (4, 2)
    fewer = respread(setup, 2)
    assert (member_groups(fewer.mesh), fewer.mesh.shape["data"]) == (2, 4)
    assert list(fewer.mesh.devices.flat) == list(setup.mesh.devices.flat)
    assert respread(setup, 8) is setup
    odd = build_spread(override_config(config, ["data.batch_size=4", "data.pack=false"]), 4)
    assert odd.layout.rows == 4
    assert respread(odd, 1) is odd, "8 replicas have no row each"


@pytest.mark.slow
def test_a_halved_study_side_by_side_is_one_in_turn(config):
    """The survivors of the first rung, two of four, have twice the devices."""
    config = override_config(config, ["train.length=8", "train.evaluate_every=2"])
    vary = {"optimizer.lr": [1e-3, 3e-3, 1e-2, 1e-5]}
    one = study(config, vary, name="in-turn", halve=2, quiet=True)
    many = study(config, vary, name="beside", halve=2, mesh_members=4, quiet=True)
    assert [e["members"] for e in many.ranking] == [e["members"] for e in one.ranking]
    for a, b in zip(one.ranking, many.ranking, strict=True):
        assert a["best"]["mean"] == pytest.approx(b["best"]["mean"], abs=1e-3)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--mesh-members", "3"], "--mesh-members 3 does not divide 8 devices."),
        (["--mesh-members", "4"], "--mesh-members 4 does not divide the 2 members of a program."),
        (["--mesh-members", "2", "--lr-range"], "Remove --mesh-members."),
    ],
)
def test_shares_that_do_not_divide(config, tmp_path, capsys, words, sentence):
    (tmp_path / "c.yaml").write_text(to_yaml(config.dump()))
    varied = ["--vary", "optimizer.weight_decay=0.1,0.2", f"run.dir={tmp_path}"]
    code = main(["study", str(tmp_path / "c.yaml"), *varied, *words])
    error = capsys.readouterr().err
    assert (code, error.count("\n")) == (2, 1)
    assert sentence in error


@pytest.mark.slow
def test_two_processes_study_as_one(config, tmp_path):
    """Half of the members on each, with halving; only the first writes."""
    config = override_config(config, ["train.length=8", "train.evaluate_every=2"])
    words = ["--vary", "optimizer.lr=1e-3,3e-3,1e-2,1e-5", "--halve", "2", "--mesh-members", "4"]
    file = write_config(config, tmp_path / "c.yaml")
    assert main(["study", file, *words, "--name", "one", "--quiet"]) == 0
    two = launch_hosts(tmp_path, 2, "study", file, *words, "--name", "two", "--quiet", devices=4)
    assert [one.end() for one in two] == [0, 0], "\n".join(one.said for one in two)
    runs = tmp_path / config.run.dir
    rankings = [
        json.loads((runs / name / "study.json").read_text())["ranking"] for name in ("one", "two")
    ]
    assert [e["members"] for e in rankings[0]] == [e["members"] for e in rankings[1]]
    for a, b in zip(*rankings, strict=True):
        assert a["best"]["mean"] == pytest.approx(b["best"]["mean"], abs=1e-3)
