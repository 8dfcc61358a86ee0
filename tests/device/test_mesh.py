"""The mesh: what sizes it may have, and where parameters and batches lie on it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxft.device.mesh import (
    batch_sharding,
    in_turn,
    make_mesh,
    overlaps,
    param_shardings,
    place_batch,
    replicated,
    row_divisor,
)
from jaxft.engine.initial_state import abstract_state
from jaxft.engine.setup import build
from jaxft.errors import UserError
from jaxft.models.layers.modules import Leaf
from jaxft.models.layers.partition import gathered, partition
from tests.support.phases import phase_of
from tests.support.tiny import tiny_config


def test_one_device_is_a_mesh():
    mesh = make_mesh(1, 1, 1, jax.devices()[:1])
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "expert": 1, "context": 1, "tensor": 1}


@pytest.mark.parametrize(
    ("sizes", "wanted"),
    [
        ((-1, 1, 1), (8, 1, 1)),
        ((-1, 2, 2), (2, 2, 2)),
        ((2, -1, 2), (2, 2, 2)),
        ((1, 2, -1), (1, 2, 4)),
        ((-1, 4, 2), (1, 4, 2)),
        ((2, 2, 2), (2, 2, 2)),
    ],
)
def test_minus_one_takes_what_the_others_leave(sizes, wanted):
    mesh = make_mesh(*sizes)
    assert tuple(mesh.shape.values()) == (*wanted[:2], 1, 1, wanted[2])
    assert mesh.axis_names == ("data", "fsdp", "expert", "context", "tensor")
    assert list(mesh.devices.flat) == jax.devices()


def test_experts_take_an_axis_of_their_own():
    mesh = make_mesh(-1, 1, 1, expert=4)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 1, "expert": 4, "context": 1, "tensor": 1}
    assert partition((8, 32, 64), ("experts", "embed", "mlp"), mesh) == P("expert", None, None)
    with pytest.raises(
        UserError, match=r"1x1x4x1 \(data x fsdp x expert x tensor\) does not divide"
    ):
        make_mesh(1, 1, 1, expert=4)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (3, 1, 1), (-1, 3, 1), (-1, 16, 1), (4, 4, 1)])
def test_sizes_that_do_not_multiply_out_are_an_error(sizes):
    with pytest.raises(UserError) as caught:
        make_mesh(*sizes)
    said = str(caught.value)
    assert "x".join(map(str, sizes)) in said
    assert "8 device" in said


def spec_of(shape, axes, *sizes):
    return partition(shape, axes, make_mesh(*sizes))


def test_a_matrix_is_cut_both_ways():
    assert spec_of((32, 64), ("embed", "mlp"), 2, 2, 2) == P("fsdp", "tensor")
    assert spec_of((64, 32), ("mlp", "embed"), 2, 2, 2) == P("tensor", "fsdp")
    assert spec_of((32, 64), ("embed", "mlp"), 8, 1, 1) == P(None, None)
    assert spec_of((32, 64), ("embed", "mlp"), 1, 8, 1) == P("fsdp", None)
    assert spec_of((32, 64), ("embed", "mlp"), 1, 1, 8) == P(None, "tensor")


def test_a_dimension_that_does_not_divide_goes_on_to_the_next_axis():
    """30,522 words do not split in 4: over fsdp they do, and the width goes over tensor."""
    assert spec_of((30522, 384), ("vocab", "embed"), 1, 2, 4) == P("fsdp", "tensor")
    assert spec_of((30520, 384), ("vocab", "embed"), 1, 2, 4) == P("tensor", "fsdp")
    assert spec_of((30521, 384), ("vocab", "embed"), 1, 2, 4) == P(None, "fsdp")
    assert spec_of((30522, 385), ("vocab", "embed"), 1, 2, 4) == P("fsdp", None)


def test_vectors_stay_whole_over_fsdp():
    assert spec_of((64,), ("embed",), 1, 8, 1) == P(None)
    assert spec_of((64,), ("mlp",), 1, 4, 2) == P("tensor")


def test_an_axis_without_a_rule_stays_whole():
    assert spec_of((40, 32), ("positions", "embed"), 2, 2, 2) == P(None, "fsdp")
    assert spec_of((2, 2), ("labels", "types"), 2, 2, 2) == P(None, None)


SHAPES = {"wide/kernel": (32, 64), "odd/kernel": (31, 33), "norm/scale": (33,)}
AXES = {"wide/kernel": ("embed", "mlp"), "odd/kernel": ("embed", "mlp"), "norm/scale": ("embed",)}


def test_whole_parameters_by_accident_are_an_error():
    with pytest.raises(UserError) as caught:
        param_shardings(SHAPES, AXES, make_mesh(2, 2, 2))
    said = str(caught.value)
    assert "33%" in said  # 31 x 33 of 3,104
    assert "odd/kernel (31, 33)" in said
    assert "fsdp=2" in said
    assert "tensor=2" in said


def test_whole_parameters_are_what_a_data_mesh_means():
    shardings = param_shardings(SHAPES, AXES, make_mesh(8, 1, 1))
    assert all(sharding.is_fully_replicated for sharding in shardings.values())


def test_a_little_that_does_not_divide_is_let_be():
    shapes = SHAPES | {"wide/kernel": (320, 640)}
    shardings = param_shardings(shapes, AXES, make_mesh(2, 2, 2))
    assert shardings["odd/kernel"].is_fully_replicated
    assert shardings["wide/kernel"].spec == P("fsdp", "tensor")


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2), (1, 1, 8)])
def test_a_batch_lies_by_rows(sizes):
    mesh = make_mesh(*sizes)
    groups = sizes[0] * sizes[1]
    batch = {
        "input_ids": np.arange(16 * 5, dtype=np.int32).reshape(16, 5),
        "weights": np.arange(32, dtype=np.float32).reshape(16, 2),
    }
    placed = place_batch(batch, batch_sharding(mesh))
    for name, array in placed.items():
        np.testing.assert_array_equal(array, batch[name])
        assert array.dtype == batch[name].dtype
        for shard in array.addressable_shards:
            assert shard.data.shape[0] == 16 // groups
            np.testing.assert_array_equal(shard.data, batch[name][shard.index])
        starts = {shard.index[0].start or 0 for shard in array.addressable_shards}
        assert len(starts) == groups


def test_what_rows_must_divide_by():
    assert row_divisor(make_mesh(2, 2, 2), 1) == 4
    assert row_divisor(make_mesh(2, 2, 2), 3) == 12
    assert row_divisor(make_mesh(1, 1, 8), 2) == 2
    assert row_divisor(make_mesh(2, 1, 1, expert=4), 1) == 8


def test_replicated_is_whole_everywhere():
    array = jax.device_put(jnp.arange(6), replicated(make_mesh(2, 2, 2)))
    assert array.sharding.is_fully_replicated
    assert len(array.addressable_shards) == 8


def test_moments_and_average_lie_as_their_parameter(tmp_path):
    config = tiny_config(
        tmp_path,
        mesh={"data": 2, "fsdp": 2, "tensor": 2},
        train={"ema": 0.9},
        groups=[{"name": "trunk", "depth": [0, 1], "freeze": True}],
    )
    built = build(config)
    cut = 0
    for path, leaf in jax.tree_util.tree_flatten_with_path(abstract_state(built, phase_of(built)))[
        0
    ]:
        name = str(getattr(path[-1], "key", ""))
        if name in built.shardings and leaf.ndim:
            assert leaf.sharding == built.shardings[name], path
            cut += not leaf.sharding.is_fully_replicated
        else:
            assert leaf.sharding.is_fully_replicated, path
    matrices = [n for n in phase_of(built).table.trainable if any(built.shardings[n].spec)]
    assert cut == 4 * len(matrices) > 0  # itself, two moments, its average


def test_a_batch_that_does_not_divide_the_mesh_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"data\.batch_size 8 does not divide over 32"):
        build(tiny_config(tmp_path, mesh={"data": 8}, train={"accumulate": 4}))


def test_programs_take_turns_on_several_cpu_devices_alone(monkeypatch):
    """Two at once can wait for each other there for ever."""
    waited = []
    monkeypatch.setattr(jax, "block_until_ready", lambda arrays: waited.append(arrays) or arrays)
    alone, eight = make_mesh(1, 1, 1, jax.devices()[:1]), make_mesh(8, 1, 1, jax.devices())
    assert overlaps(alone)
    assert not overlaps(eight)
    assert in_turn(alone, "one") == "one"
    assert in_turn(eight, "two") == "two"
    assert waited == ["two"]


@pytest.mark.parametrize(("inside", "outside"), [(14, 126), (64, 256)])
def test_a_kernel_larger_than_what_it_meets_is_multiplied_by_whole(inside, outside):
    """XLA itself gets the rows of `x @ w` wrong on 2 x 2 x 2: see `gathered`."""
    mesh, draw = make_mesh(2, 2, 2), np.random.default_rng(0)
    x = draw.normal(size=(8, 1, inside)).astype(np.float32)
    w = draw.normal(size=(inside, outside)).astype(np.float32)
    leaf = Leaf(w.shape, ("mlp", "embed"))
    rows = ("data", "fsdp")
    over = partial(NamedSharding, mesh)
    cut = over(partition(w.shape, leaf.axes, mesh))

    @partial(
        jax.jit, in_shardings=(over(P(rows, None, "tensor")), cut), out_shardings=over(P(rows))
    )
    def product(x, w):
        w = gathered({"w": w}, {"w": leaf}, mesh)["w"]
        return jax.lax.with_sharding_constraint(x @ w, over(P(rows, None, "tensor")))

    np.testing.assert_allclose(product(x, w), x @ w, rtol=1e-5, atol=1e-5)


def test_the_gradient_of_a_gathered_kernel_lies_as_the_kernel():
    """Else it would be summed up whole on every device."""
    mesh, leaf = make_mesh(1, 2, 2, context=2), Leaf((32, 64), ("embed", "mlp"))
    own = partition(leaf.shape, leaf.axes, mesh)
    assert own == P(("fsdp", "context"), "tensor")

    def loss(w):
        return gathered({"w": w}, {"w": leaf}, mesh)["w"].sum()

    program = jax.make_jaxpr(jax.grad(loss))(jnp.zeros(leaf.shape))
    names = [e.primitive.name for e in program.eqns]
    last = program.eqns[len(names) - 1 - names[::-1].index("sharding_constraint")]
    assert last.params["sharding"].spec == own
