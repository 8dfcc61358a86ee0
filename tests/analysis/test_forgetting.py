"""Forgetting: the pretraining loss that a run follows is the checkpoint's own, and rises."""

import numpy as np
import pytest
import torch
import transformers

from jaxft.analysis.forgetting import UNSCORED, open_forgetting, text_batches
from jaxft.config.load import parse_config
from jaxft.engine.initial_state import load_params
from jaxft.engine.setup import build
from jaxft.errors import UserError
from jaxft.export.export import export
from jaxft.report.events import read_events
from jaxft.training.story import train
from tests.support.launch import cache  # noqa: F401 a fixture
from tests.support.tiny import tiny_config

pytestmark = pytest.mark.usefixtures("cache")
TEXTS = ["A fine film with a warm plot.", "Dull.", "The cast of this story is grim and stale."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("forgetting")
    tiny_config(folder)
    lines = "\n".join(f'{{"text": "{text}", "label": 0}}' for text in TEXTS)
    (folder / "texts.jsonl").write_text(lines + "\n")
    return folder


def config_of(folder, checkpoint, **train):
    config = tiny_config(
        folder,
        model={"checkpoint": str(checkpoint), "dropout": 0.0},
        train={"length": "6 steps", "evaluate_every": 3} | train,
        optimizer={"lr": 3e-3},
        report={"tensorboard": False, "forgetting": f"jsonl:{folder / 'texts.jsonl'}"},
        run={"name": "tiny", "dir": str(folder / "runs")},
    )
    return parse_config(config.dump())


def test_the_loss_is_that_of_the_pretrained_model(folder, tiny_mlm):
    """PyTorch's `BertForMaskedLM` on the same masked tokens."""
    config = config_of(folder, tiny_mlm)
    built = build(config)
    followed = open_forgetting(config, built)
    assert followed.objective == "masked_lm"
    assert followed.own.keys() == {n for n in followed.own if n.startswith("head/")}
    theirs = transformers.BertForMaskedLM.from_pretrained(tiny_mlm).eval()
    total = weight = 0
    for batch in followed.batches:
        with torch.no_grad():
            logits = theirs(
                input_ids=torch.tensor(batch["input_ids"]),
                attention_mask=torch.tensor(batch["attention_mask"]),
            ).logits
        scored = batch["targets"] != UNSCORED
        losses = torch.nn.functional.cross_entropy(
            logits[scored],
            torch.tensor(batch["targets"][scored], dtype=torch.long),
            reduction="sum",
        )
        total, weight = total + float(losses), weight + scored.sum()
    found = followed.score(load_params(built).params)
    assert weight > 0
    assert found["loss"] == pytest.approx(total / weight, rel=1e-5)


def test_masks_are_the_same_each_time_and_leave_the_ends(folder, tiny_mlm):
    config = config_of(folder, tiny_mlm)
    followed = open_forgetting(config, build(config))
    again = open_forgetting(config, build(config))
    for one, other in zip(followed.batches, again.batches, strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in one)
        scored = one["targets"] != UNSCORED
        assert not scored[:, 0].any()
        assert not (scored & (one["attention_mask"] == 0)).any()


@pytest.mark.slow
def test_a_run_tells_it_before_the_first_step_and_at_each_evaluation(folder, tiny_mlm):
    run = train(config_of(folder, tiny_mlm), overwrite=True, quiet=True)
    told = [e for e in read_events(run.folder) if e.get("split") == "pretraining"]
    assert [event["step"] for event in told] == [0, 3, 6]
    assert told[-1]["loss"] > told[0]["loss"], "six steps at 3e-3 harm a pretrained model"
    assert {e["split"] for e in read_events(run.folder) if "accuracy" in e and e["kind"] == "eval"}
    assert [e["step"] for e in read_events(run.folder) if e.get("split") == "eval"] == [3, 6]
    other = ({3, 6} - {run.best}).pop()  # the step without a result has the scores of an event
    card = export(run.folder, folder / f"export-{other}", other) / "README.md"
    assert "| metric | eval rows (" in card.read_text()


def test_a_decoder_is_scored_token_by_token():
    class Words:
        """Ids 1, 2, 3, ... for any text."""

        mask_id, pad_id, folder = None, 0, "here"

        def encode(self, texts, max_length, placed):
            return type("Encoded", (), {"ids": [np.arange(1, 1 + len(t)) for t in texts]})

    (batch,) = text_batches(["abc", "ab"], Words(), 8, "causal_lm")
    assert batch["targets"][:2].tolist() == [[2, 3, UNSCORED], [2, UNSCORED, UNSCORED]]
    assert batch["attention_mask"].sum() == 5
    with pytest.raises(UserError, match="has no mask token"):
        text_batches(["abc"], Words(), 8, "masked_lm")
    with pytest.raises(UserError, match="too short"):
        text_batches(["a"], Words(), 8, "causal_lm")


def test_a_checkpoint_without_its_head_is_one_sentence(folder):
    config = config_of(folder, folder / "checkpoint")
    with pytest.raises(UserError, match=r"report\.forgetting: .* has no pretraining head"):
        open_forgetting(config, build(config))
