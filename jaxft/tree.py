"""Parameters as one flat dict, `name -> array`, and the patterns that select among its names.

A name is a path joined by `/`, such as `blocks/3/attention/query/kernel`. Nothing else in jaxft
walks a nested tree of parameters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from jaxft.errors import UserError, nearest

Leaf = TypeVar("Leaf")


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Return a sort key under which `blocks/2` comes before `blocks/10`."""
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in name.split("/"))


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
        UserError: the pattern does not compile, or matches nothing.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"{where}: '{pattern}' is not a regular expression ({error}).") from None
    matches = [name for name in names if compiled.fullmatch(name)]
    if not matches:
        close = nearest(pattern.replace(".*", ""), names, 3) or list(names[:3])
        raise UserError(
            f"{where}: the pattern '{pattern}' matches no parameter.",
            f"Nearest names: {', '.join(close)}.",
        )
    return matches


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
