"""The face's table and optimizer, against optax's own chain and the table of a config."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxft
from jaxft.layerwise.table import build_table

SHAPES = {"low/kernel": (4, 3), "low/bias": (3,), "top/kernel": (3, 2)}
DEPTHS = {"low/kernel": 0, "low/bias": 0, "top/kernel": 1}


def make_table(*groups, layer_decay=1.0):
    return build_table(
        {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in SHAPES.items()},
        depths=DEPTHS,
        tops=dict.fromkeys(DEPTHS, 1),
        no_decay=["low/bias"],
        groups=groups,
        layer_decay=layer_decay,
        lr=0.1,
        algorithm="default",
        schedule=None,
    )


def params_of(seed):
    random = np.random.default_rng(seed)
    return {n: jnp.asarray(random.normal(size=s), jnp.float32) for n, s in SHAPES.items()}


def run(tx, steps=5):
    params = params_of(0)
    state = tx.init(params)
    for step in range(steps):
        updates, state = tx.update(params_of(step + 1), state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize("rule", [optax.scale_by_adam(), optax.scale_by_lion(), optax.trace(0.9)])
def test_any_rule_is_optax_own_chain(rule):
    """Clip, rule, decay of what decays, a schedule, and the layer's own rate."""
    schedule = optax.linear_schedule(1.0, 0.0, 5)
    ours = jaxft.optimizer(
        make_table(layer_decay=0.5), rule, weight_decay=0.1, clip=1.0, schedule=schedule
    )
    decays = {"low/kernel": True, "low/bias": False, "top/kernel": True}
    multipliers = {"low/kernel": 0.5, "low/bias": 0.5, "top/kernel": 1.0}
    theirs = optax.chain(
        optax.clip_by_global_norm(1.0),
        rule,
        optax.add_decayed_weights(0.1, decays),
        optax.stateless(lambda updates, _: {n: multipliers[n] * u for n, u in updates.items()}),
        optax.scale_by_learning_rate(lambda step: 0.1 * schedule(step)),
    )
    found, wanted = run(ours), run(theirs)
    for name in SHAPES:
        np.testing.assert_allclose(found[name], wanted[name], rtol=2e-6, atol=2e-6, err_msg=name)


def test_a_group_has_its_own_rule_rate_decay_and_schedule():
    table = make_table(
        jaxft.Group(
            "top", match="top/.*", lr=1.0, weight_decay=0.0, optimizer="plain", schedule=lambda s: 2
        )
    )
    tx = jaxft.optimizer(
        table, {"default": optax.scale_by_adam(), "plain": optax.identity()}, weight_decay=0.1
    )
    found = run(tx, steps=1)
    np.testing.assert_allclose(
        found["top/kernel"], params_of(0)["top/kernel"] - 2 * params_of(1)["top/kernel"], rtol=1e-6
    )
    low = params_of(0)["low/bias"] - found["low/bias"]
    np.testing.assert_allclose(np.abs(low), 0.1, rtol=1e-4)  # Adam's first step


def test_a_step_that_is_not_finite_keeps_the_moments_and_counts():
    tx = jaxft.optimizer(make_table(), optax.scale_by_adam())
    params = params_of(0)
    before = tx.init(params)
    updates, after = tx.update(params_of(1), before, params, finite=False)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(updates))
    assert int(after.step) == 1
    for old, new in zip(jax.tree.leaves(before.groups), jax.tree.leaves(after.groups), strict=True):
        np.testing.assert_array_equal(old, new)


def test_what_a_person_may_get_wrong():
    named = make_table(jaxft.Group("top", match="top/.*", optimizer="lion"))
    with pytest.raises(jaxft.UserError, match="names the rule 'lion', which is not given"):
        jaxft.optimizer(named, {"default": optax.scale_by_adam()})
    with pytest.raises(jaxft.UserError, match="exactly one of match and depth"):
        jaxft.Group("both", match=".*", depth=(0, 1))
    with pytest.raises(jaxft.UserError, match=r"\(2, 1\) is not \(lowest, highest\)"):
        jaxft.Group("down", depth=(2, 1))
    twice = jaxft.Group("top", match="top/.*"), jaxft.Group("top", match="low/.*", freeze=True)
    with pytest.raises(jaxft.UserError, match=r"groups\[1\] \(top\): a group above it has this"):
        make_table(*twice)
    with pytest.raises(jaxft.UserError, match="the rule 'default' descends by itself"):
        jaxft.optimizer(make_table(), optax.adam(1e-3))


class Described:
    """What `layer_table` reads of a model."""

    params = {  # noqa: RUF012
        name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in SHAPES.items()
    }
    depths, tops, no_decay, final_norms = DEPTHS, dict.fromkeys(DEPTHS, 1), ("low/bias",), ()


def multipliers(**options):
    return jaxft.layer_table(Described, lr=0.1, **options).multipliers().tolist()


def test_a_preset_has_its_own_decay_unless_there_is_another():
    assert multipliers(preset="ulmfit") == pytest.approx([1 / 2.6, 1 / 2.6, 1])
    assert multipliers(preset="ulmfit", layer_decay=0.5) == [0.5, 0.5, 1]
    assert multipliers() == [1, 1, 1]
    with pytest.raises(jaxft.UserError, match="layer_decay and the preset sharpness both set"):
        multipliers(preset="sharpness", layer_decay=0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: multipliers(layer_decay=-0.5), r"layer_decay is -0.5, and must be in \(0, 1\]"),
        (lambda: jaxft.layer_table(Described, lr=-0.1), "is -0.1, and must be 0 or more"),
        (lambda: make_table(jaxft.Group("a", match="low/.*", lr_mult=float("nan"))), "is nan, and"),
        (lambda: jaxft.Group("a", match=()), "exactly one of match and depth"),
        (lambda: jaxft.Group("a", match=".*", weight_decay=-1), "weight_decay is -1, and must"),
        (lambda: multipliers(only=["low/.*"]), r"only has 'low/\.\*', which is no parameter"),
        (lambda: jaxft.optimizer(make_table(), optax.identity(), clip=0), "clip is 0, and must"),
        (lambda: jaxft.optimizer(make_table(), optax.identity(), clip=-1), "clip is -1, and must"),
        (lambda: jaxft.optimizer(make_table(), "adamw"), "is a str, no optax transformation"),
        (
            lambda: jaxft.optimizer(make_table(), optax.identity(), weight_decay=-1),
            "weight_decay is -1, and must",
        ),
        (
            lambda: jaxft.optimizer(make_table(), optax.identity(), schedule=0.5),
            "a function from a step to a multiplier",
        ),
    ],
)
def test_numbers_out_of_range_are_one_sentence(call, message):
    """A negative rate ascends, and a clip of 0 moves nothing."""
    with pytest.raises(jaxft.UserError, match=message):
        call()
