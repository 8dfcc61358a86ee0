"""FLOPs: the counter, and that a step computes what the LayerTable trains and no more."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from jaxft.device.mesh import replicated
from jaxft.engine.cost import (
    count_flops,
    lowest_block_flops,
    segment_flops,
    step_flops,
    tally_flops,
)
from jaxft.engine.initial_state import abstract_state
from jaxft.engine.setup import build, objective_of
from jaxft.engine.step import StepInputs, make_train_step
from tests.support.phases import phase_of
from tests.support.tiny import tiny_checkpoint, tiny_config

X, W = jax.ShapeDtypeStruct((5, 7), jnp.float32), jax.ShapeDtypeStruct((7, 3), jnp.float32)
ONE = 2 * 5 * 7 * 3


def test_a_matmul_is_two_operations_a_multiply_add():
    assert count_flops(jnp.matmul, X, W) == ONE
    assert count_flops(lambda x: x + 1, X) == 0
    stack = jax.ShapeDtypeStruct((4, 5, 7), jnp.float32)
    assert count_flops(lambda x, y: jnp.einsum("bij,bkj->bik", x, y), stack, stack) == (
        2 * 4 * 5 * 5 * 7
    )


def test_a_gradient_is_counted_by_what_is_asked_for():
    def loss(x, w):
        return jnp.square(x @ w).sum()

    assert count_flops(jax.grad(loss, argnums=1), X, W) == 2 * ONE
    assert count_flops(jax.grad(loss, argnums=(0, 1)), X, W) == 3 * ONE


def test_a_scan_counts_its_trips_and_a_call_its_body():
    def scanned(x, w):
        return lax.scan(lambda c, _: (c @ w @ w.T, None), x, None, length=6)[0]

    assert count_flops(scanned, X, W) == 6 * 2 * ONE
    assert count_flops(jax.jit(scanned), X, W) == 6 * 2 * ONE
    assert count_flops(jax.checkpoint(jnp.matmul), X, W) == ONE

    def nested(x, w):
        return lax.scan(lambda c, _: (scanned(c, w), None), x, None, length=3)[0]

    assert count_flops(nested, X, W) == 3 * 6 * 2 * ONE


def test_of_a_conditional_the_dearer_branch_counts():
    def branch(flag, x, w):
        return lax.cond(flag, lambda: x @ w @ w.T, lambda: x * 2)

    assert count_flops(branch, True, X, W) == 2 * ONE


# ------------------------------------------------------------------- the step of a real model
WIDTH, INNER, BLOCKS, HEADS = 128, 512, 6, 4
FREEZE = [{"name": "trunk", "depth": [0, 4], "freeze": True}]  # embeddings and 4 of 6 blocks
LOWEST = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A BERT wide enough that matmuls are most of its work; nothing of it is run."""
    folder = tmp_path_factory.mktemp("wide")
    tiny_checkpoint(
        folder / "checkpoint",
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=BLOCKS,
        num_attention_heads=HEADS,
    )
    return folder


def build_with(folder, groups=FREEZE, accumulate=1, **train):
    config = tiny_config(
        folder,
        groups=groups,
        optimizer={"lr": 1e-3, "clip": 1.0},
        train={"accumulate": accumulate, **train},
        data={"batch_size": 32},
    )
    return build(config, devices=jax.devices()[:1])


def abstract_step(built, optimizer=None):
    """The real step and the shapes of its arguments."""
    state = abstract_state(built, phase_of(built))
    optimizer = optimizer or phase_of(built).optimizer
    if optimizer is not phase_of(built).optimizer:
        fresh = jax.eval_shape(optimizer.init, state.trainable)
        whole = replicated(built.mesh)
        state = replace(state, opt_state=jax.tree.map(lambda x: x.update(sharding=whole), fresh))
    frozen = {
        name: jax.ShapeDtypeStruct(built.model.params[name].shape, built.compute.dtype)
        for name in phase_of(built).table.frozen
    }
    step = make_train_step(
        objective_of(built, phase_of(built).compute),
        optimizer,
        accumulate=built.config.train.accumulate,
        ema=built.config.train.ema,
        state_shardings=jax.tree.map(lambda leaf: leaf.sharding, state),
        frozen_shardings={name: built.shardings[name] for name in frozen},
        mesh=built.mesh,
    )
    rates = StepInputs(
        phase_of(built).rates[0],
        phase_of(built).table.multipliers(),
        phase_of(built).table.weight_decays(),
    )
    return step, (state, frozen, batch_shapes(built), rates)


def batch_shapes(built):
    rows, length, segments = built.layout.rows, built.layout.row_length, built.layout.segments
    shapes = dict.fromkeys(
        ("input_ids", "token_type_ids", "position_ids", "segment_ids"), (rows, length)
    ) | dict.fromkeys(("read_positions", "example_ids", "labels", "weights"), (rows, segments))
    return {
        name: jax.ShapeDtypeStruct(shape, np.float32 if name == "weights" else np.int32)
        for name, shape in shapes.items()
    }


def forward_parts(built):
    """Matmul FLOPs of one forward pass, block by block and of the top, from shapes alone."""
    rows, length, segments = built.layout.rows, built.layout.row_length, built.layout.segments
    projections = 2 * rows * length * 3 * WIDTH * WIDTH  # query, key, value
    attention = 2 * (2 * rows * length * length * WIDTH)  # scores, and the sum of values
    output = 2 * rows * length * WIDTH * WIDTH
    mlp = 2 * (2 * rows * length * WIDTH * INNER)
    top = 2 * rows * segments * WIDTH * (WIDTH + 2)  # pooler and two classes
    return projections, attention, output, mlp, top


def expected(built, lowest):
    """Forward + dW of trainable matmuls + dX above the lowest trainable one.

    Attention has no weights and two inputs that depend on trained ones, so it costs two there.
    The lowest trained projections read a frozen stream, so they have no dX.
    """
    projections, attention, output, mlp, top = forward_parts(built)
    block = projections + attention + output + mlp
    trained = BLOCKS - lowest
    weights = trained * (projections + output + mlp) + top
    inputs = trained * (2 * attention + projections + output + mlp) + top - projections
    return BLOCKS * block + top, BLOCKS * block + top + weights + inputs


def test_a_step_computes_no_frozen_gradient(folder):
    """With the clip, the norm among the metrics, the average and accumulation on."""
    built = build_with(folder, accumulate=4, ema=0.99)
    step, arguments = abstract_step(built)
    _, wanted = expected(built, LOWEST)
    counted = count_flops(step, *arguments)
    print(f"step {counted / wanted:.4f} of forward + dW + dX")
    assert counted == pytest.approx(wanted, rel=0.02)


def test_a_scanned_step_computes_one_input_gradient_more(folder):
    """A scan hands a gradient to its first block's input too, which is frozen here."""
    built = build_with(folder, accumulate=4, scan=True)
    step, arguments = abstract_step(built)
    _, wanted = expected(built, LOWEST)
    projections = forward_parts(built)[0]
    assert count_flops(step, *arguments) == pytest.approx(wanted + projections, rel=1e-3)


def test_masking_updates_instead_would_pay_in_full(folder):
    """The control: all leaves are differentiated, and `set_to_zero` freezes the same ones.

    The clip and the norm read every gradient, so none of them is dead code.
    """
    split = build_with(folder, accumulate=4)
    wanted = count_flops(*unpack(abstract_step(split)))
    masked = build_with(folder, groups=[], accumulate=4)
    frozen = set(phase_of(split).table.frozen)
    optimizer = optax.with_extra_args_support(
        optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.multi_transform(
                {"train": optax.adamw(1e-3), "freeze": optax.set_to_zero()},
                lambda tree: {name: "freeze" if name in frozen else "train" for name in tree},
            ),
        )
    )
    found = count_flops(*unpack(abstract_step(masked, optimizer)))
    print(f"masked {found / wanted:.3f} of split")
    assert found >= 1.5 * wanted


def unpack(step_and_arguments):
    step, arguments = step_and_arguments
    return step, *arguments


@pytest.mark.parametrize("groups", [FREEZE, pytest.param([], marks=pytest.mark.full)])
def test_xla_counts_the_same(folder, groups):
    """On the unrolled step without accumulation; XLA counts elementwise work too."""
    built = build_with(folder, groups)
    step, arguments = abstract_step(built)
    ours = count_flops(step, *arguments)
    theirs = step.lower(*arguments).cost_analysis()["flops"]
    print(f"jaxpr {ours / theirs:.4f} of XLA")
    assert ours <= theirs
    assert ours == pytest.approx(theirs, rel=0.05)


@pytest.mark.full
def test_xla_counts_the_same_of_what_it_compiled(folder):
    built = build_with(folder)
    step, arguments = abstract_step(built)
    ours = count_flops(step, *arguments)
    theirs = step.lower(*arguments).compile().cost_analysis()["flops"]
    print(f"jaxpr {ours / theirs:.4f} of compiled")
    assert ours == pytest.approx(theirs, rel=0.05)


def test_what_a_plan_says_a_step_costs(folder):
    built = build_with(folder)
    forward, frozen = expected(built, LOWEST)
    flops = step_flops(built, phase_of(built))
    assert flops["forward"] == forward
    assert flops["step"] == pytest.approx(frozen, rel=0.02)
    # The embeddings take the first block's dX; their own gradient is a scatter.
    assert flops["full"] == pytest.approx(3 * forward, rel=0.02)


def test_training_one_low_block_pays_for_what_is_above(folder):
    """A frozen block above a trained one costs its dX and no dW."""
    groups = [
        {"name": "embeddings", "depth": [0, 0], "freeze": True},
        {"name": "above", "depth": [2, BLOCKS + 1], "freeze": True},
    ]
    built = build_with(folder, groups)
    projections, attention, output, mlp, top = forward_parts(built)
    block = projections + attention + output + mlp
    weights = projections + output + mlp
    inputs = BLOCKS * (block + attention) + top - projections
    step, arguments = abstract_step(built)
    wanted = BLOCKS * block + top + weights + inputs
    assert count_flops(step, *arguments) == pytest.approx(wanted, rel=0.02)


def segments_of(built):
    return {
        row.pop("segment"): row for row in segment_flops(built, phase_of(built).table.trainable)
    }


def test_the_segments_of_a_step_sum_up_to_it(folder):
    """The trunk has no way back, what is frozen above it no gradient of its own."""
    above = {"name": "above", "depth": [BLOCKS, BLOCKS], "freeze": True}
    built = build_with(folder, [*FREEZE, above], scan=True)
    found = segments_of(built)
    last, inside = BLOCKS - 1, BLOCKS - LOWEST - 1
    runs = (f"0-{LOWEST - 1}", f"{LOWEST}-{last - 1}", f"{last}-{last}")
    assert list(found) == [*(f"blocks {run}" for run in runs), "top"]
    assert (
        sum(sum(row.values()) for row in found.values())
        == step_flops(built, phase_of(built))["step"]
    )
    projections, attention, output, mlp, _ = forward_parts(built)
    block, weights = projections + attention + output + mlp, projections + output + mlp
    assert list(found[f"blocks 0-{LOWEST - 1}"].values()) == [LOWEST * block, 0, 0]
    through = inside * (block + attention) - projections  # the lowest's input is frozen
    middle, top = found[f"blocks {LOWEST}-{last - 1}"], found[f"blocks {last}-{last}"]
    assert list(middle.values()) == [inside * block, through, inside * weights]
    assert list(top.values()) == [block, block + attention, 0]


def test_a_table_that_scores_has_a_gradient_of_its_own():
    """A tied head's: a sum over rows and positions, which is in no `linear`."""
    stream, table = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, 5, 7), (11, 7)))

    def loss(stream, table):
        return jnp.square(lax.dot_general(stream, table, (((2,), (1,)), ((), ())))).sum()

    found = tally_flops(jax.grad(loss, argnums=(0, 1)), stream, table)
    product = 2 * 2 * 5 * 7 * 11
    purposes = ("forward", "input_gradient", "weight_gradient")
    assert found == {("loss", purpose): product for purpose in purposes}


@pytest.mark.parametrize("frozen", [2, 5])
def test_a_frozen_prefix_costs_what_the_formula_says(folder, frozen):
    """Of L equal blocks K frozen: forward x (1 + 2 (L - K) / L), less one input gradient."""
    groups = [{"name": "trunk", "depth": [0, frozen], "freeze": True}] if frozen else []
    built = build_with(folder, groups)
    flops, projections = step_flops(built, phase_of(built)), forward_parts(built)[0]
    formula = flops["forward"] * (1 + 2 * (BLOCKS - frozen) / BLOCKS) - (
        projections if frozen else 0
    )
    print(f"{frozen} of {BLOCKS} frozen: {flops['step'] / formula:.4f} of the formula")
    assert flops["step"] == pytest.approx(formula, rel=0.03)


def test_one_block_alone_costs_two_thirds(folder):
    built = build_with(folder, [])
    share = lowest_block_flops(built) / step_flops(built, phase_of(built))["full"]
    print(f"block 0 alone costs {share:.3f} of a full step")
    assert 2 / 3 <= share < 0.75


def test_recomputing_blocks_costs_one_more_forward(folder):
    plain, again = (
        build_with(folder, groups=[], scan=True, remat=remat) for remat in ("none", "full")
    )
    more = count_flops(*unpack(abstract_step(again))) - count_flops(*unpack(abstract_step(plain)))
    projections, attention, output, mlp, _ = forward_parts(plain)
    block = projections + attention + output + mlp
    assert 0.5 * BLOCKS * block < more <= BLOCKS * block
