"""A run on the workers of a local Ray: the scores of one process, and a sentence without Ray."""

import os
import sys
from pathlib import Path

import pytest

import jaxft
from jaxft.errors import UserError
from jaxft.integrations.ray import make_trainer
from tests.support.laid_out import with_sections
from tests.support.launch import cache  # noqa: F401 a fixture
from tests.support.tiny import tiny_config
from tests.support.xla import xla_flags

ROOT = Path(__file__).parent.parent.parent


def config_of(folder):
    return tiny_config(
        folder,
        data={"pack": False},
        train={"length": "4 steps", "evaluate_every": "4 steps"},
    )


def test_without_ray_there_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray.train.v2.jax", None)
    with pytest.raises(UserError, match=r"needs Ray Train, which is not installed\. pip install"):
        make_trainer(config_of(tmp_path), None)


@pytest.mark.full  # Ray's own processes take a minute to start and end
@pytest.mark.filterwarnings("default")  # Ray's own
@pytest.mark.usefixtures("cache")
def test_two_workers_of_a_local_ray_train_as_one_process(tmp_path, tmp_path_factory, monkeypatch):
    ray, of_training = pytest.importorskip("ray"), pytest.importorskip("ray.train")
    config = config_of(tmp_path)
    alone = jaxft.train(with_sections(config, {"run": {"name": "alone"}}), quiet=True)
    variables = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": xla_flags(4),  # two workers have the eight devices of one process
        "JAXFT_CACHE": os.environ["JAXFT_CACHE"],
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
    }
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # writes no file into the home folder
    ray.init(
        num_cpus=2,
        _temp_dir=str(tmp_path_factory.mktemp("r")),
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": variables},
    )
    try:
        scaling = of_training.ScalingConfig(num_workers=2)
        run = of_training.RunConfig(name="tiny", storage_path=str(tmp_path / "ray"))
        result = make_trainer(config, scaling, run).fit()
        assert result.error is None
        assert result.return_value["folder"] == str(tmp_path / "runs" / "tiny")
        assert result.return_value["metrics"] == pytest.approx(dict(alone.metrics), rel=1e-4)
        wrong = with_sections(config, {"run": {"name": "wrong"}, "data": {"batch_size": 9}})
        with pytest.raises(Exception, match="does not divide over 8"):
            make_trainer(wrong, scaling, run).fit()
    finally:
        ray.shutdown()
