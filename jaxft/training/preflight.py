"""Check that all processes of a run agree, before anything is compiled.

A process that differs would not fail: it would wait for the others in a computation that they never
reach, or train on other rows. A single process has nothing to compare.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any

import jax

from jaxft.config.load import Config
from jaxft.device.distributed import compare, is_first, processes, start
from jaxft.engine.setup import Setup
from jaxft.report.trackers import check_trackers
from jaxft.runs.folder import run_path
from jaxft.storage.buckets import check_bucket

PACKAGES = ("jaxft", "jax", "jaxlib", "orbax-checkpoint")


def join_processes(config: Config, *, resume: bool, overwrite: bool) -> bool:
    """Join the run's processes; compare their versions, configs, flags and devices.

    Args:
        config: the run.
        resume, overwrite: the flags of the command.

    Returns:
        Whether this process is the first, which writes and prints for all.

    Raises:
        UserError: a process differs, or does not join within a minute; a tracker is not installed;
            or the bucket of the run's folder refuses access.
    """
    check_trackers(config.run.trackers)
    check_bucket(run_path(config.run.name, config.run.dir))
    start()
    _compare_start(config, {"resume": resume, "overwrite": overwrite})
    _compare_devices()
    return is_first()


def _compare_start(config: Config, flags: Mapping[str, bool]) -> None:
    """Compare versions and configs, before jax looks for devices."""
    compare(
        {f"the version of {name}": version(name) for name in PACKAGES},
        "Install the same versions on every host.",
    )
    compare(
        {f"--{name}": value for name, value in flags.items()} | dict(_flat(config.dump())),
        "Start every process with the same command.",
    )


def _compare_devices() -> None:
    if processes() == 1:
        return
    local = jax.local_devices()
    compare(
        {"devices": f"{len(local)} x {local[0].device_kind}"},
        "Give every process equally many devices of one kind, by JAX_LOCAL_DEVICE_IDS.",
    )


def compare_setup(setup: Setup) -> None:
    """Compare the data, the checkpoint and the batches.

    Args:
        setup: the run.

    Raises:
        UserError: a process differs.
    """
    prints = {
        f"the rows of data.{name}": split.source.fingerprint for name, split in setup.splits.items()
    }
    compare(prints, "Every host has to read the same data.", patient=True)
    source = setup.model.source
    compare({"model.checkpoint": source.sha256}, "Every host has to read the same checkpoint.")
    compare(
        {"the batches": vars(setup.layout), "the steps": vars(setup.length)},
        "Every host has to read the same data.",
    )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the keys of a config in dotted form, such as `optimizer.lr`."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
