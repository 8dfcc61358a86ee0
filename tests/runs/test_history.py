"""The values that a setting had during a resumed run, and the steps that each was used for."""

import pytest

from jaxft.runs.history import pieces_text, setting_pieces, used_pieces
from jaxft.training.resume import with_earlier_groups, with_earlier_rates


def test_a_value_that_trained_no_step_is_left_out():
    assert used_pieces([("a", 38), ("b", 38), ("c", None)], 60) == [("a", 38), ("c", None)]
    assert used_pieces([("a", 114), ("b", None)], 114) == [("a", None)]
    assert used_pieces([("a", 38), ("b", None)], 20) == [("a", None)]  # an earlier checkpoint
    assert used_pieces([("a", 0), ("b", None)], 10) == [("b", None)]
    assert used_pieces([("a", None)], 0) == [("a", None)]


def test_a_run_that_went_back_drops_what_it_abandoned():
    assert used_pieces([("a", 38), ("b", 30), ("c", None)], 60) == [("a", 30), ("c", None)]
    assert used_pieces([("a", 10), ("b", 20), ("a", None)], 30) == [
        ("a", 10),
        ("b", 20),
        ("a", None),
    ]
    assert used_pieces([("a", 10), ("b", 10), ("a", None)], 30) == [("a", None)]


def test_a_start_that_was_killed_before_its_first_step_counts_with_the_next():
    resumed = [
        {"changed": {"optimizer.lr": [5e-5, 1e-3]}},
        {"step": 38},
        {"step": 60, "changed": {"optimizer.lr": [1e-3, 2e-3]}},
    ]
    pieces = setting_pieces(resumed, "optimizer.lr", 2e-3, 100)
    assert pieces == [(5e-5, 38), (1e-3, 60), (2e-3, None)]
    assert pieces_text(pieces) == "5e-05 to step 38, 0.001 to step 60, 0.002 after"
    assert setting_pieces(resumed, "schedule.kind", "linear", 100) == [("linear", None)]


def test_the_rates_of_before_a_resume_stay():
    before = {"groups": ["rest"], "steps": [0, 2, 4], "rates": [[1.0], [2.0], [3.0]]}
    before |= {"depths": [0], "by_depth": [[1.0], [2.0], [3.0]]}
    now = {"groups": ["head", "rest"], "steps": [0, 1, 2, 3], "depths": [0, 1]}
    now |= {"rates": [[9.0, 8.0]] * 4, "by_depth": [[9.0, 8.0]] * 4}
    merged = with_earlier_rates(now, before, 2)
    assert merged["steps"] == [0, 2, 3]
    assert merged["rates"] == [[0.0, 1.0], [9.0, 8.0], [9.0, 8.0]]
    assert merged["by_depth"] == [[1.0, 0.0], [9.0, 8.0], [9.0, 8.0]]
    del before["by_depth"]
    assert "by_depth" not in with_earlier_rates(now, before, 2)


@pytest.mark.parametrize(("rate", "count"), [(1.0, 0), (2.0, 1)])
def test_groups_are_kept_where_a_resume_changes_them(rate, count):
    before, now = ({"groups": [{"name": "rest", "peak_rate": one}]} for one in (1.0, rate))
    assert len(with_earlier_groups(now, before, 5).get("earlier", [])) == count
