"""The loop of docs/loop.md: short, exported for transformers, and as cheap as `jaxft train`."""

import csv

import numpy as np
import optax
import pytest
import torch
from transformers import AutoModelForSequenceClassification

import jaxft
from tests.docs.test_docs import ROOT, blocks
from tests.support.tiny import tiny_checkpoint, tiny_config, tiny_reviews

PAGE = ROOT / "docs/loop.md"
TRUNK = [{"name": "trunk", "depth": [0, 3], "freeze": True}]


@pytest.fixture(scope="module")
def loop(tmp_path_factory):
    """The names of the page after its block ran, and the folder that it ran in."""
    folder = tmp_path_factory.mktemp("loop")
    tiny_checkpoint(folder / "assets/minilm", num_hidden_layers=6)
    with tiny_reviews(folder).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    (folder / "assets/reviews").mkdir()
    with (folder / "assets/reviews/train.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        names = {"0": "negative", "1": "positive"}
        writer.writerows([row["text"], names[row["label"]]] for row in rows)
    ((language, text),) = blocks(PAGE.read_text())
    assert language == "python"
    names = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(compile(text, str(PAGE), "exec"), names)
    return names, folder


def test_it_is_at_most_thirty_lines():
    ((_, text),) = blocks(PAGE.read_text())
    assert len([line for line in text.splitlines() if line.strip()]) <= 30


def test_its_checkpoint_is_the_same_in_transformers(loop):
    names, folder = loop
    batch = names["batches"].batch(0)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    theirs = AutoModelForSequenceClassification.from_pretrained(folder / "reviewer").eval()
    with torch.no_grad():
        logits = theirs(**{name: torch.tensor(array) for name, array in inputs.items()}).logits
    ours = jaxft.trained(names["model"], names["state"])(**inputs)["logits"]
    np.testing.assert_allclose(logits.numpy(), ours, atol=1e-5)
    assert theirs.config.id2label == {0: "negative", 1: "positive"}


def test_only_what_is_not_frozen_has_moved(loop):
    names, folder = loop
    model, table, state = names["model"], names["table"], names["state"]
    start = jaxft.load(folder / "assets/minilm", task="text_classification", num_labels=2).params
    for name in table.frozen:
        np.testing.assert_array_equal(state.params[name], start[name], err_msg=name)
        assert name not in state.train.trainable
    moved = [n for n in table.trainable if np.any(state.params[n] != model.params[n])]
    assert set(table.trainable) - set(moved) == set()
    assert int(state.train.step) == len(names["batches"]) == 8


def test_its_step_costs_what_that_of_jaxft_train_does(loop):
    """The same table, the same rows: the same matrix products, frozen gradients in neither."""
    names, folder = loop
    batch = names["batches"].batch(0)
    ours = jaxft.count_flops(names["step"], names["state"], batch)
    rows, length = batch["input_ids"].shape
    config = tiny_config(
        folder,
        model={"checkpoint": str(folder / "assets/minilm")},
        groups=TRUNK,
        data={"batch_size": rows, "row_length": length, "pack": False, "max_length": length},
    )
    assert ours == jaxft.plan(config).flops["step"]
    table = jaxft.layer_table(names["model"], lr=1e-3)
    with pytest.raises(jaxft.UserError, match="from the same table"):
        jaxft.init_state(names["model"], table, names["tx"])
    tx = jaxft.optimizer(table, optax.scale_by_adam())
    state = jaxft.init_state(names["model"], table, tx)
    with pytest.raises(jaxft.UserError, match="the state is not of the step's optimizer"):
        names["step"](state, batch)
    whole = jaxft.make_step(names["loss_fn"], tx)
    assert jaxft.count_flops(whole, state, batch) > 1.5 * ours
