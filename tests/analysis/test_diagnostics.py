"""What each layer does in a step, against NumPy in float64; and the rates that follow from it."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.analysis.diagnostics import COLUMNS, layer_values, layers_of
from jaxft.config.load import parse_config
from jaxft.device.mesh import batch_sharding, place_batch
from jaxft.engine.initial_state import initial_state, load_params
from jaxft.engine.setup import build, model_options, objective_of
from jaxft.engine.trained import open_trained
from jaxft.errors import UserError
from jaxft.layerwise.table import LeafRow
from jaxft.models.load import load
from jaxft.training.layers import read_layers
from jaxft.training.rates.auto_rgn import relative_gradients
from jaxft.training.story import train
from tests.support.phases import phase_of, stage_of
from tests.support.tiny import tiny_config

ONE = jax.devices()[:1]
STEPS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("diagnostics")
    tiny_config(folder)
    return folder


def config_of(folder, **sections):
    """A tiny run whose every step is looked at, with a clip, decay by layer and two groups."""
    written = {
        "model": {"dropout": 0.0},
        "data": {"batch_size": 16},
        "optimizer": {"lr": 1e-3, "clip": 0.5},
        "schedule": {"kind": "constant"},
        "layer_decay": {"rate": 0.8},
        "groups": [{"name": "head", "match": "head/.*", "lr_mult": 3}],
        "train": {"length": "12 steps", "evaluate_every": 12, "log_every": 1},
        "report": {"layers_every": 1},
    }
    return tiny_config(folder, **(written | sections))


def _copies(state):
    return {name: np.array(leaf) for name, leaf in state.trainable.items()}


class Steps:
    """The first steps of a run: its stage, its states as they came and each step's metrics."""

    def __init__(self, config, devices=ONE, count=STEPS, layout=None):
        built = build(config, devices=devices, layout=layout)
        params = load_params(built).params
        self.built, self.stage = built, stage_of(built, params)
        state = initial_state(built, phase_of(built), params)
        self.params, self.seen, self.batches = [_copies(state)], [], []
        for number in range(count):
            rows = built.splits["train"].examples
            batch = rows.collate(built.plan.batch(number), built.layout.row_length)
            placed = place_batch(batch, batch_sharding(built.mesh))
            state, metrics = self.stage.step(
                state, self.stage.frozen, placed, self.stage.inputs(number)
            )
            self.seen.append(read_layers(self.stage, state, number + 1, metrics).read())
            self.batches.append(batch)
            self.params.append(_copies(state))

    def gradients(self, number):
        """The gradient of a step's mean loss, by jax and by itself."""

        objective = objective_of(self.built, phase_of(self.built).compute)

        def loss(trainable):
            frozen = {n: jnp.asarray(v) for n, v in self.stage.frozen.items()}
            total, weight = objective({**frozen, **trainable}, self.batches[number], None)["loss"]
            return total / weight

        found = jax.jit(jax.grad(loss))(self.params[number])
        return {name: np.asarray(leaf, np.float64) for name, leaf in found.items()}


@pytest.fixture(scope="module")
def steps(folder):
    return Steps(config_of(folder))


@pytest.mark.slow
def test_a_step_shows_what_each_leaf_does(steps):
    """Sums of squares, and Adam's signal from moments that are kept here in float64."""
    names, b1, b2 = phase_of(steps.built).table.trainable, 0.9, 0.999
    mean = dict.fromkeys(names, 0.0)
    square = dict(mean)
    for number in range(STEPS):
        before, after = steps.params[number : number + 2]
        gradients = steps.gradients(number)
        whole = np.sqrt(sum(np.square(g).sum() for g in gradients.values()))
        norms, sums = steps.seen[number]
        assert sums.shape == (len(names), len(COLUMNS))
        for norm, (squared, moved, shown), name in zip(norms, sums, names, strict=True):
            clipped = gradients[name] * min(1, 0.5 / whole)
            mean[name] = b1 * mean[name] + (1 - b1) * clipped
            square[name] = b2 * square[name] + (1 - b2) * clipped**2
            unbiased = mean[name] / (1 - b1 ** (number + 1))
            root = np.sqrt(square[name] / (1 - b2 ** (number + 1)))
            signal = np.where(root > 0, np.abs(unbiased) / np.where(root > 0, root, 1), 0)
            weight = before[name].astype(np.float64)
            np.testing.assert_allclose(norm, np.sqrt(np.square(gradients[name]).sum()), rtol=1e-5)
            np.testing.assert_allclose(squared, np.square(weight).sum(), rtol=1e-5)
            difference = after[name].astype(np.float64) - weight
            np.testing.assert_allclose(moved, np.square(difference).sum(), rtol=1e-3)
            np.testing.assert_allclose(shown, signal.sum(), rtol=1e-4)


# ---------------------------------------------------------------------- by layer, and elsewhere
def test_layers_are_summed_up_from_their_leaves(steps):
    """Against NumPy in float64, from the arrays themselves."""
    built, table = steps.built, phase_of(steps.built).table
    leaves = [leaf for leaf in table.leaves if leaf.trainable]
    of = layers_of(built.model)
    rates = np.arange(len(leaves), dtype=np.float32)
    found = layer_values(*steps.seen[0], leaves, [of[leaf.name] for leaf in leaves], rates)
    assert list(found["grad_norm"]) == ["0", "1", "2", "3"]
    gradients = steps.gradients(0)
    for depth in range(4):
        own = [leaf.name for leaf in leaves if leaf.depth == depth]

        def norm(arrays, own=own):
            squares = [np.square(np.asarray(arrays[name], np.float64)).sum() for name in own]
            return np.sqrt(sum(squares))

        layer = {metric: values[str(depth)] for metric, values in found.items()}
        gradient, weight = norm(gradients), norm(steps.params[0])
        np.testing.assert_allclose(layer["grad_norm"], gradient, rtol=1e-5)
        np.testing.assert_allclose(layer["weight_norm"], weight, rtol=1e-5)
        np.testing.assert_allclose(layer["relative_gradient"], gradient / weight, rtol=1e-5)
        ratio = layer["update_norm"] / weight
        np.testing.assert_allclose(layer["update_ratio"], ratio, rtol=1e-5)
        assert 0 < layer["signal"] <= 1
        assert layer["rate"] == max(i for i, leaf in enumerate(leaves) if leaf.name in own)


def test_a_gradient_that_is_not_finite_names_its_layer():
    leaves = [leaf_row("blocks/0/kernel", (4, 3), 1), leaf_row("head/bias", (3,), 2)]
    sums = np.full((2, len(COLUMNS)), np.nan)
    found = layer_values(np.array([np.inf, 2.0]), sums, leaves, ["1", "2"], np.ones(2))
    assert found["not_finite"] == {"1": 1.0, "2": 0.0}
    assert found["grad_norm"] == {"1": None, "2": 2.0}
    assert set(found["update_norm"].values()) == {None}


def leaf_row(name, shape, depth):
    return LeafRow(name, shape, "float32", "rest", depth, True, 1.0, True)


SGD = {"optimizer": {"name": "sgd", "lr": 0.1, "clip": 0.5, "weight_decay": 0.1}}


@pytest.mark.slow
def test_scanned_sharded_and_in_parts_the_numbers_are_the_same(folder):
    """Under SGD with momentum, whose steps do not magnify rounding."""
    parts = {"length": "12 steps", "accumulate": 2, "scan": True}
    mesh = {"data": 2, "fsdp": 2, "tensor": 2}
    other = Steps(config_of(folder, train=parts, mesh=mesh, **SGD), devices=jax.devices())
    plain = Steps(config_of(folder, **SGD), layout=other.built.layout)
    for (norms, sums), (norms_other, sums_other) in zip(plain.seen, other.seen, strict=True):
        np.testing.assert_allclose(norms_other, norms, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(sums_other, sums, rtol=2e-4, atol=1e-13)
    for number, (_, sums) in enumerate(plain.seen):
        for name, (_, moved, signal) in zip(plain.params[0], _rows(plain, sums), strict=True):
            before, after = (
                plain.params[at][name].astype(np.float64) for at in (number, number + 1)
            )
            np.testing.assert_allclose(moved, np.square(after - before).sum(), 1e-3, 1e-13)
            assert np.isnan(signal), "momentum has no noise to compare with"


def _rows(steps, sums):
    """The rows of the leaves in the order in which jax keeps their dict."""
    at = dict(zip(phase_of(steps.built).table.trainable, sums, strict=True))
    return [at[name] for name in steps.params[0]]


def test_a_block_in_the_middle_trains_alone(folder, steps):
    """Surgical tuning: the gradient passes through what is frozen above, and is the same."""
    config = parse_config(
        config_of(folder).dump() | {"phases": [{"until": "100%", "depth": [2, 2]}]}
    )
    middle = Steps(config, count=1)
    names = phase_of(middle.built).table.trainable
    assert {leaf.depth for leaf in phase_of(middle.built).table.leaves if leaf.trainable} == {2}
    whole = dict(zip(phase_of(steps.built).table.trainable, steps.seen[0][0], strict=True))
    np.testing.assert_allclose(middle.seen[0][0], [whole[name] for name in names], rtol=1e-5)
    assert all((middle.params[1][name] != middle.params[0][name]).any() for name in names)
    groups = [
        {"name": "below", "depth": [0, 1], "freeze": True},
        {"name": "above", "depth": [3, 3], "freeze": True},
    ]
    grouped = build(config_of(folder, groups=groups), devices=ONE)
    assert phase_of(grouped).table.trainable == names


# -------------------------------------------------------------------------------- Auto-RGN
def test_relative_gradients_by_hand():
    """Matrices have ratios of 0.1 and 0.4; vectors take their layer's, and what is 0 the most."""
    leaves = [
        leaf_row("blocks/0/bias", (3,), 1),
        leaf_row("blocks/0/kernel", (4, 3), 1),
        leaf_row("head/bias", (2,), 2),
        leaf_row("head/kernel", (3, 2), 2),
        leaf_row("scale", (), 2),
    ]
    norms = np.array([50.0, 1.0, 7.0, 2.0, 3.0], np.float32)
    weights = np.array([0.5, 10.0, 0.0, 5.0, 0.0], np.float32)
    sums = np.stack([np.square(weights), weights, weights], 1)
    shares = relative_gradients(norms, sums, leaves, ["1", "1", "2", "2", "joint"])
    np.testing.assert_allclose(shares, [0.25, 0.25, 1, 1, 1], rtol=1e-6)
    assert not relative_gradients(0 * norms, sums, leaves, ["1", "1", "2", "2", "2"]).any()


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """A run of 12 steps whose multipliers are measured after steps 1, 5 and 10."""
    return train(auto(folder, tmp_path_factory.mktemp("whole")), quiet=True).folder


def auto(folder, place):
    config = config_of(folder, layer_decay={"preset": "auto_rgn", "every": 5}).dump()
    config["run"]["dir"] = str(place)
    config["checkpoint"] |= {"every": 2, "keep": 20}
    config["data"]["test"] = None
    return parse_config(config)


def events(run, kind):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["kind"] == kind]


def parameters(run, which="last"):
    model = open_trained(run, which).model
    return {name: np.asarray(leaf) for name, leaf in model.params.items()}


@pytest.mark.slow
def test_multipliers_are_measured_and_used(whole):
    """The first step measures and moves nothing; then a rate is lr x lr_mult x share."""
    looked, measured = events(whole, "layers"), events(whole, "multipliers")
    assert [event["step"] for event in looked] == list(range(1, 13))
    assert [event["step"] for event in measured] == [1, 5, 10]
    assert set(looked[0]["update_norm"].values()) == {0.0}
    assert all(value > 0 for value in looked[1]["update_norm"].values())
    for before, after in ((0, 1), (4, 5), (9, 10)):  # of steps: measured in one, used in the next
        at = next(event for event in measured if event["step"] == before + 1)["multipliers"]
        top = max(value for name, value in at.items() if name.startswith(("head", "pooler")))
        np.testing.assert_allclose(looked[after]["rate"]["3"], 1e-3 * top, rtol=1e-6)
        kernels = [n for n in at if n.endswith("kernel") and not n.startswith("head/")]
        assert max(at[name] for name in kernels) <= 1
        assert max(at.values()) in (1.0, 3.0), "the largest is 1, times the head's lr_mult"
    layer, shares = looked[4], measured[1]["multipliers"]
    mean = layer["relative_gradient"]["1"] / layer["relative_gradient"]["2"]
    vectors = shares["blocks/0/mlp/up/bias"] / shares["blocks/1/mlp/up/bias"]
    np.testing.assert_allclose(vectors, mean, rtol=0.05)  # the layer's with its vectors, nearly


@pytest.mark.parametrize("step", [4, pytest.param(10, marks=pytest.mark.full)])
def test_a_resumed_run_goes_on_with_the_same_bits(whole, tmp_path, step):
    """And although it does not look at its layers any more, but for the rates."""
    run = tmp_path / "tiny"
    shutil.copytree(whole, run)
    for later in range(step + 2, 14, 2):
        shutil.rmtree(run / "checkpoints" / str(later), ignore_errors=True)
    (run / "result.json").unlink()
    config = open_trained(run, "last").run.config()
    config["run"]["dir"], config["report"]["layers_every"] = str(tmp_path), 0
    resumed = train(parse_config(config), resume=True, quiet=True).folder
    told = [[e["multipliers"] for e in events(r, "multipliers")] for r in (resumed, whole)]
    assert told[0] == told[1]
    later = [event["step"] for event in events(resumed, "layers") if event["step"] > step]
    assert later == [at for at in (5, 10) if at > step]
    np.testing.assert_equal(parameters(resumed), parameters(whole))


def test_drift_is_how_far_a_layer_is_from_its_start(whole):
    """Against NumPy in float64, from the last checkpoint and the run's own copy of the start."""
    (told,) = events(whole, "drift")
    trained = open_trained(whole, "last")
    options = model_options(trained.config, trained.label_names)
    start = load(str(trained.run.base), **vars(options))
    of = layers_of(start)
    for layer, drift in told["drift"].items():
        now, then = (
            [np.asarray(m.params[n], np.float64) for n in of if of[n] == layer]
            for m in (trained.model, start)
        )
        moved = sum(np.square(a - b).sum() for a, b in zip(now, then, strict=True))
        whole_norm = sum(np.square(leaf).sum() for leaf in then)
        np.testing.assert_allclose(drift, np.sqrt(moved / whole_norm), rtol=1e-5)


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        (
            {"preset": "auto_rgn", "rate": 0.9},
            "'rate' and preset auto_rgn both set the multipliers",
        ),
        ({"every": 10}, "'every' applies to auto_rgn and heavy_tail, and preset is mae"),
    ],
)
def test_layer_decay_that_nothing_reads(folder, section, sentence):
    with pytest.raises(UserError, match=sentence):
        config_of(folder, layer_decay=section)
