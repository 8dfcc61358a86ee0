"""Columns of classifiers: texts or a template, labels, and whether they are classes or numbers."""

from __future__ import annotations

from collections.abc import Mapping

from jaxft.analysis.first_config.choose import LABEL_NAMES, TEXT_NAMES, choose_column, named_column
from jaxft.analysis.first_config.columns import Column
from jaxft.analysis.first_config.draft import Draft
from jaxft.analysis.first_config.questions import Answers, Question
from jaxft.analysis.first_config.template import row_template
from jaxft.errors import UserError, did_you_mean
from jaxft.numbers import share

TEXT_PAIRS = (
    *(("premise", "hypothesis"), ("sentence1", "sentence2"), ("question1", "question2")),
    *(("text1", "text2"), ("text_a", "text_b"), ("query", "passage"), ("sentence_a", "sentence_b")),
)
MOST_NUMBERS_AS_CLASSES = 20
MOST_CLASSES_OF_NUMBERS = 100  # different whole numbers; with more they are a quantity


def decide_texts(draft: Draft, columns: Mapping[str, Column], answers: Answers) -> None:
    """Decide the text and label columns of a classifier, or the template of a table."""
    asked = answers.options.get("--text")
    texts = {name: one for name, one in columns.items() if one.kind == "text"}
    if asked is None and not texts:
        label = decide_label(draft, columns, answers, set())
        inputs = [one for name, one in columns.items() if name not in label]
        template, used = row_template(inputs)
        draft.set("template", template, "there is no column of texts: a row is written as one")
        draft.inputs = used
        return
    pair = next((p for p in TEXT_PAIRS if all(name in texts for name in p)), None)
    if asked is None and pair is not None:
        draft.set("text", pair[0], "two columns of texts whose names make a pair")
        draft.set("text_pair", pair[1], "the second of the pair")
        draft.inputs = pair
    else:
        text, why = _longest(texts, answers) or choose_column(
            columns, ("text",), "--text", answers, "column of the texts", TEXT_NAMES
        )
        draft.set("text", text, why)
        draft.inputs = (text,)
    decide_label(draft, columns, answers, set(draft.inputs))


def _longest(texts: Mapping[str, Column], answers: Answers) -> tuple[str, str] | None:
    """Return the text column that is three times as long as any other, unless one is named."""
    if "--text" in answers.options or len(texts) < 2 or named_column(texts, TEXT_NAMES):
        return None
    ranked = sorted(texts.values(), key=lambda one: one.words, reverse=True)
    if ranked[0].words < 3 * ranked[1].words:
        return None
    why = f"{ranked[0].words:.0f} words on average; the next has {ranked[1].words:.0f}"
    question = Question(
        "--text", "The column of the texts", tuple(texts), ranked[0].name, why, True
    )
    return answers.to(question)


def decide_label(
    draft: Draft, columns: Mapping[str, Column], answers: Answers, used: set[str]
) -> set[str]:
    """Decide the column of the labels and the kind of problem; return the label columns."""
    others = {name: one for name, one in columns.items() if name not in used}
    asked = answers.options.get("--label", "")
    several = [name.strip() for name in asked.split(",")] if "," in asked else []
    if several:
        for name in several:
            if name not in others:
                raise UserError(
                    f"--label: there is no column '{name}'.", did_you_mean(name, others)
                )
        draft.set("label", several, "chosen by --label")
        draft.set("problem", "multi_label", "several columns of labels")
        return set(several)
    kinds = ("category", "number", "labels")
    label, why = choose_column(
        others, kinds, "--label", answers, "column of the labels", LABEL_NAMES
    )
    column = columns[label]
    problem, reason = _problem(column, answers)
    draft.set("label", label, f"{why}: {_summary(column, problem)}")
    draft.label = label if problem == "single_label" else None
    if problem != "single_label":
        draft.set("problem", problem, reason)
    elif reason.startswith("chosen"):
        draft.why["task.label"] += f"; as classes, {reason}"
    return {label}


def _problem(column: Column, answers: Answers) -> tuple[str, str]:
    """Return `task.problem` of a label column, and the reason.

    Raises:
        UserError: all rows have the same label, or the column is no label.
    """
    if column.kind == "labels":
        return "multi_label", "each row has a list of labels"
    if column.distinct == 1:
        only = next(iter(column.values or {"?": 0}))
        raise UserError(
            f"All rows have the same label in '{column.name}', '{only}': nothing can be learned.",
            "Name another column with --label, or add rows of other classes.",
        )
    if column.kind in ("text", "id", "empty", "image", "words"):
        raise UserError(
            f"The column '{column.name}' does not look like a label: it has {column.distinct:,} "
            "different values.",
            "Name another with --label.",
        )
    choices = ("single_label", "regression")
    if column.kind == "category" or column.distinct == 2:
        default, why, certain = "single_label", "a class per row", True
    elif not column.whole or column.distinct > MOST_CLASSES_OF_NUMBERS:
        default, why, certain = "regression", f"numbers, {column.distinct:,} different ones", True
    else:
        default, certain = "single_label", False
        if column.distinct > MOST_NUMBERS_AS_CLASSES:
            default = "regression"
        why = (
            f"The column '{column.name}' holds {column.distinct} different whole numbers, which "
            "may be classes or a quantity."
        )
    if certain and "--problem" not in answers.options:
        return default, why
    return answers.to(
        Question("--problem", "Classes or a quantity", choices, default, why, certain)
    )


def _summary(column: Column, problem: str) -> str:
    """Describe the labels: the shares of the classes, or the spread of the numbers."""
    if problem == "regression" or not column.values:
        return f"numbers with a standard deviation of {column.spread:.4g}"
    rows = sum(column.values.values())
    ranked = sorted(column.values.items(), key=lambda item: -item[1])
    shares = ", ".join(f"{name} {share(many / rows)}" for name, many in ranked[:6])
    more = f" and {len(ranked) - 6} more" if len(ranked) > 6 else ""
    return f"{column.distinct} classes, {shares}{more}"
