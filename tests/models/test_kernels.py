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
from jax.extend.core import Jaxpr

from jaxft.config.load import to_yaml
from jaxft.device.mesh import make_mesh
from jaxft.engine.cost import count_flops
from jaxft.errors import UserError
from jaxft.models.layers.attention import AttentionOptions, attention, make_mask
from jaxft.models.layers.kernels import PLATFORMS, Choice, Kernel, Needs, Setting, choose
from jaxft.models.layers.ring.splash import splash_blocks
from jaxft.models.load import families
from jaxft.models.tower.blocks import kernel_windows, stretches
from jaxft.models.tower.run import run_tower
from jaxft.models.tower.tower import Compute, Tower
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
    choice = choose("auto", NEEDS, setting)
    assert choice.name == (chosen or "xla")
    assert choice.kernel is None or choice.kernel.mesh is setting.mesh
    assert choose("xla", NEEDS, setting) == Choice(None, "train.attention=xla")


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
    ("splash", NEEDS, replace(TPU, mesh=None), "the mesh is not known"),
    ("splash", NEEDS, replace(TPU, mesh=make_mesh(1, 2, 4)), "2 heads of keys do not divide"),
    ("cudnn", NEEDS, replace(GPU, mesh=make_mesh(8, 1, 1), rows=4), "4 rows do not divide over 8"),
]


@pytest.mark.parametrize(("name", "needs", "setting", "why"), CANNOT)
def test_a_kernel_that_cannot_serve_is_no_choice_and_says_why(name, needs, setting, why):
    if setting.platform in PLATFORMS[name]:
        choice = choose("auto", needs, setting)
        assert choice.kernel is None
        assert choice.reason.startswith(f"{name} cannot serve: ")
        assert why in choice.reason
    with pytest.raises(UserError, match=f"train.attention: {name} cannot serve this run: .*{why}"):
        choose(name, needs, setting)


def test_what_a_kernel_can_do_it_does():
    """A soft cap and heads of any width in splash, dropout where it is off."""
    assert choose("auto", replace(NEEDS, soft_cap=50.0, width=60), TPU).name == "splash"
    assert choose("auto", NEEDS, replace(GPU, mesh=None)).kernel == Kernel("cudnn")
    for setting in (TPU, GPU):
        assert choose("auto", replace(NEEDS, rate=0.1), replace(setting, dropout=False)).kernel


def test_a_row_that_is_no_whole_block_is_filled_only_where_splash_is_asked_for():
    odd = replace(TPU, length=200)
    choice = choose("auto", NEEDS, odd)
    assert choice.kernel is None
    assert choice.reason == "splash cannot serve: rows of 200 positions are not a multiple of 128"
    asked = choose("splash", NEEDS, odd)
    assert asked == Choice(Kernel("splash", ONE), "train.attention=splash")


def test_a_platform_without_a_kernel_is_the_reason():
    assert choose("auto", NEEDS, CPU) == Choice(None, "there is no kernel for cpu")


# T, K, causal, window; queries and keys at a time forward and back, and whether back is one kernel
BLOCK_SIZES = [
    (8192, 256, True, None, (512, 512, 512, 512), False),
    (8192, 256, True, 4096, (512, 512, 512, 512), False),
    (8192, 64, False, None, (1024, 1024, 1024, 2048), True),
    (8192, 64, False, 65, (256, 256, 256, 256), False),
    (8192, 64, True, 256, (256, 256, 256, 256), False),
    (32768, 128, True, None, (1024, 1024, 1024, 1024), False),
    (1536, 128, True, None, (512, 512, 512, 512), True),
    (2176, 128, True, None, (128, 128, 128, 128), False),
    (128, 64, True, None, (128, 128, 128, 128), True),
]


@pytest.mark.parametrize(("length", "width", "causal", "window", "sizes", "fused"), BLOCK_SIZES)
def test_block_sizes_follow_the_shape(length, width, causal, window, sizes, fused):
    """As large as they divide a row, and no larger than a window; fused where parts are few."""
    chosen = splash_blocks(length, width, causal, window)
    forward = chosen.block_q, chosen.block_kv
    assert (*forward, chosen.block_q_dkv, chosen.block_kv_dkv) == sizes
    assert chosen.use_fused_bwd_kernel == fused
    assert chosen.has_backward_blocks


def test_a_ring_takes_splash_for_its_chunks_where_it_can():
    ring = replace(TPU, mesh=make_mesh(2, 1, 1, context=4), length=1024)
    causal = replace(NEEDS, causal=True)
    cases = [
        ("auto", causal, ring, "splash"),
        ("splash", causal, ring, "splash"),
        ("xla", causal, ring, "xla"),
        ("auto", causal, replace(ring, length=512), "xla"),  # chunks of 64
        ("auto", NEEDS, replace(ring, length=512), "splash"),  # parts of 128
        ("auto", causal, replace(ring, dtype="float32"), "xla"),
        ("auto", causal, replace(ring, platform="gpu"), "xla"),
    ]
    for asked, needs, setting, chunks in cases:
        choice = choose(asked, needs, setting)
        assert choice.kernel == Kernel("ring", ring.mesh, chunks=chunks)
        assert choice.reason == f"mesh.context=4, whose chunks are computed by {chunks}"


RING = replace(TPU, mesh=make_mesh(2, 1, 1, context=4), length=1024)
NO_RING = [
    ("auto", replace(NEEDS, positions=True), RING, "positions are learned scores"),
    ("auto", replace(NEEDS, rate=0.1), RING, "the rate is 0.1"),
    ("auto", replace(NEEDS, causal=True), replace(RING, length=1028), "not a multiple of 8"),
    ("auto", NEEDS, replace(RING, rows=3), "3 rows do not divide over 2"),
    ("cudnn", NEEDS, RING, "train.attention=cudnn takes whole rows"),
    ("splash", NEEDS, replace(RING, length=516), "splash takes chunks of multiples of 128"),
    ("ulysses", replace(NEEDS, groups=6), RING, "divides 6 heads of keys over mesh.context x"),
]


@pytest.mark.parametrize(("asked", "needs", "setting", "why"), NO_RING)
def test_a_ring_that_cannot_be_is_refused(asked, needs, setting, why):
    with pytest.raises(UserError, match=rf"mesh\.context: .* over 4 devices: .*{why}"):
        choose(asked, needs, setting)


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


def mixed_and_slopes(arrays, kernel, soft_cap=None, **seen):
    """What attention gives, and its gradients, under a weight for each element of it."""

    @jax.jit
    def run(*arrays):
        def mixed(*arrays):
            mask = make_mask(segments(), **seen, kernel=kernel)
            options = AttentionOptions(heads=4, rate=0.1, soft_cap=soft_cap)
            out = attention(*arrays, mask, options)
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
    """Rows of 256 positions in two blocks, the backward pass in one kernel or, windowed, in two."""
    assert make_mask(segments(), **seen, kernel=SPLASH).bias is None
    assert_is_xlas(draw(groups), SPLASH, soft_cap=2.0, **seen)


def test_a_window_that_covers_a_row_is_none():
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in draw(2)]

    def program(window):
        mask = make_mask(segments(), causal=True, window=window, kernel=SPLASH)
        return jax.make_jaxpr(lambda *a: attention(*a, mask, AttentionOptions(heads=4)))(*shapes)

    assert str(program(LENGTH)) == str(program(None)) != str(program(LENGTH - 1))


def test_splash_over_a_mesh_is_xlas_attention():
    """Rows over data and fsdp, heads over tensor: each device computes its own."""
    kernel = Kernel("splash", make_mesh(2, 2, 2), interpret=True)
    assert_is_xlas(draw(2), kernel, causal=True)


def test_a_kernels_flops_are_counted_over_its_grid_and_the_mesh():
    """Forward 2 products of T x T; back 5 in one kernel."""
    shapes = [jax.ShapeDtypeStruct((8, 512, 4 * 16), jnp.float32)] * 3
    kernel = Kernel("splash", make_mesh(2, 2, 2), interpret=True)

    def loss(*arrays):
        mask = make_mask(jnp.ones((8, 512), jnp.int32), kernel=kernel)
        return attention(*arrays, mask, AttentionOptions(heads=4)).sum()

    once = 2 * 8 * 4 * 512 * 512 * 16
    sums = once // 512  # of the output times its gradient
    assert count_flops(jax.grad(loss, (0, 1, 2)), *shapes) == 7 * once + sums


@pytest.mark.parametrize(
    ("seen", "asked"),
    [
        ({"causal": True}, (True, None)),
        ({"causal": True, "window": 30}, (True, (29, 0))),
        ({"window": 30}, (False, None)),  # cudnn has windows under a causal mask only
    ],
    ids=["causal", "local", "both sides"],
)
def test_cudnn_is_told_who_sees_whom(seen, asked, monkeypatch):
    """There is no GPU here: jax computes by XLA what it would have asked cudnn for."""
    requests = []

    def through_xla(*arrays, implementation, **options):
        assert implementation == "cudnn"
        requests.append((options["is_causal"], options["local_window_size"]))
        return plain(*arrays, implementation="xla", **options)

    plain = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", through_xla)
    assert_is_xlas(draw(2), Kernel("cudnn"), **seen)
    assert requests == [asked]


def test_a_blocks_window_is_the_masks_and_in_the_bias_where_there_is_one():
    for seen in ({"causal": True}, {}):
        mask = make_mask(segments(), **seen, kernel=Kernel("cudnn")).within(5)
        assert mask.window == 5
        np.testing.assert_array_equal(mask.bias, make_mask(segments(), **seen, window=5).bias)
        splash = make_mask(segments(), **seen, kernel=SPLASH)
        assert vars(splash.within(5)) == vars(splash) | {"window": 5}
        assert splash.within(5).within(9).window == 5
    with pytest.raises(AssertionError):
        make_mask(segments(), causal=True, kernel=SPLASH).within(jnp.int32(5))


# ------------------------------------------------------------------- blocks that see differently
GEMMA = {
    "model_type": "gemma2",
    "vocab_size": 20,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 5,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "sliding_window": 40,
    "max_position_embeddings": 8192,
    "query_pre_attn_scalar": 8,
    "attn_logit_softcapping": 1.0,
    "initializer_range": 0.5,
}
MODERN = {
    "model_type": "modernbert",
    "vocab_size": 20,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 8,
    "num_attention_heads": 2,
    "local_attention": 64,
    "max_position_embeddings": 8192,
    "pad_token_id": 0,
    "initializer_range": 0.5,
}
NEO = {
    "model_type": "gpt_neo",
    "vocab_size": 20,
    "hidden_size": 16,
    "num_layers": 4,
    "num_heads": 2,
    "attention_types": [[["global", "local"], 2]],
    "window_size": 40,
    "max_position_embeddings": 8192,
    "initializer_range": 0.2,
}


def tower_of(fields, **changed) -> Tower:
    """The bare tower of a config."""
    family = families()[fields["model_type"]]
    (tower,) = family.towers(family.config.from_hf(fields | changed), None, None).values()
    return tower


def packed(length: int) -> dict[str, jax.Array]:
    """A row of two texts and padding."""
    own = np.repeat([1, 2, 0], [length // 2, length // 3, length - length // 2 - length // 3])
    ids = np.random.default_rng(0).integers(1, 20, (1, length))
    return {"input_ids": jnp.asarray(ids), "segment_ids": jnp.asarray(own[None], jnp.int32)}


def stream_and_slopes(tower: Tower, compute: Compute, length: int):
    """The stream of a tower at its tokens, and the gradients of a weighted sum of it."""
    batch = packed(length)
    draw = np.random.default_rng(1)
    params = {
        n: jnp.asarray(0.3 * draw.normal(size=leaf.shape), jnp.float32)
        for n, leaf in tower.leaves.items()
    }

    @jax.jit
    def run(params):
        def loss(params):
            out = run_tower(tower, params, batch, None, compute)["last_hidden_state"]
            out = jnp.where(batch["segment_ids"][..., None] > 0, out, 0.0)
            return (out * jnp.cos(jnp.arange(out.size)).reshape(out.shape)).sum(), out

        return jax.grad(loss, has_aux=True)(params)

    return run(params)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "remat"), [(GEMMA, "full"), (MODERN, "none")], ids=["gemma2", "modernbert"]
)
def test_blocks_of_different_windows_are_scanned_with_their_kernels(fields, remat, monkeypatch):
    """Equal to XLA's attention unrolled, outputs and gradients, in a row of two texts."""
    tower = tower_of(fields)
    by_xla = stream_and_slopes(tower, Compute(), 256)
    served = Choice(Kernel("splash", interpret=True), "")
    monkeypatch.setattr("jaxft.models.tower.tower.choose", lambda *_: served)
    by_splash = stream_and_slopes(tower, Compute(scan=True, remat=remat), 256)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), by_xla, by_splash)


def test_blocks_are_cut_where_their_windows_stop_repeating():
    gemma3 = [40, 40, 256] * 3 + [40, 40]
    assert stretches(range(11), gemma3) == [list(range(9)), [9, 10]]
    assert stretches(range(1, 8), gemma3) == [list(range(1, 7)), [7]]
    assert stretches(range(4), [256, 40, 40, 40]) == [[0], [1, 2, 3]]
    assert stretches(range(3), [None] * 3) == [[0, 1, 2]]
    assert stretches(range(1), [None]) == [[0]]


def test_windows_that_cover_a_row_share_a_kernel():
    compute = Compute(dtype="bfloat16", platform="tpu", mesh=ONE)
    tower = tower_of(GEMMA)
    assert kernel_windows(tower, compute, (1, 256)) == (40, 256, 40, 256, 40)
    assert kernel_windows(tower, compute, (1, 128)) == (40, 128, 40, 128, 40)
    wide = tower_of(GEMMA, sliding_window=4096)
    assert kernel_windows(wide, compute, (1, 256)) == (256,) * 5
    assert kernel_windows(tower, compute, (1, 200)) == (None,) * 5  # XLA: windows are data


def shapes_in(program: Jaxpr) -> set[tuple[int, ...]]:
    """The shapes of all arrays of a program, those inside its kernels too."""
    shapes = {one.aval.shape for equation in program.eqns for one in equation.outvars}
    leaves = jax.tree.leaves([equation.params for equation in program.eqns])
    inner = [getattr(one, "jaxpr", one) for one in leaves]
    return shapes.union(*(shapes_in(one) for one in inner if isinstance(one, Jaxpr)))


@pytest.mark.parametrize(
    ("fields", "asked"),
    [(GEMMA, "auto"), (MODERN, "auto"), (NEO, "auto"), (GEMMA, "xla")],
    ids=["gemma2", "modernbert", "gpt_neo", "gemma2 by xla"],
)
def test_no_step_for_a_tpu_has_scores_in_full(fields, asked):
    """Blocks of scores are at most 1,024 x 512; XLA's attention has all 4,096 x 4,096."""
    length = 4096
    tower = tower_of(fields)
    compute = Compute("bfloat16", scan=True, remat="full", platform="tpu", mesh=ONE)
    compute = replace(compute, attention=asked)
    params = {n: jax.ShapeDtypeStruct(a.shape, jnp.float32) for n, a in tower.leaves.items()}

    def loss(params):
        out = run_tower(tower, params, packed(length), None, compute)["last_hidden_state"]
        return out.astype(jnp.float32).sum()

    shapes = shapes_in(jax.make_jaxpr(jax.grad(loss))(params).jaxpr)
    squares = {shape for shape in shapes if sum(n >= length for n in shape) > 1}
    assert bool(squares) == (asked == "xla"), squares


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
    # Two blocks under one scan: forward, and back.
    assert said["kernels"] == (2 if attention == "auto" else 0)
