"""Choices of blocks to train (`sampling`)."""

from collections import Counter

import numpy as np
import pytest

from jaxft.layerwise.sampling import Blocks, Choice, Sampling, choose_blocks, program_choice

SIX = Blocks("", tuple(f"blocks/{index}/" for index in range(6)))


def sampling(method: str, blocks: int = 2, order: str | None = None, **fields) -> Sampling:
    return Sampling(method, blocks, 10, order, False, fields.pop("seed", 0), **fields)


def periods(rule: Sampling, count: int, blocks: Blocks = SIX) -> list[tuple[int, ...]]:
    return [rule.choose(period, 0, blocks) for period in range(count)]


@pytest.mark.parametrize(
    ("order", "expected"),
    [("ascending", [(0, 1), (2, 3), (4, 5)]), ("descending", [(4, 5), (2, 3), (0, 1)])],
)
@pytest.mark.parametrize("method", ["badam", "hift"])
def test_blocks_take_turns(method, order, expected):
    assert periods(sampling(method, 2, order), 6) == expected * 2


def test_a_number_that_does_not_divide_repeats_the_last_block():
    assert periods(sampling("badam", 4, "ascending"), 3) == [
        (0, 1, 2, 3),
        (2, 3, 4, 5),
        (0, 1, 2, 3),
    ]


def test_random_turns_take_every_block_once_a_cycle():
    chosen = periods(sampling("badam", 2, "random"), 30)
    for cycle in range(10):
        own = chosen[3 * cycle : 3 * cycle + 3]
        assert sorted(index for turn in own for index in turn) == list(range(6))
    assert len(set(chosen)) > 6


def test_lisa_is_uniform_and_ows_follows_its_weights():
    chosen = periods(sampling("lisa"), 3000)
    counts = Counter(index for blocks in chosen for index in blocks)
    assert all(abs(counts[index] - 1000) < 100 for index in range(6))
    weights = dict(zip(SIX.names, (1, 1, 1, 1, 1, 5), strict=True))
    chosen = periods(sampling("ows", 1, weights=weights), 3000)
    counts = Counter(index for blocks in chosen for index in blocks)
    assert abs(counts[5] - 1500) < 120
    assert all(abs(counts[index] - 300) < 75 for index in range(5))


def test_choices_depend_on_seed_period_and_tower_alone():
    rule = sampling("lisa", 1)
    assert periods(rule, 50) == periods(rule, 50)
    assert periods(rule, 50) != periods(sampling("lisa", 1, seed=1), 50)
    towers = Blocks("vision/", SIX.names), Blocks("text/", SIX.names)
    both = [choose_blocks(rule, towers, period).of for period in range(50)]
    assert any(one[1] != other[1] for one, other in both)


def test_misa_prefers_linear_maps_with_large_gradients():
    maps = Blocks("", SIX.names, "attention/query")
    scores = {f"blocks/{index}/attention/query": 1.0 for index in range(5)}
    scores["blocks/5/attention/query"] = 7.0  # of a mean of 2: exp(3.5) to exp(0.5)
    rule = sampling("misa", 1)
    chosen = [rule.choose(period, 0, maps, scores)[0] for period in range(2000)]
    share = np.exp(3.5) / (np.exp(3.5) + 5 * np.exp(0.5))
    assert abs(np.mean(np.equal(chosen, 5)) - share) < 0.03


def test_names_of_a_choice_are_those_of_the_program():
    choice = Choice(((SIX, (1, 4)),))
    np.testing.assert_array_equal(choice.positions["blocks/order"], [2, 0, 3, 4, 1, 5])
    names = choice.names(["head/bias", *(f"blocks/{index}/norm/scale" for index in range(6))])
    assert "head/bias" not in names
    assert names["blocks/1/norm/scale"] == "blocks/0/norm/scale"
    assert names["blocks/4/norm/scale"] == "blocks/1/norm/scale"
    assert names["blocks/0/norm/scale"] == "blocks/2/norm/scale"
    assert sorted(names) == sorted(names.values())
    assert program_choice(choice).of == ((SIX, (0, 1)),)


def test_ten_blocks_are_not_one():
    blocks = Blocks("", tuple(f"blocks/{index}/" for index in range(12)))
    names = Choice(((blocks, (1,)),)).names(["blocks/1/bias", "blocks/11/bias"])
    assert names["blocks/1/bias"] == "blocks/0/bias"
    assert names["blocks/11/bias"] == "blocks/11/bias"


def test_linear_maps_are_stored_in_an_order_of_their_own():
    maps = Blocks("", SIX.names, "mlp/up")
    choice = Choice(((maps, (2,)), (Blocks("", SIX.names, "mlp/down"), (0,))))
    names = choice.names(
        ["blocks/2/mlp/up/kernel", "blocks/2/mlp/down/kernel", "blocks/2/norm/scale"]
    )
    assert names == {
        "blocks/2/mlp/up/kernel": "blocks/0/mlp/up/kernel",
        "blocks/2/mlp/down/kernel": "blocks/2/mlp/down/kernel",
    }
    assert choice.slots == {"blocks/2/mlp/up": 0, "blocks/0/mlp/down": 1}
