"""The keys that the sections of text and image classification share: labels, loss, costs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from jaxft.config.fields import Section, TaskSection, fixed, may_change

Problem = Literal["single_label", "multi_label", "regression"]
Labels = Annotated[list[str], Field(min_length=2)] | None
Weights = Literal["balanced"] | dict[str | int, float] | None


class CostSection(Section):
    """What a mistake costs; the second of the two classes is the one looked for."""

    false_alarm: float = may_change(1.0, "an example of the first class called the second", ge=0)
    miss: float = may_change(1.0, "an example of the second class called the first", ge=0)


class ClassesSection(TaskSection):
    """What the sections of tasks that predict classes or a number have in common."""

    label: str | list[str] = fixed(
        "label", "column that holds the label; or several columns of 0 and 1, a label each"
    )
    labels: Labels = fixed(None, "label names in order of class id; null takes those of the data")
    problem: Problem = fixed(
        "single_label", "one label an example, any number of labels, or a number"
    )
    class_weights: Weights = fixed(
        None,
        "what an example counts in the loss, label: weight; balanced counts each class the same "
        "(with several labels: the weight of an example that has the label)",
    )
    focal: float | None = fixed(
        None, "focal loss: the power that takes weight from what is right already; 2 is usual", gt=0
    )
    label_smoothing: float | None = fixed(
        None,
        "label smoothing: the share of an example's weight that is spread over all classes; 0.1 is "
        "usual",
        gt=0,
        lt=1,
    )
    costs: CostSection | None = may_change(
        None, "what the two mistakes cost, for the report's table of thresholds (two classes)"
    )


def check_target(section: ClassesSection) -> None:
    """Raise a ValueError where keys of a section contradict each other."""
    if isinstance(section.label, list):
        if section.problem != "multi_label":
            raise ValueError("label names several columns, which needs problem: multi_label")
        if section.labels is not None:
            raise ValueError("labels are named by the columns of label already")
        if len(set(section.label)) < max(len(section.label), 2):
            raise ValueError("label names at least two columns, each once")
    if isinstance(section.class_weights, dict):
        for name, weight in section.class_weights.items():
            if weight <= 0:
                raise ValueError(f"class_weights: the weight of '{name}' is not above zero")
    if section.label_smoothing is not None and section.focal is not None:
        raise ValueError("focal and label_smoothing both bend the loss: leave one")
    if section.label_smoothing is not None and section.problem == "multi_label":
        raise ValueError("label_smoothing is for a single label an example")
    if section.problem == "regression":
        for name in ("labels", "class_weights", "focal", "label_smoothing", "costs"):
            if getattr(section, name) is not None:
                raise ValueError(f"a regression has no classes, so that {name} says nothing")
