"""Plans: every example once an epoch, in full rows, as a pure function of seed and lengths."""

import pickle

import numpy as np
import pytest

from jaxft.data.batching.eval_plans import plan_eval
from jaxft.data.batching.packing import best_fit
from jaxft.data.batching.plans import TrainPlan, plan_epoch, plan_rows
from jaxft.data.sources.open import open_source
from jaxft.data.text.tokenizer import load_tokenizer
from jaxft.errors import UserError


def review_like(count, seed=0):
    """Lengths spread as those of short reviews: mean 27, longest 78."""
    random = np.random.default_rng(seed)
    return np.clip(random.gamma(5, 5.4, count).round() + 2, 3, 78).astype(np.int64)


def tokens_in_rows(index, lengths):
    """Tokens of each row: `[..., rows]`."""
    return np.where(index >= 0, lengths[np.maximum(index, 0)], 0).sum(-1)


SHAPES = [(2000, 9, 96, 9), (500, 8, 96, 3), (301, 7, 128, 16), (100, 32, 96, 1), (5, 4, 96, 4)]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("count", "rows", "row_length", "segments"), SHAPES)
def test_an_epoch_holds_every_example_once_in_rows_that_fit(
    count, rows, row_length, segments, seed
):
    lengths = review_like(count, seed)
    shape = {"rows": rows, "row_length": row_length, "segments": segments}
    for epoch in range(3):
        index = plan_epoch(lengths, seed=seed, epoch=epoch, **shape)
        assert index.dtype == np.int32
        assert index.shape[1:] == (rows, segments)
        assert np.array_equal(np.sort(index[index >= 0]), np.arange(count))
        assert tokens_in_rows(index, lengths).max() <= row_length
        full_rows = (index >= 0).any(-1).sum(-1)  # [batches]
        assert full_rows.max() - full_rows.min() <= 1
        # Segments fill a row from its start.
        assert not np.any((index[..., 1:] >= 0) & (index[..., :-1] < 0))


@pytest.mark.parametrize("seed", range(4))
def test_less_than_three_in_a_hundred_positions_are_padding(seed):
    layout = plan_rows(review_like(7677, seed), 32, None, True, 1)
    assert layout.row_length == 96
    assert layout.segments <= 16
    assert layout.padding < 0.03
    assert 24 < layout.examples_per_step < 40


def test_less_than_three_in_a_hundred_on_the_reviews(reviews, minilm):
    source = open_source(f"csv:{reviews / 'train.csv'}")
    texts = [row["text"] for row in source.rows(range(len(source)))]
    ids = load_tokenizer(minilm).encode(texts, max_length=128).ids
    lengths = np.array([len(row) for row in ids])
    layout = plan_rows(lengths, 32, None, True, 1)
    assert layout.padding < 0.015
    plan = TrainPlan(lengths, 0, layout.rows, layout.row_length, layout.segments)
    for epoch in range(2):
        index = plan.epoch(epoch)
        assert lengths[index[index >= 0]].sum() / (index[..., 0].size * layout.row_length) > 0.985


def test_best_fit_is_near_the_fewest_rows_there_can_be():
    for seed in range(5):
        lengths = review_like(3000, seed)
        _, filled = best_fit(lengths, 96, 64)
        assert filled <= 1.015 * lengths.sum() / 96
    # 6 + 2 + 2, 5 + 5, 4 + 4: the tightest row is chosen, not the first
    assert best_fit(np.array([6, 5, 5, 4, 4, 2, 2]), 10, 3)[1] == 3


def test_the_plan_is_a_pure_function_that_seed_and_epoch_turn():
    lengths = np.arange(400) % 40 + 5
    plan, again, other = (TrainPlan(lengths, seed, 8, 96, 8) for seed in (3, 3, 4))
    assert np.array_equal(plan.epoch(2), again.epoch(2))
    assert not np.array_equal(plan.epoch(2), plan.epoch(1))
    assert not np.array_equal(plan.epoch(2), other.epoch(2))
    # Pinned: a run must resume in another version of numpy.
    assert plan.epoch(2)[0, 0].tolist() == [231, 311, 59, -1, -1, -1, -1, -1]


def test_examples_of_one_length_meet_other_companions_each_epoch():
    lengths = np.full(400, 24)
    plan = TrainPlan(lengths, 0, 10, 96, 4)

    def pairs(epoch):
        rows = np.sort(plan.epoch(epoch).reshape(-1, 4), axis=-1)
        return {(row[i], row[j]) for row in rows for i in range(4) for j in range(i)}

    assert len(pairs(0) & pairs(1)) < 0.1 * len(pairs(0))


def test_a_step_needs_no_step_before_it():
    plan = TrainPlan(review_like(300), 0, 8, 96, 8)
    per_epoch = plan.steps_per_epoch
    whole = np.concatenate([plan.epoch(epoch) for epoch in range(4)])
    fresh = pickle.loads(pickle.dumps(plan))
    for step in [3 * per_epoch, 0, 2 * per_epoch - 1, 2 * per_epoch, 1, 4 * per_epoch - 1]:
        assert np.array_equal(fresh.batch(step), whole[step])
        assert fresh.row_length_at(step) == 96
    assert plan.steps(3) == 3 * per_epoch
    assert plan.steps(0.5) == round(per_epoch / 2)
    assert plan.epoch_of(3 * per_epoch) == 3.0
    positions = per_epoch * 8 * 96
    assert plan.fill == pytest.approx(plan.lengths.sum() / positions)


def test_a_pickled_plan_carries_no_epochs():
    plan = TrainPlan(review_like(300), 0, 8, 96, 8)
    before = len(pickle.dumps(plan))
    for step in range(0, 5 * plan.steps_per_epoch, plan.steps_per_epoch):
        plan.batch(step)
    assert len(pickle.dumps(plan)) == before


@pytest.mark.parametrize("divide_by", [1, 2, 4, 8])
@pytest.mark.parametrize("batch_size", [32, 64, 256])
def test_a_step_sees_batch_size_examples_and_divides(batch_size, divide_by):
    layout = plan_rows(review_like(5000), batch_size, None, True, divide_by)
    assert layout.rows % divide_by == 0
    assert 2 / 3 <= layout.examples_per_step / batch_size <= 4 / 3 + 0.01


def test_where_rows_are_many_they_hold_fewer_examples():
    layout = plan_rows(review_like(5000), 32, None, True, 32)  # 9 full rows would do
    assert (layout.rows, layout.segments) == (32, 1)
    assert layout.examples_per_step <= 32
    half = plan_rows(review_like(5000), 32, None, True, 16)
    assert (half.rows, half.segments) == (16, 2)
    assert half.examples_per_step <= 32


def test_without_packing_a_row_is_an_example():
    lengths = np.append(review_like(99), 78)
    layout = plan_rows(lengths, 32, None, False, 8)
    assert (layout.rows, layout.row_length, layout.segments) == (32, 96, 1)
    assert layout.examples_per_step == 25.0  # 100 examples in 4 steps
    assert layout.padding == pytest.approx(1 - lengths.sum() / (4 * 32 * 96))


@pytest.mark.parametrize(
    ("lengths", "options", "said"),
    [
        ([5, 70], (32, 64, True, 1), "data.row_length 64 is shorter than the longest example (70"),
        ([5, 6], (12, None, False, 8), "data.batch_size 12 does not divide over 8"),
        ([5, 6], (4, None, True, 8), "data.batch_size 4 does not divide over 8"),
        ([5, 0], (4, None, True, 1), "Example 1 has no tokens"),
    ],
)
def test_a_layout_that_cannot_be_is_one_sentence(lengths, options, said):
    with pytest.raises(UserError) as caught:
        plan_rows(np.array(lengths), *options)
    assert said in str(caught.value)


def seen(plan):
    index = np.concatenate([plan.batch(step).reshape(-1) for step in range(len(plan))])
    return np.sort(index[index >= 0])


@pytest.mark.parametrize("segments", [None, 1, 8])
@pytest.mark.parametrize("count", [1, 15, 16, 17, 853])
def test_an_evaluation_sees_every_example_once(count, segments):
    lengths = review_like(count)
    plan = plan_eval(lengths, 16, 96, segments)
    assert np.array_equal(seen(plan), np.arange(count))
    tokens = positions = 0
    for step in range(len(plan)):
        index, row_length = plan.batch(step), plan.row_length_at(step)
        assert index.shape == (16, segments or 1)
        assert tokens_in_rows(index, lengths).max() <= row_length <= 96
        tokens += tokens_in_rows(index, lengths).sum()
        positions += 16 * row_length
    assert plan.fill == pytest.approx(tokens / positions)


def shapes(plan):
    return {plan.row_length_at(step) for step in range(len(plan))}


def test_a_packed_evaluation_compiles_one_shape():
    lengths = review_like(853)
    plan = plan_eval(lengths, 16, 96, 8)
    assert shapes(plan) == {96}
    assert plan.fill > 0.9
    lengths[0] = 101  # longer than any training example
    assert shapes(plan_eval(lengths, 16, 96, 8)) == {128}


def test_an_unpacked_evaluation_takes_few_lengths_and_wastes_little():
    assert len(shapes(plan_eval(np.full(64, 40), 16, 64, None))) == 1
    for seed in range(3):
        plan = plan_eval(review_like(8000, seed), 16, 96, None)
        assert 1 < len(shapes(plan)) <= 6
        assert plan.fill >= 0.85
    # A longest length that no bucket step meets ends at the row's length.
    assert max(shapes(plan_eval(np.array([3, 90, 90, 90]), 1, 92, None))) == 92


def test_the_lengths_are_as_few_as_will_do_and_the_best_of_that_number():
    lengths = np.array([8] * 40 + [16] * 8 + [24] * 40 + [32] * 4)
    plan = plan_eval(lengths, 4, 32, None)
    # 8 and 24 are many, so their buckets end there: 40 x 8 + 48 x 24 + 4 x 32 positions
    assert shapes(plan) == {8, 24, 32}
