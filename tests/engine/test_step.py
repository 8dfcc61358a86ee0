"""The train step's contract on a two-layer objective, which compiles in no time."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxft.config.optimizer import OptimizerSection
from jaxft.config.recipe import Group, LayerDecaySection, ScheduleSection
from jaxft.device.mesh import batch_sharding, make_mesh, place_batch, replicated
from jaxft.engine.gradients.compared import Compared
from jaxft.engine.recipe import optimizer_from, table_from
from jaxft.engine.state import TrainState
from jaxft.engine.step import StepInputs, make_eval_step, make_train_step

SHAPES = {"body/kernel": (4, 3), "body/bias": (3,), "head/kernel": (3, 2)}
DEPTHS = {"body/kernel": 0, "body/bias": 0, "head/kernel": 1}
STEPS = 8


def objective(params, batch, key):
    """Weighted squares of a small network's outputs, and a draw that shows which key it got."""
    hidden = jnp.tanh(batch["x"] @ params["body/kernel"] + params["body/bias"])
    errors = jnp.square(hidden @ params["head/kernel"] - batch["y"]).sum(-1)  # [R]
    weight = batch["weights"].sum()
    draw = jax.random.uniform(key)
    return {
        "loss": ((errors * batch["weights"]).sum(), weight),
        "draw": (draw * weight, weight),
    }


class Toy:
    """A step with the state, parameters and rates that belong to it."""

    def __init__(
        self,
        *,
        accumulate=1,
        ema=None,
        groups=(),
        objective=objective,
        compared=None,
        **optimizer,
    ):
        self.table = table_of(groups, **optimizer)
        self.objective = objective
        self.optimizer = optimizer_from(self.table, OptimizerSection(**optimizer))
        self.mesh = make_mesh(1, 1, 1, jax.devices()[:1])
        draw = np.random.default_rng(0)
        self.params = {
            name: jnp.asarray(draw.normal(size=shape), jnp.float32)
            for name, shape in SHAPES.items()
        }
        self.ema = ema
        whole = replicated(self.mesh)
        self.frozen = {name: jax.device_put(self.params[name], whole) for name in self.table.frozen}
        self.step = make_train_step(
            self.objective,
            self.optimizer,
            accumulate=accumulate,
            ema=ema,
            state_shardings=jax.tree.map(lambda _: whole, self.start()),
            frozen_shardings=dict.fromkeys(self.frozen, whole),
            mesh=self.mesh,
            compared=compared,
        )

    def start(self) -> TrainState:
        trainable = {name: jnp.copy(self.params[name]) for name in self.table.trainable}
        state = TrainState(
            step=jnp.zeros((), jnp.int32),
            trainable=trainable,
            opt_state=self.optimizer.init(trainable),
            key=jax.random.key(0),
            average=None if self.ema is None else jax.tree.map(jnp.copy, trainable),
            previously_trained={},
            bad_steps=jnp.zeros((), jnp.int32),
        )
        return jax.device_put(state, replicated(self.mesh))

    def rates(self, rate=0.1, table=None) -> StepInputs:
        table = table or self.table
        count = len(table.training_groups)
        return StepInputs(
            np.full(count, rate, np.float32), table.multipliers(), table.weight_decays()
        )

    def __call__(self, state, batch, rates=None):
        placed = place_batch(batch, batch_sharding(self.mesh))
        return self.step(state, self.frozen, placed, rates or self.rates())


def table_of(groups=(), layer_decay=None, schedule=None, **optimizer):
    shapes = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in SHAPES.items()}
    return table_from(
        shapes,
        depths=DEPTHS,
        tops=dict.fromkeys(DEPTHS, 1),
        no_decay=["body/bias"],
        groups=groups,
        layer_decay=layer_decay or LayerDecaySection(),
        optimizer=OptimizerSection(**optimizer),
        schedule=schedule or ScheduleSection(),
    )


def make_batch(seed=0, rows=8):
    draw = np.random.default_rng(seed)
    return {
        "x": draw.normal(size=(rows, 4)).astype(np.float32),
        "y": draw.normal(size=(rows, 2)).astype(np.float32),
        "weights": draw.integers(0, 4, rows).astype(np.float32),
    }


def gradients_of(toy, batch):
    """The mean gradient of the trainable leaves, by hand."""

    def mean(trainable):
        total, weight = toy.objective({**toy.params, **trainable}, batch, jax.random.key(0))["loss"]
        return total / weight

    return jax.grad(mean)({name: toy.params[name] for name in toy.table.trainable})


def assert_bytes_equal(found, wanted):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def assert_close(found, wanted, tolerance=1e-6):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


def test_a_step_descends_the_mean_gradient():
    toy = Toy(name="sgd", momentum=0.0, clip=None, weight_decay=0.0)
    batch = make_batch()
    gradients = gradients_of(toy, batch)
    state, metrics = toy(toy.start(), batch)
    assert_close(state.trainable, {n: toy.params[n] - 0.1 * g for n, g in gradients.items()})
    total, weight = objective(toy.params, batch, jax.random.key(0))["loss"]
    assert float(metrics["loss"]) == pytest.approx(float(total / weight), rel=1e-6)
    assert float(metrics["weight"]) == batch["weights"].sum()
    assert float(metrics["grad_norm"]) == pytest.approx(float(optax.tree.norm(gradients)), rel=1e-6)
    assert int(state.step) == 1
    assert int(metrics["bad_steps"]) == 0


def test_clip_and_norm_know_trainable_leaves_only():
    """The gradient of a frozen head is large, and neither shows nor counts."""
    freeze = (Group(name="head", match="head/.*", freeze=True),)
    toy = Toy(groups=freeze, name="sgd", momentum=0.0, clip=0.5, weight_decay=0.0)
    batch = make_batch()
    gradients = gradients_of(toy, batch)
    assert set(gradients) == {"body/kernel", "body/bias"}
    norm = float(optax.tree.norm(gradients))
    assert norm > 0.5
    state, metrics = toy(toy.start(), batch)
    assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-6)
    wanted = {n: toy.params[n] - 0.1 * (0.5 / norm) * g for n, g in gradients.items()}
    assert_close(state.trainable, wanted)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_accumulation_is_one_large_batch(name):
    """Micro-batches weigh by their examples, and the rates move once a step."""
    results = []
    for accumulate in (1, 4):
        toy = Toy(accumulate=accumulate, name=name, weight_decay=0.1, ema=0.5)
        state = toy.start()
        for number in range(STEPS):
            state, metrics = toy(state, make_batch(number), toy.rates(0.1 / (1 + number)))
        assert int(state.step) == STEPS
        results.append((state.trainable, state.average, metrics["loss"], metrics["grad_norm"]))
    assert_close(*results, tolerance=1e-5)


def test_frozen_leaves_have_no_state():
    freeze = (Group(name="head", match="head/.*", freeze=True),)
    toy = Toy(groups=freeze, ema=0.9)
    paths = [
        jax.tree_util.keystr(path)
        for path, _ in jax.tree_util.tree_flatten_with_path(toy.start())[0]
    ]
    assert not [path for path in paths if "head" in path]
    assert sum("body/kernel" in path for path in paths) == 4  # itself, two moments, its average


def test_average_follows_the_parameters():
    toy = Toy(ema=0.75)
    state = toy.start()
    average = dict(toy.params)
    for number in range(STEPS):
        state, _ = toy(state, make_batch(number))
        average = {n: 0.75 * average[n] + 0.25 * state.trainable[n] for n in average}
    assert_close(state.average, average)


def test_average_with_no_memory_is_the_parameters():
    toy = Toy(ema=0.0)
    state = toy.start()
    for number in range(3):
        state, _ = toy(state, make_batch(number))
    assert_bytes_equal(state.average, state.trainable)


def test_a_step_whose_rows_are_compared_is_one_on_the_whole_batch():
    """Each row's error is relative to the mean of all rows, which micro-batches do not know."""

    def represent(params, batch, key):
        hidden = jnp.tanh(batch["x"] @ params["body/kernel"] + params["body/bias"])
        return {"outputs": hidden @ params["head/kernel"]}

    def compare(params, rows, batch):
        errors = jnp.square(rows["outputs"] - rows["outputs"].mean(0) - batch["y"]).sum(-1)
        return {"loss": ((errors * batch["weights"]).sum(), batch["weights"].sum())}

    def relative(params, batch, key):
        return compare(params, represent(params, batch, key), batch)

    two_parts = Compared(represent, compare)
    whole, parts, apart = (
        Toy(objective=relative, accumulate=count, compared=compared, name="sgd")
        for count, compared in ((1, None), (4, two_parts), (4, None))
    )
    states = [toy(toy.start(), make_batch())[0].trainable for toy in (whole, parts, apart)]
    for name, value in states[0].items():
        np.testing.assert_allclose(states[1][name], value, rtol=1e-6, atol=1e-7)
    assert any(not np.allclose(states[2][name], value) for name, value in states[0].items())


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_step_that_is_not_finite_changes_nothing(accumulate):
    toy = Toy(ema=0.9, accumulate=accumulate)
    state, _ = toy(toy.start(), make_batch(0))
    before = jax.device_get((state.trainable, state.opt_state, state.average))
    broken = make_batch(1)
    broken["x"][5, 0] = np.nan
    for count in (1, 2):
        state, metrics = toy(state, broken)
        assert not np.isfinite(metrics["loss"])
        assert int(metrics["bad_steps"]) == int(state.bad_steps) == count
        assert_bytes_equal((state.trainable, state.opt_state, state.average), before)
    assert int(state.step) == 3  # the position in the data moves on
    state, metrics = toy(state, make_batch(2))
    assert np.isfinite(metrics["loss"])
    assert int(state.bad_steps) == 0
    assert any(
        (a != b).any() for a, b in zip(state.trainable.values(), before[0].values(), strict=True)
    )


def test_a_finite_loss_with_a_gradient_that_is_not_changes_nothing():
    def rooted(params, batch, key):
        total, weight = objective(params, batch, key)["loss"]
        zero = (batch["x"] @ params["body/kernel"]).sum() * 0.0
        return {"loss": (total + jnp.sqrt(zero), weight)}  # the slope of a root at zero

    toy = Toy(objective=rooted)
    state, metrics = toy(toy.start(), make_batch())
    assert np.isfinite(metrics["loss"])
    assert int(state.bad_steps) == 1
    assert_bytes_equal(state.trainable, toy.params)


def test_a_loss_that_is_not_finite_with_a_finite_gradient_changes_nothing():
    def lifted(params, batch, key):
        total, weight = objective(params, batch, key)["loss"]
        return {"loss": (total + batch["lift"].sum(), weight)}

    toy = Toy(objective=lifted, ema=0.5)
    batch = make_batch() | {"lift": np.full(8, np.inf, np.float32)}
    state, metrics = toy(toy.start(), batch)
    assert np.isfinite(metrics["grad_norm"])
    assert int(state.bad_steps) == 1
    assert_bytes_equal((state.trainable, state.average), (toy.params, toy.params))


def test_each_step_has_its_own_key_and_a_rerun_the_same():
    toy = Toy()

    def draws():
        state, found = toy.start(), []
        for number in range(4):
            state, metrics = toy(state, make_batch(number))
            found.append(float(metrics["draw"]))
        return found

    first = draws()
    assert len(set(first)) == 4
    assert draws() == first


def test_each_micro_batch_has_its_own_key():
    def keyed(params, batch, key):
        sums = objective(params, batch, key)
        draw = jax.random.uniform(key)
        return {**sums, "draw": (draw, 1.0), "square": (jnp.square(draw), 1.0)}

    _, metrics = (toy := Toy(objective=keyed, accumulate=4))(toy.start(), make_batch())
    spread = float(metrics["square"]) - float(metrics["draw"]) ** 2
    assert spread > 1e-4


def test_old_state_is_given_away_and_frozen_leaves_are_not():
    toy = Toy(groups=(Group(name="head", match="head/.*", freeze=True),), ema=0.9)
    old = toy.start()
    toy(old, make_batch())
    for leaf in jax.tree.leaves((old.trainable, old.opt_state, old.average)):
        assert leaf.is_deleted()
    assert not toy.frozen["head/kernel"].is_deleted()


OTHER_RECIPES = {
    "rate": {"lr": 3e-2},
    "weight decay": {"weight_decay": 0.3},
    "layer decay": {"layer_decay": LayerDecaySection(rate=0.5, preset="electra")},
    "schedule": {"schedule": ScheduleSection(kind="wsd")},
}


def test_another_recipe_compiles_nothing_new(caplog):
    groups = (Group(name="head", match="head/.*", lr_mult=10),)
    toy = Toy(groups=groups)
    state = toy.start()
    for number in range(3):  # the state that a step gives fits the step that is compiled
        state, _ = toy(state, make_batch(number))
    with jax.log_compiles():
        for recipe in OTHER_RECIPES.values():
            other = table_of(groups, **recipe)
            state, _ = toy(state, make_batch(), toy.rates(recipe.get("lr", 0.1), other))
        faster = (replace_group(groups[0], lr_mult=3.0, weight_decay=0.5),)
        state, _ = toy(state, make_batch(), toy.rates(0.2, table_of(faster)))
    said = [record.getMessage() for record in caplog.records]
    assert [line for line in said if "jit(step)" in line] == []


def replace_group(group: Group, **changes) -> Group:
    return Group(**{**group.model_dump(), **changes})


def test_another_recipe_is_the_same_program():
    """So that a later run of another recipe finds it in the compile cache."""
    batch = place_batch(make_batch(), batch_sharding(Toy().mesh))

    def program(groups=(), **optimizer):
        toy = Toy(groups=groups, **optimizer)
        return toy.step.lower(toy.start(), toy.frozen, batch, toy.rates()).as_text()

    head = Group(name="head", match="head/.*", lr_mult=10)
    plain = program((head,))
    assert program((replace_group(head, lr_mult=3.0, lr=0.5),), lr=1e-3) == plain
    assert program((head,), weight_decay=0.2) == plain
    assert program((head,), clip=0.5) != plain  # the comparison can tell


def test_evaluation_sums_and_outcomes():
    toy = Toy()

    def evaluate(params, batch):
        sums = objective(params, batch, jax.random.key(0))
        return {"loss": sums["loss"]}, {"x": batch["x"]}

    whole = replicated(toy.mesh)
    step = make_eval_step(evaluate, param_shardings=dict.fromkeys(SHAPES, whole), mesh=toy.mesh)
    batch = make_batch()
    sums, outcomes = step(toy.params, place_batch(batch, batch_sharding(toy.mesh)))
    wanted = objective(toy.params, batch, jax.random.key(0))["loss"]
    assert_close(sums["loss"], wanted)
    np.testing.assert_array_equal(outcomes["x"], batch["x"])
    assert not toy.params["body/kernel"].is_deleted()
