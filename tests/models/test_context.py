"""Models whose rows lie on several devices compute what one device does, and exchange as stated."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from jax.sharding import NamedSharding

from jaxft.device.collectives import collectives
from jaxft.device.mesh import batch_sharding, make_mesh
from jaxft.engine.cost import count_flops
from jaxft.errors import UserError
from jaxft.models import load as registry
from jaxft.models.layers.kernels import Needs
from jaxft.models.layers.partition import partition
from jaxft.models.tower.cache import prefill
from jaxft.models.tower.dealt import check_context
from jaxft.models.tower.observe import observe
from jaxft.models.tower.run import run_streams
from jaxft.models.tower.tower import Compute
from tests.support.families import assert_close_gradients

ROWS, LENGTH, STEPS = 4, 48, 3
SMALL = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
GPT2 = {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
BERT = {n: value for n, value in SMALL.items() if n not in ("head_dim", "num_key_value_heads")}
MIXTURE = {
    "moe_intermediate_size": 24,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "output_router_logits": True,
    "router_aux_loss_coef": 0.1,
}
MODELS = {
    "llama": SMALL,
    "mistral": SMALL | {"sliding_window": 9},
    "gemma2": SMALL
    | {"sliding_window": 9, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 2.0},
    "qwen3_moe": SMALL | MIXTURE,
    "gpt2": GPT2 | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "bert": BERT | {"attention_probs_dropout_prob": 0.0},
    "modernbert": BERT | {"local_attention": 12, "cls_token_id": 1, "sep_token_id": 2},
}
HEADS = {"bert": "masked_lm", "modernbert": "masked_lm"}


def make(folder, model_type) -> str:
    """A checkpoint of random weights."""
    config = transformers.AutoConfig.for_model(model_type, **MODELS[model_type])
    torch.manual_seed(0)
    auto = transformers.AutoModelForMaskedLM
    if model_type not in HEADS:
        auto = transformers.AutoModelForCausalLM
    model = auto.from_config(config)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value) * 0.1)
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folders = {}

    def of(model_type):
        if model_type not in folders:
            folders[model_type] = make(tmp_path_factory.mktemp(model_type), model_type)
        return folders[model_type]

    return of


def packed() -> dict[str, np.ndarray]:
    """Rows of several texts and padding, and rows of one."""
    draw = np.random.default_rng(0)
    lengths = [[17, 3, 22], [LENGTH], [30, 18], [5, 40]]
    arrays = {
        n: np.zeros((ROWS, LENGTH), np.int32) for n in ("segment_ids", "position_ids", "scored")
    }
    for row, own in enumerate(lengths):
        starts = np.cumsum([0, *own])
        for number, (start, length) in enumerate(zip(starts, own, strict=False)):
            here = (row, slice(start, start + length))
            arrays["segment_ids"][here] = number + 1
            arrays["position_ids"][here] = np.arange(length)
            arrays["scored"][row, start : start + length - 1] = 1
    ids = draw.integers(3, 61, (ROWS, LENGTH)).astype(np.int32) * (arrays["segment_ids"] > 0)
    following = np.roll(ids, -1, axis=1)
    targets = np.where(arrays.pop("scored"), following, -1).astype(np.int32)
    return arrays | {"input_ids": ids, "targets": targets}


def on_mesh(checkpoint, sizes, attention="auto", **options) -> tuple[registry.Model, Compute]:
    axes = {"data": 1, "fsdp": 1, "tensor": 1} | sizes
    devices = jax.devices()[: int(np.prod(list(axes.values())))]
    mesh = make_mesh(devices=devices, **axes)

    def sharding(name, shape, axes):
        return NamedSharding(mesh, partition(shape, axes, mesh))

    compute = Compute(mesh=mesh, attention=attention)
    return registry.load(checkpoint, sharding=sharding, **options), compute


def run_steps(model, compute):
    """The losses of some steps of gradient descent, and the gradients of the first."""
    batch = packed()
    placed = {n: jax.device_put(v, batch_sharding(compute.mesh)) for n, v in batch.items()}
    names = list(model.params)
    compute = replace(compute, trainable=frozenset(names), scan=True, remat="full")
    frozen = {n: v for n, v in model.params.items() if n not in names}

    def loss(params, batch):
        outputs = model.apply({**frozen, **params}, batch, None, compute)
        if "losses" not in outputs:
            scores = outputs["logits"]
            weights = jnp.cos(jnp.arange(scores[0].size)).reshape(scores.shape[1:])
            return (scores * weights * (batch["segment_ids"] > 0)[..., None]).mean()
        total = outputs["losses"].sum() / (batch["targets"] >= 0).sum()
        return total + 0.1 * outputs.get("aux_loss", 0.0)

    step = jax.jit(jax.value_and_grad(loss))
    params, losses, first = {n: model.params[n] for n in names}, [], None
    for _ in range(STEPS):
        value, gradients = step(params, placed)
        first = first or jax.tree.map(np.asarray, gradients)
        losses.append(float(value))
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients)
    return losses, first


def assert_is_one_devices(checkpoint, sizes, task="causal_lm", attention="auto"):
    wanted, slopes = run_steps(*on_mesh(checkpoint, {}, task=task))
    losses, gradients = run_steps(*on_mesh(checkpoint, sizes, attention, task=task))
    assert len(set(wanted)) == STEPS  # it learns
    np.testing.assert_allclose(losses, wanted, rtol=1e-5, atol=1e-5)
    assert_close_gradients(gradients, slopes, 1e-5)


MESHES = {
    "8": {"context": 8},
    "2x4": {"data": 2, "context": 4},
    "2x2x2": {"fsdp": 2, "context": 2, "tensor": 2},
    "experts": {"fsdp": 2, "expert": 2, "context": 2},
}
QUICK = {("gemma2", "2x2x2"), ("bert", "2x4")}
ALL = [
    pytest.param(name, mesh, marks=() if (name, mesh) in QUICK else pytest.mark.full)
    for name in MODELS
    for mesh in MESHES
    if (name == "qwen3_moe") or mesh != "experts"
]


@pytest.mark.slow
@pytest.mark.parametrize(("model_type", "mesh"), ALL)
def test_losses_and_gradients_are_those_of_one_device(model_type, mesh, checkpoints):
    """Packed rows; windows, soft caps and experts where the model has them."""
    head = HEADS.get(model_type, "causal_lm")
    assert_is_one_devices(checkpoints(model_type), MESHES[mesh], head)


EXCHANGES = {
    "gemma2": {"data": 4, "context": 2},
    "gpt2": {"fsdp": 2, "context": 4},
    "qwen3_moe": {"fsdp": 2, "expert": 2, "context": 2},
    "bert": {"data": 2, "context": 2, "tensor": 2},
    "modernbert": {"data": 2, "context": 4},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "model_type",
    [pytest.param(n, marks=() if n == "gemma2" else pytest.mark.full) for n in EXCHANGES],
)
def test_so_they_are_where_devices_exchange_heads(model_type, checkpoints):
    head, mesh = HEADS.get(model_type, "causal_lm"), EXCHANGES[model_type]
    assert_is_one_devices(checkpoints(model_type), mesh, head, attention="ulysses")


def shapes_of(model, compute, length):
    """The loss of long rows as a function of shapes, with them and their shardings."""
    rows = batch_sharding(compute.mesh)
    names = ("input_ids", "segment_ids", "position_ids", "targets")
    batch = {n: jax.ShapeDtypeStruct((ROWS, length), jnp.int32, sharding=rows) for n in names}
    params = {
        n: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=v.sharding)
        for n, v in model.params.items()
    }
    compute = replace(compute, scan=True, remat="full")
    return lambda p, b: model.apply(p, b, None, compute)["losses"].sum(), params, batch


LONG = 80  # no width of the model, so that shapes tell positions from the rest


def test_keys_are_passed_on_and_nothing_of_a_row_is_gathered(checkpoints):
    """Over `context` weights are gathered alone, and what a key gets is a sum that travels."""
    model, compute = on_mesh(checkpoints("llama"), MESHES["2x4"], task="causal_lm")
    loss, params, batch = shapes_of(model, compute, LONG)
    text = jax.jit(jax.grad(loss)).lower(params, batch).compile().as_text()
    gathers = re.findall(r"= \w+\[([\d,]+)\]\S* all-gather(?:-start)?\(", text)
    assert gathers
    assert not [shape for shape in gathers if str(LONG) in shape.split(",")]
    assert " all-to-all(" not in text
    sent = {(one.kind, one.axes): one for one in collectives(text, compute.mesh.shape)}
    blocks, turns, groups = SMALL["num_hidden_layers"], 4, SMALL["num_key_value_heads"]
    keys = ROWS // 2 * groups * LONG // 4 * SMALL["head_dim"] * 4  # bytes of a device's
    owners = ROWS // 2 * LONG // 4 * 4
    # Forward, once more in the backward pass, and there also with gradients, which come home.
    each = 3 * turns * (2 * keys + owners) + turns * 2 * keys
    permuted = sent["collective-permute", "context"].sent
    # XLA moves what both of the latter begin with once, and the segments once for all blocks.
    assert blocks * (each - 2 * keys - 3 * owners) <= permuted <= blocks * each


def test_heads_are_exchanged_and_no_key_is_gathered(checkpoints):
    """Four all-to-alls forward, once more in the backward pass, and there four of gradients."""
    model, compute = on_mesh(
        checkpoints("llama"), {"data": 4, "context": 2}, "ulysses", task="causal_lm"
    )
    loss, params, batch = shapes_of(model, compute, LONG)
    text = jax.jit(jax.grad(loss)).lower(params, batch).compile().as_text()
    sent = {(one.kind, one.axes): one for one in collectives(text, compute.mesh.shape)}
    gathers = re.findall(r"= (\w+\[[\d,]+\])\S* all-gather(?:-start)?\(", text)
    wide = [one for one in gathers if str(LONG) in re.findall(r"\d+", one)]
    assert {one.partition("[")[0] for one in wide} <= {"s32"}  # segments, and no key or value
    heads, groups = SMALL["num_attention_heads"], SMALL["num_key_value_heads"]
    own = ROWS // 4 * LONG // 2 * SMALL["head_dim"] * 4  # bytes of a head of a device's positions
    each = 2 * (heads + groups) * own // 2  # a half stays
    assert sent["all-to-all", "context"].sent == SMALL["num_hidden_layers"] * 3 * each
    assert ("collective-permute", "context") not in sent


def test_half_of_the_scores_are_computed(checkpoints):
    """Of 2 N chunks each device sees 2 N + 1 pairs, as many as every other; forward 2 products."""
    one, alone = on_mesh(checkpoints("llama"), {}, task="causal_lm")
    many, compute = on_mesh(checkpoints("llama"), MESHES["2x4"], task="causal_lm")
    costs = [count_flops(*shapes_of(*own, LONG)) for own in ((one, alone), (many, compute))]
    scores = 2 * 2 * ROWS * SMALL["num_attention_heads"] * SMALL["head_dim"] * LONG**2
    devices = MESHES["2x4"]["context"]
    pairs = devices * (2 * devices + 1)
    spared = scores - scores * pairs // (2 * devices) ** 2
    assert costs[0] - costs[1] == SMALL["num_hidden_layers"] * spared


def test_streams_of_each_depth_are_in_the_order_of_the_row(checkpoints):
    one, alone = on_mesh(checkpoints("llama"), {}, task="causal_lm")
    many, compute = on_mesh(checkpoints("llama"), MESHES["2x4"], task="causal_lm")
    batch = packed()

    def streams(model, compute):
        (tower,) = model.towers.values()
        return jax.jit(lambda params: run_streams(tower, params, batch, compute))(model.params)

    pairs = zip(streams(many, compute), streams(one, alone), strict=True)
    for ours, wanted in pairs:
        np.testing.assert_allclose(ours, wanted, atol=1e-5)


def test_what_is_observed_of_blocks_and_written_reads_whole_rows(checkpoints):
    one, alone = on_mesh(checkpoints("llama"), {}, task="causal_lm")
    many, compute = on_mesh(checkpoints("llama"), MESHES["2x4"], task="causal_lm")
    batch, ids = packed(), np.arange(3, 21).reshape(2, 9)

    def results(model, compute):
        (tower,) = model.towers.values()

        def both(params):
            after = observe(tower, params, batch, compute)[-1].after
            scores, _ = prefill(tower, params, ids, np.ones_like(ids), 1, compute)
            return after, scores

        return jax.jit(both)(model.params)

    for ours, wanted in zip(results(many, compute), results(one, alone), strict=True):
        np.testing.assert_allclose(ours, wanted, atol=1e-5)


def test_rows_that_do_not_divide_are_refused(checkpoints):
    model, compute = on_mesh(checkpoints("llama"), MESHES["2x4"], task="causal_lm")
    ids = np.ones((ROWS, 20), np.int32)
    with pytest.raises(UserError, match=r"mesh\.context: .* 20 positions are not a multiple of 8"):
        model.apply(model.params, {"input_ids": ids}, None, compute)


NEEDS = Needs(heads=4, groups=4, width=8)
CANNOT = {
    "source": ({"reads": True, "needs": NEEDS}, "a decoder that reads a source"),
    "images": ({"reads": None, "needs": None}, "images and pairs of towers"),
    "T5": ({"reads": None, "needs": replace(NEEDS, positions=True)}, "learned scores of positions"),
}


@pytest.mark.parametrize(("fields", "why"), CANNOT.values(), ids=CANNOT)
def test_models_that_cannot_are_refused(fields, why):
    mesh = make_mesh(1, 1, 1, context=8)
    tower = type("Tower", (), fields)()
    with pytest.raises(UserError, match=rf"mesh\.context: .* over 8 devices: .*{why}"):
        check_context({"text": tower}, mesh)
    check_context({"text": tower}, make_mesh(8, 1, 1))
