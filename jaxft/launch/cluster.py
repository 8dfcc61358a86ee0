"""Which process of how many this is, and where the first one listens. No jax until it is asked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from jaxft.errors import UserError

ADDRESS, COUNT, PROCESS = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
DEVICES = "JAX_LOCAL_DEVICE_IDS"
# Set for the process that a parent watches, to the file descriptor that ends when the parent does.
SUPERVISED = "JAXFT_SUPERVISED"
# Seconds that the first to start wait for the others.
JOIN, JOIN_SECONDS = "JAXFT_JOIN_SECONDS", 60.0
TPU_HOSTS = ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")
TPU_CHIPS = ("/dev/accel0", "/dev/vfio/0")


@dataclass(frozen=True)
class Cluster:
    """This process among those that train together.

    Attributes:
        address: host and port of process 0, where jax's coordination service listens.
        processes: how many there are.
        process: this one's number.
        devices: the local devices that it uses; None for all.
    """

    address: str
    processes: int
    process: int
    devices: tuple[int, ...] | None = None

    def environment(self) -> dict[str, str]:
        """The variables that say the same."""
        found = {ADDRESS: self.address, COUNT: str(self.processes), PROCESS: str(self.process)}
        return found | ({} if self.devices is None else {DEVICES: ",".join(map(str, self.devices))})


def find_cluster(
    address: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Cluster | None:
    """What this process was started as; None where it is alone.

    What is given goes first, then `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and
    `JAX_PROCESS_ID`, then what jax finds out: TPU metadata, SLURM, Open MPI, Kubernetes.

    Args:
        address: host and port of process 0.
        processes: how many there are.
        process: this one's number.
        environment: the variables.

    Raises:
        UserError: a part is missing or makes no sense, or the cluster does not tell its own.
    """
    address = address or environment.get(ADDRESS)
    processes = _number(COUNT, environment) if processes is None else processes
    process = _number(PROCESS, environment) if process is None else process
    devices = _devices(environment)
    given = (address, processes, process)
    if address is None or processes is None or process is None:
        if processes == 1:
            return None
        if _is_managed(environment):
            return _detected(address, processes, process, devices, environment)
        if any(part is not None for part in given):
            raise UserError(
                "Of several processes each needs the coordinator's address, their number and its "
                f"own, and here {_missing(*given)} is missing.",
                f"Give --coordinator, --processes and --process-id, or {ADDRESS}, {COUNT} and "
                f"{PROCESS}.",
            )
        return None
    return _checked(Cluster(address, processes, process, devices))


def join_seconds() -> float:
    """How long processes wait for each other to start: `JAXFT_JOIN_SECONDS`, or 60."""
    given = os.environ.get(JOIN, "")
    try:
        return max(float(given), 1.0) if given else JOIN_SECONDS
    except ValueError:
        raise UserError(f"{JOIN} is a number of seconds, not '{given}'.") from None


def _missing(address: str | None, processes: int | None, process: int | None) -> str:
    names = ("the address", "the number of processes", "this process's number")
    parts = (address, processes, process)
    return " and ".join(name for name, part in zip(names, parts, strict=True) if part is None)


def _checked(cluster: Cluster) -> Cluster | None:
    if cluster.processes < 1:
        raise UserError(f"The number of processes is at least 1, not {cluster.processes}.")
    if not 0 <= cluster.process < cluster.processes:
        raise UserError(
            f"Of {cluster.processes} processes none has the number {cluster.process}.",
            f"They are numbered from 0 to {cluster.processes - 1}.",
        )
    host, _, port = cluster.address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(
            f"The coordinator's address is HOST:PORT, not '{cluster.address}'.",
            "Such as 10.0.0.2:8476.",
        )
    return cluster if cluster.processes > 1 else None


def _number(name: str, environment: Mapping[str, str]) -> int | None:
    given = environment.get(name)
    if not given:
        return None
    if not given.isdecimal():
        raise UserError(f"{name} is a whole number, not '{given}'.")
    return int(given)


def _devices(environment: Mapping[str, str]) -> tuple[int, ...] | None:
    given = environment.get(DEVICES)
    if not given:
        return None
    parts = given.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise UserError(f"{DEVICES} is numbers with commas between, not '{given}'.")
    return tuple(map(int, parts))


def _is_managed(environment: Mapping[str, str]) -> bool:
    """Whether something is here that starts processes together, so that jax is worth asking."""
    if int(environment.get("SLURM_NTASKS") or 1) > 1 and "SLURM_PROCID" in environment:
        return True
    if int(environment.get("OMPI_COMM_WORLD_SIZE") or 1) > 1:
        return True
    if "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment:
        return True
    if environment.get("JAX_PLATFORMS") == "cpu" or "TPU_SKIP_MDS_QUERY" in environment:
        return False
    named = any("," in environment.get(name, "") for name in TPU_HOSTS)
    return named or any(map(os.path.exists, TPU_CHIPS))


def _detected(
    address: str | None,
    processes: int | None,
    process: int | None,
    devices: tuple[int, ...] | None,
    environment: Mapping[str, str],
) -> Cluster | None:
    """What jax finds out of what is not given."""
    # There is no public way to ask without connecting, which needs a parent first.
    from jax._src.clusters import ClusterEnv

    try:
        found = ClusterEnv.auto_detect_unset_distributed_params(
            address, processes, process, devices, None, int(join_seconds())
        )
    except Exception as error:  # whatever the metadata server or an API client says
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise UserError(
            f"This looks like one of several processes, and jax could not find the others: "
            f"{reason}.",
            "Name them with --coordinator, --processes and --process-id.",
        ) from error
    address, processes, process, local = found
    if address is None or processes is None or process is None:
        return None
    if devices is None and not _is_only_one_on_its_host(environment) and local is not None:
        devices = tuple(local)
    return _checked(Cluster(address, processes, process, devices))


def _is_only_one_on_its_host(environment: Mapping[str, str]) -> bool:
    """Whether it may take all devices: jax takes one alone under SLURM and Open MPI."""
    tasks, nodes = environment.get("SLURM_NTASKS"), environment.get("SLURM_STEP_NUM_NODES")
    return (tasks is not None and tasks == nodes) or (
        environment.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"
    )
