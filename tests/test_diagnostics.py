"""What each layer does in a step, against NumPy in float64; and the rates that follow from it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.engine.build import build
from jaxft.engine.build_state import initial_state, load_params
from jaxft.engine.diagnostics import COLUMNS
from jaxft.engine.mesh import batch_sharding, place_batch
from jaxft.engine.train_layers import see_layers
from jaxft.engine.train_stage import make_stage
from tests.tiny import tiny_config

ONE = jax.devices()[:1]
STEPS = 3
pytestmark = pytest.mark.usefixtures("quick_to_compile")


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

    def __init__(self, config, devices=ONE, count=STEPS):
        built = build(config, devices=devices)
        params = load_params(built).params
        self.built, self.stage = built, make_stage(built, params)
        state = initial_state(built, params)
        self.params, self.seen, self.batches = [_copies(state)], [], []
        for number in range(count):
            rows = built.splits["train"].examples
            batch = rows.collate(built.plan.batch(number), built.layout.row_length)
            placed = place_batch(batch, batch_sharding(built.mesh))
            state, metrics = self.stage.step(
                state, self.stage.frozen, placed, self.stage.rates(number)
            )
            self.seen.append(see_layers(self.stage, state, number + 1, metrics).read())
            self.batches.append(batch)
            self.params.append(_copies(state))

    def gradients(self, number):
        """The gradient of a step's mean loss, by jax and by itself."""

        def loss(trainable):
            frozen = {n: jnp.asarray(v) for n, v in self.stage.frozen.items()}
            total, weight = self.built.objective(
                {**frozen, **trainable}, self.batches[number], None
            )["loss"]
            return total / weight

        found = jax.jit(jax.grad(loss))(self.params[number])
        return {name: np.asarray(leaf, np.float64) for name, leaf in found.items()}


@pytest.fixture(scope="module")
def steps(folder):
    return Steps(config_of(folder))


def test_a_step_shows_what_each_leaf_does(steps):
    """Sums of squares, and Adam's signal from moments that are kept here in float64."""
    names, b1, b2 = steps.built.table.trainable, 0.9, 0.999
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
            print(name, moved / np.square(difference).sum() - 1, shown / signal.sum() - 1)
            np.testing.assert_allclose(moved, np.square(difference).sum(), rtol=1e-3)
            np.testing.assert_allclose(shown, signal.sum(), rtol=1e-4)
