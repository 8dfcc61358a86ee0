"""What is told of an example: losses equal PyTorch's, scores scikit-learn's, bad labels named."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics
from torch.nn import functional

from jaxft.data.sources.open import given_rows, open_source
from jaxft.errors import UserError
from jaxft.metrics.classification import classification_scores, multi_label_scores
from jaxft.metrics.regression import regression_scores
from jaxft.tasks.parts.classes.target import make_target
from jaxft.tasks.text_classification.section import TextClassificationSection as Section

DRAW = np.random.default_rng(0)
NAMES = ("calm", "glad", "sad")
CLASSES = DRAW.integers(0, 3, 12)
FLAGS = (DRAW.random((12, 3)) < 0.4).astype(np.float32)
NUMBERS = DRAW.normal(2.5, 1.0, 12).astype(np.float32)
LOGITS = DRAW.normal(0, 2, (12, 3)).astype(np.float32)


def target(**keys):
    return make_target(Section(kind="text_classification", **keys))


def rows_of(values):
    return given_rows([{"label": value} for value in values])


def batch_of(labels, rows):
    """The labels as a batch of `rows` rows, the last place empty."""
    index = np.append(np.arange(len(labels.values)), -1)
    index = np.append(index, np.full(-len(index) % rows, -1)).reshape(rows, -1)
    return {"weights": (index >= 0).astype(np.float32), **labels.batch(index)}, index


def loss_of(one, labels, logits, rows=1):
    """The mean loss over a batch, whose empty places hold what must not count."""
    batch, index = batch_of(labels, rows)
    scores = np.where((index >= 0)[..., None], logits[np.maximum(index, 0)], 99.0)
    batch = {name: jnp.asarray(value) for name, value in batch.items()}
    total, weight = one.loss({"logits": jnp.asarray(scores)}, batch)
    return float(total / weight)


# ----------------------------------------------------------------------------------------- losses


@pytest.mark.parametrize("rows", [1, 4])
def test_one_class_is_pytorchs_cross_entropy_with_weights(rows):
    weights = {"glad": 5.0, "sad": 0.5}
    one = target(class_weights=weights)
    labels = one.read(rows_of([NAMES[label] for label in CLASSES]), NAMES)
    expected = functional.cross_entropy(
        torch.tensor(LOGITS), torch.tensor(CLASSES), torch.tensor([1.0, 5.0, 0.5])
    )
    assert loss_of(one, labels, LOGITS, rows) == pytest.approx(float(expected), rel=1e-6)


def test_balanced_is_scikit_learns():
    one = target(class_weights="balanced")
    labels = one.read(rows_of([NAMES[label] for label in CLASSES]), NAMES)
    counts = np.bincount(CLASSES)
    np.testing.assert_allclose(labels.weights, (12 / (3 * counts))[CLASSES], rtol=1e-6)
    assert [labels.weights[c == CLASSES].sum() for c in range(3)] == pytest.approx([4, 4, 4])


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("weights", [None, "balanced", {"b": 3.0}])
def test_several_labels_are_pytorchs_sigmoid_loss(weights, rows):
    one = target(problem="multi_label", label=["a", "b", "c"], class_weights=weights)
    source = given_rows([dict(zip("abc", row, strict=True)) for row in FLAGS.astype(int).tolist()])
    labels = one.read(source, one.names(source))
    np.testing.assert_array_equal(labels.values, FLAGS)
    have = FLAGS.sum(axis=0)
    given = {None: [1, 1, 1], "balanced": (12 - have) / have}.get(str(weights), [1, 3, 1])
    given = [1, 1, 1] if weights is None else given
    expected = functional.binary_cross_entropy_with_logits(
        torch.tensor(LOGITS),
        torch.tensor(FLAGS),
        pos_weight=torch.tensor(np.array(given, np.float32)),
    )
    assert loss_of(one, labels, LOGITS, rows) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("rows", [1, 4])
def test_a_number_is_pytorchs_squared_error(rows):
    one = target(problem="regression")
    labels = one.read(rows_of(map(str, NUMBERS)), one.names(None))
    expected = functional.mse_loss(torch.tensor(LOGITS[:, 0]), torch.tensor(NUMBERS))
    assert loss_of(one, labels, LOGITS[:, :1], rows) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("power", [0.5, 2.0])
def test_focal_loss_is_its_formula(power):
    one = target(focal=power)
    labels = one.read(rows_of([NAMES[label] for label in CLASSES]), NAMES)
    shares = np.exp(LOGITS - np.logaddexp.reduce(LOGITS, axis=1, keepdims=True))
    right = shares[np.arange(12), CLASSES].astype(np.float64)
    expected = np.mean(-((1 - right) ** power) * np.log(right))
    assert loss_of(one, labels, LOGITS) == pytest.approx(expected, rel=1e-5)

    many = target(problem="multi_label", label=["a", "b", "c"], focal=power)
    source = given_rows([dict(zip("abc", row, strict=True)) for row in FLAGS.astype(int).tolist()])
    chances = 1 / (1 + np.exp(-LOGITS.astype(np.float64)))
    right = np.where(FLAGS > 0, chances, 1 - chances)
    expected = np.mean(-((1 - right) ** power) * np.log(right))
    found = loss_of(many, many.read(source, "abc"), LOGITS)
    assert found == pytest.approx(expected, rel=1e-5)


def test_focal_loss_has_a_slope_where_all_is_right():
    one = target(focal=0.5)
    batch = {"weights": jnp.ones((1, 1)), "labels": jnp.zeros((1, 1), jnp.int32)}
    slope = jax.grad(lambda logits: one.loss({"logits": logits}, batch)[0])
    assert np.isfinite(slope(jnp.array([[[200.0, 0.0, 0.0]]]))).all()


# ----------------------------------------------------------------------------------------- scores

SCORE = np.array([0.1, 0.9, 0.4, 0.35, 0.8, 0.2, 0.6, 0.05])
FOUND = np.array([0, 1, 0, 1, 1, 0, 0, 0])


def test_scores_of_two_classes_are_scikit_learns():
    found = classification_scores(np.stack([1 - SCORE, SCORE], axis=1), FOUND)
    assert found["auroc"] == metrics.roc_auc_score(FOUND, SCORE)
    assert found["average_precision"] == metrics.average_precision_score(FOUND, SCORE)
    assert found["recall_at_1pct_fpr"] == pytest.approx(2 / 3)  # two of three before a false one
    assert found["f1"] == metrics.f1_score(FOUND, SCORE > 0.5, average="macro")


def test_one_false_alarm_in_a_hundred_is_allowed():
    chances = np.concatenate([[0.9], np.full(99, 0.1), [0.95, 0.8, 0.05]])
    found = np.concatenate([np.zeros(100), np.ones(3)])
    both = np.stack([1 - chances, chances], axis=1)
    assert classification_scores(both, found)["recall_at_1pct_fpr"] == pytest.approx(2 / 3)
    fewer = classification_scores(both[1:], found[1:])  # 99 without an alarm before
    assert fewer["recall_at_1pct_fpr"] == pytest.approx(2 / 3)
    crowded = classification_scores(np.concatenate([both[:50], both[-3:]]), found[50:])
    assert crowded["recall_at_1pct_fpr"] == pytest.approx(1 / 3)  # one of 50 is too many


def test_one_class_has_no_score_that_compares():
    found = classification_scores(np.stack([1 - SCORE, SCORE], axis=1), np.zeros(8, int))
    assert set(found) == {"f1", "mcc"}
    sure = classification_scores(np.tile([0.9, 0.1], (8, 1)), np.zeros(8, int))
    assert sure == {"f1": 1.0, "mcc": 0.0}


def test_scores_of_several_labels_are_scikit_learns():
    chances = 1 / (1 + np.exp(-LOGITS))
    found = multi_label_scores(chances, FLAGS)
    assert found["f1_micro"] == metrics.f1_score(FLAGS, chances > 0.5, average="micro")
    assert found["f1_macro"] == metrics.f1_score(FLAGS, chances > 0.5, average="macro")
    assert found["mean_average_precision"] == metrics.average_precision_score(FLAGS, chances)
    none = np.concatenate([FLAGS, np.zeros((12, 1))], axis=1)  # a label that nobody has
    more = multi_label_scores(np.concatenate([chances, chances[:, :1]], axis=1), none)
    assert more["mean_average_precision"] == found["mean_average_precision"]
    assert "mean_average_precision" not in multi_label_scores(chances, 0 * FLAGS)


def test_scores_of_numbers_are_scipys():
    found = regression_scores(LOGITS[:, 0], NUMBERS)
    assert found["rmse"] == pytest.approx(metrics.root_mean_squared_error(NUMBERS, LOGITS[:, 0]))
    assert found["pearson"] == pytest.approx(stats.pearsonr(NUMBERS, LOGITS[:, 0])[0])
    assert found["spearman"] == pytest.approx(stats.spearmanr(NUMBERS, LOGITS[:, 0])[0])
    assert regression_scores(np.ones(12), NUMBERS)["pearson"] == 0
    assert set(regression_scores(LOGITS[:, 0], np.ones(12))) == {"rmse"}
    assert found["r2"] == pytest.approx(metrics.r2_score(NUMBERS, LOGITS[:, 0]))


def test_a_standardized_number_is_learned_in_deviations_and_given_in_units():
    """The loss of always predicting the mean is 1, and predictions have the units of the data."""
    raw = 152 + 79 * NUMBERS
    one = target(problem="regression").fitted({"mean": float(raw.mean()), "deviation": 79.0})
    labels = one.read(rows_of(map(str, raw)), one.names(None))
    logits = np.zeros((12, 1), np.float32)
    assert loss_of(one, labels, logits) == pytest.approx(float(np.var(raw)) / 79**2, rel=1e-5)
    batch = {"weights": jnp.ones((12, 1)), "labels": jnp.asarray(labels.values)[:, None]}
    value = one.outcomes({"logits": jnp.asarray(logits)[:, None]}, batch)["value"]
    np.testing.assert_allclose(value[:, 0], raw.mean(), rtol=1e-6)
    assert target(problem="regression").facts == {}, "as a run that is resumed from before"


@pytest.mark.parametrize(
    ("problem", "predicted", "sentence"),
    [
        ("single_label", [[0.9, 0.1]] * 4, "all 4 predictions are 'a'"),
        ("single_label", [[0.4, 0.6]] * 3 + [[0.6, 0.4]], "is not above 75.0%, that of always"),
        ("single_label", [[0.9, 0.1]] * 3 + [[0.1, 0.9]], None),
        ("multi_label", [[0.9, 0.2]] * 4, "all 4 predictions are a; lower or raise"),
        ("multi_label", [[0.9, 0.2]] * 3 + [[0.1, 0.9]], None),
        ("regression", [2.0] * 4, "all predictions are about 2.0000: the model did not learn"),
        ("regression", [9.0, 1.0, 5.0, 1.0], "is not below 1.1180, that of always predicting"),
        ("regression", [1.0, 2.1, 3.0, 4.0], None),
    ],
)
def test_a_model_that_learned_nothing_is_a_warning_with_its_mend(problem, predicted, sentence):
    label = ["a", "b"] if problem == "multi_label" else "label"
    one = target(problem=problem, label=label)
    key = "value" if problem == "regression" else "probabilities"
    labels = {
        "single_label": np.array([0, 0, 0, 1]),
        "multi_label": np.array([[1, 0], [1, 0], [0, 1], [0, 1]]),
        "regression": np.array([1.0, 2.0, 3.0, 4.0]),
    }[problem]
    warned = one.warnings({key: np.array(predicted)}, labels, ("a", "b"))
    assert [sentence in warning for warning in warned] == ([] if sentence is None else [True])
    assert all("train longer" in warning for warning in warned)


# ------------------------------------------------------------------------------------- bad labels

BAD = {
    "number": (
        {"problem": "regression"},
        ["1.5", "high"],
        "has 'high' in label, which is not a number",
    ),
    "endless": (
        {"problem": "regression"},
        [1.0, float("inf")],
        "has inf in label, which is not a number",
    ),
    "no number": ({"problem": "regression"}, [1.0, None], "has no label"),
    "no list": (
        {"problem": "multi_label"},
        [["a"], "b"],
        "has 'b' in label, which is not a list of labels",
    ),
    "list": ({"problem": "multi_label"}, [["a", "b"], ["c"]], "has the label 'c', which is not"),
    "no class": ({}, ["a", None], "has no label"),
    "class": (
        {},
        ["b", "c"],
        "has the label 'c', which is not among the train set's labels (a, b)",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_label_is_named_by_the_row_of_its_file(case, tmp_path):
    keys, values, said = BAD[case]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"label": value}) + "\n" for value in values))
    source = open_source(f"jsonl:{path}:ordered")
    with pytest.raises(UserError) as caught:
        target(**keys).read(source, ("a", "b"))
    assert str(caught.value).startswith(f"jsonl:{path}:ordered: row 2 {said}")


def test_a_column_that_is_neither_0_nor_1():
    one = target(problem="multi_label", label=["a", "b"])
    rows = [{"a": "1", "b": "true"}, {"a": 0, "b": False}, {"a": "2", "b": 0}]
    assert one.read(given_rows(rows[:2]), "ab").values.tolist() == [[1, 1], [0, 0]]
    with pytest.raises(UserError, match="input: row 3 has '2' in a, which is neither 0 nor 1"):
        one.read(given_rows(rows), "ab")


def test_lists_of_labels_name_the_classes():
    source = rows_of([["b", "a"], [], ["c"]])
    one = target(problem="multi_label")
    assert one.names(source) == ("a", "b", "c")
    assert one.read(source, "abc").values.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]


def test_an_empty_cell_is_no_class():
    assert target().names(rows_of(["b", "", None, "a"])) == ("a", "b")


def test_a_weight_of_what_is_no_class():
    with pytest.raises(UserError, match=r"class_weights: 'gald' is no label\. Did you mean 'glad'"):
        target(class_weights={"gald": 2.0}).read(rows_of(["glad", "sad"]), NAMES)
