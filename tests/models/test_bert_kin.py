"""BERT's kin: RoBERTa's positions, and what becomes of a pretrained checkpoint's head."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from jaxft.errors import UserError
from jaxft.models import load as registry
from tests.support.families import BERTS_KIN, make_pair

SIZES = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 30,
}


@pytest.fixture(scope="module")
def roberta(tmp_path_factory) -> tuple[registry.Model, transformers.PreTrainedModel]:
    """A RoBERTa whose padding word has the id that real ones have, ours and PyTorch's."""
    folder = tmp_path_factory.mktemp("roberta")
    torch.manual_seed(0)
    config = transformers.RobertaConfig(**SIZES, pad_token_id=1, num_labels=3)
    theirs = transformers.RobertaForSequenceClassification(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    theirs.save_pretrained(folder)
    return registry.load(str(folder)), theirs


def texts() -> tuple[np.ndarray, np.ndarray]:
    """Three texts filled up with the padding word, which the first has in its midst too."""
    mask = np.arange(12) < np.array([12, 7, 3])[:, None]
    ids = np.random.default_rng(0).integers(2, 60, mask.shape)
    ids[0, 4] = 1
    return np.where(mask, ids, 1), mask.astype(np.int64)


def test_robertas_positions_begin_after_the_padding_word(roberta):
    ours, theirs = roberta
    ids, mask = texts()
    with torch.no_grad():
        expected = theirs(torch.tensor(ids), torch.tensor(mask)).logits.numpy()
    np.testing.assert_allclose(
        ours(input_ids=ids, attention_mask=mask)["logits"], expected, atol=1e-5
    )


def test_robertas_positions_begin_again_in_a_packed_row(roberta):
    ours, _ = roberta
    ids, mask = texts()
    lengths = mask.sum(1)
    row = np.concatenate([one[:length] for one, length in zip(ids, lengths, strict=True)])
    packed = {
        "input_ids": row[None],
        "position_ids": np.concatenate([np.arange(length) for length in lengths])[None],
        "segment_ids": np.repeat([1, 2, 3], lengths)[None],
        "read_positions": np.cumsum([0, *lengths[:-1]])[None],
    }
    alone = ours(input_ids=ids, attention_mask=mask)["logits"]
    np.testing.assert_allclose(ours(**packed)["logits"][0], alone, atol=1e-5)


def test_a_roberta_takes_fewer_tokens_than_it_has_positions(roberta):
    ours, _ = roberta
    assert ours.config.max_positions == 28  # those of the padding word and below are not counted
    with pytest.raises(UserError, match="has 29 tokens; the model takes 28"):
        ours(input_ids=np.full((1, 29), 5))


@pytest.mark.parametrize(
    ("model_type", "head"),
    [("roberta", "masked_lm"), ("distilbert", "masked_lm"), ("electra", "replaced_tokens")],
)
def test_a_pretrained_checkpoint_becomes_a_classifier(model_type, head, tmp_path: Path):
    folder = make_pair(model_type, head, 0, tmp_path / "checkpoint").folder
    model = registry.load(folder, task="text_classification", num_labels=3)
    top = ("head/bias", "head/kernel", "pooler/bias", "pooler/kernel")
    assert set(model.report.new) == set(top)
    assert model.report.unused  # the pretraining head
    saved = registry.load(str(model.save(tmp_path / "export")))
    assert saved.report.new == saved.report.unused == ()


def test_an_albert_projects_embeddings_that_are_as_wide_as_the_model(tmp_path: Path):
    torch.manual_seed(0)
    theirs = transformers.AlbertModel(transformers.AlbertConfig(**SIZES, embedding_size=16)).eval()
    theirs.save_pretrained(tmp_path)
    ids, _ = texts()
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).last_hidden_state.numpy()
    ours = registry.load(str(tmp_path))(input_ids=ids)
    np.testing.assert_allclose(ours["last_hidden_state"], expected, atol=1e-5)


def test_every_model_type_of_the_kin_is_there():
    assert set(BERTS_KIN) < registry.families().keys()
