"""Runs whose blocks are sampled: a plain loop's parameters, one program, and resume."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxft.config.load import Config
from jaxft.data.batching.loader import batches
from jaxft.engine.cost import batch_shapes, gradient_flops
from jaxft.engine.initial_state import abstract_state, load_params
from jaxft.engine.setup import Setup, build, objective_of
from jaxft.engine.trained import open_checkpoints, open_trained
from jaxft.errors import UserError
from jaxft.planning.plan import plan
from jaxft.runs.folder import open_run
from jaxft.training.sampling.program import sampled_run
from jaxft.training.story import train
from tests.support.tiny import tiny_checkpoint, tiny_config

BLOCKS = 4


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return tiny_checkpoint(
        tmp_path_factory.mktemp("checkpoint"),
        num_hidden_layers=BLOCKS,
        hidden_size=16,
        intermediate_size=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


def sampled_config(folder: Path, start: Path, sampling: dict, **sections) -> Config:
    """A run of sampled blocks under plain gradient descent."""
    descent = {"name": "sgd", "lr": 0.05, "momentum": 0.0, "weight_decay": 0.0, "clip": None}
    written = {
        "model": {"checkpoint": str(start)},
        "optimizer": descent,
        "schedule": {"kind": "constant"},
        "sampling": sampling,
        "train": {"length": "30 steps", "evaluate_every": "30 steps"},
        "checkpoint": {"every": "30 steps"},
        "report": {"tensorboard": False, "layers_every": 0},
    }
    return tiny_config(folder, **{**written, **sections})


def final_params(config: Config) -> dict[str, np.ndarray]:
    trained = open_trained(Path(config.run.dir) / config.run.name, "last")
    return {name: np.asarray(value) for name, value in trained.model.params.items()}


def chosen_blocks(config: Config, steps: int) -> list[list[str]]:
    """What trains in each step, as the event log has it: blocks, or linear maps."""
    events = [json.loads(line) for line in _log(config).read_text().splitlines()]
    chosen = {one["step"]: list(one["blocks"]) for one in events if one["kind"] == "sampling"}
    return [chosen[max(start for start in chosen if start <= step)] for step in range(steps)]


def _log(config: Config) -> Path:
    return Path(config.run.dir) / config.run.name / "metrics.jsonl"


def plain_gradient(setup: Setup) -> Callable:
    """The gradient of the mean loss by all parameters: of parameters and a batch."""
    objective = objective_of(setup, setup.compute)

    def loss(params, batch):
        total, weight = objective(params, batch, None)["loss"]
        return total / weight

    return jax.jit(jax.grad(loss))


def plain_batches(setup: Setup, steps: int) -> Iterator[dict[str, jax.Array]]:
    collate = setup.splits["train"].examples.collate
    for batch in batches(setup.plan, collate, 0, steps):
        yield {name: jnp.asarray(value) for name, value in batch.items()}


def plain_loop(config: Config, chosen: list[list[str]], ends: bool) -> dict[str, jax.Array]:
    """Descend with the whole gradient, and put back what does not train, by name."""
    setup = build(config)
    params = {name: jnp.asarray(leaf) for name, leaf in load_params(setup).params.items()}
    gradient, made = plain_gradient(setup), plain_batches(setup, len(chosen))
    for blocks, batch in zip(chosen, made, strict=True):
        slopes = gradient(params, batch)
        for name, slope in slopes.items():
            # A block, or the path of a linear map.
            inside = any(name.startswith(f"{block}/") for block in blocks)
            if inside if name.startswith("blocks/") else ends or name.startswith("head/"):
                params[name] = params[name] - config.optimizer.lr * slope
    return params


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampling", "ends"),
    [
        ({"method": "lisa", "blocks": 2, "every": 7}, True),
        ({"method": "badam", "blocks": 1, "every": 6, "order": "random"}, False),
        ({"method": "misa", "blocks": 1, "every": 5}, False),
        # The same programs under other rules, which tests/layerwise looks at.
        pytest.param({"method": "ows", "blocks": 1, "every": 4}, True, marks=pytest.mark.full),
        pytest.param({"method": "hift", "order": "descending"}, False, marks=pytest.mark.full),
    ],
    ids=lambda one: one["method"] if isinstance(one, dict) else None,
)
def test_parameters_are_those_of_a_plain_loop(sampling, ends, checkpoint, tmp_path):
    """On eight devices, over all axes of the mesh."""
    mesh = {"data": 2, "fsdp": 2, "tensor": 2}
    config = sampled_config(tmp_path, checkpoint, sampling, mesh=mesh)
    train(config, quiet=True)
    chosen = chosen_blocks(config, 30)
    assert len(set(map(tuple, chosen))) > 2
    expected, actual = plain_loop(config, chosen, ends), final_params(config)
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_linear_maps_have_their_own_rates_and_norms(checkpoint, tmp_path):
    """Sampled maps of several blocks stand in another order in the program than in the model."""
    sampling = {"method": "misa", "blocks": 1, "every": 1}
    descent = {"name": "sgd", "lr": 1.0, "momentum": 0.0, "weight_decay": 0.0, "clip": None}
    sections = {"optimizer": descent, "layer_decay": {"rate": 0.5}, "train": {"length": "1 step"}}
    config = sampled_config(tmp_path, checkpoint, sampling, **sections)
    train(config, quiet=True)
    setup = build(config)
    before = {name: jnp.asarray(leaf) for name, leaf in load_params(setup).params.items()}
    (batch,) = plain_batches(setup, 1)
    slopes, actual = plain_gradient(setup)(before, batch), final_params(config)
    (maps,) = chosen_blocks(config, 1)
    multipliers = {leaf.name: leaf.multiplier for leaf in setup.phases[0].table.leaves}
    trained = [name for name in before if name.rpartition("/")[0] in maps]
    assert len({multipliers[name] for name in trained}) > 1
    for name in trained:
        expected = before[name] - multipliers[name] * slopes[name]
        np.testing.assert_allclose(actual[name], expected, rtol=0, atol=1e-6, err_msg=name)
    events = [json.loads(line) for line in _log(config).read_text().splitlines()]
    (norms,) = (one["norms"] for one in events if one["kind"] == "linear_map_norms")
    assert sorted(norms) == sorted(maps)
    for path, norm in norms.items():
        own = [slopes[name] for name in trained if name.rpartition("/")[0] == path]
        assert norm == pytest.approx(float(optax.tree.norm(own)), rel=1e-4), path


ADAM = {"name": "adamw", "lr": 1e-3}


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampling",
    [
        {"method": "lisa", "blocks": 2, "every": 5},
        {"method": "lisa", "blocks": 2, "every": 5, "moments": "keep"},
        {"method": "misa", "blocks": 1, "every": 5},
    ],
    ids=["reset", "keep", "misa"],
)
def test_a_run_stopped_in_a_period_goes_on_bit_for_bit(sampling, checkpoint, tmp_path):
    sections = {"optimizer": ADAM, "checkpoint": {"every": "4 steps"}}
    config = sampled_config(tmp_path, checkpoint, sampling, **sections)
    train(config, quiet=True)
    expected = final_params(config)
    run = open_run(Path(config.run.dir) / config.run.name)
    shutil.rmtree(run.checkpoints / "30")
    (run.path / "result.json").unlink()
    run.update(state="stopped")
    with open_checkpoints(run, config, build(config).task) as checkpoints:
        assert checkpoints.latest() == 28  # in the middle of the sixth period
    train(config, resume=True, quiet=True)
    actual = final_params(config)
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value, err_msg=name)


@pytest.mark.slow
def test_a_longer_run_whose_periods_move_is_refused(checkpoint, tmp_path):
    sampling = {"method": "badam", "every": "25%"}
    short, longer = (
        sampled_config(tmp_path, checkpoint, sampling, train={"length": length, "log_every": 1})
        for length in ("4 steps", "12 steps")
    )
    train(short, quiet=True)
    sentence = (
        r"train\.length moves sampling\.every from 1 to 3 steps, and the blocks that train at"
    )
    with pytest.raises(UserError, match=sentence):
        train(longer, resume=True, quiet=True)


@pytest.mark.slow
def test_kept_moments_differ_from_fresh_ones(checkpoint, tmp_path):
    ends = []
    for moments in ("reset", "keep"):
        sampling = {"method": "badam", "blocks": 2, "every": 3, "moments": moments}
        config = sampled_config(tmp_path / moments, checkpoint, sampling, optimizer=ADAM)
        train(config, quiet=True)
        ends.append(final_params(config))
    first_period = "blocks/0/attention/query/kernel"
    assert np.abs(ends[0][first_period] - ends[1][first_period]).max() > 1e-5


@pytest.mark.slow
def test_another_choice_compiles_nothing(checkpoint, tmp_path, caplog):
    """Of two runs, the one with ten times the periods compiles as many programs."""
    compiled = []
    for every in (30, 3):
        sampling = {"method": "lisa", "blocks": 2, "every": every}
        config = sampled_config(tmp_path / str(every), checkpoint, sampling, optimizer=ADAM)
        jax.clear_caches()
        caplog.clear()
        with jax.log_compiles():
            train(config, quiet=True)
        names = re.findall(r"Compiling (?:jit\()?(\w+)", caplog.text)
        compiled.append(sorted(name for name in names if name in ("step", "init", "init_fn")))
    assert compiled[0] == ["step"]
    assert [name for name in compiled[1] if name == "step"] == ["step"]
    assert len(compiled[1]) <= 2  # and the moments of a new choice, once


def test_moments_are_those_of_the_sampled_blocks(checkpoint, tmp_path):
    sampling = {"method": "badam", "blocks": 1, "every": 10}
    config = sampled_config(tmp_path, checkpoint, sampling, optimizer=ADAM)
    run = sampled_run(build(config))
    state = abstract_state(run.setup, run.program)
    table = run.program.table
    trained = sum(leaf.parameters for leaf in table.leaves if leaf.trainable)
    block = sum(one.parameters for one in table.leaves if one.name.startswith("blocks/0/"))
    head = sum(one.parameters for one in table.leaves if one.name.startswith("head/"))
    assert trained == block + head
    moments = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim)
    assert moments == 2 * trained
    assert sum(leaf.size for leaf in state.trainable.values()) == trained


def test_a_plan_counts_what_trains_at_once(checkpoint, tmp_path):
    sampling = {"method": "badam", "blocks": 1, "every": 10}
    config = sampled_config(tmp_path, checkpoint, sampling, optimizer=ADAM)
    planned, setup = plan(config), build(config)
    trained = sampled_run(setup).program.table.trainable
    parameters = sum(int(np.prod(setup.model.params[name].shape)) for name in trained)
    assert sum(group["optimizer_bytes"] for group in planned.table["groups"]) == 8 * parameters
    assert planned.flops["step"] == gradient_flops(setup, trained, batch_shapes(setup))
    assert planned.flops["step"] < planned.flops["full"]
    assert planned.sampling == "badam trains one block of a tower at a time, others every 10 steps"
