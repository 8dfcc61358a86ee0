"""Columns of tasks with several inputs, by their usual names: prompts and answers, tags."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from jaxft.analysis.first_config.choose import (
    ANSWERS,
    PROMPTS,
    TEXT_NAMES,
    choose_column,
    language_columns,
    named_column,
)
from jaxft.analysis.first_config.columns import Column
from jaxft.analysis.first_config.draft import Draft
from jaxft.analysis.first_config.questions import Answers
from jaxft.errors import UserError, did_you_mean

# Tasks that `jaxft init` can set up, with the keys of their columns.
TASK_KEYS: dict[str, tuple[str, ...]] = {
    "text_classification": ("text", "label"),
    "image_classification": ("image", "label"),
    "token_classification": ("tokens", "tags"),
    "masked_lm": ("text",),
    "causal_lm": ("messages", "prompt", "answer", "text"),
    "dpo": ("prompt", "chosen", "rejected"),
    "seq2seq": ("source", "target"),
    "embedding": ("anchor", "positive"),
    "reranking": ("query", "positive", "negatives"),
    "question_answering": ("question", "context", "answers"),
    "multiple_choice": ("prompt", "choices", "label"),
    "contrastive": ("image", "text"),
    "object_detection": ("image", "objects"),
    "semantic_segmentation": ("image", "mask"),
}


def decide_named_columns(draft: Draft, columns: Mapping[str, Column], answers: Answers) -> None:
    """Decide the columns of the other tasks: by name, by kind, or by `--column KEY=NAME`."""
    task = draft.task["kind"]
    asked = {
        option.removeprefix("--column "): name
        for option, name in answers.options.items()
        if option.startswith("--column ")
    }
    for key, name in asked.items():
        if key not in TASK_KEYS[task]:
            raise UserError(
                f"--column: {task} has no column '{key}'.", did_you_mean(key, TASK_KEYS[task])
            )
        if name not in columns:
            raise UserError(f"--column: there is no column '{name}'.", did_you_mean(name, columns))
        draft.set(key, name, "chosen by --column")
    if not asked or task != "causal_lm":
        for key, name in _usual_columns(task, columns, answers).items():
            if key not in asked:
                draft.set(key, name, "by its name and content")
    needed = [key for key in TASK_KEYS[task] if key not in draft.task]
    if needed and task != "causal_lm":
        raise UserError(
            f"No column looks like task.{needed[0]} of {task}.",
            f"Name it, as in --column {needed[0]}={next(iter(columns))}.",
        )
    skipped = ("image", "mask", "objects", "tags", "negatives", "answers", "label")
    draft.inputs = tuple(
        draft.task[k] for k in TASK_KEYS[task] if k in draft.task and k not in skipped
    )


def allow_no_answer(draft: Draft, rows: Iterable[Mapping[str, Any]]) -> None:
    """Let a config's questions have no answer, if some rows of a sample have none.

    Args:
        draft: of question answering.
        rows: the sample.
    """
    cells = [row[draft.task["answers"]] for row in rows]
    texts = [cell.get("text") if isinstance(cell, Mapping) else cell for cell in cells]
    if none := sum(text is None or not len(text) for text in texts):
        draft.set("no_answer", True, f"{none:,} of {len(texts):,} rows have no answer")


def _usual_columns(task: str, columns: Mapping[str, Column], answers: Answers) -> dict[str, str]:
    """Return the columns of a task by their usual names and kinds."""
    by_kind = {
        kind: [name for name, one in columns.items() if one.kind == kind]
        for kind in ("image", "objects", "messages", "words")
    }
    if task == "causal_lm":
        if by_kind["messages"]:
            return {"messages": by_kind["messages"][0]}
        pair = named_column(columns, PROMPTS), named_column(columns, ANSWERS)
        if pair[0] and pair[1]:
            return {"prompt": pair[0], "answer": pair[1]}
    if task == "seq2seq":
        if len(languages := language_columns(columns)) == 2:
            return dict(zip(TASK_KEYS[task], languages, strict=True))
        pair = (
            named_column(columns, (*PROMPTS, "source")),
            named_column(columns, (*ANSWERS, "target")),
        )
        return {key: name for key, name in zip(TASK_KEYS[task], pair, strict=True) if name}
    if task in ("causal_lm", "masked_lm"):
        text = choose_column(
            columns, ("text",), "--text", answers, "column of the texts", TEXT_NAMES
        )
        return {"text": text[0]}
    if task == "token_classification":
        tags = [n for n in columns if n.lower() in ("tags", "ner_tags", "labels")]
        words = [n for n, one in columns.items() if one.kind in ("words", "labels")]
        words = [n for n in words if n not in tags]
        return {"tokens": words[0], "tags": tags[0]} if words and tags else {}
    usual = {key: named_column(columns, (key,)) for key in TASK_KEYS[task]}
    for key in ("image", "objects"):
        if key in usual and len(by_kind[key]) == 1:
            usual[key] = by_kind[key][0]
    if usual.get("text", "") is None:
        usual["text"] = choose_column(
            columns, ("text",), "--text", answers, "column of the texts", TEXT_NAMES
        )[0]
    return {key: name for key, name in usual.items() if name}
