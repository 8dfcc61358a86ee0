"""L2-SP in a run: what was pretrained stays nearer to where it began, what is new does not."""

import jax
import numpy as np
import pytest

import jaxft
from jaxft.engine.remat import phase_setups
from jaxft.engine.setup import build
from jaxft.engine.trained import open_trained
from jaxft.errors import UserError
from tests.support.tiny import tiny_checkpoint, tiny_config, tiny_reviews

NAME = "blocks/1/mlp/up/kernel"


def config(folder, pull):
    """Two phases, so that the second one's step and its origins are made on the way."""
    return tiny_config(
        folder,
        run={"name": f"pull-{pull}"},
        regularise={"l2_sp": pull},
        optimizer={"lr": 1e-2},
        phases=[{"until": "3 steps", "depth": [2, 3]}, {"until": "100%"}],
        train={"length": "8 steps"},
    )


@pytest.mark.slow
def test_a_run_stays_near_its_checkpoint(tmp_path):
    tiny_checkpoint(tmp_path / "checkpoint")
    tiny_reviews(tmp_path)
    ends = [
        open_trained(jaxft.train(config(tmp_path, pull), quiet=True).folder, "last").model.params
        for pull in (0.0, 50.0)
    ]
    start = jaxft.load(str(tmp_path / "checkpoint")).params
    free, pulled = (np.linalg.norm(np.asarray(end[NAME] - start[NAME])) for end in ends)
    assert 0 < pulled < 0.7 * free


def test_a_decay_of_nothing_is_refused(tmp_path):
    """Adapter and head are new."""
    adapted = tiny_config(tmp_path, adapter={"kind": "lora"}, regularise={"l2_sp": 0.1})
    setup = build(adapted, devices=jax.devices()[:1])
    with pytest.raises(UserError, match="it decays parameters towards the checkpoint's, and all"):
        phase_setups(setup)
