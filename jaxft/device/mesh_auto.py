"""A layout for those who do not want to choose one: from model, batch and memory, with its why."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from jaxft.numbers import size

# Share of a device that parameters, gradients and moments may take: the rest is for activations.
MOST_STATE = 0.5

# Bytes of a parameter that trains: itself, its gradient and two moments, all float32.
TRAINED = 16

Sizes = tuple[int, int, int]


def state_bytes(
    sizes: Mapping[str, int], trained: Collection[str], narrow: int, copies: int = 0
) -> int:
    """Bytes of parameters, gradients and moments, and of copies of what trains.

    Args:
        sizes: parameter -> its numbers.
        trained: those that train.
        narrow: bytes of a number of the others.
        copies: how many more float32 copies there are of each that trains.
    """
    each = TRAINED + 4 * copies
    return sum(size * (each if name in trained else narrow) for name, size in sizes.items())


def choose_mesh(
    devices: int, batch: int, accumulate: int, state: int, room: int | None
) -> tuple[Sizes, str]:
    """The sizes of data, fsdp and tensor, and why they are so.

    Copies are quickest, since they send gradients only; shards send parameters too, and are cut as
    few ways as the state allows. Matrices are cut only where the batch has no rows for a device.

    Args:
        devices: how many there are.
        batch: examples a step.
        accumulate: parts that it is computed in.
        state: bytes of parameters, gradients and moments.
        room: bytes of a device; None where that is not known.
    """
    ways = [n for n in range(1, devices + 1) if devices % n == 0]
    shared = max(n for n in ways if batch % (n * accumulate) == 0 or n == 1)
    tensor = devices // shared
    why = []
    if tensor > 1:
        why.append(
            f"a batch of {batch} in {accumulate} part(s) has rows for {shared} of {devices} "
            f"devices, so tensor parallelism is {tensor}"
        )
    if room is None:
        why.append("the memory of a device is not known, so parameters are replicated")
        return (shared, 1, tensor), "; ".join(why)
    fitting = [n for n in ways if shared % n == 0 and state / (n * tensor) <= MOST_STATE * room]
    fsdp = min(fitting, default=shared)
    share = state // (fsdp * tensor)
    why.append(
        f"parameters, gradients and moments take {size(state)}, and {size(share)} of a device's "
        f"{size(room)}, " + ("replicated" if fsdp == 1 else f"sharded {fsdp} ways")
    )
    if not fitting:
        why.append("which is more than half of it: it may not fit")
    return (shared // fsdp, fsdp, tensor), "; ".join(why)
