"""`jaxft predict CHECKPOINT`: a checkpoint of somebody else's that has the head of a task."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

import jaxft
from jaxft.cli.main import main
from tests.support.tiny import tiny_checkpoint

TEXTS = ["a lovely film", "the plot in a dull scene of the story"]
NAMES = ["bad", "good", "plain"]


@pytest.fixture
def classifier(tmp_path):
    """Return the folder of a checkpoint with classes, written with a `problem_type`."""

    def written(labels, problem_type):
        bare = tiny_checkpoint(tmp_path / "bare")
        model = jaxft.load(str(bare), task="text_classification", labels=labels)
        fields = json.loads((folder := model.save(tmp_path / "own") / "config.json").read_text())
        folder.write_text(json.dumps(fields | {"problem_type": problem_type}))
        return tmp_path / "own"

    return written


def theirs(folder):
    """The logits of the texts by transformers."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits


def shares_of(predicted, names):
    return [[one["probabilities"][name] for name in names] for one in predicted]


def lines(capsys, *words):
    assert main(["predict", *map(str, words)]) == 0, capsys.readouterr().err
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_one_label(classifier, capsys):
    folder = classifier(NAMES, "single_label_classification")
    expected = theirs(folder).softmax(-1).numpy()
    predicted = lines(capsys, folder, *TEXTS)
    shares = [
        [one["probabilities"][name] for name in ("bad", "good", "plain")] for one in predicted
    ]
    np.testing.assert_allclose(shares, expected, atol=2e-6)
    assert [one["label"] for one in predicted] == [NAMES[index] for index in expected.argmax(-1)]


def test_several_labels(classifier, capsys):
    folder = classifier(NAMES, "multi_label_classification")
    predicted = lines(capsys, folder, *TEXTS)
    shares = [
        [one["probabilities"][name] for name in ("bad", "good", "plain")] for one in predicted
    ]
    np.testing.assert_allclose(shares, theirs(folder).sigmoid().numpy(), atol=2e-6)
    assert isinstance(predicted[0]["label"], list)


@pytest.mark.parametrize("problem_type", ["regression", None])
def test_a_number(classifier, capsys, problem_type):
    folder = classifier(["score"], problem_type)
    values = [one["value"] for one in lines(capsys, folder, *TEXTS)]
    np.testing.assert_allclose(values, theirs(folder)[:, 0].numpy(), atol=2e-5)


def test_rows_of_a_table(classifier, capsys, tmp_path):
    folder = classifier(["bad", "good"], None)
    table = tmp_path / "rows.csv"
    table.write_text("id,text\n" + "".join(f"7,{text}\n" for text in TEXTS))
    assert lines(capsys, folder, "--file", table) == lines(capsys, folder, *TEXTS)


def test_a_task_that_config_json_does_not_name(tmp_path, capsys):
    bare = tiny_checkpoint(tmp_path / "bare")
    folder = jaxft.load(str(bare), task="masked_lm").save(tmp_path / "own")
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"architectures": ["AntiBERTy"]}))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    words["[MASK]"] = words.pop("##ness")
    flags = ("single_word", "lstrip", "rstrip", "normalized")
    mask = {"id": words["[MASK]"], "content": "[MASK]", "special": True}
    tokenizer["added_tokens"].append(mask | dict.fromkeys(flags, False))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"mask_token": "[MASK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))

    assert main(["predict", str(folder), "a [MASK] film"]) == 2
    assert "Name a task: " in capsys.readouterr().err
    (line,) = lines(capsys, folder, "--task", "masked_lm", "a [MASK] film")
    (fills,) = line["fills"]
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    ids = AutoTokenizer.from_pretrained(folder)("a [MASK] film", return_tensors="pt")
    with torch.no_grad():
        shares = model(**ids).logits[0, 2].softmax(-1)
    best = shares.topk(5)
    np.testing.assert_allclose([f["probability"] for f in fills], best.values, atol=2e-6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "has no head, so it predicts nothing as it is"),
        (["--task", "text_classification"], "has no trained head of text_classification"),
        (["--task", "dpo"], "checkpoints have no head of the task 'dpo'"),
        (["--task", "distillation"], "checkpoints have no head of the task 'distillation'"),
        (["--task", "sentiment"], "--task must be captioning, causal_lm"),
        (["--task", "causal_lm"], "The task 'causal_lm' has no head on bert"),
        (["--checkpoint", "last"], "is a single checkpoint, and no run"),
    ],
)
def test_what_does_not_predict(tmp_path, capsys, words, message):
    folder = tiny_checkpoint(tmp_path / "bare")
    assert main(["predict", str(folder), *words, "a film"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_run_has_its_own_task(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    (tmp_path / "run" / "config.yaml").write_text(
        "run: {name: tiny}\nmodel: {checkpoint: x}\ntask: {kind: text_classification}\n"
        "data: {train: 'csv:x.csv', eval: 'csv:y.csv'}\n"
    )
    assert main(["predict", str(tmp_path / "run"), "--task", "masked_lm", "a film"]) == 2
    assert "--task does not apply" in capsys.readouterr().err
