"""Runs on the workers of a Ray cluster: a config as a `JaxTrainer` of Ray Train.

Takes `pip install jaxft[ray]`. Each worker is one process of the run, as on several hosts.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Any

from jaxft.config.load import Config, parse_config
from jaxft.errors import UserError
from jaxft.launch.cluster import Cluster
from jaxft.training.story import train


def make_trainer(config: Config, scaling: Any, run: Any = None) -> Any:
    """Make the trainer of a run, whose `fit()` trains it on Ray's workers.

    A worker group that Ray starts again, after a failure (`ray.train.FailureConfig`), goes on from
    the run's last checkpoint. The `return_value` of the result has the run's final scores, under
    `metrics`, and its folder, under `folder`.

    Args:
        config: the run. `run.dir` must be a folder that every worker can access, or in a bucket.
        scaling: a `ray.train.ScalingConfig`: on TPUs with `use_tpu`, `topology` and
            `accelerator_type`, one worker for each host.
        run: a `ray.train.RunConfig`; None for Ray's own.

    Returns:
        A `ray.train.v2.jax.JaxTrainer`.

    Raises:
        UserError: Ray is not installed.
    """
    try:
        from ray.train.v2.jax import JaxTrainer
    except ImportError:
        raise UserError(
            "jaxft.integrations.ray needs Ray Train, which is not installed.",
            "pip install 'jaxft[ray]'",
        ) from None
    settings = {"config": config.dump()}
    return JaxTrainer(
        _train_here, train_loop_config=settings, scaling_config=scaling, run_config=run
    )


def _train_here(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Train as one of Ray's workers; return the final scores, and the run's folder."""
    import jax

    # Ray joins the processes of TPUs and GPUs before this, and none of a CPU.
    if not jax.distributed.is_initialized():
        os.environ.update(_cluster().environment())
    try:
        trained = train(parse_config(settings["config"]), resume=True, quiet=True)
    except UserError as error:  # which Ray could not copy to its driver
        raise RuntimeError(str(error)) from None
    return {"metrics": dict(trained.metrics), "folder": str(trained.folder)}


def _cluster() -> Cluster:
    """Return this worker's place among the workers; the first one's host coordinates them."""
    import ray.train
    import ray.util
    from ray.train.collective import broadcast_from_rank_zero

    context, address = ray.train.get_context(), None
    if context.get_world_rank() == 0:
        with socket.socket() as free:
            free.bind(("", 0))
            address = f"{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"
    address = broadcast_from_rank_zero(address)
    return Cluster(address, context.get_world_size(), context.get_world_rank())
