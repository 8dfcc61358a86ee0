"""The `task` section of kind `dpo`."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from jaxft.config.fields import TaskSection, fixed


class DpoSection(TaskSection):
    """Preferences between two answers of a causal model: direct preference optimization."""

    kind: Literal["dpo"] = fixed(..., "the kind of task")
    prompt: str = fixed(
        "prompt",
        "column of prompts: texts, or conversations that end before the answer",
    )
    chosen: str = fixed("chosen", "column of the preferred answers")
    rejected: str | None = fixed(
        "rejected",
        "column of the other answers; null samples the answer to another row's prompt",
    )
    beta: float = fixed(
        0.1,
        "strength of the tie to the reference model: rewards scale with it",
        gt=0,
    )
    loss: Literal["sigmoid", "ipo"] = fixed(
        "sigmoid",
        "the DPO loss, or IPO's squared error, which averages log-probabilities over tokens",
    )
    label_smoothing: float = fixed(
        0.0, "assumed share of swapped pairs (conservative DPO)", ge=0, lt=0.5
    )

    @model_validator(mode="after")
    def _fits(self) -> DpoSection:
        if self.loss == "ipo" and self.label_smoothing:
            raise ValueError("label_smoothing belongs to the sigmoid loss: ipo has none")
        return self
