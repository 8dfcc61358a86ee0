"""The page of `jaxft layers`: a heat map per criterion over depth and kind, and their agreement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxft.report.page.page import fill
from jaxft.report.terminal.criteria import value_text

UNITS = {"alpha": "± half its 95% interval", "outliers": "5 x mean"}


def render_criteria(content: Mapping[str, Any]) -> str:
    """Return the page of a model's criteria.

    Args:
        content: what `jaxft layers --json` prints.
    """
    rows, criteria = content["matrices"], content["criteria"]
    drawn = [_heat(name, criteria[name], rows) for name in criteria]
    drawn = [figure for figure in drawn if any(v is not None for row in figure["z"] for v in row)]
    drawn.append(_agreement(content))
    return fill(
        "layers",
        ("layers",),
        [{k: v for k, v in figure.items() if k not in ("lead", "span")} for figure in drawn],
        shown=drawn,
        checkpoint=content["checkpoint"],
        tiles=[
            ("matrices", f"{len(rows):,}"),
            ("training batches", f"{content['batches']:,}"),
            ("examples", f"{content['examples']:,.0f}"),
        ],
    )


def _heat(
    name: str, criterion: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Draw one criterion: blocks from the input up, and the kinds of matrix."""
    blocks = list(dict.fromkeys(row["block"] for row in rows))
    alone = criterion["by_block"]
    kinds = ["whole block"] if alone else list(dict.fromkeys(row["kind"] for row in rows))
    cells = {(row["block"], "whole block" if alone else row["kind"]): row for row in rows}
    grid = [[cells.get((block, kind), {}) for kind in kinds] for block in blocks]
    return {
        "id": f"criterion-{name}",
        "title": criterion["title"],
        "unit": UNITS.get(name, ""),
        "lead": criterion["meaning"],
        "span": 6,
        "x": kinds,
        "y": blocks,
        "z": [[row.get(name) for row in line] for line in grid],
        "text": [[value_text(name, row) for row in line] for line in grid],
        "signed": False,
    }


def _agreement(content: Mapping[str, Any]) -> dict[str, Any]:
    """Draw the rank correlations of all pairs of criteria."""
    of = content["rank_correlations"]
    titles = [content["criteria"][name]["title"] for name in of]
    return {
        "id": "agreement",
        "title": "Rank correlations",
        "unit": "Spearman",
        "lead": "How far two criteria put the blocks in the same order, within each kind.",
        "span": 12,
        "x": titles,
        "y": titles,
        "z": [[of[one][other] for other in of] for one in of],
        "text": [
            ["" if of[one][other] is None else f"{of[one][other]:.2f}" for other in of]
            for one in of
        ],
        "signed": True,
    }
