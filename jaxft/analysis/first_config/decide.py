"""The task of a data set and its columns, decided by their kinds and names, or asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NoReturn

from jaxft.analysis.first_config.choose import (
    ANSWERS,
    PROMPTS,
    choose_column,
    language_columns,
    named_column,
)
from jaxft.analysis.first_config.classes import decide_label, decide_texts
from jaxft.analysis.first_config.columns import Column
from jaxft.analysis.first_config.draft import Draft
from jaxft.analysis.first_config.named import TASK_KEYS, decide_named_columns
from jaxft.analysis.first_config.questions import Answers, Question
from jaxft.errors import UserError

# Tasks whose usual columns have no other meaning, if all of them are there, and the reason.
BY_NAMES = {
    "reranking": "the columns 'query', 'positive' and 'negatives' are candidates",
    "question_answering": "the columns 'question', 'context' and 'answers' are SQuAD's",
    "multiple_choice": "the columns 'prompt', 'choices' and 'label' are a multiple choice",
}


def decide_task(columns: Mapping[str, Column], kind: str, answers: Answers) -> Draft:
    """Return the task of a data set, with its columns.

    Args:
        columns: of a sample.
        kind: of the source (`images`, `conll`, `boxes`, `coco`, `masks`), which may decide alone.
        answers: of the person.

    Raises:
        UserError: the columns fit no task, or several, and nobody can be asked.
    """
    task, why = _task(columns, kind, answers)
    draft = Draft({"kind": task}, {"task.kind": why})
    if task == "text_classification":
        decide_texts(draft, columns, answers)
    elif task == "image_classification":
        image = choose_column(columns, ("image",), "--image", answers, "column of the images")
        draft.set("image", *image)
        decide_label(draft, columns, answers, {image[0]})
    else:
        decide_named_columns(draft, columns, answers)
    return draft


def _task(columns: Mapping[str, Column], kind: str, answers: Answers) -> tuple[str, str]:
    """Return `task.kind` and the reason for it."""
    choices = tuple(TASK_KEYS)
    if "--task" in answers.options:
        return answers.to(Question("--task", "Task", choices, None, ""))
    options = _possible_tasks(columns, kind)
    if not options:
        raise UserError(_nothing_fits(columns), "Name the task with --task and its columns.")
    first, why = next(iter(options.items()))
    if len(options) == 1:
        return answers.to(Question("--task", "Task", choices, first, why, certain=True))
    return answers.to(
        Question(
            "--task", "Task", tuple(options), None, f"{why}, which fits {' or '.join(options)}."
        )
    )


def _possible_tasks(columns: Mapping[str, Column], kind: str) -> dict[str, str]:
    """Return the tasks that the columns fit, each with a reason; the likeliest first."""
    kinds = {one.kind for one in columns.values()}
    names = {name.lower() for name in columns}
    texts = [name for name, one in columns.items() if one.kind == "text"]
    if kind in ("boxes", "coco") or {"image", "objects"} <= kinds:
        return {"object_detection": "images with boxes"}
    if kind == "masks" or ({"image", "mask"} <= names and "image" in kinds):
        return {"semantic_segmentation": "images with masks"}
    if kind == "images":
        return {"image_classification": "a folder with a subfolder of images per class"}
    for task, why in BY_NAMES.items():
        if set(TASK_KEYS[task]) <= names:
            return {task: why}
    if kind == "conll" or len([one for one in columns.values() if one.kind == "words"]) > 1:
        return {"token_classification": "two columns hold lists: words and their tags"}
    if {"chosen", "rejected"} <= names:
        return {"dpo": "the columns 'chosen' and 'rejected' are preferences"}
    if {"messages", "image"} <= kinds:
        _refuse_image_chats(columns)
    if "messages" in kinds:
        return {"causal_lm": "a column holds conversations"}
    if {"anchor", "positive"} <= names:
        return {"embedding": "the columns 'anchor' and 'positive' are texts that belong together"}
    if {"source", "target"} <= names and "text" in kinds:
        return {"seq2seq": "the columns 'source' and 'target' are texts"}
    if len(languages := language_columns(columns)) == 2:
        why = f"the columns '{languages[0]}' and '{languages[1]}' are named by languages"
        return {"seq2seq": why}
    if "image" in kinds:
        return _possible_image_tasks(columns, texts)
    pair = named_column(columns, PROMPTS), named_column(columns, ANSWERS)
    if all(pair):
        why = f"'{pair[0]}' and '{pair[1]}' are prompts and answers"
        return {"causal_lm": why, "seq2seq": why}
    return _possible_text_tasks(columns, texts)


def _refuse_image_chats(columns: Mapping[str, Column]) -> NoReturn:
    image, messages = (
        next(name for name, one in columns.items() if one.kind == kind)
        for kind in ("image", "messages")
    )
    raise UserError(
        "Conversations about images are the task vision_language, for which `jaxft init` writes "
        "no config.",
        f"In one of yours: task: {{kind: vision_language, image: {image}, messages: {messages}}}.",
    )


def _possible_image_tasks(columns: Mapping[str, Column], texts: Sequence[str]) -> dict[str, str]:
    if any(one.kind in ("category", "number", "labels") for one in columns.values()):
        return {"image_classification": "a column of images and one of labels"}
    if texts:
        why = "images with a text each: they can be matched (captioning takes configs/caption.yaml)"
        return {"contrastive": why}
    return {}


def _possible_text_tasks(columns: Mapping[str, Column], texts: Sequence[str]) -> dict[str, str]:
    labels = [n for n, one in columns.items() if one.kind in ("category", "number", "labels")]
    if texts and labels:
        return {"text_classification": "a column of texts and one of labels"}
    if len(labels) > 1:
        return {"text_classification": "a table: its rows are written as texts by a template"}
    if texts:
        return {
            "masked_lm": "There are texts and no labels to learn",
            "causal_lm": "There are texts and no labels to learn",
        }
    return {}


def _nothing_fits(columns: Mapping[str, Column]) -> str:
    described = ", ".join(f"'{name}' ({one.kind})" for name, one in list(columns.items())[:8])
    if len(columns) == 1:
        return f"There is one column, {described}, so there is nothing to learn it from."
    return f"The columns fit no task: {described}."
