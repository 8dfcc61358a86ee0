"""Distillation as a task: Hinton's loss, a teacher that runs once, and a run handed back."""

import json
import shutil

import jax
import numpy as np
import pytest
import torch
import transformers
from scipy.special import log_softmax

from jaxft.data.sources.open import given_rows
from jaxft.errors import UserError
from jaxft.export.export import export
from jaxft.inference.predict import predict
from jaxft.models import load as registry
from jaxft.tasks.distillation.loss import divergences
from jaxft.tasks.distillation.section import DistillationSection as Section
from jaxft.tasks.distillation.task import TEACHER, make
from jaxft.tasks.parts import frozen_outputs
from jaxft.tasks.parts.tools import Tools
from jaxft.tasks.text_classification.section import TextClassificationSection
from jaxft.tasks.text_classification.task import make as make_texts
from jaxft.training.story import train
from tests.models.test_decoders import make_checkpoint
from tests.support.tiny import tiny_checkpoint, tiny_config

SMALL = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
NAMES = ("bad", "good", "so so")
ROWS = [
    {"text": "the film was warm", "label": "good"},
    {"text": "dull", "label": "bad"},
    {"text": "a story of the cast in a scene", "label": "so so"},
]


def save_teacher(folder, labels):
    """A Llama that classifies, of random weights, with a byte-level tokenizer."""
    make_checkpoint(folder / "causal", "llama")
    model = registry.load(str(folder / "causal"), task="text_classification", labels=labels)
    params = {
        name: 40 * value if name.startswith("head/") else value
        for name, value in model.params.items()
    }
    return model.save(folder / "teacher", params)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return save_teacher(tmp_path_factory.mktemp("teacher"), NAMES[::-1])


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    folder = tiny_checkpoint(tmp_path_factory.mktemp("student"), **SMALL)
    return registry.describe(
        str(folder), registry.LoadOptions(task="text_classification", labels=NAMES)
    )


def bound_of(tools=None, names=NAMES, **section):
    return make(Section(kind="distillation", **{"teacher": "x", **section})).bind(tools, names)


def count_passes(monkeypatch):
    """A list that grows with each pass of the teacher over a split."""
    calls, run = [], frozen_outputs._rows
    monkeypatch.setattr(
        frozen_outputs, "_rows", lambda *args, **how: calls.append(args) or run(*args, **how)
    )
    return calls


def batch_of(seed=0):
    """A student's outputs and a batch of two rows of three places, the last one empty."""
    numbers = np.random.default_rng(seed)
    student, teacher = numbers.normal(0, 3, (2, 2, 3, 3)).astype(np.float32)
    batch = {
        "weights": np.array([[1, 1, 1], [1, 1, 0]], np.float32),
        "labels": np.array([[0, 2, 1], [1, 0, 0]], np.int32),
        "loss_weights": np.array([[0.5, 2, 1], [1, 0.5, 0]], np.float32),
        TEACHER: teacher,
    }
    return {"logits": student}, batch


def written_out(student, teacher, labels, alpha, temperature):
    """Each example's loss in float64, as in the paper, and its two parts."""
    student, teacher = (np.asarray(one, np.float64) for one in (student, teacher))
    cross_entropy = -np.take_along_axis(log_softmax(student, -1), labels[..., None], -1)[..., 0]
    soft = [np.exp(one / temperature) for one in (teacher, student)]
    of_teacher, of_student = (one / one.sum(-1, keepdims=True) for one in soft)
    divergence = temperature**2 * (of_teacher * np.log(of_teacher / of_student)).sum(-1)
    return (1 - alpha) * cross_entropy + alpha * divergence, cross_entropy, divergence


@pytest.mark.parametrize(("alpha", "temperature"), [(0.5, 2.0), (0.9, 4.0), (1.0, 1.0), (0.3, 0.7)])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_is_hintons(alpha, temperature, weighted):
    outputs, batch = batch_of()
    if not weighted:
        del batch["loss_weights"]
    bound = bound_of(alpha=alpha, temperature=temperature)
    parts = written_out(outputs["logits"], batch[TEACHER], batch["labels"], alpha, temperature)
    weights = batch["weights"] * batch.get("loss_weights", 1)
    sums = bound.objective(lambda *_: outputs, {}, batch, None)
    for name, part in zip(("loss", "cross_entropy", "divergence"), parts, strict=True):
        total, weight = sums[name]
        assert weight == weights.sum()
        np.testing.assert_allclose(total, (part * weights).sum(), rtol=1e-6)
    same = outputs["logits"].argmax(-1) == batch[TEACHER].argmax(-1)
    assert 0 < (same * batch["weights"]).sum() < 5
    assert sums["teacher_agreement"] == ((same * batch["weights"]).sum(), 5)
    assert set(sums) <= set(bound.task.metrics)


def test_gradients_keep_their_size_as_the_temperature_rises():
    """At high temperatures they are the differences of centred logits over C: section 2.1."""
    student, teacher = np.random.default_rng(0).normal(0, 1, (2, 4)).astype(np.float32)
    slope = jax.grad(divergences, argnums=1)(teacher, student, 300.0)
    differences = (student - student.mean()) - (teacher - teacher.mean())
    np.testing.assert_allclose(slope, differences / 4, atol=2e-3)
    assert divergences(teacher, teacher + 1, 2.0) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("keys", [{}, {"label_smoothing": 0.1}, {"focal": 2.0}])
def test_without_a_part_in_the_loss_the_teacher_changes_nothing(keys):
    outputs, batch = batch_of()
    plain = make_texts(TextClassificationSection(kind="text_classification", **keys))
    plain, ours = plain.bind(None, NAMES), bound_of(alpha=0.0, **keys)

    def loss_and_slope(bound):
        def loss(logits):
            total, weight = bound.loss({"logits": logits}, batch)
            return total / weight

        return jax.value_and_grad(loss)(outputs["logits"])

    for one, other in zip(loss_and_slope(ours), loss_and_slope(plain), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_teacher_reads_the_texts_itself_and_once(teacher, student, tmp_path, monkeypatch):
    calls = count_passes(monkeypatch)
    section = {"teacher": str(teacher)}
    first = bound_of(Tools(student, None, tmp_path), **section).examples(given_rows(ROWS))
    again = bound_of(Tools(student, None, tmp_path), **section, alpha=0.9, temperature=4.0)
    assert len(calls) == 1
    np.testing.assert_array_equal(again.examples(given_rows(ROWS)).teacher, first.teacher)
    assert len(calls) == 1

    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(teacher).eval()
    words = transformers.AutoTokenizer.from_pretrained(teacher)
    for row, logits in zip(ROWS, first.teacher, strict=True):
        with torch.no_grad():
            expected = theirs(torch.tensor([words(row["text"])["input_ids"]])).logits[0]
        np.testing.assert_allclose(logits, expected.numpy()[::-1], atol=2e-5)
    assert np.ptp(first.teacher) > 0.5
    batch = first.collate(np.array([[2, 0], [1, -1]]), 32)
    np.testing.assert_array_equal(batch[TEACHER][0], first.teacher[[2, 0]])
    np.testing.assert_array_equal(batch[TEACHER][1], [first.teacher[1], np.zeros(3)])
    unlabelled = again.examples(given_rows([{"text": "fine"}]), labelled=False)
    assert TEACHER not in unlabelled.collate(np.array([[0]]), 32)
    assert len(calls) == 1


def test_a_plan_reads_no_weight_of_the_teacher(teacher, student, tmp_path):
    described = tmp_path / "described"
    shutil.copytree(teacher, described, ignore=shutil.ignore_patterns("*.safetensors"))
    tools = Tools(student, None, None, weights=False)
    examples = bound_of(tools, teacher=str(described)).examples(given_rows(ROWS))
    assert examples.teacher.shape == (3, 3)
    assert not examples.teacher.any()


def test_a_teacher_that_does_not_fit_is_refused(teacher, student, tmp_path):
    tools = Tools(student, None, None)
    message = (
        r"task.teacher: the classes of '.*teacher' \(so so, good, bad\) are not the student's "
        r"\(bad, good, warm\)\."
    )
    with pytest.raises(UserError, match=message):
        bound_of(tools, ("bad", "good", "warm"), teacher=str(teacher)).examples(
            given_rows([{"text": "fine", "label": "warm"}])
        )
    bare = tiny_checkpoint(tmp_path / "bare", **SMALL)
    with pytest.raises(UserError, match=r"is not a trained classifier: it lacks 'head/.*'"):
        bound_of(tools, teacher=str(bare)).examples(given_rows(ROWS))
    for keys, message in (
        ({"problem": "regression"}, "needs problem: single_label"),
        ({"alpha": 1.5}, "less than or equal to 1"),
        ({"temperature": 0.0}, "greater than 0"),
    ):
        with pytest.raises(ValueError, match=message):
            Section(kind="distillation", teacher="x", **keys)


def test_the_lower_blocks_of_a_checkpoint_are_a_student(tmp_path):
    """What `configs/distill.yaml` says: fewer blocks in config.json, and the others ignored."""
    whole = tiny_checkpoint(tmp_path / "whole", **SMALL)
    lower = tmp_path / "lower"
    shutil.copytree(whole, lower)
    fields = json.loads((whole / "config.json").read_text())
    (lower / "config.json").write_text(json.dumps(fields | {"num_hidden_layers": 1}))
    options = {"task": "text_classification", "labels": NAMES}
    student = registry.load(str(lower), ignore=[".*layer.[1].*"], **options)
    full = registry.load(str(whole), **options)
    dropped = set(full.params) - set(student.params)
    assert dropped
    assert all(name.startswith("blocks/1/") for name in dropped)
    for name, value in student.params.items():
        np.testing.assert_array_equal(value, full.params[name])


@pytest.mark.slow
def test_a_run_follows_its_teacher_and_is_handed_back(tmp_path, monkeypatch):
    """Against the labels, of which half are "0": this teacher says "1" of every text."""
    calls = count_passes(monkeypatch)
    bare = tiny_checkpoint(tmp_path / "checkpoint", **SMALL)
    model = registry.load(str(bare), task="text_classification", labels=("0", "1"))
    bias = np.array([-2, 2], np.float32)
    teacher = model.save(tmp_path / "teacher", {**model.params, "head/bias": bias})

    def config(steps):
        return tiny_config(
            tmp_path,
            task={"kind": "distillation", "teacher": str(teacher), "alpha": 1.0},
            optimizer={"lr": 1e-2},
            train={"length": f"{steps} steps", "evaluate_every": "8 steps"},
            checkpoint={"every": "8 steps", "best": "divergence"},
            report={"tensorboard": False, "before": True},
        )

    run = train(config(16), quiet=True)
    assert len(calls) == 3  # one for each split, in more than one epoch
    events = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    scores = [event["divergence"] for event in events if event["kind"] == "eval"]
    assert scores[-1] < 0.2 * scores[0]
    assert run.metrics["divergence"] == run.metrics["loss"]
    assert run.metrics["teacher_agreement"] == 1
    assert run.metrics["accuracy"] < 0.7
    train(config(20), resume=True, quiet=True)
    assert len(calls) == 3

    folder = export(run.folder)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    assert theirs.config.id2label == {0: "0", 1: "1"}
    shutil.rmtree(teacher)  # a prediction needs none
    words = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        logits = theirs(**words("a witty plot", return_tensors="pt")).logits[0]
    (line,) = predict(run.folder, ["a witty plot"])
    expected = logits.softmax(-1).tolist()
    np.testing.assert_allclose(list(line["probabilities"].values()), expected, atol=2e-5)
