"""Entities in tagged sentences, found and scored by nervaluate."""

from __future__ import annotations

from collections.abc import Sequence

from nervaluate.evaluator import Evaluator
from nervaluate.loaders import ListLoader

Entity = tuple[str, int, int]  # its type, its first word and its last
STRICT = "strict"  # right where both ends and the type are


def entities(tags: Sequence[str]) -> list[Entity]:
    """The entities of a sentence, in order.

    An I- that follows no tag of its type begins one, as in conlleval.

    Args:
        tags: `O`, `B-TYPE` or `I-TYPE` of each word.
    """
    return [(one.label, one.start, one.end) for one in ListLoader().load([list(tags)])[0]]


def entity_scores(
    true: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Score the entities of some sentences: both ends and the type must be right.

    Args:
        true: the tags of each sentence.
        predicted: likewise, as many of each.

    Returns:
        `f1`, `precision` and `recall` over all entities, and `f1/TYPE` of each type that is
        there, true or predicted.
    """
    both = [[list(tags) for tags in sentences] for sentences in (true, predicted)]
    types = {tag[2:] for sentences in both for tags in sentences for tag in tags if tag != "O"}
    evaluation = Evaluator(*both, tags=sorted(types), loader="list").evaluate()
    whole = evaluation["overall"][STRICT]
    scores = {name: float(getattr(whole, name)) for name in ("f1", "precision", "recall")}
    by_type = evaluation["entities"]
    return scores | {f"f1/{kind}": float(by_type[kind][STRICT].f1) for kind in sorted(by_type)}
