"""Config keys that text and image classification share: labels, loss, costs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from jaxft.config.fields import Section, TaskSection, fixed, may_change

Problem = Literal["single_label", "multi_label", "regression"]
Labels = Annotated[list[str], Field(min_length=2)] | None
Weights = Literal["balanced"] | dict[str | int, float] | None


class CostSection(Section):
    """The costs of mistakes; the second of the two classes is the positive one."""

    false_alarm: float = may_change(
        1.0, "cost of predicting the second class for an example of the first", ge=0
    )
    miss: float = may_change(
        1.0, "cost of predicting the first class for an example of the second", ge=0
    )


class ClassesSection(TaskSection):
    """The common keys of tasks that predict classes or a number."""

    label: str | list[str] = fixed(
        "label", "column that holds the label; or several columns of 0 and 1, one per label"
    )
    labels: Labels = fixed(None, "label names in order of class id; null takes those of the data")
    problem: Problem = fixed(
        "single_label", "one label per example, any number of labels, or a number"
    )
    class_weights: Weights = fixed(
        None,
        "weights of the classes in the loss, label: weight; balanced gives each class the same "
        "total weight (with several labels: the weight of the positive examples of a label)",
    )
    focal: float | None = fixed(
        None, "focal loss: the exponent that reduces the weight of easy examples; 2 is usual", gt=0
    )
    label_smoothing: float | None = fixed(
        None,
        "label smoothing: the share of the target spread over all classes; 0.1 is usual",
        gt=0,
        lt=1,
    )
    costs: CostSection | None = may_change(
        None, "costs of the two mistakes, for the report's table of thresholds (two classes)"
    )


def check_target(section: ClassesSection) -> None:
    """Raise a ValueError if keys of a section contradict each other."""
    if isinstance(section.label, list):
        if section.problem != "multi_label":
            raise ValueError("several columns in label need problem: multi_label")
        if section.labels is not None:
            raise ValueError("the columns in label name the labels already: remove labels")
        if len(set(section.label)) < max(len(section.label), 2):
            raise ValueError("label needs at least two columns, each once")
    if isinstance(section.class_weights, dict):
        for name, weight in section.class_weights.items():
            if weight <= 0:
                raise ValueError(f"class_weights: the weight of '{name}' must be above zero")
    if section.label_smoothing is not None and section.focal is not None:
        raise ValueError("focal and label_smoothing do not combine: remove one of them")
    if section.label_smoothing is not None and section.problem == "multi_label":
        raise ValueError("label_smoothing does not combine with problem: multi_label")
    if section.problem == "regression":
        for name in ("labels", "class_weights", "focal", "label_smoothing", "costs"):
            if getattr(section, name) is not None:
                raise ValueError(f"a regression has no classes: remove {name}")
