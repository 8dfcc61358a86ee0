"""Choices after a prompt: labels, the loss, a run, its predictions and its export."""

import json

import jax
import numpy as np
import pytest
import torch
import transformers

import jaxft
from jaxft.cli.main import main
from jaxft.data.sources.open import given_rows
from jaxft.export.export import export
from jaxft.models import load as registry
from jaxft.tasks.multiple_choice.choices import read_label
from jaxft.tasks.multiple_choice.section import MultipleChoiceSection as Section
from jaxft.tasks.multiple_choice.task import make
from jaxft.tasks.parts.labels import BadValue
from jaxft.tasks.parts.tools import Tools
from tests.support.launch import cache  # noqa: F401 a fixture
from tests.support.tiny import BAD, GOOD, PLAIN, tiny_checkpoint, tiny_config, train_and_eval

pytestmark = pytest.mark.usefixtures("cache")
TASK = {"kind": "multiple_choice"}
ROWS = [
    {"prompt": "a film", "choices": ["dull plot", "bright", "the grim story"], "label": 1},
    {"prompt": "the story of the cast", "choices": ["flat", "fine"], "label": "A"},
    {"prompt": "the plot", "choices": ["warm film", "cold", "a", "in the story"], "label": "3"},
]


def write_choices(path, count, seed=0):
    """Prompts with one good choice among bad ones, three or four of them."""
    draw = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        choices = [f"{word} cast" for word in draw.choice(BAD, 3 + number % 2)]
        label = int(draw.integers(len(choices)))
        choices[label] = f"{GOOD[number % 5]} cast"
        rows.append({"prompt": f"a {draw.choice(PLAIN)}", "choices": choices, "label": label})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def run(tmp_path_factory, cache):  # noqa: F811 the fixture above
    folder = tmp_path_factory.mktemp("choices")
    write_choices(folder / "train.jsonl", 64)
    write_choices(folder / "eval.jsonl", 16, seed=1)
    config = tiny_config(
        folder,
        task=TASK,
        data={**train_and_eval(folder, "jsonl"), "batch_size": 16, "max_length": 24},
        optimizer={"lr": 3e-3},
        groups=[{"name": "trunk", "depth": [0, 0], "freeze": True}],
        train={"length": "12 steps", "evaluate_every": "12 steps"},
        report={"tensorboard": False, "before": True},
    )
    return jaxft.train(config, quiet=True)


def examples_of(rows, model, labelled=True, **section):
    task = make(Section(**TASK, **section)).bind(Tools(model, None, None), ())
    return task, task.examples(given_rows(rows), labelled=labelled)


def test_the_loss_is_transformers_whatever_the_number_of_choices(tmp_path):
    model = registry.load(str(tiny_checkpoint(tmp_path / "bert")), task="multiple_choice")
    folder = model.save(tmp_path / "saved")
    theirs = transformers.AutoModelForMultipleChoice.from_pretrained(folder).eval()
    words = transformers.AutoTokenizer.from_pretrained(folder)
    losses, shares = [], []
    for row, label in zip(ROWS, (1, 0, 3), strict=True):
        prompts = [row["prompt"]] * len(row["choices"])
        inputs = words(prompts, row["choices"], padding=True, return_tensors="pt")
        inputs = {name: value[None] for name, value in inputs.items()}
        with torch.no_grad():
            out = theirs(**inputs, labels=torch.tensor([label]))
        losses.append(float(out.loss))
        shares.append(out.logits.softmax(-1)[0].numpy())
        plain = model(**{name: value.numpy() for name, value in inputs.items()})["logits"]
        np.testing.assert_allclose(plain, out.logits.numpy(), atol=1e-5)
    task, examples = examples_of(ROWS, model)
    batch = examples.collate(np.array([[2, 0], [1, -1]]), 60)
    assert batch["read_positions"].shape == (2, 8)
    outputs = model(**batch)
    total, weight = jax.jit(task.loss)(outputs, batch)
    assert float(weight) == 3
    assert float(total) == pytest.approx(sum(losses), rel=1e-5)
    outcomes = jax.jit(task.outcomes)(outputs, batch)
    probabilities = np.asarray(outcomes["probabilities"])
    for number, (row, segment) in enumerate([(0, 1), (1, 0), (0, 0)]):
        own = probabilities[row, segment, : len(shares[number])]
        np.testing.assert_allclose(own, shares[number], atol=1e-5)
        assert probabilities[row, segment].sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("label", "number"),
    [(2, 2), ("0", 0), ("c", 2), ("B", 1), (3, None), ("D", None), ("-1", None)],
)
def test_labels_are_numbers_or_letters(label, number):
    row = {**ROWS[0], "label": label}
    if number is not None:
        assert read_label(row, Section(**TASK)) == number
        return
    with pytest.raises(BadValue, match="none of its 3 choices"):
        read_label(row, Section(**TASK))


@pytest.mark.slow
def test_a_run_learns_to_choose_and_predicts_as_its_export(run, capsys):
    assert run.metrics["accuracy"] > 0.5
    written = (run.folder / "predictions-eval.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in written]
    right = np.mean([line["target"] == line["written"] for line in lines])
    assert right >= run.metrics["accuracy"]  # choices may repeat
    assert main(["predict", str(run.folder), "a film\tdull cast\twarm cast\tgrim", "--json"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert line["choice"] == ["dull cast", "warm cast", "grim"][line["number"]]
    folder = export(run.folder)
    words = transformers.AutoTokenizer.from_pretrained(folder)
    theirs = transformers.AutoModelForMultipleChoice.from_pretrained(folder).eval()
    choices = ["dull cast", "warm cast", "grim"]
    inputs = words(["a film"] * 3, choices, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = theirs(**{name: value[None] for name, value in inputs.items()}).logits
    np.testing.assert_allclose(logits.softmax(-1)[0], line["probabilities"], atol=1e-5)
    assert main(["predict", str(run.folder), "a film\tone"]) == 2
    assert "has 1." in capsys.readouterr().err


def test_each_choice_may_have_a_column():
    section = Section(**TASK, choices=["sol1", "sol2"])
    task = make(section).bind(None, ())
    row = {"prompt": "a", "sol1": "b", "sol2": "c", "label": 1}
    task.check_row(given_rows([row]), 0, row)
    assert task.task.columns == ("prompt", "sol1", "sol2", "label")
    assert list(task.rows_from_input(["x\ty\tz"])) == [{"prompt": "x", "sol1": "y", "sol2": "z"}]
