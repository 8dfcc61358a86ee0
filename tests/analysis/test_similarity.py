"""T22: how alike two representations are, and what a run says of its depths."""

from types import SimpleNamespace

import numpy as np
import pytest

import jaxft
from jaxft.analysis.similarity import similarity
from jaxft.errors import UserError
from jaxft.inference.score import score
from jaxft.metrics.similarity import linear_cka
from jaxft.models.tower.tower import Tower
from tests.support.tiny import tiny_config

RANDOM = np.random.default_rng(0)
FEATURES = RANDOM.normal(size=(40, 12)) + 5


def by_definition(one: np.ndarray, other: np.ndarray) -> float:
    """The mean over all quadruples of different examples, as Song et al. define it."""
    mine, theirs = one @ one.T, other @ other.T

    def dependence(a, b):
        total, every = 0.0, range(len(a))
        quadruples = [
            (i, j, q, r)
            for i in every
            for j in every
            for q in every
            for r in every
            if len({i, j, q, r}) == 4
        ]
        for i, j, q, r in quadruples:
            total += a[i, j] * (b[i, j] + b[q, r] - 2 * b[i, q])
        return total / len(quadruples)

    scale = dependence(mine, mine) * dependence(theirs, theirs)
    return dependence(mine, theirs) / np.sqrt(scale)


def test_it_is_the_mean_over_quadruples():
    one, other = RANDOM.normal(size=(8, 3)), RANDOM.normal(size=(8, 5))
    other[:, :2] += one[:, :2]
    assert linear_cka(one, other) == pytest.approx(by_definition(one, other), abs=1e-9)


def test_turning_and_scaling_change_nothing_and_stretching_does():
    turned = np.linalg.qr(RANDOM.normal(size=(12, 12)))[0]
    assert linear_cka(FEATURES, FEATURES) == pytest.approx(1, abs=1e-12)
    assert linear_cka(FEATURES, 0.01 * FEATURES @ turned + 3) == pytest.approx(1, abs=1e-12)
    stretched = FEATURES * np.array([30.0] + [1.0] * 11)
    assert linear_cka(FEATURES, stretched) < 0.9


def test_what_has_nothing_in_common_is_near_zero_in_many_dimensions():
    """The biased estimate of these is 0.7."""
    one, other = (np.random.default_rng(seed).normal(size=(40, 100)) for seed in (1, 2))
    assert abs(linear_cka(one, other)) < 0.1


def test_what_tells_no_example_from_another_has_no_similarity():
    assert np.isnan(linear_cka(FEATURES, np.ones((40, 3))))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    groups = [{"name": "trunk", "depth": [0, 1], "freeze": True}]
    folder = tmp_path_factory.mktemp("similarity")
    train = {"length": "20 steps", "evaluate_every": "20 steps"}
    return jaxft.train(
        tiny_config(folder, groups=groups, train=train, optimizer={"lr": 3e-3}), quiet=True
    )


@pytest.mark.slow
def test_frozen_depths_say_what_they_said_and_the_others_moved(run):
    found = score(run.folder, "eval", similarity=True)["similarity"]
    assert found[:2] == pytest.approx([1, 1], abs=1e-9)
    assert len(found) == 3
    assert found[2] < 0.999


def test_too_few_rows_are_refused(run, tmp_path):
    rows = tmp_path / "few.csv"
    rows.write_text("text,label\na film,0\na plot,1\n")
    with pytest.raises(UserError, match="needs at least 4 examples"):
        score(run.folder, data=f"csv:{rows}", similarity=True)


def test_several_towers_have_no_depths_in_common():
    towers = {name: object.__new__(Tower) for name in ("vision", "text")}
    built = SimpleNamespace(model=SimpleNamespace(towers=towers))
    with pytest.raises(UserError, match="one tower; this model has vision, text"):
        similarity(built, {}, {}, SimpleNamespace(examples=range(9)))
