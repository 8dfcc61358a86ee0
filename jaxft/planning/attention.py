"""Implementation of attention in each tower that reads text, with the reason for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import jax

from jaxft.engine.setup import PhaseSetup, Setup
from jaxft.models.layers.kernels import Choice
from jaxft.models.tower.tower import Tower


def attention_choices(
    setup: Setup, now: PhaseSetup, batch: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, Choice]:
    """Choose the attention of a train step for each tower that reads tokens, by its name.

    Args:
        setup: the run.
        now: the phase of the step.
        batch: its shapes.
    """
    compute, choices = replace(now.compute, dropout=True), {}
    for name, tower in setup.model.towers.items():
        if not isinstance(tower, Tower) or tower.needs is None:
            continue
        ids = batch.get("input_ids")
        if tower.reads is not None:  # without an input of its own it reads the source again
            ids = batch.get("decoder_input_ids", ids)
        if ids is not None:
            choices[name] = compute.choice(tower.needs, ids.shape[:2])
    return choices


def attention_lines(choices: Mapping[str, Choice]) -> list[str]:
    """Describe the choices, one line a tower."""
    return [f"attention of {name} by {one.name}: {one.reason}" for name, one in choices.items()]
