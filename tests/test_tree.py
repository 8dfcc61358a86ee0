"""Patterns that select among names: those of Python's `re`, with bounds on length and time."""

import pytest

from jaxft.bounds import MOST_PATTERN_CHARACTERS
from jaxft.errors import UserError
from jaxft.tree import matches_of, natural_order, select

NAMES = [f"blocks/{number}/attention/query/kernel" for number in range(12)]
ENDLESS = r"(?:(.|.)+)+[^a-z/0-9]"  # tries 2^36 divisions of a name


def test_each_pattern_selects_its_own_names():
    assert matches_of([r"blocks/[01]/.*", r"blocks/(?!1).*", "blocks"], NAMES, "key") == [
        NAMES[:2],
        [NAMES[0], *NAMES[2:10]],
        [],
    ]


def test_a_pattern_that_takes_exponential_time(monkeypatch):
    monkeypatch.setattr("jaxft.tree.MOST_PATTERN_SECONDS", 0.05)
    with pytest.raises(UserError, match=r"groups\[0\].match: the pattern .* takes more than 0.05"):
        select(ENDLESS, NAMES, "groups[0].match")


@pytest.mark.parametrize("pattern", ["(", "[", "*", "(?P<1>x)", "(" * 400 + ")" * 400, "x{9,1}"])
def test_a_pattern_of_no_meaning_is_refused_or_matches_nothing(pattern):
    with pytest.raises(UserError, match=r"key: (the pattern )?'.*"):
        select(pattern, NAMES, "key")


def test_a_pattern_that_is_too_long():
    with pytest.raises(UserError, match="is longer than 1,000 characters"):
        matches_of(["x" * (MOST_PATTERN_CHARACTERS + 1)], NAMES, "key")


def test_numbers_in_names_are_in_order_and_very_long_ones_are_text():
    names = ["blocks/10", "blocks/2", "blocks/" + "9" * 5000, "blocks/²", "head"]
    assert natural_order(names)[:2] == ["blocks/2", "blocks/10"]
    assert sorted(natural_order(names)) == sorted(names)
