"""Real checkpoints against PyTorch `transformers`: MiniLM, and a tiny BERT of gamma/beta names."""

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

from jaxft.models import load as registry

TEXTS = [
    "A film of quiet, aching beauty.",
    "It is not funny; it is not anything.",
    "Two hours that feel like ten, and an ending that undoes the one good scene it had before.",
]


def tokens(folder):
    """A padded batch: input_ids, token_type_ids, attention_mask [3, T]."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return dict(tokenizer(TEXTS, padding=True, return_tensors="np"))


def in_torch(batch):
    return {name: torch.tensor(value) for name, value in batch.items()}


def test_minilm_outputs_are_pytorchs(minilm):
    batch = tokens(minilm)
    theirs = transformers.AutoModel.from_pretrained(minilm, attn_implementation="eager").eval()
    with torch.no_grad():
        expected = theirs(**in_torch(batch))
    model = registry.load(str(minilm))
    assert model.report.new == ()
    assert model.report.unused == ("embeddings.position_ids",)
    got = model(**batch)
    keep = batch["attention_mask"][..., None]
    np.testing.assert_allclose(
        got["last_hidden_state"] * keep, expected.last_hidden_state.numpy() * keep, atol=2e-5
    )
    np.testing.assert_allclose(got["pooler_output"], expected.pooler_output.numpy(), atol=2e-5)


@pytest.fixture(scope="module")
def exported(minilm, tmp_path_factory):
    """MiniLM with a new classifier, ours and as an export in PyTorch."""
    model = registry.load(str(minilm), task="text_classification", labels=["neg", "pos"])
    folder = model.save(tmp_path_factory.mktemp("export"))
    auto = transformers.AutoModelForSequenceClassification
    return model, folder, auto.from_pretrained(folder, attn_implementation="eager").eval()


def test_an_export_of_minilm_has_the_same_logits(minilm, exported):
    model, folder, theirs = exported
    assert theirs.config.id2label == {0: "neg", 1: "pos"}
    batch = tokens(folder)  # the tokenizer came along
    assert all(np.array_equal(batch[name], value) for name, value in tokens(minilm).items())
    with torch.no_grad():
        expected = theirs(**in_torch(batch)).logits.numpy()
    np.testing.assert_allclose(model(**batch)["logits"], expected, atol=2e-5)


def test_minilm_goes_back_bit_for_bit(minilm, exported, tmp_path):
    before = load_file(minilm / "model.safetensors")
    before.pop("embeddings.position_ids")
    plain = registry.load(str(minilm)).save(tmp_path / "plain")
    after = load_file(plain / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    classifier = load_file(exported[1] / "model.safetensors")
    assert all(before[name].tobytes() == classifier[f"bert.{name}"].tobytes() for name in before)


def test_minilm_gradients_are_pytorchs(exported):
    model, folder, theirs = exported
    batch = tokens(folder)
    labels = np.array([1, 0, 0])
    theirs(**in_torch(batch), labels=torch.tensor(labels)).loss.backward()

    def loss(params):
        scores = jax.nn.log_softmax(model.apply(params, batch)["logits"])
        return -scores[np.arange(3), labels].mean()

    gradients = jax.jit(jax.grad(loss))(model.params)
    expected = {name: p.grad.numpy() for name, p in theirs.named_parameters()}
    whole = np.sqrt(sum(np.square(value).sum() for value in expected.values()))
    for ours, name in model.names.items():
        value = np.asarray(gradients[ours])
        value = value.T if ours.endswith("kernel") else value
        if ours.endswith("key/bias"):  # zero in theory
            assert np.linalg.norm(value) < 1e-6 * whole
            continue
        distance = np.linalg.norm(value - expected[name])
        assert distance < 1e-4 * np.linalg.norm(expected[name]), ours


def test_tiny_mlm_logits_are_pytorchs(tiny_mlm):
    batch = tokens(tiny_mlm)
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(tiny_mlm).eval()
    with torch.no_grad():
        expected = theirs(**in_torch(batch)).logits.numpy()
    model = registry.load(str(tiny_mlm))
    assert model.head == "masked_lm"
    assert model.report.new == model.report.unused == ()
    keep = batch["attention_mask"][..., None]
    # Logits reach 30: 2e-5 is about one float32 step there.
    np.testing.assert_allclose(
        model(**batch)["logits"] * keep, expected * keep, atol=2e-5, rtol=2e-6
    )
