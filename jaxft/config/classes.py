"""The `task` sections of what is told of an example: classes, one or several, or a number."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from jaxft.config.augment import AugmentSection
from jaxft.config.fields import Section, key

# The keys that both sections have; pydantic copies a field that several classes name.
LABEL = key(
    "label",
    "column that holds the label; or several columns of 0 and 1, a label each",
    resume="fixed",
)
LABELS = key(None, "label names in order of class id; null takes those of the data", resume="fixed")
PROBLEM = key(
    "single_label",
    "one label an example, any number of labels, or a number",
    resume="fixed",
)
CLASS_WEIGHTS = key(
    None,
    "what an example counts in the loss, label: weight; balanced counts each class the same "
    "(with several labels: the weight of an example that has the label)",
    resume="fixed",
)
FOCAL = key(
    None,
    "focal loss: the power that takes weight from what is right already; 2 is usual",
    resume="fixed",
    gt=0,
)
SMOOTHING = key(
    None,
    "label smoothing: the share of an example's weight that is spread over all classes; 0.1 is "
    "usual",
    resume="fixed",
    gt=0,
    lt=1,
)
COSTS = key(
    None,
    "what the two mistakes cost, for the report's table of thresholds (two classes)",
    resume="may change",
)
Problem = Literal["single_label", "multi_label", "regression"]
Labels = Annotated[list[str], Field(min_length=2)] | None
Weights = Literal["balanced"] | dict[str | int, float] | None


class CostSection(Section):
    """What a mistake costs; the second of the two classes is the one looked for."""

    false_alarm: float = key(
        1.0, "an example of the first class called the second", resume="may change", ge=0
    )
    miss: float = key(
        1.0, "an example of the second class called the first", resume="may change", ge=0
    )


class TextClassification(Section):
    """One label, several, or a number for a text, for a pair of texts, or for a table's row."""

    kind: Literal["text_classification"] = key(..., "what is learned", resume="fixed")
    text: str = key("text", "column that holds the text", resume="fixed")
    text_pair: str | None = key(None, "column that holds the second text", resume="fixed")
    template: str | None = key(
        None,
        "a row as text, in place of a text column: words around columns in braces, such as "
        "'{age} years old, owes {debt:.0f}'",
        resume="fixed",
    )
    label: str | list[str] = LABEL
    labels: Labels = LABELS
    problem: Problem = PROBLEM
    class_weights: Weights = CLASS_WEIGHTS
    focal: float | None = FOCAL
    label_smoothing: float | None = SMOOTHING
    r_drop: float | None = key(
        None,
        "R-Drop: what it counts in the loss that two dropouts of a text say different things; 1 to "
        "5 are usual",
        resume="fixed",
        gt=0,
    )
    costs: CostSection | None = COSTS

    @model_validator(mode="after")
    def _fits(self) -> TextClassification:
        check_target(self)
        if self.r_drop is not None and self.problem != "single_label":
            raise ValueError("r_drop is for a single label an example")
        if self.template is not None and (self.text, self.text_pair) != ("text", None):
            raise ValueError("a template is the text: it stands in place of text and text_pair")
        return self


class ImageClassification(Section):
    """One label, several, or a number for an image."""

    kind: Literal["image_classification"] = key(..., "what is learned", resume="fixed")
    image: str = key(
        "image", "column that holds the image, or the path to its file", resume="fixed"
    )
    label: str | list[str] = LABEL
    labels: Labels = LABELS
    problem: Problem = PROBLEM
    class_weights: Weights = CLASS_WEIGHTS
    focal: float | None = FOCAL
    label_smoothing: float | None = SMOOTHING
    costs: CostSection | None = COSTS
    augment: AugmentSection | None = key(
        None, "what is done to an image by chance, anew in each epoch", resume="fixed"
    )

    @model_validator(mode="after")
    def _fits(self) -> ImageClassification:
        check_target(self)
        if self.augment is not None and self.augment.mixes and self.class_weights is not None:
            raise ValueError("a mixture of two classes has no class_weights: take one of the two")
        return self


def check_target(section: TextClassification | ImageClassification) -> None:
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
