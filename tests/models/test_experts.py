"""Mixtures of experts: what they cost, on a mesh with an axis for them, frozen, and refused."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
import torch
import transformers
from jax.sharding import NamedSharding
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig

from jaxft.device.mesh import batch_sharding, make_mesh, param_shardings
from jaxft.engine.cost import count_flops
from jaxft.errors import UserError
from jaxft.models import load as registry
from jaxft.models.adapters.low_rank import Adapter
from jaxft.models.layers.partition import partition
from jaxft.models.tower.tower import Compute
from tests.support.families import (
    Pair,
    assert_close_gradients,
    compiled,
    gradients,
    outputs_of,
    random_batch,
    torch_gradients,
)

SMALL = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 40,
    "moe_intermediate_size": 24,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "output_router_logits": True,
    "router_aux_loss_coef": 0.1,
}


def mixture(folder, head="causal_lm", **fields) -> Pair:
    """A small random mixture of Qwen3's kind, ours and PyTorch's."""
    config = AutoConfig.for_model("qwen3_moe", **SMALL | fields)
    torch.manual_seed(0)
    auto = {
        "causal_lm": transformers.AutoModelForCausalLM,
        "text_classification": transformers.AutoModelForSequenceClassification,
    }[head]
    plain = {"attn_implementation": "eager", "experts_implementation": "eager"}
    model = auto.from_config(config, **plain).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value) * 0.1)
    model.save_pretrained(folder)
    batch = random_batch(model, np.random.default_rng(0))
    return Pair(registry.load(str(folder)), model, str(folder), batch)


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Pair:
    return mixture(tmp_path_factory.mktemp("mixture"))


def test_a_token_costs_the_experts_that_it_chooses(tmp_path):
    """Four times the experts are the router's cost more, and nothing else."""
    few, many = (mixture(tmp_path / str(n), num_experts=n) for n in (8, 32))
    rows, length = few.batch["input_ids"].shape
    tokens, width, blocks = rows * length, SMALL["hidden_size"], SMALL["num_hidden_layers"]
    for count, ours in ((8, few.ours), (32, many.ours)):
        chosen = 2 * tokens * SMALL["num_experts_per_tok"] * 3 * width * 24
        router = 2 * tokens * width * count
        none = replace(ours.towers["text"], blocks=())
        rest = count_flops(replace(ours, towers={"text": none}).apply, ours.params, few.batch)
        heads = SMALL["num_attention_heads"] * SMALL["head_dim"]
        maps = 2 * tokens * width * (2 * heads + 2 * heads // 2)
        scores = 2 * 2 * rows * length**2 * heads
        assert count_flops(ours.apply, ours.params, few.batch) == rest + blocks * (
            chosen + router + maps + scores
        )


def test_frozen_experts_cost_no_gradient_of_their_own(pair):
    """Two thirds of the chosen experts' FLOPs are left: forward, and the gradient of the input."""
    names = list(pair.ours.params)
    experts = [name for name in names if "/mlp/experts/" in name]
    assert len(experts) == 3 * SMALL["num_hidden_layers"]

    def cost(trained):
        compute = Compute(trainable=frozenset(trained))
        return count_flops(partial(gradients, pair, compute=compute, names=trained))

    rows, length = pair.batch["input_ids"].shape
    chosen = 2 * rows * length * SMALL["num_experts_per_tok"] * 3 * SMALL["hidden_size"] * 24
    frozen = [name for name in names if name not in experts]
    assert cost(names) - cost(frozen) == SMALL["num_hidden_layers"] * chosen


@pytest.mark.parametrize("part", ["router", "experts"])
def test_a_frozen_part_passes_gradients_on(pair, part):
    names = [name for name in pair.ours.params if f"/mlp/{part}/" not in name]
    compute = Compute(trainable=frozenset(names), scan=True, remat="full")
    ours = gradients(pair, compute=compute, names=names)
    assert_close_gradients(ours, torch_gradients(pair), 1e-4)


def test_dense_blocks_among_mixtures(tmp_path):
    """Each run of blocks of one kind is one scan."""
    pair = mixture(tmp_path, num_hidden_layers=6, mlp_only_layers=[0, 1], decoder_sparse_step=1)
    assert pair.ours.config.mixtures == (False, False, True, True, True, True)
    for ours, theirs in outputs_of(pair):
        np.testing.assert_allclose(ours, theirs, atol=2e-5, rtol=2e-5)
    run = partial(pair.ours.apply, batch=pair.batch, compute=Compute(scan=True))
    scans = [e for e in jax.make_jaxpr(run)(pair.ours.params).eqns if e.primitive.name == "scan"]
    assert [scan.params["length"] for scan in scans] == [2, 4]
    assert_close_gradients(gradients(pair, compute=Compute(scan=True)), torch_gradients(pair), 1e-4)


MESHES = {
    "data x expert": (2, 1, 4, 1),
    "fsdp x expert": (1, 2, 4, 1),
    "expert": (1, 1, 8, 1),
    "all": (1, 2, 2, 2),
    "data x tensor": (4, 1, 1, 2),
    "data x fsdp x expert": (2, 2, 2, 1),
}


def on_mesh(pair: Pair, sizes) -> tuple[registry.Model, Compute]:
    data, fsdp, expert, tensor = sizes
    mesh = make_mesh(data, fsdp, tensor, expert=expert)

    def sharding(name, shape, axes):
        return NamedSharding(mesh, partition(shape, axes, mesh))

    return registry.load(pair.folder, sharding=sharding), Compute(mesh=mesh)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", MESHES.values(), ids=MESHES)
def test_a_mesh_with_experts_computes_what_one_device_does(pair, sizes):
    """Outputs, the load-balancing loss among them, and gradients."""
    many, compute = on_mesh(pair, sizes)
    kernel = many.params["blocks/0/mlp/experts/up/kernel"]
    shard = kernel.addressable_shards[0].data.shape
    assert shard == tuple(
        n // m for n, m in zip(kernel.shape, (sizes[2], *sizes[1::2]), strict=True)
    )
    batch = {name: np.concatenate([value] * 8)[:8] for name, value in pair.batch.items()}
    rows = batch_sharding(compute.mesh)
    placed = {name: jax.device_put(value, rows) for name, value in batch.items()}
    alone = compiled(pair.ours, pair.ours.params, batch)
    together = compiled(many, many.params, placed, compute=compute)
    assert set(together) == {"logits", "aux_loss"}
    for name, value in alone.items():
        np.testing.assert_allclose(together[name], value, atol=1e-5)
    compute = replace(compute, scan=True, remat="full")
    ours = gradients(pair, model=many, batch=placed, compute=compute)
    theirs = jax.tree.map(np.asarray, gradients(pair, batch=batch))
    assert_close_gradients(ours, theirs, 1e-5)


def test_rows_that_do_not_divide_run_on_every_device(pair):
    """As those of one text that is generated: each device runs its experts for all rows."""
    many, compute = on_mesh(pair, (2, 1, 4, 1))
    together = compiled(many, many.params, pair.batch, compute=compute)
    np.testing.assert_allclose(together["logits"], pair.ours(**pair.batch)["logits"], atol=1e-5)


def test_the_cost_on_a_mesh_is_that_of_one_device(pair):
    """Whatever room a device has for the rows of others."""
    batch = {name: np.concatenate([value] * 8)[:8] for name, value in pair.batch.items()}

    def costs(model, compute):
        forward = partial(model.apply, batch=batch, compute=compute)
        step = partial(gradients, pair, model=model, batch=batch, compute=compute)
        return count_flops(forward, model.params), count_flops(step)

    alone = costs(pair.ours, Compute())
    assert costs(*on_mesh(pair, MESHES["expert"])) == alone
    assert costs(*on_mesh(pair, MESHES["all"])) == alone
    assert costs(*on_mesh(pair, MESHES["data x tensor"])) == alone


def test_experts_that_do_not_divide_are_refused(pair):
    shapes = {name: value.shape for name, value in pair.ours.params.items()}
    shapes |= {n: (6, *shape[1:]) for n, shape in shapes.items() if "/experts/" in n}
    with pytest.raises(UserError, match="6 experts do not divide over 4 devices"):
        param_shardings(shapes, pair.ours.axes, make_mesh(2, 1, 1, expert=4))


def test_an_axis_for_experts_needs_experts(pair):
    dense = {n: value.shape for n, value in pair.ours.params.items() if "/experts/" not in n}
    axes = {name: pair.ours.axes[name] for name in dense}
    with pytest.raises(UserError, match="no experts to divide over 4 devices"):
        param_shardings(dense, axes, make_mesh(2, 1, 1, expert=4))


@pytest.mark.parametrize("pattern", [".*/experts/.*", ".*/router/kernel"])
def test_experts_have_no_adapters(pair, pattern):
    with pytest.raises(UserError, match="matches experts or routers, which have no adapters"):
        registry.load(pair.folder, adapter=Adapter(2, 4.0, (pattern,)))


def changed(pair: Pair, folder, change) -> str:
    """The checkpoint with other tensors."""
    tensors = load_file(f"{pair.folder}/model.safetensors")
    change(tensors)
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_bytes((pair.ours.source.folder / "config.json").read_bytes())
    return str(folder)


EXPERT = "model.layers.1.mlp.experts.5.up_proj.weight"


def test_an_expert_that_is_missing_is_named(pair, tmp_path):
    with pytest.raises(UserError, match=f"lacks the tensor '{EXPERT}'"):
        registry.load(changed(pair, tmp_path, lambda tensors: tensors.pop(EXPERT)))


def test_an_expert_of_another_shape_is_named(pair, tmp_path):
    def cut(tensors):
        tensors[EXPERT] = tensors[EXPERT][:3].copy()

    with pytest.raises(UserError, match=rf"'{EXPERT}' is \[3, 32\] F32, and that of expert 0"):
        registry.load(changed(pair, tmp_path, cut))


def test_an_expert_too_many_is_named(pair, tmp_path):
    def add(tensors):
        tensors[EXPERT.replace("experts.5", "experts.8")] = tensors[EXPERT].copy()

    with pytest.raises(UserError, match=r"holds 'model\.layers\.1\.mlp\.experts\.8\.up_proj"):
        registry.load(changed(pair, tmp_path, add))


def test_more_chosen_than_there_are_is_refused(tmp_path):
    mixture(tmp_path)
    config = (tmp_path / "config.json").read_text()
    config = config.replace('"num_experts_per_tok": 2', '"num_experts_per_tok": 9')
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(UserError, match="num_experts_per_tok 9 is more than the 8 experts"):
        registry.load(str(tmp_path))
