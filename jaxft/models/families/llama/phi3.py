"""Rotary embedding of Phi-3 and Phi-4, in each of the spellings that their files have.

Source: Abdin et al. (2024), https://arxiv.org/abs/2404.14219; `configuration_phi3.py` of
`transformers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxft.errors import UserError
from jaxft.models.layers.rotary import Rotary, read_rotary
from jaxft.storage.json_files import is_number

FACTOR = "partial_rotary_factor"
ORIGINAL = "original_max_position_embeddings"


def phi3_rotary(own: Mapping[str, Any]) -> Rotary:
    """Read the rotary embedding: of the whole head, or of the share that the config names.

    Old files call longrope `su` or `yarn`. The original number of positions is a field of the
    config itself, which `transformers` prefers to one of the scaling.

    Raises:
        UserError: the share is no number above 0 and up to 1, or what `read_rotary` refuses.
    """
    scaling = own["rope_scaling"] or own["rope_parameters"] or {}
    if not isinstance(scaling, dict):
        raise UserError("config.json: rope_parameters must be an object.")
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    kind = "longrope" if kind in ("su", "yarn") else kind
    if kind not in ("default", "longrope"):
        raise UserError(f"config.json: the rotary scaling '{kind}' is not supported for phi3.")
    rope = {name: value for name, value in scaling.items() if name not in (FACTOR, "type")}
    rope |= {"rope_type": kind, ORIGINAL: own[ORIGINAL]}
    fields = {**own, "rope_parameters": rope, "rope_scaling": None}
    return read_rotary(fields, _rotated_width(own, scaling), own["rope_theta"])


def _rotated_width(own: Mapping[str, Any], scaling: Mapping[str, Any]) -> int:
    """Return how many elements of a head are rotated."""
    share = scaling.get(FACTOR, own[FACTOR])
    share = 1.0 if share is None else share
    width = int(own["head_dim"] * share) if is_number(share) and 0 < share <= 1 else 0
    if not width:
        raise UserError(f"config.json: {FACTOR} must be a number above 0 and up to 1.")
    return width
