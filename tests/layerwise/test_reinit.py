"""Top blocks that begin anew: which parameters, as what, and that run and export hold them."""

import numpy as np
import pytest

import jaxft
from jaxft.engine.trained import open_trained
from jaxft.errors import UserError
from jaxft.inference.score import score
from jaxft.models import load as registry
from tests.support.launch import cache  # noqa: F401 a fixture
from tests.support.tiny import tiny_checkpoint, tiny_config


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(tiny_checkpoint(tmp_path_factory.mktemp("bert")))


def values(checkpoint, **options):
    model = registry.load(checkpoint, task="text_classification", num_labels=2, **options)
    return model, {name: np.asarray(value) for name, value in model.params.items()}


@pytest.mark.parametrize(("count", "first"), [(1, 1), (2, 0)])
def test_the_top_blocks_and_the_pooler_alone_begin_anew(checkpoint, count, first):
    _, read = values(checkpoint)
    model, anew = values(checkpoint, reinit=count)
    changed = {name for name in read if not np.array_equal(read[name], anew[name])}
    blocks = tuple(f"blocks/{index}/" for index in range(first, 2))
    assert changed == {name for name in read if name.startswith(("pooler/", *blocks))}
    assert changed | {"head/kernel", "head/bias"} == set(model.report.new)
    for name in changed:
        if name.endswith("kernel"):
            assert anew[name].std() == pytest.approx(0.02, rel=0.08), name
        else:
            assert (anew[name] == float(name.endswith("scale"))).all(), name


def test_what_is_drawn_is_of_the_seed(checkpoint):
    name = "blocks/1/mlp/up/kernel"
    first, same, other = (values(checkpoint, reinit=1, seed=seed)[1][name] for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)


def test_a_saved_model_has_what_was_drawn(checkpoint, tmp_path):
    model, anew = values(checkpoint, reinit=1)
    model.save(tmp_path / "out")
    _, again = values(str(tmp_path / "out"))
    for name, value in anew.items():
        np.testing.assert_array_equal(again[name], value, err_msg=name)


def test_more_blocks_than_there_are(checkpoint):
    with pytest.raises(UserError, match="cannot re-initialize 3 blocks of a model with 2"):
        registry.describe(checkpoint, registry.LoadOptions(reinit=3))


@pytest.mark.full
@pytest.mark.usefixtures("cache")
def test_a_run_holds_what_it_drew(tmp_path):
    """Where a block is new and frozen too: its values are in no step's checkpoint."""
    config = tiny_config(
        tmp_path,
        model={"reinit": 1},
        groups=[{"name": "top", "depth": [2, 2], "freeze": True}],
        train={"length": "3 steps"},
        run={"seed": {"init": 5}},
    )
    run = jaxft.train(config, quiet=True)
    assert score(run.folder)["metrics"] == pytest.approx(run.metrics, rel=1e-6)
    model = open_trained(run.folder).model
    _, drawn = values(str(tmp_path / "checkpoint"), reinit=1, seed=5)
    name = "blocks/1/mlp/up/kernel"
    np.testing.assert_array_equal(np.asarray(model.params[name]), drawn[name])
    start, end = (values_of["blocks/0/mlp/up/kernel"] for values_of in (drawn, model.params))
    assert not np.array_equal(start, np.asarray(end))
