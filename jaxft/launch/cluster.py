"""The number of this process among those of the run, and the address of the first one."""

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
    """A process among those that train together.

    Attributes:
        address: host and port of process 0, where jax's coordination service listens.
        processes: the number of processes.
        process: the number of this one.
        devices: the local devices that it uses; None for all.
    """

    address: str
    processes: int
    process: int
    devices: tuple[int, ...] | None = None

    def environment(self) -> dict[str, str]:
        """Return the environment variables that describe this cluster."""
        variables = {ADDRESS: self.address, COUNT: str(self.processes), PROCESS: str(self.process)}
        return variables | (
            {} if self.devices is None else {DEVICES: ",".join(map(str, self.devices))}
        )


def find_cluster(
    address: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Cluster | None:
    """Return this process's place among those of the run; None for a single process.

    Arguments come first, then `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and
    `JAX_PROCESS_ID`, then what jax detects: TPU metadata, SLURM, Open MPI, Kubernetes.

    Args:
        address: host and port of process 0.
        processes: the number of processes.
        process: the number of this one.
        environment: the environment variables.

    Raises:
        UserError: a part is missing or invalid, or detection fails.
    """
    address = address or environment.get(ADDRESS)
    processes = _number(COUNT, environment) if processes is None else processes
    process = _number(PROCESS, environment) if process is None else process
    devices = _devices(environment)
    parts = (address, processes, process)
    if address is None or processes is None or process is None:
        if processes == 1:
            return None
        if _is_managed(environment):
            return _detected(address, processes, process, devices, environment)
        if any(part is not None for part in parts):
            raise UserError(
                "A run of several processes needs the coordinator's address, the number of "
                f"processes and the number of this one; {_missing(*parts)} is missing.",
                f"Set --coordinator, --processes and --process-id, or {ADDRESS}, {COUNT} and "
                f"{PROCESS}.",
            )
        return None
    return _checked(Cluster(address, processes, process, devices))


def join_seconds() -> float:
    """Return how many seconds processes wait for each other: `JAXFT_JOIN_SECONDS` or 60."""
    text = os.environ.get(JOIN, "")
    try:
        return max(float(text), 1.0) if text else JOIN_SECONDS
    except ValueError:
        raise UserError(f"{JOIN} must be a number of seconds, not '{text}'.") from None


def _missing(address: str | None, processes: int | None, process: int | None) -> str:
    names = ("the address", "the number of processes", "this process's number")
    parts = (address, processes, process)
    return " and ".join(name for name, part in zip(names, parts, strict=True) if part is None)


def _checked(cluster: Cluster) -> Cluster | None:
    if cluster.processes < 1:
        raise UserError(f"The number of processes must be at least 1, not {cluster.processes}.")
    if not 0 <= cluster.process < cluster.processes:
        raise UserError(
            f"There is no process {cluster.process} among {cluster.processes} processes.",
            f"They are numbered from 0 to {cluster.processes - 1}.",
        )
    host, _, port = cluster.address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(
            f"The coordinator's address must be HOST:PORT, not '{cluster.address}'.",
            "For example 10.0.0.2:8476.",
        )
    return cluster if cluster.processes > 1 else None


def _number(name: str, environment: Mapping[str, str]) -> int | None:
    text = environment.get(name)
    if not text:
        return None
    if not text.isdecimal():
        raise UserError(f"{name} must be a whole number, not '{text}'.")
    return int(text)


def _devices(environment: Mapping[str, str]) -> tuple[int, ...] | None:
    text = environment.get(DEVICES)
    if not text:
        return None
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise UserError(f"{DEVICES} must be numbers separated by commas, not '{text}'.")
    return tuple(map(int, parts))


def _is_managed(environment: Mapping[str, str]) -> bool:
    """Return whether a launcher of several processes is present, so that jax can detect them."""
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
    """Return the cluster with its missing parts as jax detects them."""
    # There is no public way to ask without connecting, which needs a parent first.
    from jax._src.clusters import ClusterEnv

    try:
        detected = ClusterEnv.auto_detect_unset_distributed_params(
            address, processes, process, devices, None, int(join_seconds())
        )
    except Exception as error:  # whatever the metadata server or an API client says
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise UserError(
            f"This looks like one of several processes, but jax could not find the others: "
            f"{reason}.",
            "Name them with --coordinator, --processes and --process-id.",
        ) from error
    address, processes, process, local = detected
    if address is None or processes is None or process is None:
        return None
    if devices is None and not _is_only_one_on_its_host(environment) and local is not None:
        devices = tuple(local)
    return _checked(Cluster(address, processes, process, devices))


def _is_only_one_on_its_host(environment: Mapping[str, str]) -> bool:
    """Return whether it may use all devices: under SLURM and Open MPI jax takes only one."""
    tasks, nodes = environment.get("SLURM_NTASKS"), environment.get("SLURM_STEP_NUM_NODES")
    return (tasks is not None and tasks == nodes) or (
        environment.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"
    )
