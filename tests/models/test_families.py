"""Every model type under every head against PyTorch `transformers`, found by itself.

The configs are small and random (`random_configs.py`), and so are the weights. How a model is run
(scanned, frozen, packed, on several devices) is in test_families_run.py.
"""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxft.models import load as registry
from tests.support.families import (
    BARTS_KIN,
    BERTS_KIN,
    FAMILIES,
    KIN_HEADS,
    LIKE_OTHERS,
    OF_TRANSFORMERS,
    OWN_HEADS,
    OWN_PAIRS,
    PYRAMIDS,
    Pair,
    architectures,
    assert_close_gradients,
    auto_class,
    gradients,
    make_pair,
    names_of,
    of_each,
    outputs_of,
    plainly,
    torch_gradients,
    with_sinusoids,
)
from tests.support.random_configs import PAIRS, undrawn_fields

# What T5 and BART compute alike is tested in one of them.
OF_ENCODER_DECODERS = ("text_classification", "question_answering", "token_classification")


def is_kin(name: str, head: str | None) -> bool:
    """Whether what a model has is tested in another."""
    if name in PAIRS:
        return name not in OWN_PAIRS
    if "seq2seq" in architectures(name) and head in OF_ENCODER_DECODERS:
        return (name, head) not in OWN_HEADS
    if name in BARTS_KIN:
        return head is None or name in LIKE_OTHERS
    # Decoders' classes of tokens are their classes of texts at every position.
    of_decoder = head == "token_classification" and "causal_lm" in architectures(name)
    if of_decoder or head in ("question_answering", "multiple_choice"):
        return (name, head) not in OWN_HEADS
    if name in KIN_HEADS:
        return head not in KIN_HEADS[name]
    return name in BERTS_KIN and (name, head) not in OWN_HEADS


HEADS = [
    pytest.param(
        (name, head), marks=pytest.mark.full if is_kin(name, head) else (), id=f"{name}-{head}"
    )
    for name in names_of(FAMILIES)
    for head in architectures(name)
]
SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.full) for seed in range(1, 10))]


@pytest.mark.parametrize("model_type", OF_TRANSFORMERS)
def test_every_field_of_a_config_is_drawn_or_refused(model_type):
    assert undrawn_fields(model_type) == []


@pytest.fixture(scope="module", params=SEEDS)
def seed(request) -> int:
    return request.param


@pytest.fixture(scope="module", params=HEADS)
def pair(request, seed, tmp_path_factory) -> Pair:
    """A pair for each head of each model type."""
    return make_pair(*request.param, seed, tmp_path_factory.mktemp("source"))


def test_outputs_are_pytorchs(pair):
    for ours, theirs in outputs_of(pair, pair.outputs_beside_gradients(pair.ours.params)):
        np.testing.assert_allclose(ours, theirs, atol=2e-5, rtol=2e-5)


def test_gradients_are_pytorchs(pair):
    assert_close_gradients(gradients(pair), torch_gradients(pair), 1e-4)


def test_every_name_is_accounted_for_both_ways(pair):
    stored = load_file(f"{pair.folder}/model.safetensors")
    # The counts of batch norms, which nothing reads, are handed back.
    stored = {name: value for name, value in stored.items() if value.dtype != np.int64}
    assert set(pair.ours.names) == set(pair.ours.params)
    assert {one for name in pair.ours.names for one in of_each(pair.ours, name)} == set(stored)
    assert sum(value.size for value in pair.ours.params.values()) == sum(
        value.size for value in stored.values()
    )
    assert pair.ours.report.loaded == tuple(pair.ours.params)
    assert pair.ours.report.new == pair.ours.report.unused == ()


def test_names_in_memory_are_pytorchs(pair):
    """Of pyramids, whose modules transformers names otherwise than its files."""
    if pair.ours.model_type not in PYRAMIDS:
        return
    spell = pair.ours.family.tensors.in_memory
    ours = {spell(name, pair.ours.model_type) for name in pair.ours.names.values()}
    theirs = {n for n in pair.torch.state_dict() if not n.endswith("num_batches_tracked")}
    assert ours == theirs


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
    auto = auto_class(model.model_type, model.head)
    loaded = with_sinusoids(auto.from_pretrained(folder, **plainly(pair.torch.config)).eval())
    assert type(loaded) is type(pair.torch)
    for ours, theirs in outputs_of(pair, pair.outputs_beside_gradients(changed), loaded):
        np.testing.assert_allclose(ours, theirs, atol=2e-5, rtol=2e-5)


def test_what_is_known_of_each_parameter(pair):
    model = pair.ours
    for name, value in model.params.items():
        assert len(model.axes[name]) == value.ndim
        assert (name in model.no_decay) or value.ndim > 1
    own_top = {n for n, depth in model.depths.items() if depth == model.num_depths - 1}
    # A top may own nothing: a head tied to the embeddings, and no norm before it.
    assert set(model.depths.values()) == set(range(model.num_depths - (not own_top)))
    shapes = registry.describe(pair.folder)
    assert {n: (v.shape, v.dtype) for n, v in shapes.params.items()} == {
        n: (v.shape, v.dtype) for n, v in model.params.items()
    }
    assert shapes.report == model.report


def test_the_docs_table_names_every_architecture():
    lines = (Path(__file__).parents[2] / "docs" / "models.md").read_text().splitlines()
    for name, family in FAMILIES.items():
        for head, architecture in family.model_types[name].items():
            start = f"| `{name}` | `{architecture}` | {head or '-'} |"
            assert any(line.startswith(start) for line in lines), start
