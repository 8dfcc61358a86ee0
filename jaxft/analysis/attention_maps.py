"""Attention rollout beside each image of an image classifier's worst mistakes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from jaxft.engine.evaluate import outcomes_of
from jaxft.engine.inputs import Split
from jaxft.engine.setup import Setup
from jaxft.models.families.vit.rollout import attention_rollout
from jaxft.models.families.vit.vit import MODEL_TYPES
from jaxft.models.tower.tower import Tower
from jaxft.tasks.parts.images import heated


def with_attention(
    setup: Setup, params: Mapping[str, jax.Array], split: Split, lines: Iterable[dict[str, Any]]
) -> Iterable[dict[str, Any]]:
    """Predictions, of which those with a picture get one of where the model looked: `attention`.

    Args:
        setup: the run.
        params: every parameter, as they predicted.
        split: what was predicted.
        lines: a prediction an example, in order.

    Returns:
        The lines as they are where the model is no ViT that classifies.
    """
    if not setup.task.shows_attention or setup.model.model_type not in MODEL_TYPES:
        return lines
    all_lines = list(lines)  # before the first process alone writes them: all look together
    chosen = np.array([number for number, line in enumerate(all_lines) if "image" in line], int)
    if not len(chosen):
        return all_lines
    (tower,) = setup.model.towers.values()
    assert isinstance(tower, Tower)

    def look(params: Any, batch: Any) -> tuple[dict, dict]:
        maps = attention_rollout(tower, setup.model.config, params, batch, setup.compute)
        return {}, {"maps": maps[:, None], "example_ids": batch["example_ids"]}

    maps = outcomes_of(setup, split, look, params, chosen)["maps"]
    for number, shares in zip(chosen.tolist(), maps, strict=True):
        pixels = setup.bound.pixels(split.source, split.examples, number)
        all_lines[number]["attention"] = heated(pixels, shares)
    return all_lines
