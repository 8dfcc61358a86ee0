"""Hostile inputs by name: each ends as it says, in one process with bounded memory."""

import pytest

from tests.faults.judge import SECONDS, in_own_process


@pytest.mark.slow
def test_each_input_ends_as_it_says(tmp_path):
    counts = in_own_process("tests.faults.corpus", tmp_path)
    assert not counts.others, counts.lines()
    assert counts.tried == 38
    assert sum(counts.refused.values()) == 31
    assert counts.slowest[0] < SECONDS
