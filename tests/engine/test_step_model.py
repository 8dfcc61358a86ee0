"""The train step of a real (tiny) BERT: frozen bytes, meshes, packing, scan, accumulation."""

import re
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.device.mesh import batch_sharding, place_batch
from jaxft.engine.initial_state import frozen_params, initial_state, load_params
from jaxft.engine.setup import Setup, build
from jaxft.engine.step import StepInputs
from jaxft.training.phase import make_step
from tests.support.phases import phase_of
from tests.support.tiny import tiny_checkpoint, tiny_config

ONE = {"data": 1, "fsdp": 1, "tensor": 1}
EIGHT = {"data": 2, "fsdp": 2, "tensor": 2}
LONG = {"length": "60 steps"}
TRUNK = [{"name": "trunk", "depth": [0, 1], "freeze": True}]  # embeddings and the first block
PLAIN_SGD = {"name": "sgd", "momentum": 0.0, "clip": None, "weight_decay": 0.0, "lr": 0.1}


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """LLVM's optimisations take most of a compile and change nothing that is tested here."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of two blocks."""
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def deeper(tmp_path_factory):
    """A model of three blocks: two of them can be scanned above or below another."""
    folder = tmp_path_factory.mktemp("three")
    tiny_checkpoint(folder / "checkpoint", num_hidden_layers=3)
    return folder


@dataclass
class Run:
    """A built run with its weights, and its compiled step."""

    built: Setup
    params: dict
    frozen: dict
    step: object

    def start(self):
        return initial_state(self.built, phase_of(self.built), self.params)

    def batch(self, number):
        split = self.built.splits["train"]
        plan, length = self.built.plan, self.built.layout.row_length
        return split.examples.collate(plan.batch(number), length)

    def rates(self, step):
        table = phase_of(self.built).table
        return StepInputs(
            phase_of(self.built).rates[step], table.multipliers(), table.weight_decays()
        )

    def __call__(self, state, number, batch=None):
        batch = self.batch(number) if batch is None else batch
        placed = place_batch(batch, batch_sharding(self.built.mesh))
        return self.step(state, self.frozen, placed, self.rates(number))

    def losses(self, steps):
        """The losses of the first steps, and the state after them."""
        state, found = self.start(), []
        for number in range(steps):
            state, metrics = self(state, number)
            found.append(float(metrics["loss"]))
        return np.array(found), state


def prepare(folder, *, mesh=ONE, layout=None, **overrides) -> Run:
    devices = jax.devices()[: np.prod(list(mesh.values()))]
    built = build(tiny_config(folder, mesh=mesh, **overrides), devices=devices, layout=layout)
    params = load_params(built).params
    frozen = frozen_params(built, phase_of(built), params)
    step = make_step(built, phase_of(built), frozen)
    return Run(built, params, frozen, step)


def as_bytes(params):
    return {name: np.asarray(leaf).tobytes() for name, leaf in params.items()}


def assert_same_parameters(found, wanted):
    """Within rounding: parameters here are of the order of 0.1 to 1."""
    assert found.keys() == wanted.keys()
    for name in found:
        np.testing.assert_allclose(found[name], wanted[name], atol=1e-6, rtol=0, err_msg=name)


# -------------------------------------------------------------- AdamW, dropout, a 2 x 2 x 2 mesh
ADAM = {"name": "adamw", "lr": 1e-3, "weight_decay": 0.1}
ROWS = {"batch_size": 16}


@pytest.mark.slow
@pytest.mark.parametrize("groups", [[], TRUNK], ids=["all", "frozen"])
def test_eight_devices_train_as_one_does(folder, groups):
    """Twenty steps of AdamW with dropout on; masks do not depend on how arrays are cut."""
    recipe = {"groups": groups, "optimizer": ADAM, "data": ROWS, "train": LONG}
    eight = prepare(folder, mesh=EIGHT, **recipe)
    one = prepare(folder, layout=eight.built.layout, **recipe)
    (together, state), (alone, _) = eight.losses(20), one.losses(20)
    print(f"8 devices: losses within {np.abs(alone - together).max():.2e}")
    np.testing.assert_allclose(together, alone, atol=1e-5, rtol=0)
    assert len(set(alone.tolist())) == 20
    kernel = state.trainable["blocks/1/mlp/up/kernel"]
    assert kernel.addressable_shards[0].data.size * 4 == kernel.size


def test_frozen_leaves_keep_their_bytes(folder):
    """Fifty steps with weight decay, the clip, the average, accumulation and dropout on."""
    run = prepare(
        folder,
        groups=TRUNK,
        optimizer=ADAM | {"clip": 1.0},
        data=ROWS,
        train=LONG | {"ema": 0.9, "accumulate": 2},
    )
    before = as_bytes(run.params)
    losses, state = run.losses(50)
    after = as_bytes(run.frozen)
    assert after == {name: before[name] for name in phase_of(run.built).table.frozen}
    names = set(phase_of(run.built).table.frozen)
    for path, _ in jax.tree_util.tree_flatten_with_path(state)[0]:
        assert str(getattr(path[-1], "key", "")) not in names
    trained = as_bytes(state.trainable)
    assert all(trained[name] != before[name] for name in phase_of(run.built).table.trainable)
    assert losses[-5:].mean() < losses[:5].mean()


# -------------------------------------------- plain SGD without dropout: gradients can be read
SGD = {"optimizer": PLAIN_SGD, "model": {"dropout": 0.0}, "data": ROWS, "train": LONG}


@pytest.fixture(scope="module")
def plain(deeper):
    """All leaves trained by plain SGD, unrolled, in one piece."""
    return prepare(deeper, **SGD)


def stepped(run, steps, start=0):
    state, losses = run.start(), []
    for number in range(start, start + steps):
        state, metrics = run(state, number)
        losses.append(float(metrics["loss"]))
    return {name: np.asarray(leaf) for name, leaf in state.trainable.items()}, losses


def compiled_steps(caplog):
    """How many steps XLA has compiled while `jax.log_compiles()` was on."""
    said = [record.getMessage() for record in caplog.records]
    return sum("Finished XLA compilation of jit(step)" in line for line in said)


def test_two_epochs_are_one_shape_and_one_compile(folder, caplog):
    """On a mesh: the state that a step gives fits the step that was compiled for the first."""
    run = prepare(folder, mesh=EIGHT, **SGD | {"train": LONG | {"scan": True}})
    shapes = set()
    with jax.log_compiles():
        state = run.start()
        for number in range(2 * run.built.plan.steps_per_epoch):
            batch = run.batch(number)
            shapes.add(tuple((name, array.shape, array.dtype) for name, array in batch.items()))
            state, _ = run(state, number, batch)
    assert number > 5
    assert len(shapes) == 1
    assert compiled_steps(caplog) == 1


@pytest.mark.parametrize("scan", [False, True])
def test_the_first_block_alone_has_its_part_of_the_whole_gradient(deeper, plain, scan):
    """Everything above is frozen, and the gradient goes through it."""
    groups = [
        {"name": "below", "match": "embeddings/.*", "freeze": True},
        {"name": "above", "depth": [2, 4], "freeze": True},
    ]
    alone = prepare(deeper, groups=groups, **SGD | {"train": LONG | {"scan": scan}})
    names = [name for name in plain.params if name.startswith("blocks/0/")]
    assert list(phase_of(alone.built).table.trainable) == names
    assert phase_of(alone.built).table.trunk() == tuple(
        n for n in plain.params if n.startswith("emb")
    )
    whole, _ = plain(plain.start(), 0)
    part, _ = alone(alone.start(), 0)
    for name in names:
        moved = np.asarray(part.trainable[name] - alone.params[name])
        wanted = np.asarray(whole.trainable[name] - plain.params[name])
        assert np.abs(wanted).max() > 0 or name.endswith("key/bias")
        np.testing.assert_allclose(moved, wanted, atol=2e-7, rtol=1e-4, err_msg=name)


def test_four_of_sixteen_are_one_of_sixty_four(folder):
    """Four micro-batches of sixteen examples against one batch of sixty-four."""
    data = {"batch_size": 64}
    four = prepare(folder, **SGD | {"data": data, "train": LONG | {"accumulate": 4}})
    one = prepare(folder, layout=four.built.layout, **SGD | {"data": data})
    assert four.built.layout.rows % 4 == 0
    batches = [four.batch(number) for number in range(10)]
    results = []
    for run in (one, four):
        state, losses = run.start(), []
        for number, batch in enumerate(batches):
            state, metrics = run(state, number, batch)
            losses.append(float(metrics["loss"]))
        results.append((losses, state.trainable))
    np.testing.assert_allclose(results[0][0], results[1][0], atol=1e-5)
    assert_same_parameters(results[1][1], results[0][1])


def test_scan_trains_as_unrolled_does(deeper, plain):
    scanned = prepare(deeper, **SGD | {"train": LONG | {"scan": True}})
    assert scanned.built.compute.scan
    assert not plain.built.compute.scan
    unrolled_params, unrolled_losses = stepped(plain, 10)
    scanned_params, scanned_losses = stepped(scanned, 10)
    np.testing.assert_allclose(scanned_losses, unrolled_losses, atol=1e-5)
    assert_same_parameters(scanned_params, unrolled_params)


# ------------------------------------------------------------------------------------- packing
def test_packed_rows_are_their_examples_alone(plain):
    """Logits of each example, the task's loss, and the gradient, through the engine's batches."""
    built, params = plain.built, plain.params
    split, layout = built.splits["train"], built.layout
    index = built.plan.batch(0)  # [R, S]
    examples = index[index >= 0]
    assert layout.segments > 1
    assert len(examples) > layout.rows
    packed = split.examples.collate(index, layout.row_length)
    alone = split.examples.collate(examples[:, None], layout.row_length)

    @jax.jit
    def value_and_gradient(params, batch):
        def mean(params):
            outputs = built.model.apply(params, batch, None, built.compute)
            total, weight = built.bound.loss(outputs, batch)
            return total / weight, (outputs["logits"], total, weight)

        return jax.grad(mean, has_aux=True)(params)

    together, (packed_logits, packed_total, packed_weight) = value_and_gradient(params, packed)
    one_by_one, (alone_logits, total, weight) = value_and_gradient(params, alone)
    assert packed_weight == weight == len(examples)
    np.testing.assert_allclose(packed_logits[index >= 0], alone_logits[:, 0], atol=1e-5)
    assert float(packed_total) == pytest.approx(float(total), abs=1e-5 * len(examples))
    whole = np.sqrt(sum(float(jnp.square(leaf).sum()) for leaf in one_by_one.values()))
    for name, leaf in one_by_one.items():
        size = max(float(jnp.linalg.norm(leaf)), 1e-3 * whole)
        assert float(jnp.linalg.norm(together[name] - leaf)) <= 1e-5 * size, name


def test_padding_and_neighbours_do_not_matter(plain):
    """What lies in padding, and in the other examples of a row, moves nothing of an example."""
    built = plain.built
    batch = plain.batch(0)
    outputs = jax.jit(lambda b: built.model.apply(plain.params, b, None, built.compute)["logits"])
    before = np.asarray(outputs(batch))
    changed = dict(batch)
    changed["input_ids"] = np.where(batch["segment_ids"] == 1, batch["input_ids"], 9)
    after = np.asarray(outputs(changed))
    np.testing.assert_array_equal(after[:, 0], before[:, 0])
    assert np.abs(after[:, 1] - before[:, 1])[batch["weights"][:, 1] > 0].min() > 1e-4


def test_a_batch_that_overflows_leaves_the_state_as_it_was(plain):
    """Through the true objective: a weight that is not finite, as a corrupt label would make."""
    batch = plain.batch(0)
    broken = batch | {"weights": batch["weights"].copy()}
    broken["weights"][0, 0] = np.inf
    state, _ = plain(plain.start(), 0)
    before = as_bytes(state.trainable)
    state, metrics = plain(state, 1, broken)
    assert int(metrics["bad_steps"]) == 1
    assert as_bytes(state.trainable) == before
    state, metrics = plain(state, 2)
    assert int(metrics["bad_steps"]) == 0
    assert as_bytes(state.trainable) != before


def test_dropout_is_drawn_anew_at_each_step_and_alike_in_a_rerun(folder):
    run = prepare(folder, optimizer=PLAIN_SGD | {"lr": 0.0}, data=ROWS, train=LONG, groups=TRUNK)
    batch = run.batch(0)

    def losses():
        state, found = run.start(), []
        for number in range(4):
            state, metrics = run(state, number, batch)
            found.append(float(metrics["loss"]))
        return found

    first = losses()
    assert len(set(first)) == 4
    assert losses() == first
    state = replace(run.start(), key=jax.random.key(1))
    assert float(run(state, 0, batch)[1]["loss"]) not in first


@pytest.mark.slow
def test_the_states_buffers_are_given_away_in_the_compiled_step(folder):
    """What is donated and kept apart nonetheless would take the state's memory twice."""
    run = prepare(folder, groups=TRUNK, mesh=EIGHT, train=LONG | {"ema": 0.9})
    placed = place_batch(run.batch(0), batch_sharding(run.built.mesh))
    state = run.start()
    text = run.step.lower(state, run.frozen, placed, run.rates(0)).compile().as_text()
    (told,) = re.findall(r"input_output_alias=\{(.*?)\}, entry", text)
    given = {int(number) for number in re.findall(r"\((\d+), \{\}, \w+-alias\)", told)}
    leaves = jax.tree.leaves(state)
    assert len(leaves) > 60, "parameters, two moments, average, counts"
    # The key is read alone and goes out as it came in.
    kept = [number for number in range(len(leaves)) if number not in given]
    assert [leaves[number].dtype for number in kept] == [state.key.dtype] * len(kept)
    assert not given & set(range(len(leaves), len(leaves) + len(run.frozen)))
