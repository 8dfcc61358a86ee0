"""Linear maps that stop once the norm of their gradient is small."""

import json
import shutil

import numpy as np
import pytest

from jaxft.config.load import parse_config
from jaxft.engine.setup import build
from jaxft.engine.trained import open_trained
from jaxft.errors import UserError
from jaxft.runs.checkpoint import Checkpoints
from jaxft.training.freezing.decisions import decide, decides_at, freeze, with_decisions
from jaxft.training.freezing.grades import linear_maps, map_norms
from jaxft.training.story import train
from tests.layerwise.test_phases import ONE, config_of

QUERY, DOWN = "blocks/0/attention/query", "blocks/1/mlp/down"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("grades")


def grades(folder, **sections):
    """12 steps, of which 3 and more freeze nothing, with a decision every 3."""
    freezing = {"every": 3, "threshold": 1.0, "grace": 0.25} | sections.pop("freezing", {})
    return config_of(folder, "grades", freezing=freezing, **sections)


def test_the_norm_of_a_linear_map_is_that_of_kernel_and_bias(folder):
    table = build(grades(folder), devices=ONE).phases[0].table
    maps = linear_maps(table)
    assert len(maps) == 2 * 6
    names = table.trainable
    assert [names[i] for i in maps[QUERY]] == [f"{QUERY}/bias", f"{QUERY}/kernel"]
    norms = np.arange(len(names), dtype=np.float32)
    expected = np.hypot(*(norms[names.index(f"{QUERY}/{one}")] for one in ("bias", "kernel")))
    assert map_norms(table, norms)[QUERY] == pytest.approx(expected)


def test_what_is_below_the_threshold_stops_after_the_grace(folder):
    built = build(grades(folder), devices=ONE)
    assert [step for step in range(13) if decides_at(built, step)] == [3, 6, 9]
    later = build(grades(folder, freezing={"grace": 0.5}), devices=ONE)
    assert [step for step in range(13) if decides_at(later, step)] == [6, 9]
    table = built.phases[0].table
    norms = dict.fromkeys(linear_maps(table), 1.0)
    events = [
        {"kind": "linear_map_norms", "step": 3, "norms": norms | {DOWN: 0.1}},
        {"kind": "linear_map_norms", "step": 6, "norms": norms | {QUERY: 0.99, DOWN: None}},
    ]
    decision = decide(built, table, events, 6)
    assert decision == {"linear_maps": {QUERY: 0.99}}
    cut = freeze(built, 6, decision)
    assert [(phase.start, phase.stop) for phase in cut.phases] == [(0, 6), (6, 12)]
    stopped = set(table.trainable) - set(cut.phases[1].table.trainable)
    assert stopped == {f"{QUERY}/kernel", f"{QUERY}/bias"}
    assert freeze(cut, 9, decision) is cut, "decided already"
    both = [{"kind": "freeze", "step": 6, **decision}, {"kind": "freeze", "step": 9, "depth": 1}]
    assert [phase.stop for phase in with_decisions(built, both, 8).phases] == [6, 12]


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """An undisturbed run, in which the half of the linear maps with small gradients stops."""
    place = tmp_path_factory.mktemp("whole")
    config = grades(folder, run={"name": "probe", "dir": str(place), "seed": {}})
    norms = next(e for e in events_of(train(config, quiet=True).folder, "linear_map_norms"))
    middle = float(np.median(list(norms["norms"].values())))
    run = {"name": "tiny", "dir": str(place), "seed": {}}
    return train(grades(folder, freezing={"threshold": middle}, run=run), quiet=True).folder


def events_of(run, kind):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [one for one in map(json.loads, lines) if one["kind"] == kind]


def params_at(run, step):
    with Checkpoints(run / "checkpoints", read_only=True) as checkpoints:
        return {n: np.asarray(v).tobytes() for n, v in checkpoints.load_params(step).items()}


@pytest.mark.slow
def test_a_run_stops_its_linear_maps(whole):
    first, *_ = events_of(whole, "freeze")
    assert first["step"] == 3
    assert len(first["linear_maps"]) == 6
    before, end = params_at(whole, 4), params_at(whole, 12)
    for name, value in before.items():
        stopped = name.rpartition("/")[0] in first["linear_maps"]
        assert (value == end[name]) is stopped or "blocks/" not in name, name


def test_a_resumed_run_decides_the_same(whole, tmp_path):
    run = tmp_path / "tiny"
    shutil.copytree(whole, run)
    for later in range(8, 14, 2):
        shutil.rmtree(run / "checkpoints" / str(later), ignore_errors=True)
    (run / "result.json").unlink()
    config = json.loads(json.dumps(open_trained(run, "last").run.config()))
    config["run"]["dir"] = str(tmp_path)
    resumed = train(parse_config(config), resume=True, quiet=True).folder  # at 6, a decision's step
    frozen = (
        [(e["step"], e["linear_maps"]) for e in events_of(r, "freeze")] for r in (resumed, whole)
    )
    assert next(frozen) == next(frozen)
    assert params_at(resumed, 12) == params_at(whole, 12)


@pytest.mark.parametrize(
    ("phases", "freezing", "message"),
    [
        ("grades", {"every": 3}, "'phases: grades' needs freezing.threshold"),
        (
            "auto_freeze",
            {"threshold": 1.0},
            "'freezing.threshold' applies to 'phases: grades' only",
        ),
        ("grades", {"threshold": 1.0, "percentile": 60}, "'phases: auto_freeze' only"),
        ("freeze_out", {"every": 3}, "applies to 'phases: auto_freeze or grades' only"),
    ],
)
def test_keys_that_do_nothing_are_refused(folder, phases, freezing, message):
    with pytest.raises(UserError) as error:
        config_of(folder, phases, freezing=freezing)
    assert message in str(error.value)
