"""What the rest of jaxft takes for granted of every task, and how its sums become scores."""

import numpy as np
import pytest

from jaxft.config.load import parse_config
from jaxft.config.tasks import task_sections
from jaxft.engine.evaluate import reduced
from jaxft.engine.setup import make_task
from jaxft.models.load import families
from jaxft.report.page.predictions.lines import EARLIER, LINES, view_of
from jaxft.tasks.parts.contract import BoundTask, Task
from jaxft.tasks.parts.metric import HIGHER, LOWER, Metric
from tests.data.test_bad_rows import CASES
from tests.support.bare_tools import bare_tools

HEADS = {
    head
    for model_type, family in families().items()
    for head in family.model_types[model_type]
    if head is not None
}


def task_of_kind(kind, **section):
    data = {"train": "csv:a.csv", "eval": "csv:b.csv"}
    given = {"run": {"name": "t"}, "model": {"checkpoint": "none"}, "data": data}
    return make_task(parse_config({**given, "task": {"kind": kind, **CASES[kind][0], **section}}))


@pytest.mark.parametrize("kind", task_sections())
def test_what_a_task_declares_fits_together(kind, tmp_path):
    task = task_of_kind(kind)
    assert isinstance(task, Task)
    assert task.kind == kind
    assert task.head is None or task.head in HEADS
    assert task.metrics["loss"].lower_is_better
    assert task.primary in task.metrics
    assert task.view is None or task.view in LINES
    assert set(task.input_columns or ()) <= set(task.columns)
    assert isinstance(task.bind(bare_tools(tmp_path), ("a", "b")), BoundTask)


@pytest.mark.parametrize(
    ("kind", "section", "lower"),
    [
        ("text_classification", {"problem": "regression"}, {"loss", "rmse"}),
        ("text_classification", {}, {"loss"}),
        ("masked_lm", {}, {"loss", "pseudo_perplexity"}),
        ("image_generation", {"features": "some/vit"}, {"loss", "bits_per_dimension"}),
        ("seq2seq", {}, {"loss"}),
    ],
)
def test_the_metrics_on_which_lower_is_better(kind, section, lower):
    metrics = task_of_kind(kind, **section).metrics
    own = {name for name, metric in metrics.items() if metric.lower_is_better}
    assert own == lower | ({"frechet_distance"} if "features" in section else set())


def mean_of_classes(total, weight):
    """The mean share of each class's rows that are on the diagonal."""
    assert weight == 3
    return float(np.mean(np.diag(total) / total.sum(1)))


def test_sums_over_a_split_may_be_arrays():
    metrics = {
        "loss": LOWER,
        "accuracy": HIGHER,
        "mean_recall": Metric(reduce=mean_of_classes, stream="confusion"),
    }
    one, two = np.float32(1), np.float32(2)
    batches = [
        {"loss": (two, two), "accuracy": (one, two), "confusion": (np.eye(2), two)},
        {"loss": (one, one), "accuracy": (one, one), "confusion": (np.ones((2, 2)), one)},
    ]
    scores = reduced(metrics, batches)
    assert scores == {"loss": 1.0, "accuracy": 2 / 3, "mean_recall": 2 / 3}
    assert reduced({}, [{"loss": (one, two)}]) == {"loss": 0.5}


def test_a_run_names_its_view_and_an_earlier_run_is_known_by_its_task():
    assert view_of({"view": "entities"}, {"kind": "what is new"}) == "entities"
    assert view_of({"view": None}, {"kind": "text_classification"}) is None
    assert view_of({"view": "of a later jaxft"}, {}) is None
    assert view_of({"labels": ["a", "b"]}, {"kind": "text_classification"}) == "single_label"
    assert view_of({}, {"kind": "image_classification", "problem": "multi_label"}) == "multi_label"
    assert view_of({"labels": []}, {"kind": "causal_lm"}) is None
    for kind, view in EARLIER.items():
        assert view_of({"labels": []}, {"kind": kind}) == task_of_kind(kind).view == view
