"""Search for a variant that fits: changes that save memory, and the largest batch.

A try is a full compilation: nothing here estimates whether a step fits, only what to try next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from jaxft.config.load import Config
from jaxft.engine.remat import ORDER
from jaxft.models.tower.residuals import Remat
from jaxft.planning.step import Compiled, OutOfMemory

MOST_TRIES = 8
FURTHEST = 2**20  # examples at which the search for the largest batch ends


@dataclass(frozen=True)
class Try:
    """Result of compiling a run under a change.

    Attributes:
        change: config overrides, such as `train.remat=full`.
        fits: whether the compiler accepts it.
        needs: bytes that it takes on a device; None where the compiler does not say.
        seconds: the lower bound for an example; None where it does not fit or no chip is known.
    """

    change: tuple[str, ...]
    fits: bool
    needs: int | None
    seconds: float | None = None


def remedies(
    config: Config, remat: Remat, devices: int, rows: int, divisor: int
) -> Iterator[tuple[str, ...]]:
    """Yield changes that take less memory, the cheapest first, each as overrides.

    Args:
        config: the run that does not fit.
        remat: its resolved `train.remat`.
        devices: their number.
        rows: of a batch.
        divisor: the number of devices that rows are divided over: all but along `context` and
            `tensor`.
    """
    single = [*_remat(remat), *_shards(config, devices), *_parts(config, divisor, rows)]
    yield from single
    first: dict[str, tuple[str, ...]] = {}
    for change in reversed(single):
        first[change[0].split("=")[0]] = change
    together = tuple(key for change in first.values() for key in change)
    if len(first) > 1:
        yield together
    for halved in _smaller(config, divisor):
        yield halved
        if rest := tuple(key for key in together if "accumulate" not in key):
            yield (*rest, *halved)


def _remat(now: Remat) -> list[tuple[str, ...]]:
    """List the values of `train.remat` that save fewer activations; for named ones, all else."""
    fewer = ORDER[ORDER.index(now) + 1 :] if isinstance(now, str) else ORDER[-1:]
    return [(f"train.remat={name}",) for name in fewer]


def _shards(config: Config, devices: int) -> list[tuple[str, ...]]:
    """Shard the parameters over all devices of a slice, if they are replicated."""
    mesh = config.mesh
    if devices == 1 or mesh.layout == "auto" or mesh.fsdp in (-1, devices) or mesh.tensor != 1:
        return []
    return [(f"mesh.data={mesh.slices}", "mesh.fsdp=-1")]


def _parts(config: Config, divisor: int, rows: int) -> list[tuple[str, ...]]:
    """List numbers of micro-batches that leave a row for every device."""
    now = config.train.accumulate
    fitting = [now * times for times in (2, 8) if rows % (divisor * now * times) == 0]
    return [(f"train.accumulate={parts}",) for parts in fitting]


def _smaller(config: Config, divisor: int) -> list[tuple[str, ...]]:
    """Divide the batch by two and by eight, in whole rows for every device."""
    step = divisor * config.train.accumulate
    sizes = [config.data.batch_size // times // step * step for times in (2, 8)]
    return [(f"data.batch_size={size}",) for size in dict.fromkeys(sizes) if size]


def try_remedies(
    changes: Iterator[tuple[str, ...]],
    attempt: Callable[[tuple[str, ...]], Try],
    enough: int = 2,
) -> list[Try]:
    """Try changes; return those that fit by time, then the others by memory.

    Args:
        changes: in the order to try them.
        attempt: compiles the run under a change.
        enough: end the search after this many that fit.
    """
    tried: list[Try] = []
    for change in changes:
        tried.append(attempt(change))
        if sum(one.fits for one in tried) == enough or len(tried) == MOST_TRIES:
            break
    return sorted(tried, key=_rank)


def _rank(one: Try) -> tuple[bool, float, int, float]:
    """Rank by fit, time per example, number of changed keys, and memory."""
    most = float("inf")
    needs = most if one.needs is None else one.needs
    return not one.fits, one.seconds or 0.0, len(one.change), needs


def largest_batch(
    fits: Callable[[int], int | None], step: int, start: int, room: int | None
) -> tuple[int, int | None]:
    """Search for the largest batch size that fits, by trying.

    Memory grows almost linearly with the batch, so the next try extrapolates from the last two
    that fit. Every second try bisects instead, so that the search ends soon in any case.

    Args:
        fits: batch size -> bytes that it takes if it fits, else None.
        step: batch sizes must be a multiple of it.
        start: the batch size to try first.
        room: available bytes; None where that is unknown.

    Returns:
        The largest that fits, and the smallest that was refused, `step` more; 0 where none fits,
        and None where none was refused.
    """
    low, high = 0, None
    known: dict[int, int] = {}
    now, turn = max(start // step, 1), 0
    while high is None or high - low > 1:
        taken = fits(now * step)
        if taken is None:
            high = now
        else:
            known[now], low = taken, now
            if now * step >= FURTHEST:
                return low * step, None
        turn += 1
        now = _next(known, low, high, room, turn)
    return low * step, high * step


def _next(known: Mapping[int, int], low: int, high: int | None, room: int | None, turn: int) -> int:
    """Choose the next try: extrapolated from the last two that fit, or half way."""
    last = sorted(known)[-2:]
    guess = None
    if len(last) == 2 and room is not None:
        slope = (known[last[1]] - known[last[0]]) / (last[1] - last[0])
        guess = int(last[1] + (room - known[last[1]]) / slope) if slope > 0 else None
    if high is None:
        return max(low * 2, 1) if guess is None else max(min(guess, low * 16), low + 1)
    if guess is None or turn % 2 == 0:
        return (low + high) // 2
    return min(max(guess, low + 1), high - 1)


def as_try(
    change: Sequence[str], outcome: Compiled | OutOfMemory, seconds: float | None = None
) -> Try:
    """Make the `Try` of a compilation's outcome."""
    if isinstance(outcome, OutOfMemory):
        return Try(tuple(change), False, outcome.needs)
    return Try(tuple(change), True, outcome.memory.peak, seconds)
