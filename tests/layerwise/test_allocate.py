"""Ranks of adapters by a criterion (`adapter.allocate`)."""

import json

import numpy as np
import pytest
import yaml

import jaxft
from jaxft.analysis.layer_criteria import ranks as module
from jaxft.analysis.layer_criteria.ranks import choose_ranks
from jaxft.config.load import parse_config
from jaxft.errors import UserError
from jaxft.layerwise.criteria.allocate import allocate_ranks
from jaxft.planning.plan import plan
from jaxft.report.terminal.console import EscapingConsole
from tests.support.tiny import tiny_config

QUIET = EscapingConsole(quiet=True)
SHAPES = dict.fromkeys("abcd", (32, 32))


def allocated(scores, rank=4, most=4.0, shapes=SHAPES):
    return allocate_ranks(dict(zip(shapes, scores, strict=True)), shapes, rank, most)


@pytest.mark.parametrize(
    ("scores", "most", "expected"),
    [
        ([1, 1, 1, 1], 4.0, [4, 4, 4, 4]),
        ([0, 0, 0, 0], 4.0, [4, 4, 4, 4]),
        ([1, 2, 2, 3], 4.0, [2, 4, 4, 6]),
        ([1, 1, 1, 100], 4.0, [1, 1, 1, 13]),
        ([1, 1, 1, 100], 2.0, [3, 3, 2, 8]),
        ([0, 1, 1, 2], 4.0, [1, 4, 4, 7]),
    ],
)
def test_ranks_are_in_proportion_to_scores(scores, most, expected):
    assert list(allocated(scores, most=most).values()) == expected


def test_a_rank_of_a_larger_matrix_costs_more():
    shapes = {"square": (16, 16), "wide": (16, 80)}
    ranks = allocated([1, 1], rank=8, shapes=shapes)
    assert ranks == {"square": 16, "wide": 5}  # a third of the parameters per rank
    assert 16 * 32 + 5 * 96 <= 8 * (32 + 96)


@pytest.mark.parametrize("seed", range(5))
def test_no_more_parameters_than_with_equal_ranks(seed):
    draw = np.random.default_rng(seed)
    shapes = {str(n): tuple(draw.integers(4, 60, 2).tolist()) for n in range(12)}
    ranks = allocated(draw.exponential(size=12) ** 3, rank=3, most=2.5, shapes=shapes)
    costs = {name: sum(shape) for name, shape in shapes.items()}
    budget = 3 * sum(costs.values())
    spent = sum(rank * costs[name] for name, rank in ranks.items())
    growing = [costs[n] for n, rank in ranks.items() if rank < min(7, *shapes[n])]
    assert min(ranks.values()) >= 1
    assert max(ranks.values()) <= 7
    assert budget - min(growing, default=0) < spent <= budget


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two steps whose ranks are chosen by the gradients of its first batches."""
    adapter = {"kind": "lora", "rank": 2, "match": [".*"], "allocate": {"batches": 2, "most": 3}}
    config = tiny_config(tmp_path_factory.mktemp("allocate"), adapter=adapter)
    section = {"length": "2 steps", "evaluate_every": "2 steps"}
    config = parse_config({**config.dump(), "train": section})
    return config, jaxft.train(config, quiet=True)


@pytest.mark.slow
def test_a_run_has_the_ranks_of_its_choice_and_its_config_has_them(run):
    config, trained = run
    written = yaml.safe_load((trained.folder / "config.yaml").read_text())["adapter"]["ranks"]
    assert written == choose_ranks(config, QUIET).adapter.ranks
    table = json.loads((trained.folder / "table.json").read_text())
    assert plan(config).table["groups"] == table["groups"]
    chosen = set(written.values())
    assert min(chosen) >= 1
    assert max(chosen) <= 6
    assert len(chosen) > 1


def test_a_resumed_run_takes_the_ranks_of_its_start(run, monkeypatch):
    config, trained = run
    monkeypatch.setattr(module, "measured_setup", None)  # nothing is measured
    longer = parse_config({**config.dump(), "train": {"length": "3 steps"}})
    before = yaml.safe_load((trained.folder / "config.yaml").read_text())["adapter"]
    jaxft.train(longer, resume=True, quiet=True)
    assert yaml.safe_load((trained.folder / "config.yaml").read_text())["adapter"] == before


def test_a_resumed_run_keeps_to_its_criterion(run):
    other = run[0].dump()
    other["adapter"]["allocate"]["by"] = "above_noise"
    with pytest.raises(UserError, match=r"adapter.allocate.by \(fisher -> above_noise\)"):
        jaxft.train(parse_config(other), resume=True, quiet=True)


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ({"kind": "bitfit", "allocate": {}}, "'allocate' applies to lora and dora only"),
        ({"kind": "lora", "allocate": {"by": "cosine"}}, "adapter.allocate.by"),
        ({"kind": "lora", "allocate": {"most": 0.5}}, "adapter.allocate.most"),
    ],
)
def test_bad_allocations_are_one_sentence(adapter, message, tmp_path):
    config = tiny_config(tmp_path).dump()
    with pytest.raises(UserError) as error:
        parse_config({**config, "adapter": adapter})
    assert message in str(error.value)
