"""Every family against PyTorch `transformers` on small random weights, found by itself."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors.numpy import load_file

from jaxft.engine.cost import count_flops
from jaxft.models import registry
from jaxft.models.transformer import Compute, Part

AUTO = {
    None: transformers.AutoModel,
    "text_classification": transformers.AutoModelForSequenceClassification,
    "masked_lm": transformers.AutoModelForMaskedLM,
    "causal_lm": transformers.AutoModelForCausalLM,
}


def random_bert(draw: np.random.Generator) -> transformers.PretrainedConfig:
    heads = int(draw.integers(1, 5))
    return transformers.BertConfig(
        vocab_size=int(draw.integers(40, 90)),
        hidden_size=heads * 2 * int(draw.integers(2, 7)),
        num_hidden_layers=int(draw.integers(2, 5)),
        num_attention_heads=heads,
        intermediate_size=int(draw.integers(9, 50)),
        hidden_act=str(draw.choice(["gelu", "gelu_new", "relu", "silu", "gelu_pytorch_tanh"])),
        layer_norm_eps=float(draw.choice([1e-12, 1e-6, 1e-3])),
        max_position_embeddings=int(draw.integers(24, 40)),
        type_vocab_size=int(draw.integers(2, 4)),
        num_labels=int(draw.integers(2, 6)),
    )


def random_gpt2(draw: np.random.Generator) -> transformers.PretrainedConfig:
    heads = int(draw.integers(1, 5))
    return transformers.GPT2Config(
        vocab_size=int(draw.integers(40, 90)),
        n_embd=heads * 2 * int(draw.integers(2, 7)),
        n_layer=int(draw.integers(2, 5)),
        n_head=heads,
        n_inner=[None, int(draw.integers(9, 50))][draw.integers(2)],
        activation_function=str(draw.choice(["gelu_new", "gelu", "relu", "silu"])),
        layer_norm_epsilon=float(draw.choice([1e-5, 1e-6, 1e-3])),
        n_positions=int(draw.integers(24, 40)),
        scale_attn_weights=bool(draw.integers(4)),
        scale_attn_by_inverse_layer_idx=bool(draw.integers(2)),
        tie_word_embeddings=bool(draw.integers(4)),
        num_labels=int(draw.integers(2, 6)),
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


def random_rope(draw: np.random.Generator, positions: int) -> dict:
    """A rotary embedding: any kind, its base and numbers."""
    kind = str(draw.choice(["default", "linear", "dynamic", "llama3", "yarn"]))
    rope = {"rope_type": kind, "rope_theta": float(draw.choice([100.0, 1e4, 5e5]))}
    if kind != "default":
        rope["factor"] = float(draw.choice([2.0, 4.0, 8.0]))
    if kind in ("llama3", "yarn"):
        rope["original_max_position_embeddings"] = positions // 2
    if kind == "llama3":
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": float(draw.choice([2.0, 4.0]))}
    if kind == "yarn":
        rope |= [
            {},
            {"beta_fast": 4.0, "beta_slow": 0.5, "truncate": False},
            {"attention_factor": 1.3},
            {"mscale": 1.0, "mscale_all_dim": 0.7},
        ][draw.integers(4)]
    return rope


def random_llama(
    make: type[transformers.PretrainedConfig], draw: np.random.Generator, **own
) -> transformers.PretrainedConfig:
    """What Llama and its kin share; `own` is what one of them has beside it."""
    groups, queries = int(draw.integers(1, 4)), int(draw.integers(1, 4))
    heads, positions = groups * queries, int(draw.integers(24, 40))
    return make(
        vocab_size=int(draw.integers(40, 90)),
        hidden_size=heads * 2 * int(draw.integers(2, 6)),
        num_attention_heads=heads,
        num_key_value_heads=groups,
        intermediate_size=int(draw.integers(9, 50)),
        hidden_act=str(draw.choice(["silu", "gelu", "gelu_pytorch_tanh", "relu"])),
        rms_norm_eps=float(draw.choice([1e-6, 1e-5, 1e-3])),
        max_position_embeddings=positions,
        rope_parameters=random_rope(draw, positions),
        tie_word_embeddings=bool(draw.integers(2)),
        attention_dropout=0.1,
        num_labels=int(draw.integers(2, 6)),
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **{"num_hidden_layers": int(draw.integers(2, 5))} | own,
    )


def random_windows(draw: np.random.Generator, kinds=("full", "sliding")) -> dict:
    """Sliding windows on no block, on all from one on, or on any."""
    count = int(draw.integers(2, 5))
    windows = {
        "num_hidden_layers": count,
        "use_sliding_window": bool(draw.integers(3)),
        "sliding_window": int(draw.integers(2, 9)),
        "max_window_layers": int(draw.integers(0, count + 1)),
    }
    if windows["use_sliding_window"] and draw.integers(2):
        windows["layer_types"] = [f"{draw.choice(kinds)}_attention" for _ in range(count)]
    return windows


def head_dim(draw: np.random.Generator) -> dict:
    """A width of heads that is not the model's width over heads."""
    return {"head_dim": 2 * int(draw.integers(2, 7))}


def flag(draw: np.random.Generator, *names: str) -> dict:
    return {name: bool(draw.integers(2)) for name in names}


# One line a model type: `make_config(generator) -> transformers config`, small.
RANDOM = {
    "bert": random_bert,
    "gpt2": random_gpt2,
    "llama": lambda draw: random_llama(
        transformers.LlamaConfig, draw, **head_dim(draw), **flag(draw, "attention_bias", "mlp_bias")
    ),
    "mistral": lambda draw: random_llama(
        transformers.MistralConfig,
        draw,
        sliding_window=[None, 2, 5][draw.integers(3)],
        **head_dim(draw),
    ),
    "qwen2": lambda draw: random_llama(transformers.Qwen2Config, draw, **random_windows(draw)),
    "qwen3": lambda draw: random_llama(
        transformers.Qwen3Config,
        draw,
        **random_windows(draw),
        **head_dim(draw),
        **flag(draw, "attention_bias"),
    ),
    "smollm3": lambda draw: random_llama(
        transformers.SmolLM3Config,
        draw,
        **random_windows(draw),
        **flag(draw, "attention_bias", "mlp_bias"),
        no_rope_layer_interval=int(draw.integers(2, 4)),
    ),
}
FAMILIES = registry.families()
HEADS = [(name, head) for name, family in FAMILIES.items() for head in family.MODEL_TYPES[name]]
SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.full) for seed in range(1, 10))]


def test_every_model_type_is_tested():
    assert set(FAMILIES) == set(RANDOM)


@dataclass
class Pair:
    """The same random checkpoint twice, and a padded batch with its tokens marked."""

    ours: registry.Model
    torch: torch.nn.Module
    folder: str
    batch: dict[str, np.ndarray]

    @property
    def mask(self) -> np.ndarray:
        return self.batch["attention_mask"]

    def torch_batch(self) -> dict[str, torch.Tensor]:
        return {name: torch.tensor(value) for name, value in self.batch.items()}


def make_pair(family: str, head: str | None, seed: int, folder) -> Pair:
    draw = np.random.default_rng(seed)
    config = RANDOM[family](draw)
    torch.manual_seed(seed)
    model = AUTO[head].from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():  # fresh norms and biases are ones and zeros: nothing would be tested
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    rows, length = 3, int(draw.integers(12, 24))
    mask = (np.arange(length) < np.array([length, length // 2, 3])[:, None]).astype(np.int64)
    batch = {
        # Word 0 is the padding word: PyTorch gives it no gradient, and takes no class from it.
        "input_ids": draw.integers(1, config.vocab_size, (rows, length)) * mask,
        "attention_mask": mask,
    }
    if hasattr(config, "type_vocab_size"):
        batch["token_type_ids"] = draw.integers(0, config.type_vocab_size, (rows, length))
    return Pair(registry.load(str(folder)), model, str(folder), batch)


@pytest.fixture(scope="module", params=SEEDS)
def seed(request) -> int:
    return request.param


@pytest.fixture(scope="module", params=HEADS, ids=lambda pair: "-".join(map(str, pair)))
def pair(request, seed, tmp_path_factory) -> Pair:
    """A pair for each head of each model type."""
    return make_pair(*request.param, seed, tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module", params=FAMILIES)
def classifier(request, tmp_path_factory) -> Pair:
    """A pair that ends in a sequence classifier, one for each model type."""
    folder = tmp_path_factory.mktemp("source")
    return make_pair(request.param, "text_classification", 0, folder)


def outputs_of(pair: Pair) -> list[tuple[np.ndarray, np.ndarray]]:
    """Our outputs and PyTorch's, by pairs; positions that are padding are zero in both."""
    ours = pair.ours(**pair.batch)
    with torch.no_grad():
        theirs = pair.torch(**pair.torch_batch())
    found = []
    for name, value in ours.items():
        ours_, theirs_ = np.asarray(value), theirs[name].numpy()
        assert ours_.shape == theirs_.shape
        keep = pair.mask[..., None] if ours_.ndim == 3 else 1
        found.append((ours_ * keep, theirs_ * keep))
    return found


def test_outputs_are_pytorchs(pair):
    for ours, theirs in outputs_of(pair):
        np.testing.assert_allclose(ours, theirs, atol=2e-5, rtol=2e-5)


class Stop(nnx.Module):
    """A top that gives back the stream."""

    def __call__(self, stream, batch, key):
        return {"stream": stream}


def test_hidden_states_are_pytorchs_after_every_part(classifier):
    (tower,) = classifier.ours.towers.values()
    (blocks,) = [m for m in classifier.torch.modules() if isinstance(m, torch.nn.ModuleList)]
    assert len(blocks) == len(tower.blocks)
    streams = []
    hooks = [blocks[0].register_forward_pre_hook(lambda _, given: streams.append(given[0]))]
    hooks += [b.register_forward_hook(lambda _, given, out: streams.append(out)) for b in blocks]
    with torch.no_grad():
        classifier.torch(**classifier.torch_batch())
    for hook in hooks:
        hook.remove()
    for count, expected in enumerate(streams):
        part = replace(tower, blocks=tower.blocks[:count], top=Part(Stop()))
        model = replace(classifier.ours, towers={"text": part})
        stream = np.asarray(model(**classifier.batch)["stream"])
        keep = classifier.mask[..., None]
        np.testing.assert_allclose(stream * keep, expected.numpy() * keep, atol=2e-5)


def weighted_loss(outputs, mask):
    """A scalar that every output enters with a weight of its own; padding enters with none."""
    total = 0.0
    for name in sorted(outputs):
        value = outputs[name]
        if name == "loss" or not hasattr(value, "shape"):  # the cache of keys and values
            continue
        size = int(np.prod(value.shape))
        weight = np.cos(np.arange(size, dtype=np.float32)).reshape(value.shape)
        if len(value.shape) == 3:
            weight = weight * mask[..., None].astype(np.float32)
        weight = torch.tensor(weight) if isinstance(value, torch.Tensor) else weight
        total = total + (value * weight).sum()
    return total


def torch_gradients(pair: Pair) -> dict[str, np.ndarray]:
    """PyTorch's gradients under our names and layouts."""
    pair.torch.zero_grad()
    weighted_loss(pair.torch(**pair.torch_batch()), pair.mask).backward()
    theirs = {n: p.grad.numpy() for n, p in pair.torch.named_parameters() if p.grad is not None}
    found = {}
    for ours, hf in pair.ours.names.items():
        name, value = pair.ours.hf_names[ours], theirs[hf]
        if name.part is not None:
            value = np.split(value, name.part[1], axis=-1)[name.part[0]]
        found[ours] = value.T if name.transpose else value
    return found


def assert_close_gradients(ours, theirs, tolerance):
    """Leaf by leaf, relative to the leaf's own norm.

    Without positions the bias of a key moves all scores of a query alike, so its gradient is zero
    in theory: what is there is rounding, and is only asked to be as small as that.
    """
    whole = np.sqrt(sum(np.square(value).sum() for value in theirs.values()))
    for name, value in ours.items():
        if name.endswith("key/bias") and np.linalg.norm(theirs[name]) <= 1e-6 * whole:
            assert np.linalg.norm(value) <= 1e-6 * whole, name
            continue
        distance = np.linalg.norm(np.asarray(value) - theirs[name])
        assert distance <= tolerance * np.linalg.norm(theirs[name]), name


def gradients(model, batch, mask, *, key=None, compute=None, names=None, read=lambda out: out):
    """Our gradients with respect to the leaves in `names` (all of them)."""
    names = names or list(model.params)
    frozen = {n: v for n, v in model.params.items() if n not in names}
    compute = compute or Compute()

    def loss(trained):
        return weighted_loss(read(model.apply({**frozen, **trained}, batch, key, compute)), mask)

    return jax.jit(jax.grad(loss))({name: model.params[name] for name in names})


def test_gradients_are_pytorchs(pair):
    ours = gradients(pair.ours, pair.batch, pair.mask)
    assert_close_gradients(ours, torch_gradients(pair), 1e-4)


def test_first_block_alone_has_pytorchs_gradient(classifier):
    model = classifier.ours
    names = [name for name in model.params if name.startswith("blocks/0/")]
    compute = Compute(trainable=frozenset(names))
    theirs = torch_gradients(classifier)
    for scan, remat in ((False, "none"), (True, "full")):
        ours = gradients(
            model,
            classifier.batch,
            classifier.mask,
            compute=replace(compute, scan=scan, remat=remat),
            names=names,
        )
        assert set(ours) == set(names)
        assert_close_gradients(ours, theirs, 1e-4)


def test_every_name_is_accounted_for_both_ways(pair):
    stored = load_file(f"{pair.folder}/model.safetensors")
    assert set(pair.ours.names) == set(pair.ours.params)
    assert set(pair.ours.names.values()) == set(stored)
    assert sum(value.size for value in pair.ours.params.values()) == sum(
        value.size for value in stored.values()
    )
    assert pair.ours.report.loaded == tuple(pair.ours.params)
    assert pair.ours.report.new == pair.ours.report.unused == ()


def test_export_is_the_checkpoint_bit_for_bit(pair, tmp_path):
    pair.ours.save(tmp_path / "export")
    before = load_file(f"{pair.folder}/model.safetensors")
    after = load_file(tmp_path / "export" / "model.safetensors")
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert value.dtype == after[name].dtype
        assert value.tobytes() == after[name].tobytes(), name


def test_export_of_changed_weights_loads_in_transformers(pair, tmp_path):
    changed = {name: value * 0.9 for name, value in pair.ours.params.items()}
    model = pair.ours.with_params(changed)
    folder = model.save(tmp_path / "export")
    loaded = AUTO[model.head].from_pretrained(folder, attn_implementation="eager").eval()
    assert type(loaded) is type(pair.torch)
    again = Pair(model, loaded, str(folder), pair.batch)
    for ours, theirs in outputs_of(again):
        np.testing.assert_allclose(ours, theirs, atol=2e-5, rtol=2e-5)


def pack(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The padded examples of `batch` one after another in one row, four positions left over."""
    lengths = batch["attention_mask"].sum(1)
    total = int(lengths.sum()) + 4
    packed = {
        name: np.zeros((1, total), np.int32)
        for name in ("input_ids", "token_type_ids", "position_ids", "segment_ids")
    }
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    for number, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        here = (0, slice(start, start + length))
        packed["input_ids"][here] = batch["input_ids"][number, :length]
        if "token_type_ids" in batch:
            packed["token_type_ids"][here] = batch["token_type_ids"][number, :length]
        packed["position_ids"][here] = np.arange(length)
        packed["segment_ids"][here] = number + 1
    return packed | {"read_positions": starts[None].astype(np.int32)}


def test_packed_equals_unpacked(classifier):
    model, mask = classifier.ours, classifier.mask
    packed = pack(classifier.batch)
    alone = model(**classifier.batch)["logits"]  # [B, C]
    together = model(**packed)["logits"]  # [1, B, C]
    np.testing.assert_allclose(together[0], alone, atol=1e-5)
    ours = gradients(model, packed, mask, read=lambda out: {"logits": out["logits"][0]})
    theirs = gradients(model, classifier.batch, mask)
    assert_close_gradients(ours, jax.tree.map(np.asarray, theirs), 1e-5)


@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("frozen", [0, 2])
def test_scan_equals_unrolled(classifier, remat, frozen):
    """With dropout on: block i draws the same mask wherever it runs."""
    model = classifier.ours
    names = [name for name, depth in model.depths.items() if depth >= frozen]
    key = jax.random.key(1)
    results = []
    for compute in (Compute(), Compute(scan=True, remat=remat)):
        compute = replace(compute, trainable=frozenset(names))
        run = partial(gradients, model, classifier.batch, classifier.mask, key=key)
        results.append(run(compute=compute, names=names))
    assert_close_gradients(results[1], jax.tree.map(np.asarray, results[0]), 1e-6)


def test_scan_compiles_one_body_for_alike_blocks(classifier):
    model = classifier.ours
    blocks = model.num_depths - 2
    trainable = frozenset(name for name, depth in model.depths.items() if depth >= blocks)

    def jaxpr(compute):
        return jax.make_jaxpr(lambda p: model.apply(p, classifier.batch, None, compute))(
            model.params
        )

    def scans(compute):
        return [e.params["length"] for e in jaxpr(compute).eqns if e.primitive.name == "scan"]

    assert scans(Compute()) == []
    assert scans(Compute(scan=True)) == [blocks]
    assert scans(Compute(scan=True, trainable=trainable)) == ([blocks - 1] if blocks > 2 else [])


def test_dropout_is_for_what_is_trained(classifier):
    model, batch, key = classifier.ours, classifier.batch, jax.random.key(0)
    plain = model(**batch)["logits"]

    def logits(*names, key=key):
        compute = Compute(trainable=frozenset(names))
        run = jax.jit(lambda params, key: model.apply(params, batch, key, compute)["logits"])
        return run(model.params, key)

    first, second = "blocks/0/mlp/up/kernel", "blocks/1/mlp/up/kernel"
    assert np.array_equal(logits(), plain)
    assert np.array_equal(logits(first, key=None), plain)
    assert not np.array_equal(logits(first), plain)
    assert not np.array_equal(logits(first), logits(second))
    assert np.array_equal(logits(first), logits(first))
    assert not np.array_equal(logits(first), logits(first, key=jax.random.key(1)))
    # BERT's classifier has a dropout of its own; the others' have none.
    assert np.array_equal(logits("head/kernel"), plain) is (
        model.family.__name__ != "jaxft.models.bert"
    )


def test_a_frozen_block_costs_its_forward_pass_only(classifier):
    """The backward pass of a block is twice its forward pass, and gone when it is frozen."""
    model, (tower,) = classifier.ours, classifier.ours.towers.values()
    blocks = len(tower.blocks)

    def forward(count):
        part = replace(tower, blocks=tower.blocks[:count])
        cut = replace(model, towers={"text": part})
        return count_flops(cut.apply, model.params, classifier.batch)

    def step(frozen):
        names = [name for name, depth in model.depths.items() if depth > frozen]
        compute = Compute(trainable=frozenset(names))
        run = partial(gradients, model, classifier.batch, classifier.mask)
        return count_flops(partial(run, compute=compute, names=names))

    block = forward(blocks) - forward(blocks - 1)
    assert block > 0
    for frozen in range(blocks - 1):
        assert step(frozen) - step(frozen + 1) == 2 * block


def test_eight_devices_compute_what_one_does(classifier):
    mesh = Mesh(np.array(jax.devices()).reshape(2, 2, 2), ("data", "fsdp", "tensor"))
    rules = {"embed": "fsdp", "heads": "tensor", "mlp": "tensor", "vocab": "tensor"}

    def sharding(name, shape, axes):
        spec = [
            rules.get(axis) if size % 2 == 0 else None
            for axis, size in zip(axes, shape, strict=True)
        ]
        return NamedSharding(mesh, PartitionSpec(*spec))

    one = classifier.ours
    many = registry.load(classifier.folder, sharding=sharding)
    kernel = many.params["blocks/0/attention/query/kernel"]
    assert kernel.addressable_shards[0].data.size * 4 == kernel.size
    for name, value in one.params.items():
        np.testing.assert_array_equal(value, many.params[name])
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    batch = {name: np.tile(value, (4, 1)) for name, value in classifier.batch.items()}
    mask = np.tile(classifier.mask, (4, 1))
    placed = {name: jax.device_put(value, rows) for name, value in batch.items()}
    key = jax.random.key(0)
    np.testing.assert_allclose(
        many.apply(many.params, placed, key)["logits"],
        one.apply(one.params, batch, key)["logits"],
        atol=1e-5,
    )
    theirs = jax.tree.map(np.asarray, gradients(one, batch, mask, key=key))
    assert_close_gradients(gradients(many, placed, mask, key=key), theirs, 1e-5)


def test_bfloat16_stays_near_float32(classifier):
    model = classifier.ours
    exact = model.apply(model.params, classifier.batch)["logits"]
    rough = model.apply(model.params, classifier.batch, None, Compute(dtype="bfloat16"))["logits"]
    assert rough.dtype == jnp.float32
    assert 0 < np.abs(rough - exact).max() < 0.02 * np.abs(exact).max() + 0.02


def test_what_is_known_of_each_parameter(pair):
    model = pair.ours
    for name, value in model.params.items():
        assert len(model.axes[name]) == value.ndim
        assert (name in model.no_decay) or value.ndim > 1
    assert set(model.depths.values()) == set(range(model.num_depths)) or model.head is None
    shapes = registry.describe(pair.folder)
    assert {n: (v.shape, v.dtype) for n, v in shapes.params.items()} == {
        n: (v.shape, v.dtype) for n, v in model.params.items()
    }
    assert shapes.report == model.report


def test_the_docs_table_names_every_architecture():
    lines = (Path(__file__).parent.parent / "docs" / "models.md").read_text().splitlines()
    for name, family in FAMILIES.items():
        for head, architecture in family.MODEL_TYPES[name].items():
            start = f"| `{name}` | `{architecture}` | {head or '-'} |"
            assert any(line.startswith(start) for line in lines), start
