"""Heat maps of layer by step: norms, gradients and drift during training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jaxft.numbers as numbers
from jaxft.report.page.run import Run
from jaxft.tree import natural_order

MOST_STEPS = 240  # columns of a heat map
# Metric, kind of its events, title, unit, and what it says.
MAPS = (
    (
        "relative_gradient",
        "layers",
        "Relative gradient",
        "‖g‖ / ‖w‖",
        "The gradient relative to the weights.",
    ),
    (
        "update_ratio",
        "layers",
        "Relative update",
        "‖Δw‖ / ‖w‖",
        "The size of one step relative to the weights.",
    ),
    (
        "drift",
        "drift",
        "Drift",
        "‖w - w₀‖ / ‖w₀‖",
        "The distance of a layer from its initial weights.",
    ),
    (
        "signal",
        "layers",
        "Signal-to-noise ratio",
        "|m| / √v",
        "Near 1 the gradients of successive steps agree, near 0 they are noise.",
    ),
    ("grad_norm", "layers", "Gradient norm", "‖g‖", "Before clipping."),
    ("rate", "layers", "Rate", "", "Of a layer's fastest parameter."),
)


def layer_figures(run: Run) -> list[dict[str, Any]]:
    """The heat maps that a run has data for.

    A figure is `{id, kind, title, unit, lead, x, y, z}`: steps, layers from the input up, and a
    value for each layer and step, None where there is none. `page.js` draws it.
    """
    made = [_heat(run.of_kind(kind), name, *words) for name, kind, *words in MAPS]
    return [figure for figure in made if any(value for row in figure["z"] for value in row)]


def _heat(
    events: Sequence[Mapping[str, Any]], name: str, title: str, unit: str, lead: str
) -> dict[str, Any]:
    measured = [event for event in events if isinstance(event.get(name), Mapping)]
    measured = measured[:: max(-(-len(measured) // MOST_STEPS), 1)]
    layers = natural_order({layer for event in measured for layer in event[name]})
    return {
        "id": f"layers-{name}",
        "kind": "heat",
        "title": title,
        "unit": unit,
        "lead": lead,
        "x": [event["step"] for event in measured],
        "y": layers,
        "z": [[_number(event[name].get(layer)) for event in measured] for layer in layers],
    }


def _number(value: Any) -> float | None:
    return float(value) if numbers.is_finite(value) else None
