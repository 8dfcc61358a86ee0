"""Against overfitting and forgetting: label smoothing, the line to the start, the sentence."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import rel_entr

from jaxft.engine.initial_state import load_params
from jaxft.engine.setup import build, objective_of, outputs_of
from jaxft.errors import UserError
from jaxft.inference.score import between, shares_of
from jaxft.report.page.overfitting import overfitting
from jaxft.tasks.parts.classes.one import apart, logits_of, smoothed
from jaxft.tasks.text_classification.section import TextClassificationSection
from jaxft.tasks.text_classification.task import AGAIN
from jaxft.training.patience import patience_is_over
from tests.support.phases import phase_of
from tests.support.tiny import tiny_config


def test_smoothed_labels_are_optaxs():
    draw = np.random.default_rng(0)
    logits = jnp.asarray(draw.normal(size=(5, 3)), jnp.float32)
    labels = jnp.asarray([0, 2, 1, 1, 0])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    true = optax.smooth_labels(jnp.eye(3)[labels], 0.1)
    wanted = optax.softmax_cross_entropy(logits, true)
    np.testing.assert_allclose(smoothed(losses, logits, 0.1), wanted, rtol=1e-5)
    assert np.abs(wanted - losses).max() > 1e-2


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"label_smoothing": 0.1, "focal": 2.0}, "focal and label_smoothing do not combine"),
        (
            {"label_smoothing": 0.1, "problem": "multi_label"},
            "does not combine with problem: multi_label",
        ),
        ({"label_smoothing": 0.1, "problem": "regression"}, "no classes: remove label_smoothing"),
        ({"label_smoothing": 1.0}, "less than 1"),
    ],
)
def test_smoothing_is_refused_where_it_means_nothing(keys, said):
    with pytest.raises(ValueError, match=said):
        TextClassificationSection(kind="text_classification", **keys)


def test_two_predictions_lie_apart_by_both_divergences():
    draw = np.random.default_rng(0)
    one, other = (jnp.asarray(draw.normal(size=(2, 4, 3)), jnp.float32) for _ in range(2))
    p, q = (np.asarray(jax.nn.softmax(logits)) for logits in (one, other))
    wanted = (rel_entr(p, q).sum(-1) + rel_entr(q, p).sum(-1)) / 2
    np.testing.assert_allclose(apart(one, other), wanted, rtol=1e-4)
    np.testing.assert_array_equal(apart(one, one), 0)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A run with R-Drop, its parameters, and its first batch."""
    built = build(tiny_config(tmp_path_factory.mktemp("two"), task={"r_drop": 4.0}))
    examples = built.splits["train"].examples
    batch = examples.collate(built.plan.batch(0), built.layout.row_length)
    return built, load_params(built).params, batch


def test_r_drop_is_the_mean_loss_and_how_far_two_dropouts_lie_apart(two):
    built, params, batch = two
    key = jax.random.key(7)
    one, other = (
        outputs_of(built, built.compute)(params, batch, one)
        for one in (key, jax.random.fold_in(key, AGAIN))
    )
    assert not np.array_equal(one["logits"], other["logits"])
    (first, weight), (second, _) = (built.bound.loss(said, batch) for said in (one, other))
    different = (apart(*(logits_of(said, batch) for said in (one, other))) * batch["weights"]).sum()
    found, counted = objective_of(built, phase_of(built).compute)(params, batch, key)["loss"]
    assert float(found) == pytest.approx(float((first + second) / 2 + 2 * different), rel=1e-5)
    assert float(counted) == float(weight)
    plain = built.bound.loss(outputs_of(built, built.compute)(params, batch), batch)[0]
    assert float(
        objective_of(built, phase_of(built).compute)(params, batch, None)["loss"][0]
    ) == pytest.approx(float(plain))


def test_r_drop_is_refused_where_nothing_is_dropped(two):
    config = two[0].config
    model = config.model.model_copy(update={"dropout": 0.0})
    with pytest.raises(UserError) as refused:
        build(config.model_copy(update={"model": model}))
    assert "compares two dropouts of a text, and this model has no dropout" in str(refused.value)
    with pytest.raises(ValueError, match="r_drop needs problem: single_label"):
        TextClassificationSection(kind="text_classification", r_drop=1.0, problem="regression")


def test_nothing_stops_early_unless_asked(two):
    assert two[0].config.checkpoint.patience is None
    assert not patience_is_over([0.1, 0.2, 0.3, 0.4], None, lower_is_better=True)
    assert patience_is_over([0.1, 0.2, 0.3], 2, lower_is_better=True)
    assert not patience_is_over([0.1, 0.2, 0.05], 2, lower_is_better=True)


def test_the_line_from_start_to_end_has_both_ends_to_the_bit():
    draw = np.random.default_rng(0)
    start, end = ({"a": jnp.asarray(draw.normal(size=7), jnp.float32)} for _ in range(2))
    np.testing.assert_array_equal(between(start, end, 0.0)["a"], start["a"])
    np.testing.assert_array_equal(between(start, end, 1.0)["a"], end["a"])
    np.testing.assert_allclose(
        between(start, end, 0.25)["a"], start["a"] + 0.25 * (end["a"] - start["a"]), rtol=1e-5
    )


def test_shares_are_first_last_and_step():
    assert shares_of("0:1:0.1") == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert shares_of("0.5:0.5:1") == [0.5]
    assert shares_of("0:1:0.3") == [0.0, 0.3, 0.6, 0.9, 1.0]
    assert shares_of("0:1:5") == [0.0, 1.0]
    for written in ("0:1", "0:2:0.1", "1:0:0.1", "0:1:0", "a:b:c", "0:nan:1", "0:1:inf"):
        with pytest.raises(UserError, match="is not first:last:step"):
            shares_of(written)


def events(trained, scored):
    """Lines at every 5th step, an evaluation at every 10th."""
    lines = [{"kind": "train", "step": 5 * (i + 1), "loss": v} for i, v in enumerate(trained)]
    evals = [
        {"kind": "eval", "split": "eval", "step": 10 * (i + 1), "loss": v}
        for i, v in enumerate(scored)
    ]
    return [*lines, *evals, {"kind": "note", "step": 1, "text": "x"}]


def test_a_sentence_says_where_train_and_eval_part():
    (note,) = overfitting(events([0.9, 0.7, 0.5, 0.3, 0.2, 0.1], [0.8, 0.6, 0.9]))
    assert note["step"] == 20
    assert (
        "rises (0.600 to 0.900 at the end) while the train loss falls (0.400 to 0.150)"
        in (note["text"])
    )


@pytest.mark.parametrize(
    ("trained", "scored"),
    [
        ([0.9, 0.7, 0.5, 0.3], [0.8, 0.6]),  # both fall
        ([0.9, 0.7, 0.8, 0.9], [0.6, 0.8]),  # both rise: it diverges
        ([0.9, 0.7, 0.5, 0.3], [0.60, 0.61]),  # it wavers
        ([0.9, 0.7, 0.5, 0.3], [float("nan"), 0.6]),
        ([], [0.6, 0.9]),  # nothing is known of train
        ([0.9], []),
    ],
)
def test_no_sentence_where_they_do_not(trained, scored):
    assert overfitting(events(trained, scored)) == []
