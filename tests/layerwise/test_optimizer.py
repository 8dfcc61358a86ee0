"""The optimizer's arithmetic against optax and PyTorch, and what it never sees."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from jaxft.config.optimizer import OptimizerSection
from jaxft.config.recipe import Group, LayerDecaySection, ScheduleSection
from jaxft.engine.recipe import optimizer_from, table_from

SHAPES = {"low/kernel": (4, 3), "low/bias": (3,), "top/kernel": (3, 2), "top/bias": (2,)}
DEPTHS = {"low/kernel": 0, "low/bias": 0, "top/kernel": 1, "top/bias": 1}
BIASES = ["low/bias", "top/bias"]
TOP = Group(name="top", match="top/.*")
RATE = 0.1


class Run:
    """An optimizer under way: parameters, state, and the rates it is told."""

    def __init__(self, groups=(), layer_decay=None, shapes=SHAPES, depths=DEPTHS, **optimizer):
        section = OptimizerSection(**{"clip": None, "weight_decay": 0.0, **optimizer})
        names = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
        self.table = table_from(
            names,
            depths=depths,
            tops=dict.fromkeys(depths, max(depths.values())),
            no_decay=[name for name in BIASES if name in shapes],
            groups=groups,
            layer_decay=layer_decay or LayerDecaySection(),
            optimizer=section,
            schedule=ScheduleSection(),
        )
        draw = np.random.default_rng(0)
        whole = {n: jnp.asarray(draw.normal(size=s), jnp.float32) for n, s in shapes.items()}
        self.params = {name: whole[name] for name in self.table.trainable}
        self.optimizer = optimizer_from(self.table, section)
        self.state = self.optimizer.init(self.params)

    def step(self, gradients, rates=None):
        """One update; `rates` is one number, or one a training group."""
        count = len(self.table.training_groups)
        rates = np.broadcast_to(RATE if rates is None else rates, (count,)).astype(np.float32)
        updates, self.state = self.optimizer.update(
            {name: gradients[name] for name in self.params},
            self.state,
            self.params,
            rates=jnp.asarray(rates),
            multipliers=jnp.asarray(self.table.multipliers()),
            weight_decay=jnp.asarray(self.table.weight_decays()),
        )
        self.params = optax.apply_updates(self.params, updates)
        return updates


def gradients_at(step, shapes=SHAPES):
    draw = np.random.default_rng(step + 1)
    return {n: jnp.asarray(draw.normal(size=shape), jnp.float32) for n, shape in shapes.items()}


def assert_close(found, wanted, tolerance=1e-6):
    assert found.keys() == wanted.keys()
    for name in found:
        np.testing.assert_allclose(
            found[name], wanted[name], rtol=tolerance, atol=tolerance, err_msg=name
        )


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_two_groups_with_two_schedules_are_two_optax_runs(name):
    run = Run([TOP], name=name, weight_decay=0.1)
    schedules = {
        "top": optax.cosine_decay_schedule(0.1, 20),
        "rest": optax.warmup_constant_schedule(0.0, 0.05, 5),
    }
    alone = {}
    for group, schedule in schedules.items():
        inner = optax.scale_by_adam() if name == "adamw" else optax.trace(0.9)
        decay = optax.add_decayed_weights(0.1, lambda tree: {n: n not in BIASES for n in tree})
        transform = optax.chain(inner, decay, optax.scale_by_learning_rate(schedule))
        start = {
            leaf.name: run.params[leaf.name] for leaf in run.table.leaves if leaf.group == group
        }
        alone[group] = [transform, transform.init(start), start]
    for step in range(20):
        gradients = gradients_at(step)
        run.step(gradients, [schedules[g.name](step) for g in run.table.training_groups])
        for one in alone.values():
            transform, state, params = one
            mine = {name: gradients[name] for name in params}
            updates, one[1] = transform.update(mine, state, params)
            one[2] = optax.apply_updates(params, updates)
    assert_close(run.params, alone["top"][2] | alone["rest"][2])


@pytest.mark.parametrize("clip", [None, 0.5])
def test_adamw_is_pytorchs(clip):
    """Each leaf at its own rate and decay, ten steps, with the gradient clipped once."""
    run = Run(
        [Group(name="top", match="top/.*", lr_mult=3.0)],
        LayerDecaySection(rate=0.5),
        weight_decay=0.1,
        clip=clip,
        b1=0.8,
        b2=0.95,
        eps=1e-6,
    )
    theirs = {n: torch.tensor(np.array(p), requires_grad=True) for n, p in run.params.items()}
    multiplier = {"low": 0.5, "top": 3.0}
    optimizer = torch.optim.AdamW(
        [
            {
                "params": [parameter],
                "lr": RATE * multiplier[name.partition("/")[0]],
                "weight_decay": 0.0 if name in BIASES else 0.1,
            }
            for name, parameter in theirs.items()
        ],
        betas=(0.8, 0.95),
        eps=1e-6,
    )
    for step in range(10):
        gradients = gradients_at(step)
        run.step(gradients)
        for name, parameter in theirs.items():
            parameter.grad = torch.tensor(np.array(gradients[name]))
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(theirs.values(), clip)
        optimizer.step()
    assert_close(run.params, {n: p.detach().numpy() for n, p in theirs.items()}, 1e-5)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_is_pytorchs(momentum):
    run = Run([TOP], name="sgd", momentum=momentum)
    theirs = {n: torch.tensor(np.array(p), requires_grad=True) for n, p in run.params.items()}
    optimizer = torch.optim.SGD(theirs.values(), lr=RATE, momentum=momentum)
    for step in range(10):
        gradients = gradients_at(step)
        run.step(gradients)
        for name, parameter in theirs.items():
            parameter.grad = torch.tensor(np.array(gradients[name]))
        optimizer.step()
    assert_close(run.params, {n: p.detach().numpy() for n, p in theirs.items()})


def test_groups_may_have_different_algorithms():
    mixed = Run([Group(name="top", match="top/.*", optimizer="sgd")], name="adamw")
    adam, sgd = Run(name="adamw"), Run(name="sgd")
    for step in range(5):
        for run in (mixed, adam, sgd):
            run.step(gradients_at(step))
    for name in SHAPES:
        wanted = sgd if name.startswith("top/") else adam
        np.testing.assert_array_equal(mixed.params[name], wanted.params[name])


def test_layer_decay_scales_updates_and_not_gradients():
    """Scaling the gradient instead, as XLNet's code does, is undone by Adam."""
    shapes = {f"blocks/{i}/kernel": (3, 3) for i in range(4)}
    depths = {name: index for index, name in enumerate(shapes)}
    run = Run(layer_decay=LayerDecaySection(rate=0.5), shapes=shapes, depths=depths)
    gradient = gradients_at(0, shapes)["blocks/0/kernel"]
    updates = run.step(dict.fromkeys(shapes, gradient))
    top = np.linalg.norm(updates["blocks/3/kernel"])
    for index, name in enumerate(shapes):
        assert np.linalg.norm(updates[name]) / top == pytest.approx(0.5 ** (3 - index), rel=1e-5)


PAIR = {"low/kernel": (1,), "top/kernel": (1,)}
PAIR_DEPTHS = {"low/kernel": 0, "top/kernel": 1}
THREE_FOUR = {"low/kernel": jnp.array([3.0]), "top/kernel": jnp.array([4.0])}


def test_the_clip_is_over_all_groups_at_once():
    """Gradients 3 and 4 have the norm 5: clipped to 1 they are 0.6 and 0.8, not 1 and 1."""
    run = Run([TOP], name="sgd", momentum=0.0, clip=1.0, shapes=PAIR, depths=PAIR_DEPTHS)
    updates = run.step(THREE_FOUR, 1.0)
    np.testing.assert_allclose(updates["low/kernel"], [-0.6], rtol=1e-6)
    np.testing.assert_allclose(updates["top/kernel"], [-0.8], rtol=1e-6)


def test_a_frozen_leaf_does_not_enter_the_clip():
    frozen = [Group(name="top", match="top/.*", freeze=True)]
    run = Run(frozen, name="sgd", momentum=0.0, clip=1.0, shapes=PAIR, depths=PAIR_DEPTHS)
    updates = run.step(THREE_FOUR, 1.0)
    assert set(updates) == {"low/kernel"}
    np.testing.assert_allclose(updates["low/kernel"], [-1.0], rtol=1e-6)


def test_a_gradient_within_the_clip_is_left_alone():
    run = Run(name="sgd", momentum=0.0, clip=6.0, shapes=PAIR, depths=PAIR_DEPTHS)
    np.testing.assert_array_equal(run.step(THREE_FOUR, 1.0)["top/kernel"], [-4.0])


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_weight_decay_is_decoupled_and_scaled_by_the_leafs_rate(name):
    """With no gradient: p (1 - rate x multiplier x decay), by group; biases stay."""
    groups = [Group(name="top", match="top/.*", lr_mult=2.0, weight_decay=0.5)]
    run = Run(groups, LayerDecaySection(rate=0.5), name=name, weight_decay=0.1)
    before = run.params
    run.step({n: jnp.zeros(shape) for n, shape in SHAPES.items()}, [0.2, 0.3])
    wanted = {
        "top/kernel": before["top/kernel"] * (1 - 0.2 * 2.0 * 0.5),
        "low/kernel": before["low/kernel"] * (1 - 0.3 * 0.5 * 0.1),
        "top/bias": before["top/bias"],
        "low/bias": before["low/bias"],
    }
    assert_close(run.params, wanted)
    for name in BIASES:
        np.testing.assert_array_equal(run.params[name], before[name])


def test_the_state_has_moments_of_trainable_leaves_only():
    run = Run([Group(name="low", match="low/.*", freeze=True)], clip=1.0)
    leaves = jax.tree_util.tree_flatten_with_path(run.state)[0]
    assert not [path for path, _ in leaves if "low/" in jax.tree_util.keystr(path)]
    moments = [leaf for path, leaf in leaves if "top/" in jax.tree_util.keystr(path)]
    assert sorted(leaf.shape for leaf in moments) == [(2,), (2,), (3, 2), (3, 2)]
    others = [leaf for path, leaf in leaves if "top/" not in jax.tree_util.keystr(path)]
    assert all(leaf.ndim == 0 for leaf in others)  # Adam's counts
    wanted = 2 * 4 * sum(np.prod(SHAPES[name]) for name in run.table.trainable)
    assert sum(leaf.nbytes for leaf in moments) == wanted
    assert wanted == sum(row["optimizer_bytes"] for row in run.table.summary())


def test_a_rate_of_zero_moves_nothing_and_feeds_the_moments():
    run = Run([TOP], weight_decay=0.1)
    before = run.params
    run.step(gradients_at(0), 0.0)
    assert_close(run.params, before, 0)
    late = run.step(gradients_at(1))
    fresh = Run([TOP], weight_decay=0.1).step(gradients_at(1))
    assert np.abs(np.asarray(late["top/kernel"] - fresh["top/kernel"])).max() > 1e-3
