"""Phases: what trains when, what moves across a boundary, and that a resumed run never shows."""

import json
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from sklearn.linear_model import LogisticRegression

from jaxft.config.load import parse_config
from jaxft.device.mesh import batch_sharding, place_batch
from jaxft.engine.initial_state import initial_state, load_params
from jaxft.engine.remat import phase_after, phase_setups
from jaxft.engine.setup import build, objective_of
from jaxft.engine.trained import open_trained
from jaxft.errors import UserError
from jaxft.export.export import export
from jaxft.inference.score import score
from jaxft.layerwise.phases import phase_specs
from jaxft.models.load import load
from jaxft.runs.checkpoint import Checkpoints
from jaxft.runs.folder import open_run
from jaxft.training.phase import PhasePrecompiler, PhaseStep, next_phase_step
from jaxft.training.resume import check_phases
from jaxft.training.story import train
from tests.support.phases import phase_of, stage_of
from tests.support.tiny import tiny_config, tiny_reviews

ONE = jax.devices()[:1]
PHASES = [
    {"until": 4, "unfreeze": ["head/.*"], "lr": 1e-2},
    {"until": 8, "depth": [2, 3]},
    {"until": "100%", "unfreeze": "all", "rewarm": 2},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phases")
    tiny_config(folder)
    return folder


def config_of(folder, phases=PHASES, **sections):
    """A run of 12 steps, saved and scored often, in which Adam's count matters."""
    train = {"length": "12 steps", "evaluate_every": 6, "log_every": 1} | sections.pop("train", {})
    model = {"checkpoint": str(folder / "checkpoint"), "dropout": 0.0}
    config = tiny_config(folder, train=train, model=model, optimizer={"lr": 1e-3, "clip": None})
    config = config.dump() | {"phases": phases}
    config["checkpoint"] |= {"every": 2, "keep": 20}
    config["optimizer"] |= {"weight_decay": 0.0}
    config["schedule"] |= {"kind": "constant"}
    for name, section in sections.items():
        config[name] = config[name] | section if isinstance(section, dict) else section
    return parse_config(config)


class Stages:
    """A run's phases one after another, in hand."""

    def __init__(self, config):
        built = build(config, devices=ONE)
        params = load_params(built).params
        self.stage, self.state = (
            stage_of(built, params),
            initial_state(built, phase_of(built), params),
        )
        self.number, self.ahead = 0, None

    def batch(self):
        built = self.stage.setup
        rows = built.splits["train"].examples
        batch = rows.collate(built.plan.batch(self.number), built.layout.row_length)
        return place_batch(batch, batch_sharding(built.mesh))

    def steps(self, count):
        for _ in range(count):
            stage, batch, rates = self.stage, self.batch(), self.stage.inputs(self.number)
            step = self.ahead.step(stage, batch) if self.ahead else stage.step
            self.state, _ = step(self.state, stage.frozen, batch, rates)
            self.number += 1

    def switch(self):
        assert self.stage.is_over(self.number)
        self.stage, self.state = next_phase_step(self.stage, self.state)

    def values(self):
        return jax.tree.map(np.asarray, self.stage.params(self.state))


def moments(state):
    """Every array of the optimizer's state under its path."""
    leaves = jax.tree.leaves_with_path(state.opt_state)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


# -------------------------------------------------------------------------------------- the table
def test_each_phase_trains_what_it_names(folder):
    built = build(config_of(folder), devices=ONE)
    first, second, third = (phase.table for phase in built.phases)
    assert [(phase.start, phase.stop) for phase in built.phases] == [(0, 4), (4, 8), (8, 12)]
    assert set(first.trainable) == {"head/kernel", "head/bias"}
    assert {leaf.depth for leaf in second.leaves if leaf.trainable} == {2, 3}
    assert set(third.trainable) == set(built.model.params)
    since = {leaf.name: leaf.since for leaf in third.leaves}
    assert since["head/kernel"] == 0
    assert since["blocks/1/mlp/up/kernel"] == 1
    assert since["blocks/0/mlp/up/kernel"] == 2
    rates = [phase_of(built, index).rates for index in range(3)]
    assert rates[0][:4].tolist() == [[np.float32(1e-2)]] * 4
    assert rates[1][4:8].ravel().tolist() == [np.float32(1e-3)] * 4
    np.testing.assert_allclose(rates[2][8:12].ravel(), [0, 5e-4, 1e-3, 1e-3])


def test_a_phase_never_trains_what_a_group_freezes(folder):
    groups = [{"name": "trunk", "depth": [0, 1], "freeze": True}]
    built = build(config_of(folder, [{"until": "100%"}], groups=groups), devices=ONE)
    assert {leaf.depth for leaf in phase_of(built).table.leaves if leaf.trainable} == {2, 3}


def test_a_schedule_of_a_phase_runs_over_its_steps(folder):
    schedule = {"kind": "linear", "warmup": "50%"}
    phases = [{"until": 4, "unfreeze": ["head/.*"]}, {"until": "100%", "schedule": schedule}]
    now = phase_setups(build(config_of(folder, phases), devices=ONE))[1]
    np.testing.assert_allclose(
        now.rates[4:, 0], 1e-3 * np.array([0, 1, 2, 3, 4, 3, 2, 1, 0]) / 4, atol=1e-9
    )
    assert not now.rates[:4].any()


def test_recipes_are_phases(folder):
    probe = build(config_of(folder, "linear_probe"), devices=ONE)
    assert [set(phase.table.trainable) for phase in probe.phases] == [{"head/kernel", "head/bias"}]
    first, second = build(config_of(folder, "lp_ft"), devices=ONE).phases
    assert (first.stop, second.stop) == (4, 12)
    assert len(second.table.trainable) == len(second.table.leaves)
    gradual = phase_specs("gradual_unfreezing", top=3, epochs=9)
    assert [section.depth for section in gradual] == [(3, 3), (2, 3), (1, 3), (0, 3)]
    assert [str(section.until) for section in gradual] == [
        "1 epoch",
        "2 epochs",
        "3 epochs",
        "100%",
    ]
    assert [s.depth for s in phase_specs("gradual_unfreezing", top=3, epochs=2)] == [
        (3, 3),
        (2, 3),
    ]


def freeze_out(folder, freezing, **sections):
    """A FreezeOut run of 12 steps at depths 0 to 3, at a constant rate of 1e-3."""
    return build(config_of(folder, "freeze_out", freezing=freezing, **sections), devices=ONE)


def test_freeze_out_stops_each_depth_when_its_rate_is_zero(folder):
    """By the paper's formulas: first 0.5, linear, stops at 1/2, 2/3, 5/6 and 1 of 12 steps."""
    built = freeze_out(folder, {"first": 0.5, "power": 1})
    assert [phase.stop for phase in built.phases] == [6, 8, 10, 12]
    lowest = [min(leaf.depth for leaf in p.table.leaves if leaf.trainable) for p in built.phases]
    assert lowest == [0, 1, 2, 3]
    assert {leaf.since for leaf in built.phases[2].table.leaves if leaf.trainable} == {0}

    def rates(step):
        phases = phase_setups(built)
        built_at = phase_after(phases, step + 1)
        fixed = built_at.table.multipliers(), {}
        inputs = PhaseStep(built, phases, built_at, {}, print, *fixed).inputs(step)
        of = dict(zip(built_at.table.trainable, inputs.rates[0] * inputs.multipliers, strict=True))
        return [of.get(name) for name in ("embeddings/word/embedding", "head/kernel")]

    cos, share = np.cos, 1 / 0.5  # what stops earlier starts higher, so that it moves as far
    np.testing.assert_allclose(rates(0), [1e-3 * share, 1e-3], rtol=1e-6)
    np.testing.assert_allclose(
        rates(3), [5e-4 * share * (1 + cos(np.pi / 2)), 5e-4 * (1 + cos(np.pi / 4))], rtol=1e-6
    )
    embeddings, head = rates(7)
    assert embeddings is None
    np.testing.assert_allclose(head, 5e-4 * (1 + cos(np.pi * 7 / 12)), rtol=1e-6)
    plain = freeze_out(folder, {"first": 0.5, "power": 1, "scaled": False})
    assert set(plain.phases[0].lr_scale_at(0).tolist()) == {1.0}


def test_freeze_out_is_cubic_and_lasts_to_the_end(folder):
    groups = [{"name": "top", "depth": [3, 3], "freeze": True}]
    built = freeze_out(folder, {}, groups=groups)
    # 0.8, 0.8667, 0.9333 cubed, of 12 steps; with the top frozen the last block takes the rest.
    assert [phase.stop for phase in built.phases] == [6, 8, 12]


@pytest.mark.parametrize(
    ("phases", "sentence"),
    [
        (
            [{"until": 8, "unfreeze": ["head/.*"]}, {"until": 4}],
            r"phases\[1\]\.until: 4 steps is step 4, and the phase before it ends at step 8\.",
        ),
        ([{"until": 8}], r"the last one ends at step 8, and the run at step 12\."),
        ([{"until": "100%", "unfreeze": ["haed/.*"]}], r"phases\[0\]\.unfreeze: the pattern"),
        ([{"until": "100%", "depth": [7, 9]}], r"phases\[0\]: it trains nothing\."),
        ("lpft", "'phases' must be .*linear_probe"),
        ([{"until": "100%", "unfreeze": []}], "'unfreeze' is empty"),
        ([{"until": "100%", "unfreeze": ["head/.*"], "depth": [0, 1]}], "not by both"),
    ],
)
def test_phases_that_cannot_be(folder, phases, sentence):
    with pytest.raises(UserError, match=sentence):
        build(config_of(folder, phases), devices=ONE)


def test_freezing_that_nothing_reads(folder):
    sentence = r"'freezing\.power' applies to 'phases: freeze_out' only"
    with pytest.raises(UserError, match=sentence):
        config_of(folder, freezing={"power": 1})
    with pytest.raises(UserError, match=r"set schedule\.kind to constant"):
        config_of(folder, "freeze_out", schedule={"kind": "linear"})
    falling = [{"name": "head", "match": "head/.*", "schedule": {"kind": "linear"}}]
    with pytest.raises(UserError, match=r"set schedule\.kind to constant"):
        config_of(folder, "freeze_out", groups=falling)
    config_of(folder, "freeze_out", groups=[falling[0] | {"freeze": True}])


@pytest.mark.parametrize("where", ["groups", "phases"])
def test_a_schedule_free_rate_falls_nowhere(folder, where):
    linear, averaged = {"kind": "linear"}, {"name": "schedule_free_adamw"}
    part = {"groups": {"name": "head", "match": "head/.*"}, "phases": {"until": "100%"}}[where]
    with pytest.raises(UserError, match=r"set schedule\.kind to constant"):
        config_of(
            folder, **{"phases": [], where: [part | {"schedule": linear}]}, optimizer=averaged
        )
    config_of(folder, **{"phases": [], where: [part]}, optimizer=averaged)


def test_a_phase_that_trains_frozen_groups_only(folder):
    groups = [{"name": "head", "match": "head/.*", "freeze": True}]
    with pytest.raises(UserError, match=r"phases\[0\]: it trains nothing\."):
        build(config_of(folder, groups=groups), devices=ONE)


# ------------------------------------------------------------------------------------ the boundary
def test_a_boundary_changes_nothing_that_trained(folder):
    run = Stages(config_of(folder))
    run.steps(4)
    values, state = run.values(), moments(run.state)
    assert any("mu" in path for path in state)
    run.switch()
    after = run.values()
    assert {name: value.tobytes() for name, value in values.items()} == {
        name: value.tobytes() for name, value in after.items()
    }
    moved = moments(run.state)
    assert {path: value.tobytes() for path, value in state.items()} == {
        path: moved[path].tobytes() for path in state
    }
    fresh = {path: value for path, value in moved.items() if path not in state}
    assert fresh
    assert not any(value.any() for value in fresh.values())


def first_updates(run):
    """How far what begins to train moves in the first step of its phase, over the rate."""
    before = run.values()
    names = [leaf.name for leaf in run.stage.now.table.leaves if leaf.since == 1]
    rate = run.stage.now.rates[run.number, 0]
    run.steps(1)
    after = run.values()
    moved = [np.abs(after[name] - before[name]).ravel() / rate for name in names]
    moved = np.concatenate(moved)
    return float(np.median(moved[moved > 1e-2]))  # what has no gradient does not move


def test_what_begins_to_train_takes_a_first_step_of_its_rate(folder):
    phases = [{"until": 4, "unfreeze": ["head/.*"]}, {"until": "100%"}]
    run = Stages(config_of(folder, phases))
    run.steps(4)
    run.switch()
    assert first_updates(run) == pytest.approx(1, abs=1e-3)
    shared = Stages(config_of(folder, phases))
    shared.steps(4)
    shared.switch()
    counts = jax.tree.map(
        lambda leaf: leaf + 500 if leaf.dtype == "int32" and leaf == 0 else leaf,
        shared.state.opt_state,
    )
    shared.state = replace(shared.state, opt_state=counts)
    assert first_updates(shared) > 1.35, "under the count of those before, it would be too large"


def test_what_settles_stays_as_it_was(folder):
    """Trained, then frozen: every bit is kept, in float32, and no moment of it is left."""
    phases = [{"until": 6, "unfreeze": ["blocks/1/.*"]}, {"until": "100%", "unfreeze": ["head/.*"]}]
    run = Stages(config_of(folder, phases, train={"ema": 0.9}))
    run.steps(6)
    trained = {name: np.asarray(leaf) for name, leaf in run.state.trainable.items()}
    run.switch()
    run.steps(3)
    assert run.state.previously_trained.keys() == trained.keys()
    for name, leaf in run.state.previously_trained.items():
        assert leaf.dtype == np.float32
        assert np.asarray(leaf).tobytes() == trained[name].tobytes()
    assert not [path for path in moments(run.state) if "blocks/1" in path]


def test_a_phase_is_one_program(folder):
    run = Stages(config_of(folder))
    run.steps(2)
    compiled = run.stage.step._cache_size()
    run.steps(2)
    run.switch()
    run.steps(4)
    assert compiled == 1
    assert run.stage.step._cache_size() == 1


# ----------------------------------------------------------------------------------- the whole run
@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """A run through three phases, undisturbed."""
    place = tmp_path_factory.mktemp("whole")
    config = config_of(folder, run={"name": "tiny", "dir": str(place), "seed": {}})
    return train(config, quiet=True).folder


def end_state(run):
    """Every array of the last checkpoint by its name."""
    config = parse_config(json.loads(json.dumps(open_trained(run).run.config())))
    with Checkpoints(run / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.latest() == 12
        found = checkpoints.load_params("last")
    assert config.phases
    return {name: np.asarray(leaf).tobytes() for name, leaf in found.items()}


FULL = pytest.mark.full


@pytest.mark.slow
@pytest.mark.parametrize("step", [pytest.param(2, marks=FULL), 4, 6, pytest.param(8, marks=FULL)])
def test_a_resumed_run_never_shows(whole, tmp_path, step):
    """Inside a phase, exactly at a boundary, and across one (the last save was before it)."""
    run = tmp_path / "tiny"
    shutil.copytree(whole, run)
    for later in range(step + 2, 14, 2):
        shutil.rmtree(run / "checkpoints" / str(later), ignore_errors=True)
    (run / "result.json").unlink()
    config = open_trained(run, "last").run.config()
    config["run"]["dir"] = str(tmp_path)
    resumed = train(parse_config(config), resume=True, quiet=True).folder
    assert end_state(resumed) == end_state(whole)
    assert (resumed / "result.json").read_bytes() == (whole / "result.json").read_bytes()


@pytest.mark.slow
def test_a_longer_run_whose_phases_move_away_from_its_state_is_refused(folder, tmp_path):
    phases = [{"until": "50%", "unfreeze": ["head/.*"]}, {"until": "100%"}]
    where = {"name": "tiny", "dir": str(tmp_path), "seed": {}}
    short, fits, moves = (
        config_of(folder, phases, run=where, train={"length": length, "evaluate_every": 4})
        for length in (4, 6, 12)
    )
    run = train(short, quiet=True).folder
    before = (run / "run.json").read_bytes()
    sentence = r"train\.length moves the end of phase 1 from step 2 to step 6, and what the run has"
    with pytest.raises(UserError, match=sentence):
        train(moves, resume=True, quiet=True)
    assert (run / "run.json").read_bytes() == before
    assert train(fits, resume=True, quiet=True).result["step"] <= 6
    shutil.rmtree(run / "checkpoints")  # as of a run that was killed before its first save
    open_run(run).update(state="stopped")
    assert train(moves, resume=True, quiet=True).result["step"] <= 12


def test_freeze_out_cannot_be_made_longer_once_a_depth_has_stopped(folder):
    groups = [{"name": "head", "match": "head/.*", "lr_mult": 2}]
    short, long = (
        freeze_out(folder, {}, groups=groups, train={"length": length}).phases
        for length in (12, 24)
    )
    check_phases(short, long, short[0].stop)
    sentence = f"moves the end of phase 1 from step {short[0].stop} to step {long[0].stop}"
    with pytest.raises(UserError, match=sentence):
        check_phases(short, long, short[0].stop + 1)
    with pytest.raises(UserError, match=r"moves the end of phase \d from step \d+ to step \d+"):
        check_phases(short, long, 12)
    check_phases(short, long, 0)


def test_the_diary_tells_of_phases(whole):
    about = json.loads((whole / "run.json").read_text())
    assert [phase["depths"] for phase in about["phases"]] == [[3, 3], [2, 3], [0, 3]]
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    notes = [line["text"] for line in lines if line["kind"] == "note"]
    assert [note.split(":")[0] for note in notes] == [
        "phase 2 of 3, to step 8",
        "phase 3 of 3, to step 12",
    ]
    rates = {line["step"]: line["rates"]["rest"] for line in lines if line["kind"] == "train"}
    assert rates[4] == pytest.approx(1e-2)
    assert rates[5] == pytest.approx(1e-3)
    assert rates[9] == 0, "the rise from zero begins"


def test_a_checkpoint_of_an_early_phase_is_a_whole_model(whole, tmp_path):
    """What had not trained by then is what the run started from, byte for byte."""
    exported = load_file(export(whole, tmp_path / "early", 4) / "model.safetensors")
    start = load_file(whole / "base" / "model.safetensors")
    last = load_file(export(whole, tmp_path / "late", "last") / "model.safetensors")
    changed = {name for name in start if exported[name].tobytes() != start[name].tobytes()}
    assert changed == {"classifier.weight", "classifier.bias"}
    assert sum(last[name].tobytes() != start[name].tobytes() for name in start) > 30


@pytest.mark.slow
def test_the_test_rows_are_scored_with_the_best_of_an_early_phase(folder, tmp_path):
    """The head alone does best, since what follows ruins it: the blocks are the starting ones."""
    phases = [{"until": 6, "unfreeze": ["head/.*"]}, {"until": "100%", "lr": 3.0}]
    config = config_of(folder, phases, run={"name": "ruin", "dir": str(tmp_path), "seed": {}})
    config = parse_config(config.dump() | {"checkpoint": {"every": 2, "best": "loss", "keep": 20}})
    run = train(config, quiet=True)
    assert run.best == 6
    trained = open_trained(run.folder)
    start = load_file(run.folder / "base" / "model.safetensors")
    names = trained.model.names
    block = "blocks/0/mlp/up/kernel"
    assert np.asarray(trained.model.params[block]).T.tobytes() == start[names[block]].tobytes()
    assert score(run.folder)["metrics"] == pytest.approx(run.metrics, rel=1e-5)


@pytest.mark.slow
def test_the_next_phase_is_compiled_ahead(folder):
    """The same program, ready at the boundary; none of it is compiled again there."""
    phases = [{"until": 4, "unfreeze": ["head/.*"]}, {"until": "100%", "unfreeze": "all"}]
    results = []
    for ahead in (None, PhasePrecompiler()):
        run = Stages(config_of(folder, phases, model={"dropout": 0.1}))
        run.ahead = ahead
        run.steps(4)
        run.switch()
        run.steps(2)
        results.append(run)
    plain, compiled = results
    assert plain.stage.step._cache_size() == 1
    assert compiled.stage.step._cache_size() == 0, "what was compiled ahead was called"
    values, others = plain.values(), compiled.values()
    assert all(values[name].tobytes() == others[name].tobytes() for name in values)


def test_what_was_compiled_for_other_batches_is_not_used(folder):
    run = Stages(config_of(folder))
    with PhasePrecompiler() as run.ahead:
        run.steps(4)
        run.switch()
        odd = {name: array[:, :8] for name, array in run.batch().items()}
        assert run.ahead.step(run.stage, odd) is run.stage.step


@FULL
def test_probing_ends_where_logistic_regression_does(tmp_path):
    """Within half a point of scikit-learn's on the same features; then all trains from there on.

    Decoupled decay under SGD is an L2 penalty, so both minimise the same.
    """
    tiny_reviews(tmp_path, rows=600)
    phases = [
        {"until": "95%", "unfreeze": ["head/.*"], "lr": 0.5, "schedule": {"kind": "cosine"}},
        {"until": "100%"},
    ]
    length = {"length": "60 epochs", "evaluate_every": 4000}
    # Momentum makes gradients ten times as strong, and decay passes it by.
    sgd, penalty = {"name": "sgd", "weight_decay": 0.05}, 0.05 * (1 - 0.9)
    config = config_of(tmp_path, phases, train=length, data={"batch_size": 64}, optimizer=sgd)
    run = Stages(config)
    run.steps(run.stage.now.phase.stop)

    built, params = run.stage.setup, run.stage.params(run.state)
    features, labels, loss = {}, {}, {}
    for name in ("train", "eval"):
        rows = built.splits[name].examples
        index = np.arange(len(rows))[:, None]
        batch = rows.collate(index, 32)
        bare = {n: batch[n] for n in ("input_ids", "token_type_ids", "position_ids") if n in batch}
        bare["attention_mask"] = batch["segment_ids"]
        features[name] = np.asarray(load(str(tmp_path / "checkpoint"))(**bare)["pooler_output"])
        labels[name] = rows.labels
        loss[name] = objective_of(built, run.stage.now.compute)(params, batch, None)
    # Two classes have two vectors here, and there their difference alone: half the penalty.
    strength = 2 / (penalty * len(labels["train"]))
    regression = LogisticRegression(C=strength).fit(features["train"], labels["train"])
    right, weight = loss["train"]["accuracy"]
    score = regression.score(features["train"], labels["train"])
    assert float(right / weight) == pytest.approx(score, abs=0.005)
    logits = features["eval"] @ params["head/kernel"] + params["head/bias"]
    theirs = regression.predict_proba(features["eval"])
    assert np.abs(jax.nn.softmax(logits) - theirs).mean() < 0.01
    # What fine-tuning starts from is what probing ended with.
    run.switch()
    batch = run.batch()
    total, weight = objective_of(run.stage.setup, run.stage.now.compute)(params, batch, None)[
        "loss"
    ]
    stage, rates = run.stage, run.stage.inputs(run.number)
    run.state, metrics = stage.step(run.state, stage.frozen, batch, rates)
    assert float(metrics["loss"]) == pytest.approx(float(total / weight), rel=1e-5)
