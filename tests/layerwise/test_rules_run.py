"""A run under several rules at once: what is scored and exported, and how it goes on."""

import jax
import numpy as np
import pytest

import jaxft
from jaxft.engine.evaluate import build_eval_step, evaluate
from jaxft.engine.initial_state import abstract_state, load_params
from jaxft.engine.remat import phase_after, phase_setups
from jaxft.engine.setup import build
from jaxft.engine.trained import open_checkpoints, open_trained
from jaxft.inference.score import score
from jaxft.report.events import read_events
from tests.support.laid_out import goes_on_to_the_same_bits
from tests.support.tiny import tiny_config

MIXED = "blocks/1/mlp/up/kernel"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Schedule-free below, Lion for the head, Muon for a block; the best of four evaluations."""
    return tiny_config(
        tmp_path_factory.mktemp("rules"),
        optimizer={"name": "schedule_free_adamw", "lr": 3e-3},
        schedule={"kind": "constant", "warmup": "2 steps"},
        groups=[
            {"name": "head", "match": "head/.*", "optimizer": "lion", "lr": 1e-4},
            {"name": "first", "match": "blocks/0/.*", "optimizer": "muon"},
        ],
        phases=[{"until": "4 steps", "depth": [1, 3]}, {"until": "100%"}],
        train={"length": "8 steps", "evaluate_every": "4 steps"},
        checkpoint={"every": "3 steps", "keep": 9},
    )


@pytest.fixture(scope="module")
def run(config):
    return jaxft.train(config, quiet=True)


@pytest.mark.slow
def test_what_is_scored_and_exported_is_the_average(run, config):
    trained, built = open_trained(run.folder, "last"), build(config)
    with open_checkpoints(trained.run, config, trained.task, read_only=True) as checkpoints:
        phases = phase_setups(built)
        restored = checkpoints.restore(lambda n: abstract_state(built, phase_after(phases, n)))
        state = restored.state
    params = trained.model.params
    np.testing.assert_array_equal(params[MIXED], state.average[MIXED])
    assert np.abs(np.asarray(state.trainable[MIXED]) - params[MIXED]).max() > 1e-5
    np.testing.assert_array_equal(params["head/kernel"], state.trainable["head/kernel"])
    found = evaluate(
        built, build_eval_step(built), place(built, params), built.splits["eval"]
    ).scores
    events = read_events(run.folder)
    scored = [e for e in events if e["kind"] == "eval" and e["split"] == "eval"]
    assert scored[-1]["step"] == 8
    assert scored[-1]["loss"] == pytest.approx(found["loss"], rel=1e-5)


def place(built, params):
    return jax.device_put(params, dict(built.shardings))


@pytest.mark.slow
def test_a_resumed_run_is_the_run_across_a_phase(run, config, tmp_path):
    goes_on_to_the_same_bits(run, config, 3, tmp_path)


def test_the_line_to_the_start_ends_in_the_run(run, config):
    found = score(run.folder, "eval", interpolate="0:1:0.5")
    assert [point["share"] for point in found["line"]] == [0.0, 0.5, 1.0]
    assert found["line"][-1]["metrics"] == found["metrics"]
    built = build(config)
    start = place(built, load_params(built).params)
    before = evaluate(built, build_eval_step(built), start, built.splits["eval"]).scores
    assert found["line"][0]["metrics"] == pytest.approx(before, rel=1e-5)
    assert {"head/kernel", "head/bias"} <= set(found["new"])
