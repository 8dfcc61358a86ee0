"""Frozen kernels in 4 or 8 bits: bitsandbytes' numbers, what a step saves, and a run's export."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import load_file
from scipy.stats import norm

import jaxft
from jaxft.cli.main import main
from jaxft.config.load import parse_config
from jaxft.device.mesh import held, make_mesh
from jaxft.engine.initial_state import abstract_frozen, load_params
from jaxft.engine.memory.storage import store, stored_shape
from jaxft.engine.remat import phase_setups, residual_bytes
from jaxft.engine.setup import build, objective_of
from jaxft.engine.trained import open_trained
from jaxft.errors import UserError
from jaxft.export.export import export
from jaxft.inference.score import score
from jaxft.models.layers.math import linear
from jaxft.models.quantized import LEVELS, Quantized, quantize
from jaxft.models.tower.tower import Compute
from tests.support.laid_out import goes_on_to_the_same_bits
from tests.support.tiny import tiny_checkpoint, tiny_config

KINDS = ["nf4", "int8"]
KERNEL = "blocks/0/mlp/up/kernel"
LORA = {"kind": "lora", "rank": 2, "alpha": 4.0}


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# ----------------------------------------------------------------------------------- the numbers
def test_the_levels_are_quantiles_of_the_normal_distribution():
    """bitsandbytes' `create_normal_map`: 8 above 0, 7 below, each half from its own spacing."""
    offset = 0.9677083
    above = norm.ppf(np.linspace(offset, 0.5, 9)[:-1])
    below = -norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
    levels = np.sort([0.0, *above, *below])
    np.testing.assert_allclose(LEVELS, levels / levels.max(), atol=1e-6)


def by_bitsandbytes(weight, kind):
    """What a PyTorch weight [O, I] becomes in blocks of 64 neighbours, by a plain formula."""
    blocks = weight.astype(np.float64).reshape(-1, 64)
    largest = np.abs(blocks).max(1, keepdims=True)
    if kind == "int8":
        return (np.round(blocks / largest * 127) * largest / 127).reshape(weight.shape)
    nearest = np.abs((blocks / largest)[..., None] - np.array(LEVELS)).argmin(-1)
    return (np.array(LEVELS)[nearest] * largest).reshape(weight.shape)


@pytest.mark.parametrize("kind", KINDS)
def test_a_kernel_is_what_bitsandbytes_makes_of_pytorchs_weight(kind):
    weight = normal(48, 192)
    weight[:, :64] *= 100  # blocks have scales of their own
    stored = jax.jit(partial(quantize, kind=kind))(weight.T)
    np.testing.assert_allclose(stored.dense(), by_bitsandbytes(weight, kind).T, rtol=1e-5)
    assert stored.shape == (192, 48)
    assert stored.codes.nbytes == 192 * 48 // (2 if kind == "nf4" else 1)
    assert stored.scales.nbytes == 4 * 3 * 48


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_and_narrow_kernels(kind):
    """A block of zeros has no scale, and 48 rows are blocks of 16."""
    kernel = normal(48, 8)
    kernel[:16, 3] = 0
    stored = quantize(jnp.asarray(kernel), kind)
    assert stored.scales.shape == (3, 8)
    assert not np.asarray(stored.dense())[:16, 3].any()
    np.testing.assert_allclose(stored.dense(), kernel, atol=0.5 if kind == "nf4" else 0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_a_linear_map_multiplies_and_differentiates_with_the_dense_numbers(kind):
    kernel, bias, x = quantize(jnp.asarray(normal(64, 32)), kind), normal(32, seed=1), normal(5, 64)
    wanted, pulled = jax.vjp(lambda x, b: linear(x, kernel.dense(), b), x, bias)
    out, pull = jax.vjp(lambda x, b: linear(x, kernel, b), x, bias)
    np.testing.assert_array_equal(out, wanted)
    jax.tree.map(np.testing.assert_array_equal, pull(out), pulled(out))


@pytest.mark.parametrize("kind", KINDS)
def test_shards_hold_the_codes_of_the_whole(kind):
    mesh = make_mesh(2, 2, 2, jax.devices()[:8])
    kernel = normal(256, 64)
    like = stored_shape((256, 64), kind, "bfloat16", ("embed", "mlp"), mesh)
    cut = jax.device_put(kernel, NamedSharding(mesh, PartitionSpec("fsdp", "tensor")))
    stored, whole = store(cut, like), quantize(jnp.asarray(kernel), kind)
    whole_spec = PartitionSpec("fsdp", "tensor")
    assert stored.codes.sharding.spec == stored.scales.sharding.spec == whole_spec
    np.testing.assert_array_equal(stored.codes, whole.codes)
    np.testing.assert_array_equal(stored.scales, whole.scales)
    assert held(like) * 4 == whole.codes.nbytes + whole.scales.nbytes


# ----------------------------------------------------------------------------------------- a step
def every_output(jaxpr):
    """The arrays that a program computes, those of inner programs too."""
    for equation in jaxpr.eqns:
        yield from (variable.aval for variable in equation.outvars)
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                if hasattr(inner, "jaxpr") or hasattr(inner, "eqns"):
                    yield from every_output(getattr(inner, "jaxpr", inner))


def float_stacks(config, remat):
    """Shapes of the float arrays in a scanned step that are stacks of both blocks' kernels."""
    setup = build(config, devices=jax.devices()[:1])
    (now,) = phase_setups(setup)
    frozen = abstract_frozen(setup, now)
    compute = Compute(scan=True, remat=remat, trainable=now.compute.trainable)
    objective = objective_of(setup, compute)
    params = setup.model.params
    trainable = {name: params[name] for name in now.table.trainable}
    examples = setup.splits["train"].examples
    batch = examples.collate(setup.plan.batch(0), setup.layout.row_length)
    step = jax.grad(lambda own, rest: objective({**rest, **own}, batch, None)["loss"][0])
    jaxpr = jax.make_jaxpr(step)(trainable, frozen).jaxpr
    kernels = {(2, 32, 32), (2, 32, 64), (2, 64, 32)}
    return {a.shape for a in every_output(jaxpr) if a.dtype == jnp.float32 and a.shape in kernels}


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_no_stack_of_kernels_is_ever_dense(tmp_path, remat):
    """The scan stacks codes; each block makes its numbers for itself, in both passes."""
    config = tiny_config(tmp_path, adapter={**LORA, "quantize": "nf4"})
    assert float_stacks(config, remat) == set()
    plain = tiny_config(tmp_path, adapter=LORA)
    assert float_stacks(plain, remat)  # the control: float kernels are stacked


def test_what_the_backward_pass_saves_counts_codes(tmp_path):
    config = tiny_config(tmp_path, adapter=LORA)
    plain, quantized = (
        build(one, devices=jax.devices()[:1])
        for one in (config, tiny_config(tmp_path, adapter={**LORA, "quantize": "nf4"}))
    )
    compute = Compute(scan=True, trainable=plain.compute.trainable)
    kernels = 4 * 32 * 32 + 2 * 32 * 64
    # Of each of two blocks float32 kernels, against half a byte and a scale for 32 or 64 rows.
    codes = kernels // 2 + 4 * (4 * 32 + 64 + 32)
    saved = residual_bytes(plain, compute) - residual_bytes(quantized, compute)
    assert saved == 2 * (4 * kernels - codes)


# ------------------------------------------------------------------------------------------ a run
@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return tiny_config(
        tmp_path_factory.mktemp("quantized"),
        adapter={**LORA, "quantize": "nf4"},
        optimizer={"lr": 1e-2},
        train={"length": "8 steps", "evaluate_every": "4 steps"},
        checkpoint={"every": "3 steps", "keep": 9},
    )


@pytest.fixture(scope="module")
def run(config):
    return jaxft.train(config, quiet=True)


def test_frozen_kernels_of_blocks_are_stored_so_and_nothing_else(config):
    setup = build(config, devices=jax.devices()[:1])
    (now,) = phase_setups(setup)
    frozen, params = abstract_frozen(setup, now), load_params(setup).params
    stored = {name for name, leaf in frozen.items() if isinstance(leaf, Quantized)}
    kernels = {name for name in frozen if name.startswith("blocks/") and name.endswith("/kernel")}
    assert stored == kernels == {n for n, leaf in params.items() if isinstance(leaf, Quantized)}
    assert held(frozen[KERNEL]) == 32 * 64 // 2 + 4 * 64


@pytest.mark.slow
def test_the_base_of_a_run_has_the_checkpoints_own_weights(run, config):
    source = load_file(f"{config.model.checkpoint}/model.safetensors")
    base = load_file(run.folder / "base" / "model.safetensors")
    for name, value in source.items():
        assert base[f"bert.{name}"].tobytes() == value.tobytes()


def test_an_export_merges_into_the_checkpoints_own_weights(run, config):
    trained = open_trained(run.folder).model
    merged = jaxft.load(str(export(run.folder)))
    original = jaxft.load(config.model.checkpoint, task="text_classification", num_labels=2)
    np.testing.assert_array_equal(merged.params[KERNEL], original.params[KERNEL])
    query = "blocks/0/attention/query/"
    a, b = trained.params[f"{query}lora_a"], trained.params[f"{query}lora_b"]
    whole = np.asarray(original.params[f"{query}kernel"]) + np.asarray(a @ b) * 2.0
    np.testing.assert_allclose(merged.params[f"{query}kernel"], whole, atol=1e-6)
    assert score(run.folder)["metrics"]["loss"] == pytest.approx(run.metrics["loss"], abs=0.02)


@pytest.mark.slow
def test_a_resumed_run_is_the_run(run, config, tmp_path):
    goes_on_to_the_same_bits(run, config, 3, tmp_path)


@pytest.mark.slow
def test_a_cut_run_is_the_run(run, config):
    """On 2 x 2 x 2 devices and on 4 x 2, within what another order of sums makes of it."""
    cut = config.dump()
    cut["run"]["name"], cut["mesh"] = "cut", {"data": 2, "fsdp": 2, "tensor": 2}
    one = config.dump()
    one["run"]["name"], one["mesh"] = "one", {"data": 4, "tensor": 2}
    losses = [jaxft.train(parse_config(each), quiet=True).metrics["loss"] for each in (cut, one)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


# -------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ({"quantize": "nf4"}, "without adapter.kind they train"),
        ({"kind": "bitfit", "quantize": "nf4"}, "'quantize' applies to lora and dora only"),
        ({"kind": "lora", "quantize": "nf3"}, "adapter.quantize' must be nf4 or int8"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, adapter, message):
    with pytest.raises(UserError, match=message):
        tiny_config(tmp_path, adapter=adapter)


def test_kernels_that_are_too_narrow_are_refused(tmp_path):
    tiny_checkpoint(tmp_path / "checkpoint", hidden_size=24, intermediate_size=40)
    config = tiny_config(tmp_path, adapter={**LORA, "quantize": "nf4"})
    with pytest.raises(UserError, match="no kernel of a block has a multiple of 16 rows"):
        build(config)


def test_the_command_line_says_it_and_ends_with_two(config, tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text(config.model_dump_json())
    assert main(["train", str(path), "adapter={quantize: nf4}"]) == 2
    assert "'quantize' is nf4, which stores frozen kernels" in capsys.readouterr().err
