"""Residuals by name and host memory: what is kept, where, and that nothing else changes."""

import dataclasses
import os
from importlib.util import find_spec

import jax
import numpy as np
import pytest

import jaxft
from jaxft.cli.main import main
from jaxft.device.chips import parse_topology
from jaxft.device.host_memory import HOST, split_by_memory
from jaxft.engine import remat as engine_remat
from jaxft.engine.cost import batch_shapes, count_flops, param_shapes
from jaxft.engine.initial_state import abstract_state, load_params
from jaxft.engine.remat import (
    first_that_fits,
    named_residuals,
    phase_setups,
    residual_bytes,
    taken,
)
from jaxft.engine.setup import build, objective_of
from jaxft.engine.trained import open_trained
from jaxft.errors import UserError
from jaxft.models.tower.residuals import Residuals
from jaxft.planning.pod import plan_on
from tests.support.laid_out import goes_on_to_the_same_bits
from tests.support.tiny import tiny_config

ONE = jax.devices()[:1]
EVERYTHING = Residuals(
    (
        *("attention/query", "attention/key", "attention/value", "attention/output"),
        *("attention_output", "mlp/up", "mlp/down"),
    )
)
by_libtpu = pytest.mark.skipif(
    find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ,
    reason="libtpu is not installed (Linux on x86-64)",
)


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    return build(tiny_config(tmp_path_factory.mktemp("memory"), train={"scan": True}), devices=ONE)


def with_remat(setup, remat):
    return dataclasses.replace(setup.compute, remat=remat)


def gradient(setup, remat):
    """The loss and its gradient as a function of (parameters, batch)."""
    objective = objective_of(setup, with_remat(setup, remat))
    return jax.value_and_grad(lambda params, batch: objective(params, batch, None)["loss"][0])


# ------------------------------------------------------------------------------ residuals by name
def test_a_residual_is_kept_at_exactly_its_bytes(setup):
    """Two blocks of 32-wide streams, and a product of 64 columns in the MLP."""
    batch = batch_shapes(setup)["input_ids"]
    full = residual_bytes(setup, with_remat(setup, "full"))
    for name, columns in {"mlp/up": 64, "attention/query": 32, "attention_output": 32}.items():
        own = residual_bytes(setup, with_remat(setup, Residuals((name,)))) - full
        assert own == 2 * batch.size * columns * 4


def test_what_is_kept_is_not_computed_again(setup):
    params, batch = param_shapes(setup.model, "float32"), batch_shapes(setup)
    names = ("none", EVERYTHING, Residuals(("mlp/up",)), "full")
    flops = [count_flops(gradient(setup, remat), params, batch) for remat in names]
    scores = flops[1] - flops[0]  # XLA's attention forms its weights again, named or not
    tokens = batch["input_ids"].size
    assert flops[3] - flops[2] == 2 * 2 * tokens * 32 * 64
    assert 0 < scores < flops[2] - flops[1]


@pytest.mark.parametrize("scan", [True, False])
def test_the_gradient_is_the_same_whatever_is_kept(setup, scan):
    params = load_params(setup).params
    batch = setup.splits["train"].examples.collate(setup.plan.batch(0), setup.layout.row_length)
    own = dataclasses.replace(setup, compute=dataclasses.replace(setup.compute, scan=scan))
    wanted = jax.jit(gradient(own, "none"))(params, batch)
    found = jax.jit(gradient(own, Residuals(("mlp/up", "attention_output"))))(params, batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, wanted)


def test_adapters_products_have_the_names_of_their_maps(tmp_path):
    lora = {"kind": "lora", "match": [r"blocks/\d+/attention/query/kernel"]}
    adapted = build(tiny_config(tmp_path, adapter=lora, train={"scan": True}), devices=ONE)
    full, query = (
        residual_bytes(adapted, with_remat(adapted, remat))
        for remat in ("full", Residuals(("attention/query",)))
    )
    assert query - full == 2 * batch_shapes(adapted)["input_ids"].size * 32 * 4


# -------------------------------------------------------------------------------------- the search
@pytest.mark.slow
def test_the_search_keeps_what_costs_the_most_flops_a_byte(setup):
    (now,) = phase_setups(setup)
    product = 2 * batch_shapes(setup)["input_ids"].size * 32 * 4  # of 32 columns, in two blocks
    everything = list(named_residuals(setup, now, 10**9))
    # The most inputs first: 64 of mlp/down, then the maps of 32.
    assert everything[0].save[:2] == ("attention_output", "mlp/down")
    assert [len(one.save) for one in everything] == list(range(7, 0, -1))
    most = next(named_residuals(setup, now, 2 * product))
    assert most == Residuals(("attention_output", "mlp/down"))
    assert next(named_residuals(setup, now, 2 * product - 1)) == Residuals(("attention_output",))
    assert list(named_residuals(setup, now, product - 1)) == []


def test_named_residuals_lie_between_dots_and_full():
    saved = {"none": 1000, "dots": 500, "full": 100, Residuals(("a", "b")): 400}
    saved |= {Residuals(("a",)): 200, Residuals((), ("block_input",)): 10}

    def named(left):
        if left < 0:
            return iter([Residuals((), ("block_input",))])
        return iter([Residuals(("a", "b")), Residuals(("a",))])

    chosen = [first_that_fits(saved.get, room, named)[0] for room in (500, 499, 399, 199, 99)]
    assert chosen == [
        *("dots", Residuals(("a", "b")), Residuals(("a",)), "full"),
        Residuals((), ("block_input",)),
    ]
    assert (
        "train.remat is save a; offload b"
        in first_that_fits(
            lambda remat: 0 if remat == Residuals(("a",), ("b",)) else 2,
            1,
            lambda left: iter([Residuals(("a",), ("b",))]),
        )[1]
    )


# ------------------------------------------------------------------------------------ host memory
@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run with its moments in host memory, as an accelerator has it, and one without."""

    def config(offload):
        return tiny_config(
            tmp_path_factory.mktemp(str(offload)),
            optimizer={"offload": offload, "moments": "int8"},
            train={"length": "6 steps", "evaluate_every": "3 steps"},
            checkpoint={"every": "3 steps", "keep": 9},
            report={"layers_every": "2 steps", "tensorboard": False},
        )

    with pytest.MonkeyPatch.context() as patch:
        unchecked(patch)
        return {
            offload: (jaxft.train(c := config(offload), quiet=True), c) for offload in (False, True)
        }


def unchecked(patch):
    """Let a CPU offload: it has such memory, which is its own."""
    patch.setattr(engine_remat, "_check", lambda setup: None)


@pytest.mark.slow
def test_moments_of_matrices_wait_in_host_memory(runs, monkeypatch):
    unchecked(monkeypatch)
    setup = build(runs[1][1], devices=ONE)
    (now,) = phase_setups(setup)
    state = abstract_state(setup, now)
    own, hosts = split_by_memory(state.opt_state)
    assert hosts
    assert all(leaf.ndim > 1 for leaf in hosts)
    assert all(leaf.ndim < 2 for leaf in own)
    assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(state.trainable)} != {HOST}
    without = build(runs[0][1], devices=ONE)
    moved = taken(without, phase_setups(without)[0]) - taken(setup, now)
    assert moved == sum(leaf.size * leaf.dtype.itemsize for leaf in hosts)


@pytest.mark.slow
def test_a_run_with_offloaded_moments_ends_in_the_same_bits(runs, tmp_path, monkeypatch):
    unchecked(monkeypatch)
    (plain, _), (offloaded, config) = runs[0], runs[1]
    one, other = (open_trained(run.folder, "last").model.params for run in (plain, offloaded))
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)
    goes_on_to_the_same_bits(offloaded, config, 3, tmp_path)


@pytest.mark.slow
@by_libtpu
@pytest.mark.parametrize(
    "sections",
    [
        {"train": {"remat": {"offload": ["block_input"]}, "scan": True}},
        {"optimizer": {"offload": True}},
    ],
    ids=["residuals", "moments"],
)
def test_the_tpu_compiler_puts_them_in_host_memory(sections, tmp_path):
    config = tiny_config(tmp_path, **sections)
    facts = plan_on(config, topology=parse_topology("v5e:2x2")).facts
    assert facts["fits"]
    assert facts["memory"]["host"] > 0


# -------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"train": {"remat": {"save": ["mlp/upp"]}}}, "'mlp/upp' is no residual of this model's"),
        ({"train": {"remat": {"offload": ["mlp/up"]}}}, "a CPU has no other. Move the names to"),
        ({"optimizer": {"offload": True}}, "optimizer.offload moves moments to the host's memory"),
        ({"train": {"remat": {"save": ["a"], "offload": ["a"]}}}, "'a' is in both 'save' and"),
        ({"train": {"remat": {"sav": ["mlp/up"]}}}, "unknown key 'train.remat.sav'"),
        ({"train": {"remat": {"save": "mlp/up"}}}, "'train.remat.save' must be a list of text"),
        ({"train": {"remat": "ful"}}, "'train.remat' must be auto, none, dots or full or section"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, sections, message):
    with pytest.raises(UserError, match=message):
        phase_setups(build(tiny_config(tmp_path, **sections), devices=ONE))


def test_the_command_line_says_it_and_ends_with_two(tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text(tiny_config(tmp_path).model_dump_json())
    assert main(["train", str(path), "train.remat={offload: [block_input]}"]) == 2
    assert "train.remat: offload moves residuals to the host's memory" in capsys.readouterr().err
