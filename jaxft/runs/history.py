"""Settings that changed when a run was resumed, and the steps that each value was used for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

# A value and the step that it was used up to; None where it is still the value.
Piece = tuple[Any, int | None]
WITHOUT_EFFECT = ("run.", "report.", "data.", "mesh.", "checkpoint.", "model.cache", "task.costs")


def affects_parameters(key: str) -> bool:
    """Return whether a config key that may change on resume affects what the steps compute.

    A mesh changes rounding only.
    """
    return not key.startswith(WITHOUT_EFFECT)


def setting_pieces(
    resumed: Sequence[Mapping[str, Any]], key: str, value: Any, last: int
) -> list[Piece]:
    """List the values that a config key had during training, in order.

    Args:
        resumed: `resumed` of run.json: each with the `step` that it continued from, and `changed`,
            from a key to its old and new value.
        key: dotted name of the key.
        value: its value in the config of the last start.
        last: steps trained.
    """
    changes: list[Piece] = []
    after = last
    for entry in reversed(resumed):
        # A start that was killed before it restored its state trained no step.
        after = entry.get("step", after)
        if key in entry.get("changed", {}):
            changes.append((entry["changed"][key][0], after))
    return used_pieces([*reversed(changes), (value, None)], last)


def used_pieces(pieces: Iterable[Piece], last: int) -> list[Piece]:
    """Leave out the values that no step was trained with.

    Args:
        pieces: values in the order in which they were set; a run may have gone back to an earlier
            step in between.
        last: steps trained.
    """
    clipped: list[tuple[Any, int]] = []
    limit = last
    for value, end in reversed(list(pieces)):
        limit = min(limit, last if end is None else end)
        clipped.append((value, limit))
    clipped.reverse()
    used: list[tuple[Any, int]] = []
    start = 0
    for value, stop in clipped:
        if stop > start:
            if used and used[-1][0] == value:
                used.pop()
            used.append((value, stop))
        start = stop
    used = used or clipped[-1:]
    return [*used[:-1], (used[-1][0], None)]


def pieces_text(pieces: Sequence[Piece]) -> str:
    """Describe values over steps: `5e-5 to step 38, 1e-3 after`, or the only value."""
    *earlier, (final, _) = pieces
    texts = [f"{value} to step {stop:,}" for value, stop in earlier]
    return ", ".join([*texts, f"{final} after" if earlier else str(final)])


def group_pieces(
    table: Mapping[str, Any],
    group: Mapping[str, Any],
    text: Callable[[Mapping[str, Any]], str],
    last: int,
) -> list[Piece]:
    """List a group's peak rates during training, in order.

    Args:
        table: content of table.json; `earlier` holds the groups of before each resume that
            changed them, and the step that they were used up to.
        group: the group's entry of the last start.
        text: formats a group's entry.
        last: steps trained.
    """
    before = [
        (text(one), entry["stop"])
        for entry in table.get("earlier", ())
        for one in entry["groups"]
        if one["name"] == group["name"]
    ]
    return used_pieces([*before, (text(group), None)], last)
