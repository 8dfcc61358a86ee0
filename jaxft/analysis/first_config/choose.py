"""Choice of a column: the only one of its kind, the one with a usual name, or the one asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from jaxft.analysis.first_config.columns import Column
from jaxft.analysis.first_config.questions import Answers, Question
from jaxft.errors import UserError, did_you_mean

TEXT_NAMES = (
    *("text", "sentence", "review", "mail", "email", "message", "content", "body", "comment"),
    *("tweet", "document", "abstract", "description", "question", "utterance", "news", "post"),
)
LABEL_NAMES = (
    *("label", "labels", "class", "target", "category", "y", "sentiment", "intent", "topic"),
    *("is_spam", "spam", "diagnosis", "outcome", "rating", "stars", "score"),
)
# Pairs of columns, by name, that make a task: task -> its keys -> names of the columns.
PROMPTS = ("prompt", "question", "instruction", "query")
ANSWERS = ("answer", "response", "output", "completion", "reply")
# Codes of ISO 639-1 that name columns of translations, with or without a region: en, pt-BR.
LANGUAGE = re.compile(
    "(af|ar|az|be|bg|bn|bs|ca|cs|cy|da|de|el|en|es|et|eu|fa|fi|fr|ga|gl|gu|he|hi|hr|hu|hy|id|is|it|"
    "ja|ka|kk|km|kn|ko|lo|lt|lv|mk|ml|mn|mr|ms|my|nb|ne|nl|nn|no|pa|pl|ps|pt|ro|ru|si|sk|sl|sq|sr|"
    "sv|sw|ta|te|th|tl|tr|uk|ur|uz|vi|xh|yo|zh|zu)([-_][a-z]{2})?",
    re.IGNORECASE,
)


def named_column(columns: Mapping[str, Column], names: Sequence[str]) -> str | None:
    """Return the column with one of these names, if there is exactly one."""
    fitting = [name for name in columns if name.lower() in names]
    return fitting[0] if len(fitting) == 1 else None


def language_columns(columns: Mapping[str, Column]) -> tuple[str, ...]:
    """Return the columns of texts that are named by their language, in order."""
    return tuple(
        name
        for name, one in columns.items()
        if one.kind == "text" and LANGUAGE.fullmatch(name.rpartition(".")[2])
    )


def choose_column(
    columns: Mapping[str, Column],
    kinds: Sequence[str],
    option: str,
    answers: Answers,
    what: str,
    names: Sequence[str] = (),
) -> tuple[str, str]:
    """Return the one column of these kinds, that with a usual name, or the one asked for."""
    fitting = [name for name, one in columns.items() if one.kind in kinds]
    named = [name for name in fitting if name.lower() in names]
    asked = answers.options.get(option)
    if asked is not None:
        if asked not in columns:
            raise UserError(
                f"{option}: there is no column '{asked}'.", did_you_mean(asked, columns)
            )
        return asked, f"chosen by {option}"
    if not fitting:
        raise UserError(f"No column looks like the {what}.", f"Name it with {option}.")
    if len(fitting) == 1:
        why = f"the only {what}"
        return answers.to(Question(option, f"The {what}", tuple(columns), fitting[0], why, True))
    default = named[0] if len(named) == 1 else None
    why = (
        f"its name, among {len(fitting)} that could be it"
        if default
        else f"{len(fitting)} columns could be the {what}: {', '.join(fitting[:12])}."
    )
    choices = tuple(columns)
    question = Question(option, f"The {what}", choices, default, why, certain=default is not None)
    return answers.to(question)
