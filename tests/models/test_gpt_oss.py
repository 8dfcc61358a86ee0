"""gpt-oss: weights in MXFP4, sinks in attention, and clamped experts on a mesh."""

import json

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from jaxft.device.mesh import batch_sharding
from jaxft.errors import UserError
from jaxft.models import load as registry
from jaxft.models.tower.tower import Compute
from tests.models.test_experts import on_mesh
from tests.support.families import Pair, assert_close_gradients, compiled, gradients, random_batch

# As the hub's openai/gpt-oss-20b spells it, with other sizes.
FIELDS = {
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "eos_token_id": 2,
    "experts_per_token": 2,
    "head_dim": 8,
    "hidden_act": "silu",
    "hidden_size": 64,
    "initial_context_length": 32,
    "initializer_range": 0.02,
    "intermediate_size": 32,
    "layer_types": ["sliding_attention", "full_attention"],
    "max_position_embeddings": 128,
    "model_type": "gpt_oss",
    "num_attention_heads": 4,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "output_router_logits": False,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 4.0,
        "original_max_position_embeddings": 32,
        "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": 150000,
    "router_aux_loss_coef": 0.9,
    "sliding_window": 8,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": 61,
}
PACKED = FIELDS | {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": []}}
PLAIN = {"attn_implementation": "eager", "experts_implementation": "eager"}


def write(folder, fields, tensors) -> str:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(fields))
    return str(folder)


@pytest.mark.parametrize("none", [{}, {"rope_scaling": None}, {"rope_parameters": None}])
def test_a_config_that_names_no_scaling_means_yarn(none, tmp_path):
    fields = {n: value for n, value in FIELDS.items() if not n.startswith("rope_")}
    fields |= none | {"rope_theta": 500.0}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    theirs = AutoConfig.from_pretrained(tmp_path).rope_parameters
    described = registry.describe(tmp_path, registry.LoadOptions(), weights=False)
    (ours,) = described.config.rotaries
    numbers = dict(ours.numbers) | {"rope_theta": ours.theta}
    assert {name: numbers[name] for name in theirs} == theirs


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Pair:
    folder = tmp_path_factory.mktemp("plain")
    torch.manual_seed(0)
    config = AutoConfig.for_model(**FIELDS)
    model = transformers.AutoModelForCausalLM.from_config(config, **PLAIN).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(torch.randn_like(value) * 0.2)
    model.save_pretrained(folder)
    batch = random_batch(model, np.random.default_rng(0))
    return Pair(registry.load(str(folder)), model, str(folder), batch)


def packed_of(tensors):
    """Random blocks and scales in the place of the experts' kernels, and transformers' numbers."""
    draw, packed, numbers = np.random.default_rng(0), {}, {}
    for name, value in tensors.items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            packed[name] = value
            continue
        experts, inside, outside = value.shape
        shape = (experts, outside, inside // 32)
        blocks = draw.integers(0, 256, (*shape, 16)).astype(np.uint8)
        scales = draw.integers(121, 126, shape).astype(np.uint8)
        packed |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        numbers[name] = convert_moe_packed_tensors(torch.tensor(blocks), torch.tensor(scales))
    return packed, numbers


@pytest.fixture(scope="module")
def packed(pair, tmp_path_factory):
    tensors, numbers = packed_of(load_file(f"{pair.folder}/model.safetensors"))
    return write(tmp_path_factory.mktemp("packed") / "m", PACKED, tensors), numbers


def test_packed_experts_are_the_numbers_of_transformers(packed, tmp_path):
    """Also in parts, as devices read them, and exported in bfloat16 without the packing."""
    folder, numbers = packed
    model = registry.load(folder)
    for name, hf in model.names.items():
        if hf in numbers:
            expected = numbers[hf].float().numpy()
            np.testing.assert_array_equal(model.params[name], expected)
            part = (slice(1, 3), slice(5, 41), slice(3, 9))
            some = model.matching.loaded[name].read(part)
            np.testing.assert_array_equal(some.astype(np.float32), expected[part])
    exported = model.save(tmp_path / "export")
    assert "quantization_config" not in json.loads((exported / "config.json").read_text())
    theirs = transformers.AutoModelForCausalLM.from_pretrained(exported, **PLAIN).eval()
    state = theirs.state_dict()
    for hf, value in numbers.items():
        assert torch.equal(state[hf].to(torch.bfloat16), value)
    with torch.no_grad():
        ids = np.arange(1, 15)[None]
        expected = theirs.float()(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(model(input_ids=ids)["logits"], expected, atol=2e-5, rtol=2e-5)


def test_blocks_without_scales_are_refused(packed, tmp_path):
    tensors = load_file(f"{packed[0]}/model.safetensors")
    name = "model.layers.0.mlp.experts.down_proj_scales"
    del tensors[name]
    with pytest.raises(UserError, match=f"lacks the tensor '{name}'"):
        registry.load(write(tmp_path, PACKED, tensors))


def test_scales_of_another_shape_are_refused(packed, tmp_path):
    tensors = load_file(f"{packed[0]}/model.safetensors")
    name = "model.layers.0.mlp.experts.down_proj_scales"
    tensors[name] = tensors[name][:, 1:].copy()
    with pytest.raises(UserError, match="are no MXFP4"):
        registry.load(write(tmp_path, PACKED, tensors))


def test_another_packing_is_refused(pair, tmp_path):
    fields = FIELDS | {"quantization_config": {"quant_method": "gptq"}}
    with pytest.raises(UserError, match=r"gptq.*only mxfp4 is read"):
        registry.load(write(tmp_path, fields, load_file(f"{pair.folder}/model.safetensors")))


@pytest.mark.parametrize("sizes", [(2, 1, 4, 1), (1, 2, 2, 2)], ids=["data x expert", "all"])
def test_clamped_experts_on_a_mesh_compute_what_one_device_does(pair, sizes):
    many, compute = on_mesh(pair, sizes)
    batch = {name: np.concatenate([value] * 8)[:8] for name, value in pair.batch.items()}
    rows = batch_sharding(compute.mesh)
    placed = {name: jax.device_put(value, rows) for name, value in batch.items()}
    alone = compiled(pair.ours, pair.ours.params, batch)["logits"]
    together = compiled(many, many.params, placed, compute=compute)["logits"]
    np.testing.assert_allclose(together, alone, atol=1e-5)
    ours = gradients(pair, model=many, batch=placed, compute=compute)
    theirs = jax.tree.map(np.asarray, gradients(pair, batch=batch, compute=Compute()))
    assert_close_gradients(ours, theirs, 1e-5)
