"""Layers that stop by themselves: by how their gradients change, or a share of them an epoch."""

import json
import shutil

import numpy as np
import pytest

from jaxft.config.load import parse_config
from jaxft.engine.setup import build
from jaxft.engine.trained import open_trained
from jaxft.layerwise.phases import phase_specs
from jaxft.runs.checkpoint import Checkpoints
from jaxft.training.freezing.auto_freeze import decide, lowest_to_train
from jaxft.training.freezing.decisions import freeze, with_decisions
from jaxft.training.story import train
from tests.layerwise.test_phases import ONE, config_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("auto_freeze")


def auto(folder, **sections):
    """12 steps in intervals of 3, every step's layers looked at."""
    freezing = {"every": 3} | sections.pop("freezing", {})
    return config_of(folder, "auto_freeze", freezing=freezing, **sections)


def test_what_changes_less_than_the_median_stops():
    """By hand: changes of 0.1, 0.2, 0.5 and 0.4; their median is 0.3, first reached at depth 2."""
    before = {0: 1.0, 1: 2.0, 2: 4.0, 3: 5.0}
    now = {0: 0.9, 1: 2.4, 2: 2.0, 3: 3.0}
    assert lowest_to_train(before, now, 50) == 2
    assert lowest_to_train(before, now, 1) == 1, "0.1 is below the first percentile"
    assert lowest_to_train(before, now, 100) == 2
    assert lowest_to_train(before, {0: 9.0, 1: 2.4, 2: 2.0, 3: 3.0}, 50) == 0, "the prefix alone"


def looked(step, norms):
    return {"kind": "layers", "step": step, "grad_norm": {str(d): n for d, n in norms.items()}}


def test_a_decision_compares_the_means_of_two_intervals(folder):
    built = build(auto(folder), devices=ONE)
    events = [
        looked(1, {0: 1.0, 1: 1.0, 2: 1.0, 3: 1.0}),
        looked(3, {0: 3.0, 1: 3.0, 2: 3.0, 3: 3.0}),
        looked(4, {0: 2.1, 1: 1.0, 2: 3.0, 3: 90.0}),
        {"kind": "train", "step": 4, "loss": 1.0},
        looked(6, {0: 2.1, 1: 1.0, 2: None, 3: 90.0}),
    ]
    # Means of 2, 2, 2 become 2.1, 1, 3; the top never stops and is not asked.
    assert decide(built, built.phases[0].table, events, 6) == 1
    cut = freeze(built, 6, {"depth": 1})
    assert [(p.start, p.stop) for p in cut.phases] == [(0, 6), (6, 12)]
    assert cut.phases[0].table == built.phases[0].table
    assert {leaf.depth for leaf in cut.phases[1].table.leaves if leaf.trainable} == {1, 2, 3}
    assert freeze(cut, 6, {"depth": 1}) is cut, "decided already"
    # What is frozen is not compared again: depth 1 changes least now, and stops too.
    later = [looked(step, {0: 9.0, 1: 1.0, 2: 1.0 / step}) for step in (7, 9, 10, 12)]
    assert decide(cut, cut.phases[1].table, later, 12) == 2


def test_decisions_are_read_back_up_to_a_step(folder):
    built = build(auto(folder), devices=ONE)
    events = [{"kind": "freeze", "step": 6, "depth": 1}, {"kind": "freeze", "step": 9, "depth": 2}]
    assert [p.stop for p in with_decisions(built, events, 12).phases] == [6, 9, 12]
    assert [p.stop for p in with_decisions(built, events, 8).phases] == [6, 12]
    assert with_decisions(built, events, 5) is built


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """An undisturbed run, in which all below the layer that changes most stops."""
    place = tmp_path_factory.mktemp("whole")
    most = {"percentile": 100}
    config = auto(folder, freezing=most, run={"name": "tiny", "dir": str(place), "seed": {}})
    return train(config, quiet=True).folder


def freezes(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(e["step"], e["depth"]) for e in lines if e["kind"] == "freeze"]


@pytest.mark.slow
def test_a_run_stops_its_lowest_layers(whole):
    found = freezes(whole)
    assert found
    assert found == sorted(found)
    assert {step for step, _ in found} <= {6, 9}
    depth = found[-1][1]
    model = open_trained(whole, "last").model
    with Checkpoints(whole / "checkpoints", read_only=True) as checkpoints:
        at, end = (checkpoints.load_params(n) for n in (10, 12))
    assert model.params.keys() == at.keys() == end.keys()
    for name, value in at.items():
        alike = np.asarray(value).tobytes() == np.asarray(end[name]).tobytes()
        stopped = model.depths[name] < depth
        assert alike is stopped or name.startswith("embeddings"), name


@pytest.mark.slow
@pytest.mark.parametrize("step", [8, 10])
def test_a_resumed_run_decides_the_same(whole, tmp_path, step):
    run = tmp_path / "tiny"
    shutil.copytree(whole, run)
    for later in range(step + 2, 14, 2):
        shutil.rmtree(run / "checkpoints" / str(later), ignore_errors=True)
    (run / "result.json").unlink()
    config = json.loads(json.dumps(open_trained(run, "last").run.config()))
    config["run"]["dir"] = str(tmp_path)
    resumed = train(parse_config(config), resume=True, quiet=True).folder
    assert freezes(resumed) == freezes(whole)

    def end(folder):
        with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
            return {n: np.asarray(v).tobytes() for n, v in checkpoints.load_params(12).items()}

    assert end(resumed) == end(whole)


def test_pipe_transformer_freezes_a_share_of_what_is_left():
    """The paper's code, for 12 blocks and a third: 4, 7, 9, 10, 11, 11, 12 of them."""
    sections = phase_specs("pipe_transformer", top=13, epochs=8)
    assert [section.depth for section in sections] == [
        (0, 13),
        (5, 13),
        (8, 13),
        (10, 13),
        (11, 13),
        (12, 13),
        (13, 13),
    ]
    assert [str(section.until) for section in sections] == [
        "1 epoch",
        "2 epochs",
        "3 epochs",
        "4 epochs",
        "5 epochs",
        "7 epochs",
        "100%",
    ]
