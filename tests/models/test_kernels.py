"""Attention kernels: which one serves, and that splash is XLA's attention."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.config.load import to_yaml
from jaxft.device.mesh import make_mesh
from jaxft.engine.cost import count_flops
from jaxft.errors import UserError
from jaxft.models.layers.attention import AttentionOptions, attention, make_mask
from jaxft.models.layers.kernels import Kernel, Needs, Setting, choose
from tests.models.test_decoders import make_checkpoint
from tests.support.tiny import tiny_config

NEEDS = Needs(heads=4, groups=2, width=64)
ONE = make_mesh(1, 1, 1, jax.devices()[:1])
TPU = Setting("tpu", "bfloat16", dropout=True, mesh=ONE, rows=8, length=256)
GPU = replace(TPU, platform="gpu")
CPU = replace(TPU, platform="cpu", dtype="float32")


@pytest.mark.parametrize(
    ("setting", "chosen"), [(TPU, "splash"), (GPU, "cudnn"), (CPU, None)], ids=["tpu", "gpu", "cpu"]
)
def test_auto_takes_the_platforms_kernel(setting, chosen):
    found = choose("auto", NEEDS, setting)
    assert (found and found.name) == chosen
    assert found is None or found.mesh is setting.mesh
    assert choose("xla", NEEDS, setting) is None


CANNOT = [
    ("splash", NEEDS, GPU, "runs on TPUs, and this is for gpu"),
    ("splash", NEEDS, CPU, "runs on TPUs, and this is for cpu"),
    ("cudnn", NEEDS, TPU, "runs on GPUs, and this is for tpu"),
    ("cudnn", NEEDS, CPU, "runs on GPUs, and this is for cpu"),
    ("splash", NEEDS, replace(TPU, dtype="float32"), "bfloat16, and this run in float32"),
    ("cudnn", NEEDS, replace(GPU, dtype="float32"), "bfloat16, and this run in float32"),
    ("splash", replace(NEEDS, rate=0.1), TPU, "the rate is 0.1"),
    ("cudnn", replace(NEEDS, rate=0.1), GPU, "the rate is 0.1"),
    ("cudnn", replace(NEEDS, soft_cap=50.0), GPU, "no soft cap"),
    ("cudnn", replace(NEEDS, width=60), GPU, "heads are 60 wide"),
    ("cudnn", replace(NEEDS, width=256), GPU, "heads are 256 wide"),
    ("cudnn", NEEDS, replace(GPU, length=255), "255 positions are an odd number"),
    ("splash", replace(NEEDS, windows=True), TPU, "windows that differ"),
    ("splash", NEEDS, replace(TPU, mesh=None), "the mesh is not known"),
    ("splash", NEEDS, replace(TPU, mesh=make_mesh(1, 2, 4)), "2 heads of keys do not divide"),
    ("cudnn", NEEDS, replace(GPU, mesh=make_mesh(8, 1, 1), rows=4), "4 rows do not divide over 8"),
]


@pytest.mark.parametrize(("name", "needs", "setting", "why"), CANNOT)
def test_a_kernel_that_cannot_serve_is_no_choice_and_says_why(name, needs, setting, why):
    assert choose("auto", needs, setting) is None or setting.platform not in name
    with pytest.raises(UserError, match=f"train.attention: {name} cannot serve this run: .*{why}"):
        choose(name, needs, setting)


def test_what_a_kernel_can_do_it_does():
    """Windows that differ through cudnn's bias, a soft cap in splash, dropout where it is off."""
    assert choose("auto", replace(NEEDS, windows=True), GPU)
    assert choose("auto", replace(NEEDS, soft_cap=50.0), TPU)
    assert choose("auto", NEEDS, replace(GPU, mesh=None)).mesh is None
    for setting in (TPU, GPU):
        assert choose("auto", replace(NEEDS, rate=0.1), replace(setting, dropout=False))


def test_a_row_that_is_no_whole_block_is_filled_only_where_splash_is_asked_for():
    odd = replace(TPU, length=200)
    assert choose("auto", NEEDS, odd) is None
    assert choose("splash", NEEDS, odd) == Kernel("splash", ONE)


# ------------------------------------------------------------- splash, interpreted, against XLA
SPLASH = Kernel("splash", interpret=True)
ROWS, LENGTH = 4, 200  # 56 positions are filled


def draw(groups: int) -> tuple[jax.Array, ...]:
    """Queries of 4 heads, keys and values of `groups`, 16 wide: [ROWS, LENGTH, ...] each."""
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = [(ROWS, LENGTH, 16 * heads) for heads in (4, groups, groups)]
    return tuple(jax.random.normal(k, shape) for k, shape in zip(keys, shapes, strict=True))


def segments() -> jax.Array:
    """Rows of three segments, the last of them filling, and rows of one."""
    cut = np.repeat([1, 2, 0], [70, 90, 40])
    return jnp.asarray([cut, np.ones_like(cut)] * (ROWS // 2), jnp.int32)


def mixed_and_slopes(arrays, kernel, **seen):
    """What attention gives, and its gradients, under a weight for each element of it."""

    @jax.jit
    def run(*arrays):
        def mixed(*arrays):
            mask = make_mask(segments(), **seen, kernel=kernel)
            out = attention(*arrays, mask, AttentionOptions(heads=4, rate=0.1))
            return (out * jnp.cos(jnp.arange(out.size)).reshape(out.shape)).sum(), out

        return jax.grad(mixed, argnums=(0, 1, 2), has_aux=True)(*arrays)

    return run(*arrays)


def assert_is_xlas(arrays, kernel, **seen):
    ours, xlas = (mixed_and_slopes(arrays, one, **seen) for one in (kernel, None))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, xlas)


@pytest.mark.parametrize(
    ("groups", "seen"),
    [(2, {"causal": True}), (1, {"causal": True, "window": 30}), (4, {}), (2, {"window": 30})],
    ids=["causal", "local", "bidirectional", "both sides"],
)
def test_splash_is_xlas_attention(groups, seen):
    assert make_mask(segments(), **seen, kernel=SPLASH).bias is None
    assert_is_xlas(draw(groups), SPLASH, **seen)


def test_splash_over_a_mesh_is_xlas_attention():
    """Rows over data and fsdp, heads over tensor: each device computes its own."""
    kernel = Kernel("splash", make_mesh(2, 2, 2), interpret=True)
    assert_is_xlas(draw(2), kernel, causal=True)


def test_a_kernels_flops_are_counted_over_its_grid_and_the_mesh():
    """Forward 2 products of T x T; back 3 for the queries, and 4 for keys and values."""
    shapes = [jax.ShapeDtypeStruct((8, 512, 4 * 16), jnp.float32)] * 3
    kernel = Kernel("splash", make_mesh(2, 2, 2), interpret=True)

    def loss(*arrays):
        mask = make_mask(jnp.ones((8, 512), jnp.int32), kernel=kernel)
        return attention(*arrays, mask, AttentionOptions(heads=4)).sum()

    once = 2 * 8 * 4 * 512 * 512 * 16
    sums = once // 512  # of the output times its gradient
    assert count_flops(jax.grad(loss, (0, 1, 2)), *shapes) == 9 * once + sums


@pytest.mark.parametrize("window", [None, 30])
def test_cudnn_is_told_who_sees_whom(window, monkeypatch):
    """There is no GPU here: jax computes by XLA what it would have asked cudnn for."""
    asked = []

    def through_xla(*arrays, implementation, **options):
        asked.append((implementation, options["is_causal"]))
        return plain(*arrays, implementation="xla", **options)

    plain = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", through_xla)
    assert_is_xlas(draw(2), Kernel("cudnn"), causal=True, window=window)
    assert asked == [("cudnn", True)]


def test_a_moving_window_reaches_cudnn_and_no_kernel_without_a_bias(monkeypatch):
    mask = make_mask(segments(), causal=True, kernel=Kernel("cudnn")).within(jnp.int32(5))
    wanted = make_mask(segments(), causal=True, window=5).bias
    np.testing.assert_array_equal(mask.bias, wanted)
    with pytest.raises(AssertionError):
        make_mask(segments(), causal=True, kernel=SPLASH).within(5)


# --------------------------------------------------------- the true compiler, where it is there
TPU_COMPILER = find_spec("libtpu") is not None or "TPU_LIBRARY_PATH" in os.environ
QUIET = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}


@pytest.mark.full
@pytest.mark.skipif(not TPU_COMPILER, reason="libtpu is not installed (Linux on x86-64)")
@pytest.mark.parametrize("attention", ["auto", "xla"])
def test_the_step_compiles_for_tpus_with_splash(attention, tmp_path):
    """A causal LM over fsdp and tensor: the kernels forward and back, and no scores in full."""
    make_checkpoint(tmp_path / "checkpoint", "llama")
    rows = [{"text": "the cast of a film in the plot " * 12}] * 16
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = tiny_config(
        tmp_path,
        task={"kind": "causal_lm", "text": "text"},
        data={
            "train": f"jsonl:{tmp_path}/rows.jsonl",
            "eval": f"jsonl:{tmp_path}/rows.jsonl",
            "test": None,
            "row_length": 128,
            "max_length": 64,
        },
        mesh={"data": 1, "fsdp": 2, "tensor": 2},
        train={"attention": attention},
    )
    (tmp_path / "run.yaml").write_text(to_yaml(config.dump()))
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.tpu_step", str(tmp_path / "run.yaml"), "v5e:2x2"],
        env=os.environ | QUIET,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.splitlines()[-1])
    # Two blocks under one scan: forward, and back for queries and for keys and values.
    assert said["kernels"] == (3 if attention == "auto" else 0)
