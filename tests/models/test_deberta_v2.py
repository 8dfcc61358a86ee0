"""DeBERTa beyond the contract: published files, its convolution, and no gather by position."""

import json
from collections.abc import Iterator

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

from jaxft.engine.cost import count_flops
from jaxft.errors import UserError
from jaxft.models import load as registry
from jaxft.models.families.deberta_v2 import relative
from jaxft.models.families.deberta_v2.config import Config
from jaxft.models.families.deberta_v2.relative import Buckets
from jaxft.models.tower.tower import Compute

# As the hub's microsoft/deberta-v2-xlarge spells it, with other numbers; without its convolution,
# and with share_att_key, it is microsoft/deberta-v3-base.
PUBLISHED = {
    "model_type": "deberta-v2",
    "attention_probs_dropout_prob": 0.1,
    "attention_head_size": 8,
    "conv_act": "gelu",
    "conv_kernel_size": 3,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 16,
    "initializer_range": 0.02,
    "intermediate_size": 24,
    "layer_norm_eps": 1e-7,
    "max_position_embeddings": 24,
    "max_relative_positions": -1,
    "norm_rel_ebd": "layer_norm",
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "pooler_dropout": 0,
    "pooler_hidden_act": "gelu",
    "pos_att_type": "p2c|c2p",
    "position_biased_input": False,
    "position_buckets": 8,
    "relative_attention": True,
    "type_vocab_size": 0,
    "vocab_size": 60,
}
LENGTH = 23  # in no other size of the config


def batch_of(lengths: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Texts of those lengths, padded to the longest."""
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    words = np.random.default_rng(0).integers(1, 60, mask.shape)
    return {"input_ids": words * mask, "attention_mask": mask}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A masked-word model of PyTorch's, and its folder, in the published spelling."""
    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(0)
    config = transformers.DebertaV2Config(**PUBLISHED, legacy=False)
    model = transformers.DebertaV2ForMaskedLM._from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    # Such files name no `legacy`, and hold a head of v3's pretraining and positions that go unread.
    (folder / "config.json").write_text(json.dumps(PUBLISHED))
    tensors = load_file(folder / "model.safetensors")
    more = ("mask_predictions.classifier.weight", "deberta.embeddings.position_embeddings.weight")
    tensors |= dict.fromkeys(more, np.ones((1, 16), np.float32))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return model, folder


def test_a_published_checkpoint_predicts_masked_words(published, tmp_path):
    """transformers gives it a fresh head unless told `legacy: false`, which an export says."""
    theirs, folder = published
    ours = registry.load(str(folder), task="masked_lm")
    assert ours.report.new == ()
    batch = batch_of((LENGTH, 9))
    torch_batch = {name: torch.tensor(value) for name, value in batch.items()}
    with torch.no_grad():
        expected = theirs(**torch_batch).logits.numpy()
    inside = batch["attention_mask"][..., None]
    np.testing.assert_allclose(ours(**batch)["logits"] * inside, expected * inside, atol=2e-5)
    ours.save(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["legacy"] is False
    exported = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        np.testing.assert_array_equal(exported(**torch_batch).logits.numpy(), expected)


def test_the_convolution_stays_within_an_example(published):
    """Two texts in one row are as alone, though they are neighbors."""
    ours = registry.load(str(published[1]))
    batch = batch_of((9, 7))
    alone = np.asarray(ours(**batch)["last_hidden_state"])
    one, other = (batch["input_ids"][row, :size] for row, size in enumerate((9, 7)))
    packed = {
        "input_ids": np.concatenate([one, other, [0]])[None],
        "position_ids": np.concatenate([np.arange(9), np.arange(7), [0]])[None],
        "segment_ids": np.array([[1] * 9 + [2] * 7 + [0]]),
    }
    together = np.asarray(ours(**packed)["last_hidden_state"])
    np.testing.assert_allclose(together[0, :9], alone[0], atol=1e-5)
    np.testing.assert_allclose(together[0, 9:16], alone[1, :7], atol=1e-5)


def equations(jaxpr) -> Iterator:
    """Yield every equation of a program, those of its inner programs too."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from equations(inner)


@pytest.mark.parametrize("scan", [False, True])
def test_nothing_is_gathered_by_query_and_key(published, scan):
    """A TPU has no fast gather: in the forward pass and its gradient none is as large as T x T."""
    ours = registry.load(str(published[1]), task="masked_lm")
    batch = batch_of((LENGTH, 9))

    def loss(params):
        return ours.apply(params, batch, jax.random.key(0), Compute(scan=scan))["logits"].sum()

    program = jax.make_jaxpr(jax.value_and_grad(loss))(ours.params)
    shapes = {
        (e.primitive.name, value.aval.shape)
        for e in equations(program.jaxpr)
        if "gather" in e.primitive.name or "scatter" in e.primitive.name
        for value in (*e.invars, *e.outvars)
    }
    assert any((2 * LENGTH - 1) in shape for _, shape in shapes)  # the rows of distances
    by_position = [s for s in shapes if s[1].count(LENGTH) > 1 or LENGTH**2 in s[1]]
    assert by_position == []


@pytest.mark.parametrize("queries", [LENGTH, 8])
def test_step_flops_are_those_of_the_formula(published, queries, tmp_path, monkeypatch):
    """As microsoft/deberta-v3-base: no convolution, one kernel for contents and positions."""
    monkeypatch.setattr(relative, "QUERIES", queries)
    fields = {**PUBLISHED, "conv_kernel_size": 0, "share_att_key": True}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    tensors = load_file(published[1] / "model.safetensors")
    left_out = (".conv.", ".pos_key_proj.", ".pos_query_proj.")
    whole = {n: value for n, value in tensors.items() if not any(part in n for part in left_out)}
    save_file(whole, tmp_path / "model.safetensors")
    ours = registry.load(str(tmp_path), dropout=0.0)
    batch = batch_of((LENGTH, 9))

    def loss(params):
        outputs = ours.apply(params, batch, None, Compute(scan=True))
        return outputs["last_hidden_state"].sum()

    tokens, width, inner, layers = 2 * LENGTH, 16, 24, 2
    used = np.unique(Buckets(8, 24, grow=True).rows(LENGTH)).size  # rows of the table of distances
    linear = 4 * width**2 + 2 * width * inner  # query, key, value, output; up and down
    attention = 2 * LENGTH * width  # contents, and the weighted sum of values
    padded = 2 * -(-LENGTH // queries) * queries  # whole blocks of queries
    positions = 2 * padded * (LENGTH + queries) * width  # c2p and p2c, by distance
    content = tokens * (linear + attention) + 2 * used * width**2
    forward = 2 * layers * (content + positions)
    assert count_flops(loss, ours.params) == forward
    assert count_flops(jax.grad(loss), ours.params) == 3 * forward


@pytest.mark.parametrize(("count", "furthest"), [(256, 512), (8, 24), (6, 12), (2, 40)])
def test_buckets_are_transformers(count, furthest):
    length = 2 * furthest
    distances = np.arange(length - 1, -length, -1)
    theirs = make_log_bucket_position(torch.tensor(distances), count, furthest).long().numpy()
    expected = np.clip(theirs + count, 0, 2 * count - 1)
    np.testing.assert_array_equal(Buckets(count, furthest, grow=True).rows(length), expected)


@pytest.mark.parametrize(("length", "queries"), [(5, 128), (4, 4), (8, 4), (9, 4), (11, 4)])
def test_scores_by_distance_are_those_of_each_pair(length, queries, monkeypatch):
    monkeypatch.setattr(relative, "QUERIES", queries)
    random, heads, width = np.random.default_rng(0), 3, 2
    query, key = random.normal(size=(2, 2, length, heads * width)).astype(np.float32)
    of_keys, of_queries = random.normal(size=(2, 2 * length - 1, heads * width)).astype(np.float32)
    expected = np.zeros((2, heads, length, length))
    for i, j in np.ndindex(length, length):
        row = length - 1 - (i - j)
        products = query[:, i] * of_keys[row] + key[:, j] * of_queries[row]
        expected[:, :, i, j] = products.reshape(2, heads, width).sum(-1)
    arrays = map(jnp.asarray, (query, key, of_keys, of_queries))
    scores = relative.relative_scores(*arrays, heads)
    np.testing.assert_allclose(scores, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pos_att_type": "p2p|c2p"}, 'pos_att_type is "p2p|c2p"; only "c2p", "p2c" or both'),
        ({"pos_att_type": 3}, "pos_att_type is 3; only"),
        ({"norm_rel_ebd": "batch_norm"}, 'norm_rel_ebd is "batch_norm"; only "none" and'),
        ({"attention_head_size": 4}, "attention_head_size is 4; only 8 is supported"),
        ({"pooler_hidden_size": 4}, "pooler_hidden_size is 4; only 16 is supported"),
        ({"position_buckets": 1}, "position_buckets is 1, and must be from 2 to 45"),
        ({"position_buckets": 46}, "position_buckets is 46, and must be from 2 to 45"),
        ({"conv_kernel_size": 4}, "conv_kernel_size is 4, and must be an odd number"),
        ({"conv_groups": 2}, "conv_groups is 2; only 1 is supported"),
        ({"conv_act": "softplus"}, "the activation conv_act 'softplus' is not supported"),
        ({"type_vocab_size": -1}, "type_vocab_size is -1"),
        ({"max_relative_positions": -2}, "max_relative_positions is -2"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is false"),
    ],
)
def test_what_is_not_supported_is_refused(fields, message):
    with pytest.raises(UserError) as error:
        Config.from_hf(PUBLISHED | fields)
    assert message in str(error.value)


def test_words_of_another_width_have_the_legacy_head_only():
    config = Config.from_hf(PUBLISHED | {"embedding_size": 8, "legacy": False})
    with pytest.raises(UserError, match="embedding_size is 8 and legacy is false"):
        registry.families()["deberta-v2"].towers(config, "masked_lm", None)
