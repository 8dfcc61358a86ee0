"""Heavy-tail rates: multipliers from the exponents of the weights' spectra."""

import json
import shutil

import jax
import numpy as np
import pytest

from jaxft.config.load import parse_config
from jaxft.device.mesh import make_mesh
from jaxft.engine.trained import open_trained
from jaxft.errors import UserError
from jaxft.layerwise.criteria.spectrum import hill_exponent
from jaxft.layerwise.groups import Group
from jaxft.layerwise.table import build_table
from jaxft.planning.plan import plan
from jaxft.training.rates.heavy_tail import heavy_tail_multipliers, matrices_of, measured_exponents
from jaxft.training.story import train
from tests.support.tiny import tiny_config

A, B, C = (f"blocks/{index}/mlp/up/kernel" for index in range(3))
NAMES = ("embeddings/tokens", A, A.replace("kernel", "bias"), B, "blocks/1/norm/scale", C)


def table_of(groups=()):
    shapes = {n: jax.ShapeDtypeStruct((4, 3) if "kernel" in n else (3,), "float32") for n in NAMES}
    depths = {name: 0 if "blocks" not in name else int(name[7]) + 1 for name in NAMES}
    return build_table(
        shapes, depths=depths, tops=dict.fromkeys(NAMES, 4), no_decay=(), groups=groups, lr=1.0
    )


def test_multipliers_rise_linearly_from_half_to_one_and_a_half():
    table = table_of([Group("two", match=B, lr_mult=2.0)])
    exponents = {A: 3.0, B: 2.0, C: 6.0}
    by_name = dict(zip(table.trainable, heavy_tail_multipliers(table, exponents), strict=True))
    assert by_name[A] == by_name[A.replace("kernel", "bias")] == pytest.approx(0.75)
    assert (by_name[B], by_name[C]) == (2 * 0.5, 1.5)
    assert by_name["embeddings/tokens"] == by_name["blocks/1/norm/scale"] == 1.0


def test_multipliers_without_a_spread_are_one():
    table = table_of()
    for exponents in ({A: 3.0, B: 3.0, C: 3.0}, {A: None, B: None, C: None}):
        assert set(heavy_tail_multipliers(table, exponents)) == {1.0}


def test_exponents_by_numpy():
    made = np.random.default_rng(0).standard_t(3, size=(2, 24, 40)).astype(np.float32)
    mesh = make_mesh(1, 1, 1, jax.devices()[:1])
    measured = measured_exponents(mesh, {"wide": jax.numpy.array(made[0]), "tall": made[1].T})
    for name, matrix in (("wide", made[0]), ("tall", made[1])):
        squares = np.square(np.linalg.svd(matrix.astype(np.float64), compute_uv=False))
        assert measured[name] == pytest.approx(hill_exponent(squares), rel=1e-9)


def test_only_matrices_of_blocks_that_train_are_measured():
    table = table_of([Group("frozen", match=A, freeze=True)])
    assert matrices_of(table) == [B, C]


def heavy(folder, place):
    """12 steps; multipliers at their start and before steps 6 and 11."""
    decay = {"preset": "heavy_tail", "every": 5}
    dump = tiny_config(folder, layer_decay=decay).dump()
    dump["run"]["dir"] = str(place)
    dump["train"] |= {"length": 12, "evaluate_every": 4}
    dump["checkpoint"] |= {"every": 2, "keep": 20}
    dump["data"]["test"] = None
    return parse_config(dump)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("heavy")
    return train(heavy(folder, folder / "whole"), quiet=True).folder


def events(run, kind):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["kind"] == kind]


@pytest.mark.slow
def test_rates_follow_the_spectra_of_the_weights(whole):
    measured = events(whole, "multipliers")
    assert [event["step"] for event in measured] == [0, 5, 10]
    trained = open_trained(whole, 10)
    kernels = {n: v for n, v in trained.model.params.items() if n.startswith("blocks/")}
    matrices = {name: value for name, value in kernels.items() if name.endswith("kernel")}
    exponents = measured_exponents(make_mesh(1, 1, 1, jax.devices()[:1]), matrices)
    low, high = min(exponents.values()), max(exponents.values())
    for name, exponent in exponents.items():
        expected = 0.5 + (exponent - low) / (high - low)
        assert measured[2]["multipliers"][name] == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_a_resumed_run_goes_on_with_the_same_bits(whole, tmp_path):
    run = tmp_path / "tiny"
    shutil.copytree(whole, run)
    for later in (8, 10, 12):
        shutil.rmtree(run / "checkpoints" / str(later), ignore_errors=True)
    (run / "result.json").unlink()
    config = open_trained(run, "last").run.config()
    config["run"]["dir"] = str(tmp_path)
    resumed = train(parse_config(config), resume=True, quiet=True).folder
    measured = [[e["multipliers"] for e in events(one, "multipliers")] for one in (resumed, whole)]
    assert measured[0] == measured[1]
    for name, value in open_trained(whole, "last").model.params.items():
        np.testing.assert_array_equal(value, open_trained(resumed, "last").model.params[name])


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"adapter": {"kind": "lora"}}, "by the spectra of the blocks' matrices, and none of them"),
        ({"groups": [{"name": "f", "depth": [0, 2], "freeze": True}]}, "none of them trains"),
        ({"layer_decay": {"preset": "heavy_tail", "rate": 0.9}}, "'rate' and preset heavy_tail"),
    ],
)
def test_runs_without_spectra_are_refused(tmp_path, sections, message):
    with pytest.raises(UserError, match=message):
        train(tiny_config(tmp_path, **{"layer_decay": {"preset": "heavy_tail"}, **sections}))
    assert not (tmp_path / "runs").exists()


def test_a_plan_raises_what_the_run_would(tmp_path):
    decay, frozen = {"preset": "heavy_tail"}, {"name": "f", "depth": [0, 2], "freeze": True}
    with pytest.raises(UserError, match="none of them trains"):
        plan(tiny_config(tmp_path, layer_decay=decay, groups=[frozen]))


def test_the_interval_is_an_epoch_unless_it_is_set(tmp_path):
    config = tiny_config(tmp_path, layer_decay={"preset": "heavy_tail"})
    assert str(config.layer_decay.every) == "1 epoch"
