"""Every family against PyTorch `transformers` on small random weights, found by itself."""

import importlib
import pkgutil
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors.numpy import load_file

import jaxft.models
from jaxft.models import registry
from jaxft.models.transformer import Compute, Part

AUTO = {
    None: transformers.AutoModel,
    "text_classification": transformers.AutoModelForSequenceClassification,
    "masked_lm": transformers.AutoModelForMaskedLM,
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


# One line a family: `make_config(generator) -> transformers config`, small.
RANDOM = {"bert": random_bert}
FAMILIES = [
    name
    for name in (module.name for module in pkgutil.iter_modules(jaxft.models.__path__))
    if hasattr(importlib.import_module(f"jaxft.models.{name}"), "HEADS")
]
HEADS = [
    (family, head)
    for family in FAMILIES
    for head in importlib.import_module(f"jaxft.models.{family}").HEADS
]
SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.full) for seed in range(1, 10))]


def test_every_family_is_tested():
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
    lengths = np.array([length, length // 2, 3])[:, None]
    batch = {
        # Word 0 is the padding word, to which PyTorch gives no gradient.
        "input_ids": draw.integers(1, config.vocab_size, (rows, length)),
        "attention_mask": (np.arange(length) < lengths).astype(np.int64),
        "token_type_ids": draw.integers(0, config.type_vocab_size, (rows, length)),
    }
    return Pair(registry.load(str(folder)), model, str(folder), batch)


@pytest.fixture(params=SEEDS)
def seed(request) -> int:
    return request.param


@pytest.fixture(params=HEADS, ids=lambda pair: "-".join(map(str, pair)))
def pair(request, seed, tmp_path) -> Pair:
    """A pair for each head of each family."""
    return make_pair(*request.param, seed, tmp_path / "source")


@pytest.fixture(params=FAMILIES)
def classifier(request, tmp_path) -> Pair:
    """A pair that ends in a sequence classifier, one for each family."""
    return make_pair(request.param, "text_classification", 0, tmp_path / "source")


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
    with torch.no_grad():
        theirs = classifier.torch(**classifier.torch_batch(), output_hidden_states=True)
    (tower,) = classifier.ours.towers.values()
    assert len(theirs.hidden_states) == len(tower.blocks) + 1
    for count, expected in enumerate(theirs.hidden_states):
        part = replace(tower, blocks=tower.blocks[:count], top=Part(Stop()))
        model = replace(classifier.ours, towers={"text": part})
        stream = np.asarray(model.apply(model.params, classifier.batch)["stream"])
        keep = classifier.mask[..., None]
        np.testing.assert_allclose(stream * keep, expected.numpy() * keep, atol=2e-5)


def weighted_loss(outputs, mask):
    """A scalar that every output enters with a weight of its own; padding enters with none."""
    total = 0.0
    for name in sorted(outputs):
        value = outputs[name]
        if name == "loss":
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
    return {
        ours: theirs[hf].T if ours.endswith("kernel") else theirs[hf]
        for ours, hf in pair.ours.names.items()
    }


def assert_close_gradients(ours, theirs, tolerance):
    """Leaf by leaf, relative to the leaf's own norm.

    The bias of a key moves all scores of a query alike, so its gradient is zero in theory: what
    is there is rounding, and is only asked to be as small as that.
    """
    whole = np.sqrt(sum(np.square(value).sum() for value in theirs.values()))
    for name, value in ours.items():
        if name.endswith("key/bias"):
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
    assert sorted(pair.ours.names.values()) == sorted(stored)
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
    plain = model.apply(model.params, batch)["logits"]

    def logits(*names, key=key):
        compute = Compute(trainable=frozenset(names))
        return model.apply(model.params, batch, key, compute)["logits"]

    assert np.array_equal(logits(), plain)
    assert np.array_equal(logits("head/kernel", key=None), plain)
    assert not np.array_equal(logits("head/kernel"), plain)
    assert not np.array_equal(logits("blocks/0/mlp/up/bias"), logits("blocks/1/mlp/up/bias"))
    assert np.array_equal(logits("head/kernel"), logits("head/kernel"))
    assert not np.array_equal(logits("head/kernel"), logits("head/kernel", key=jax.random.key(1)))


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
