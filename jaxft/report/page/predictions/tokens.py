"""Tagged texts on the page: entities in color, as annotated and as predicted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

WORST = 20
Line = Mapping[str, Any]


def tagged(split: str, lines: Sequence[Line]) -> dict[str, Any]:
    """A split's predictions as the template shows them.

    Args:
        split: its name.
        lines: of its predictions file.

    Returns:
        `name`, `count`, `wrong` (texts with a mistake), `types` (the scores of each) and
        `worst`: the texts with the most mistakes, each as pieces (`gold` and `predicted`).
    """
    types = sorted({one["type"] for line in lines for one in [*line["gold"], *line["entities"]]})
    colours = {kind: number for number, kind in enumerate(types)}
    wrong = [line for line in lines if _mistakes(line)]
    worst = sorted(wrong, key=lambda line: (-_mistakes(line), -line["loss"]))[:WORST]
    return {
        "name": split,
        "count": len(lines),
        "wrong": len(wrong),
        "types": [_type(kind, lines, colours[kind]) for kind in types],
        "worst": [
            {
                "mistakes": _mistakes(line),
                "loss": line["loss"],
                "gold": pieces(line["text"], line["gold"], colours),
                "predicted": pieces(line["text"], line["entities"], colours),
            }
            for line in worst
        ],
    }


def pieces(text: str, entities: Sequence[Line], colours: Mapping[str, int]) -> list[dict[str, Any]]:
    """A text cut where entities begin and end: `text` and, of an entity, `type` and `colour`.

    Args:
        text: the text.
        entities: each with `type`, `start` and `end`.
        colours: type -> a number in the page's palette.
    """
    pieces, done = [], 0
    for one in sorted(entities, key=lambda one: one["start"]):
        start, end, kind = one["start"], one["end"], one["type"]
        if start < done:
            continue  # what was written by jaxft never overlaps
        pieces.append({"text": text[done:start], "type": None, "colour": 0})
        pieces.append({"text": text[start:end], "type": kind, "colour": colours[kind]})
        done = end
    pieces.append({"text": text[done:], "type": None, "colour": 0})
    return [piece for piece in pieces if piece["text"]]


def _keys(entities: Sequence[Line]) -> Counter:
    return Counter((one["type"], one["start"], one["end"]) for one in entities)


def _mistakes(line: Line) -> int:
    """Entities that were missed, and those that are not there."""
    gold, predicted = _keys(line["gold"]), _keys(line["entities"])
    return (gold - predicted).total() + (predicted - gold).total()


def _type(kind: str, lines: Sequence[Line], colour: int) -> dict[str, Any]:
    """Score the entities of one type: both ends and the type must be right."""
    gold = predicted = right = 0
    for line in lines:
        there, marked = (
            _keys([one for one in line[name] if one["type"] == kind])
            for name in ("gold", "entities")
        )
        gold, predicted = gold + there.total(), predicted + marked.total()
        right += (there & marked).total()
    return {
        "type": kind,
        "colour": colour,
        "gold": gold,
        "predicted": predicted,
        "precision": right / predicted if predicted else 0.0,
        "recall": right / gold if gold else 0.0,
        "f1": 2 * right / (gold + predicted),
    }
