"""From a data set to a config: look at some rows, decide, and write what was decided and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxft.analysis.first_config.checkpoints import (
    Described,
    choose_checkpoint,
    describe_checkpoint,
    image_size,
    text_length,
)
from jaxft.analysis.first_config.columns import Column, check_header, describe_columns, is_empty
from jaxft.analysis.first_config.decide import decide_task
from jaxft.analysis.first_config.draft import Draft
from jaxft.analysis.first_config.locate import Located, locate
from jaxft.analysis.first_config.named import allow_no_answer
from jaxft.analysis.first_config.questions import Answers
from jaxft.analysis.first_config.recipe import Recipe, Splits, make_recipe, make_splits
from jaxft.analysis.first_config.sample import Sample, take_sample
from jaxft.analysis.first_config.write import yaml_text
from jaxft.config.load import parse_config, read_yaml
from jaxft.data.image.images import decode
from jaxft.data.text.template import parse_template
from jaxft.storage.outputs import check_new, write_new

MEASURED = 500  # texts that are tokenized
LOOKED_AT = 20  # images that are opened


@dataclass(frozen=True)
class FirstConfig:
    """A config that was written, and what decided it.

    Attributes:
        path: the file.
        name: of the run.
        decisions: key, value and reason of each choice.
    """

    path: Path
    name: str
    decisions: tuple[tuple[str, str, str], ...]


def first_config(
    what: str,
    answers: Answers,
    out: Path | None = None,
    name: str | None = None,
    eval_spec: str | None = None,
    test_spec: str | None = None,
) -> FirstConfig:
    """Write a config for a data set.

    Args:
        what: see `locate`.
        answers: options of the command line, and how the rest is asked.
        out: the file; NAME.yaml in the working directory when None.
        name: of the run; the data set's when None.
        eval_spec, test_spec: source strings or files of the other splits, where they are not found.

    Raises:
        UserError: the data cannot be read, decide nothing, or the file exists.
    """
    located = _with_splits(locate(what), eval_spec, test_spec)
    run = name or located.name
    path = out or Path(f"{run}.yaml")
    check_new(path)
    sample = take_sample(located.train)
    kind = located.train.partition(":")[0]
    columns = describe_columns(sample, folder_names=kind == "images")
    if kind == "csv":
        check_header(columns)
    draft = decide_task(columns, kind, answers)
    task = draft.task["kind"]
    if task == "question_answering":
        allow_no_answer(draft, sample.rows)
    splits = make_splits(located, sample, draft.label)
    checkpoint, why = choose_checkpoint(task, answers)
    draft.why["model.checkpoint"] = why
    described = describe_checkpoint(checkpoint, task, _classes(columns, draft))
    complete = _share_of_complete(draft, columns, sample)
    recipe = make_recipe(task, described, round(splits.rows * complete), answers)
    sections = _sections(run, draft, described, splits, recipe, sample)
    if complete < 1:
        sections["data"]["on_bad_row"] = "skip"
    text = yaml_text(sections, draft.why, _head(what, path, sample))
    parse_config(read_yaml(text, str(path))[0], str(path))  # what is written is a config
    write_new(path, text)
    return FirstConfig(path, run, tuple(_decisions(sections, draft.why)))


def _with_splits(located: Located, eval_spec: str | None, test_spec: str | None) -> Located:
    other = {
        "eval": locate(eval_spec).train if eval_spec else located.eval,
        "test": locate(test_spec).train if test_spec else located.test,
    }
    return Located(located.name, located.train, **other)


def _classes(columns: dict[str, Column], draft: Draft) -> int | None:
    """Return the number of classes in the sample; of a number, one."""
    label = draft.task.get("label")
    if isinstance(label, list):
        return len(label)
    return columns[draft.label].distinct if draft.label is not None else None


def _sections(
    run: str,
    draft: Draft,
    described: Described,
    splits: Splits,
    recipe: Recipe,
    sample: Sample,
) -> dict[str, Any]:
    """Return the config; reasons that come up are added to the draft."""
    run_section: dict[str, Any] = {"name": run}
    if splits.seed:
        run_section["seed"] = {"data": splits.seed}
    model: dict[str, Any] = {"checkpoint": described.name}
    data: dict[str, Any] = {"train": splits.train, "eval": splits.eval}
    if splits.test:
        data["test"] = splits.test
    data["batch_size"] = recipe.batch_size
    draft.why |= {"data.train": splits.why, **recipe.why}
    _fit_to_data(model, data, draft, described, sample)
    sections = {
        "run": run_section,
        "model": model,
        "task": draft.task,
        "data": data,
        "adapter": recipe.adapter,
        "optimizer": {"name": "adamw", "lr": recipe.lr, "weight_decay": 0.01, "clip": 1.0},
        "schedule": {"kind": "linear", "warmup": "10%"},
        "layer_decay": {"rate": recipe.decay, "preset": "mae"} if recipe.decay != 1 else {},
        "groups": recipe.groups,
        "train": {"length": f"{recipe.epochs} epoch" + "s" * (recipe.epochs > 1)},
        "checkpoint": {"every": "1 epoch", "keep": 1},
    }
    return {name: content for name, content in sections.items() if content}


def _share_of_complete(draft: Draft, columns: dict[str, Column], sample: Sample) -> float:
    """Return the share of the rows that lack nothing, and give the draft the counts of the others.

    A template writes what a row lacks, and a list of classes may be empty.
    """
    read = () if "template" in draft.task else draft.inputs
    read += () if draft.label is None or columns[draft.label].kind == "labels" else (draft.label,)
    lacks = {name: columns[name].missing for name in read if columns[name].missing}
    if not lacks:
        return 1.0
    counts = ", ".join(f"{count:,} have no {name}" for name, count in lacks.items())
    why = f"of {len(sample.rows):,} rows {counts}: they are left out"
    draft.why["data.on_bad_row"] = why
    return float(np.mean([not any(is_empty(row[name]) for name in lacks) for row in sample.rows]))


def _fit_to_data(
    model: dict[str, Any],
    data: dict[str, Any],
    draft: Draft,
    described: Described,
    sample: Sample,
) -> None:
    """Set the length of texts and the size of images by a sample of them."""
    image = draft.task.get("image")
    if image is not None and draft.task["kind"] != "object_detection":
        fitted = image_size(described, _sides(sample, image))
        if fitted is not None:
            model["image_size"], draft.why["model.image_size"] = fitted
    if draft.inputs and described.model.family.text and draft.task["kind"] != "contrastive":
        texts = _texts(draft, sample)
        if texts:
            data["max_length"], draft.why["data.max_length"] = text_length(described, texts)


def _texts(draft: Draft, sample: Sample) -> list[str]:
    """Return some texts as the model will read them."""
    rows = sample.rows[:MEASURED]
    if "template" in draft.task:
        template = parse_template(draft.task["template"])
        return [template.render(row) for row in rows]
    return [text for row in rows if (text := _joined(row, draft.inputs)).strip()]


def _joined(row: dict[str, Any], columns: Sequence[str]) -> str:
    parts = []
    for column in columns:
        value = row[column]
        items = value if isinstance(value, list) else [value]
        parts += [
            str(item.get("content", "")) if isinstance(item, dict) else str(item) for item in items
        ]
    return " ".join(parts)


def _sides(sample: Sample, column: str) -> list[int]:
    """Return the longer side of some images, in pixels."""
    sides = []
    for row in sample.rows[:LOOKED_AT]:
        value = row[column]
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, str):
            value = sample.folder / value
        sides.append(max(decode(value, str(value)[:200]).size))
    return sides


def _head(what: str, path: Path, sample: Sample) -> str:
    rows = f"{sample.total:,} rows" if sample.whole else f"about {sample.total:,} rows"
    looked = "" if len(sample.rows) == sample.total else f", {len(sample.rows):,} of them looked at"
    return (
        f"Written by `jaxft init {what}`: {rows}{looked}. Each choice has its reason; edit any.\n"
        f"  jaxft data describe {path}    columns, labels, lengths, repeated rows\n"
        f"  jaxft plan {path}             groups, memory, FLOPs; nothing is trained\n"
        f"  jaxft train {path}"
    )


def _decisions(sections: dict[str, Any], why: dict[str, str]) -> list[tuple[str, str, str]]:
    """Return the choices that have a reason, in the order of the config."""
    decisions = []
    for name, content in sections.items():
        if name in why:
            decisions.append((name, "", why[name]))
        if isinstance(content, dict):
            for key, value in content.items():
                if f"{name}.{key}" in why:
                    decisions.append((f"{name}.{key}", str(value), why[f"{name}.{key}"]))
    return decisions
