"""What a run that does not fit could change, and the largest batch that fits: by trying.

A try is a whole compilation: nothing here guesses whether a step fits, only what to try next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from jaxft.config.load import Config
from jaxft.engine.remat import ORDER
from jaxft.planning.step import Compiled, OutOfMemory

MOST_TRIES = 8
FURTHEST = 2**20  # examples beyond which nobody looks


@dataclass(frozen=True)
class Try:
    """A change that was tried.

    Attributes:
        change: config keys and their values, as they are typed: `train.remat=full`.
        fits: whether the compiler takes it.
        needs: bytes of a device that it takes; None where the compiler does not say.
        seconds: the least that an example takes; None where it does not fit, or no chip is known.
    """

    change: tuple[str, ...]
    fits: bool
    needs: int | None
    seconds: float | None = None


def remedies(config: Config, remat: str, devices: int, rows: int) -> Iterator[tuple[str, ...]]:
    """Changes that take less memory, the cheapest first; each as overrides of the config.

    Args:
        config: the run that does not fit.
        remat: what it computes again.
        devices: how many there are.
        rows: of a batch.
    """
    single = [*_remat(remat), *_shards(config, devices), *_parts(config, devices, rows)]
    yield from single
    first: dict[str, tuple[str, ...]] = {}
    for change in reversed(single):
        first[change[0].split("=")[0]] = change
    together = tuple(key for change in first.values() for key in change)
    if len(first) > 1:
        yield together
    for halved in _smaller(config, devices):
        yield halved
        if rest := tuple(key for key in together if "accumulate" not in key):
            yield (*rest, *halved)


def _remat(now: str) -> list[tuple[str, ...]]:
    """To keep less of each block for the way back."""
    return [(f"train.remat={name}",) for name in ORDER[ORDER.index(now) + 1 :]]


def _shards(config: Config, devices: int) -> list[tuple[str, ...]]:
    """A shard of the parameters on every device, where there are copies."""
    mesh = config.mesh
    if devices == 1 or mesh.layout == "auto" or mesh.fsdp in (-1, devices) or mesh.tensor != 1:
        return []
    return [("mesh.data=1", "mesh.fsdp=-1")]


def _parts(config: Config, devices: int, rows: int) -> list[tuple[str, ...]]:
    """Micro-batches, as long as each has a row for every device."""
    now = config.train.accumulate
    fitting = [now * times for times in (2, 8) if rows % (devices * now * times) == 0]
    return [(f"train.accumulate={parts}",) for parts in fitting]


def _smaller(config: Config, devices: int) -> list[tuple[str, ...]]:
    """Half the batch and an eighth of it, in whole rows for every device."""
    step = devices * config.train.accumulate
    sizes = [config.data.batch_size // times // step * step for times in (2, 8)]
    return [(f"data.batch_size={size}",) for size in dict.fromkeys(sizes) if size]


def try_remedies(
    changes: Iterator[tuple[str, ...]],
    attempt: Callable[[tuple[str, ...]], Try],
    enough: int = 2,
) -> list[Try]:
    """Tries of changes, best first: those that fit by time, then those that lack the least.

    Args:
        changes: what to try, in order.
        attempt: compiles the run under a change.
        enough: how many that fit end the search.
    """
    tried: list[Try] = []
    for change in changes:
        tried.append(attempt(change))
        if sum(one.fits for one in tried) == enough or len(tried) == MOST_TRIES:
            break
    return sorted(tried, key=_rank)


def _rank(one: Try) -> tuple[bool, float, int, float]:
    """By fit, by time of an example, by how much is changed, by what it takes."""
    most = float("inf")
    needs = most if one.needs is None else one.needs
    return not one.fits, one.seconds or 0.0, len(one.change), needs


def largest_batch(
    fits: Callable[[int], int | None], step: int, start: int, room: int | None
) -> tuple[int, int | None]:
    """The largest batch size that fits, by trying: it does, and `step` more does not.

    Memory grows nearly in a line with the batch, so two tries say where to try next; each guess
    is kept between the most that fit and the least that do not, which half the distance each time
    where the line misleads.

    Args:
        fits: batch size -> bytes that it takes where it fits, else None.
        step: what a batch size must be a multiple of.
        start: the batch size to try first.
        room: bytes that there are; None where that is not known.

    Returns:
        The largest that fits, and the least that was refused: `step` more; 0 where none fits, and
        None where nothing was refused.
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
    """Where to try next: on the line through the last two that fit, or half way."""
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
    """What came of compiling the run under a change."""
    if isinstance(outcome, OutOfMemory):
        return Try(tuple(change), False, outcome.needs)
    return Try(tuple(change), True, outcome.memory.peak, seconds)
