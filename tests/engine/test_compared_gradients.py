"""Micro-batches of losses that compare rows have the gradients of the whole batch."""

import csv
import json
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxft.config.load import parse_config
from jaxft.device.mesh import batch_sharding, make_mesh, place_batch
from jaxft.engine.gradients.compared import Compared, compared_gradients
from jaxft.engine.gradients.micro_batches import MicroBatches
from jaxft.engine.initial_state import load_params
from jaxft.engine.remat import phase_setups
from jaxft.engine.setup import build, compared_of, objective_of
from jaxft.training import phase
from tests.support.launch import cache  # noqa: F401 a fixture
from tests.support.tiny import tiny_checkpoint, tiny_config
from tests.support.tiny_images import tiny_pictures, tiny_vit

PARTS = 4
DATA = {"one": 1, "eight": 8}  # devices
ROWS = 32


def mesh_of(devices):
    return make_mesh(devices, 1, 1, jax.devices()[:devices])


def represent(params, batch, key):
    """Vectors of each row, a share of them dropped."""
    hidden = jnp.tanh(batch["x"] @ params["kernel"] + params["bias"])
    hidden = hidden * jax.random.bernoulli(key, 0.7, hidden.shape)
    return {"vectors": hidden @ params["head"], "others": batch["y"] @ params["head"]}


def compare(params, rows, batch):
    """Cross-entropy of each row's own pair among all, under a learned scale."""
    scores = jnp.exp(params["scale"]) * rows["vectors"] @ rows["others"].T
    losses = optax.softmax_cross_entropy_with_integer_labels(scores, jnp.arange(len(scores)))
    weights = batch["weights"]
    return {"loss": (jnp.sum(losses * weights), jnp.sum(weights))}


def whole_gradients(params, fixed, batch, key):
    """The gradient of the mean loss of all rows, each micro-batch with its dropout."""

    def mean(params):
        params = {**fixed, **params}
        parts = [{n: a[k::PARTS] for n, a in batch.items()} for k in range(PARTS)]
        keys = jax.random.split(key, PARTS)
        pieces = [represent(params, *one) for one in zip(parts, keys, strict=True)]
        rows = {
            name: jnp.stack([piece[name] for piece in pieces], 1).reshape(ROWS, -1)
            for name in pieces[0]
        }
        total, weight = compare(params, rows, batch)["loss"]
        return total / weight

    return jax.value_and_grad(mean)(params)


def drawn():
    draw = np.random.default_rng(0)
    params = {
        "kernel": draw.normal(size=(5, 6)),
        "bias": draw.normal(size=6),
        "head": draw.normal(size=(6, 4)),
        "scale": np.array(0.5),
    }
    batch = {
        "x": draw.normal(size=(ROWS, 5)),
        "y": draw.normal(size=(ROWS, 6)),
        "weights": draw.integers(0, 2, ROWS),
    }
    return tuple({n: np.asarray(a, np.float32) for n, a in one.items()} for one in (params, batch))


def assert_same_gradients(gradients, expected, most=1e-6):
    """Each leaf differs by at most `most` of the whole gradient's norm."""
    norm = float(optax.tree.norm(expected))
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        assert float(jnp.linalg.norm(gradient - expected[name])) <= most * norm, name


@pytest.mark.parametrize("devices", DATA)
@pytest.mark.parametrize("frozen", [(), ("kernel", "scale")])
def test_gradients_are_those_of_the_whole_batch_under_the_same_dropout(devices, frozen):
    mesh, key = mesh_of(DATA[devices]), jax.random.key(1)
    params, batch = drawn()
    fixed = {name: params.pop(name) for name in frozen}
    rows = batch_sharding(mesh)
    run = partial(compared_gradients, Compared(represent, compare), MicroBatches(PARTS, rows))
    gradients, sums = jax.jit(run)(params, fixed, place_batch(batch, rows), key)
    loss, expected = whole_gradients(params, fixed, batch, key)
    assert_same_gradients(gradients, expected)
    assert float(sums["loss"][0] / sums["loss"][1]) == pytest.approx(float(loss), rel=1e-6)
    assert float(sums["loss"][1]) == batch["weights"].sum()


# ---------------------------------------------------------------------------------------- tasks


@pytest.fixture(scope="module")
def folder(tmp_path_factory, cache):  # noqa: F811 the fixture above
    """Make pairs of texts, and pictures with texts, beside small models of both."""
    folder = tmp_path_factory.mktemp("compared")
    words = ["bright", "fine", "lovely", "warm", "witty", "cold", "dull", "flat", "grim", "stale"]
    rows = [
        {"anchor": f"a {w} {e}", "positive": f"the {e} {w}", "score": float(n % 3) / 2}
        for n, (w, e) in enumerate((w, e) for w in words for e in ("film", "story", "plot", "cast"))
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tiny_vit(folder / "vision")
    tiny_checkpoint(folder / "text")
    tiny_pictures(folder / "pictures", each=11)
    with (folder / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "text"])
        for number, path in enumerate(sorted((folder / "pictures").rglob("*.png"))):
            text = f"a {words[number % 10]} film" + " story" * (number // 10)
            writer.writerow([path.relative_to(folder), text])
    return folder


def text_config(folder, **task):
    source = f"jsonl:{folder}/pairs.jsonl"
    return tiny_config(
        folder,
        task={"kind": "embedding", **task},
        data={"train": source, "eval": source, "test": None, "batch_size": ROWS, "pack": False},
        model={"dropout": 0.0},
        optimizer={"name": "sgd", "momentum": 0.0, "clip": None, "weight_decay": 0.0},
    )


def image_config(folder, **task):
    towers = {"vision": str(folder / "vision"), "text": str(folder / "text")}
    source = f"csv:{folder}/rows.csv"
    return parse_config(
        {
            "run": {"name": "tiny", "dir": str(folder / "runs")},
            "model": {"checkpoint": towers, "dropout": 0.0},
            "task": {"kind": "contrastive", **task},
            "data": {"train": source, "eval": source, "test": None, "batch_size": ROWS},
            "train": {"length": "4 steps", "evaluate_every": "4 steps"},
            "optimizer": {"name": "sgd", "momentum": 0.0, "clip": None, "weight_decay": 0.0},
            "checkpoint": {"every": "4 steps"},
        }
    )


TASKS = {
    "multiple_negatives": (text_config, {}, "one"),
    "matryoshka": (text_config, {"matryoshka_dims": [32, 8]}, "eight"),
    # A low temperature would multiply the rounding of float32.
    "cosent": (text_config, {"score": "score", "loss": "cosent", "temperature": 0.5}, "one"),
    "clip": (image_config, {"loss": "softmax", "hard_negatives": 0.25}, "eight"),
    "siglip": (image_config, {"loss": "sigmoid"}, "one"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_gradients_of_tasks_are_those_of_the_whole_batch(folder, name):
    make, task, devices = TASKS[name]
    built = build(make(folder, **task), devices=jax.devices()[: DATA[devices]])
    compute = replace(built.compute, precision="highest")
    params = load_params(built).params
    rows = batch_sharding(built.mesh)
    first = built.splits["train"].examples.collate(built.plan.batch(0), built.layout.row_length)
    batch, key = place_batch(first, rows), jax.random.key(0)
    assert len(first["weights"]) == ROWS
    objective, compared = objective_of(built, compute), compared_of(built, compute)

    def mean(params):
        total, weight = objective(params, batch, key)["loss"]
        return total / weight

    loss, expected = jax.jit(jax.value_and_grad(mean))(params)
    run = partial(compared_gradients, compared, MicroBatches(PARTS, rows))
    gradients, sums = jax.jit(run)(params, {}, batch, key)
    assert_same_gradients(gradients, expected)
    assert float(sums["loss"][0] / sums["loss"][1]) == pytest.approx(float(loss), rel=1e-6)


def test_losses_of_single_rows_are_not_compared(folder):
    built = build(text_config(folder, score="score"), devices=jax.devices()[:1])
    assert compared_of(built, built.compute) is None


def test_training_compares_the_rows_of_all_micro_batches(folder, monkeypatch):
    built = build(text_config(folder), devices=jax.devices()[:1])
    (now,) = phase_setups(built)
    asked = {}
    monkeypatch.setattr(phase, "make_train_step", lambda *parts, **options: asked.update(options))
    phase.make_step(built, now, now.table.frozen)
    assert isinstance(asked["compared"], Compared)
