"""Parameters as one flat dict, `name -> array`, and the patterns that select among its names.

A name is a path joined by `/`, such as `blocks/3/attention/query/kernel`. Nothing else in jaxft
walks a nested tree of parameters.

Patterns are regular expressions in the syntax of Python's `re`, and run in the library `regex`,
which has a time limit: `((.*)*)*x` takes time exponential in the length of a name. RE2 takes linear
time, but has no look-ahead, with which patterns exclude names.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import regex

from jaxft.bounds import MOST_PATTERN_CHARACTERS, MOST_PATTERN_SECONDS
from jaxft.errors import UserError, nearest

Leaf = TypeVar("Leaf")


MOST_DIGITS = 18  # of a number in a name; a longer one is text


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Return a sort key under which `blocks/2` comes before `blocks/10`."""
    parts = name.split("/")
    return tuple((0, int(part), "") if _is_number(part) else (1, 0, part) for part in parts)


def _is_number(part: str) -> bool:
    return part.isascii() and part.isdigit() and len(part) <= MOST_DIGITS


def natural_order(names: Iterable[str]) -> list[str]:
    """Return names sorted so that numbers in a path count as numbers."""
    return sorted(names, key=natural_key)


def select(pattern: str, names: Sequence[str], where: str) -> list[str]:
    """Return the names that `pattern` (a regular expression) matches completely.

    Args:
        pattern: a regular expression, matched against the whole name.
        names: the parameter names to choose from.
        where: the config key of the pattern, for the error.

    Raises:
        UserError: the pattern matches nothing, or is refused by `matches_of`.
    """
    (matches,) = matches_of([pattern], names, where)
    if not matches:
        close = nearest(pattern.replace(".*", ""), names, 3) or list(names[:3])
        raise UserError(
            f"{where}: the pattern '{pattern}' matches no parameter.",
            f"Nearest names: {', '.join(close)}.",
        )
    return matches


def matches_of(patterns: Sequence[str], names: Iterable[str], where: str) -> list[list[str]]:
    """Return the names that each of some patterns matches completely.

    Args:
        patterns: regular expressions, from a config or a file of others.
        names: the names of parameters, tensors or modules.
        where: the key of the patterns, for the error.

    Raises:
        UserError: a pattern does not compile, is longer than `MOST_PATTERN_CHARACTERS`, or all
            together take longer than `MOST_PATTERN_SECONDS`.
    """
    names, end = list(names), time.monotonic() + MOST_PATTERN_SECONDS
    return [_matches(pattern, names, end, where) for pattern in patterns]


def _matches(pattern: str, names: Sequence[str], end: float, where: str) -> list[str]:
    if len(pattern) > MOST_PATTERN_CHARACTERS:
        raise UserError(
            f"{where}: the pattern '{pattern[:60]}...' is longer than {MOST_PATTERN_CHARACTERS:,} "
            "characters.",
            "Name a part by several patterns.",
        )
    try:
        compiled = regex.compile(pattern)
        return [
            name
            for name in names
            if compiled.fullmatch(name, timeout=max(end - time.monotonic(), 1e-3))
        ]
    except (regex.error, RecursionError, OverflowError) as error:
        raise UserError(f"{where}: '{pattern}' is not a regular expression ({error}).") from None
    except TimeoutError:
        raise UserError(
            f"{where}: the pattern '{pattern}' takes more than {MOST_PATTERN_SECONDS:g} seconds.",
            "Repetitions inside repetitions, such as (.*)*, take exponential time; write it "
            "without them.",
        ) from None


def split(
    params: Mapping[str, Leaf], names: Iterable[str]
) -> tuple[dict[str, Leaf], dict[str, Leaf]]:
    """Split `params` into two dicts: those in `names`, and the rest."""
    chosen = set(names)
    inside = {name: leaf for name, leaf in params.items() if name in chosen}
    outside = {name: leaf for name, leaf in params.items() if name not in chosen}
    return inside, outside


def under(params: Mapping[str, Leaf], prefix: str) -> dict[str, Leaf]:
    """Return the leaves below `prefix/`, with the prefix removed from their names."""
    start = prefix + "/"
    return {name[len(start) :]: leaf for name, leaf in params.items() if name.startswith(start)}
