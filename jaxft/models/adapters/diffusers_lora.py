"""LoRA files of `diffusers`, which `load_lora_weights` reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxft.errors import UserError
from jaxft.models.adapters.low_rank import matrices_of
from jaxft.models.layers.adapter import LowRank
from jaxft.models.weights.export import LORA_WEIGHTS, save_marked
from jaxft.storage.files import written_aside


def write_lora(
    folder: Path,
    part: str,
    params: Mapping[str, Any],
    adapted: Mapping[str, LowRank],
    modules: Mapping[str, str],
    also: Sequence[str],
) -> None:
    """Write the adapters of a pipeline's part, each under a factor of 1.

    Args:
        folder: an existing folder.
        part: the part's name in its pipeline.
        params: the flat dict.
        adapted: kernel -> its adapter.
        modules: kernel -> the name of its tensor in a file.
        also: parameters that trained beside the adapters.

    Raises:
        UserError: something trained that such a file has no place for.
    """
    if also:
        raise UserError(
            f"A LoRA file of diffusers has no place for '{also[0]}', which trained too.",
            "Export the whole pipeline, without --adapter.",
        )
    if any(low_rank.dora for low_rank in adapted.values()):
        raise UserError(
            "adapter.kind: a LoRA file of diffusers has no place for DoRA's magnitudes here.",
            "Export the whole pipeline, without --adapter.",
        )
    tensors = {}
    for kernel, low_rank in adapted.items():
        a, b = (np.asarray(one, np.float32) for one in matrices_of(params, kernel, low_rank))
        name = f"{part}.{modules[kernel].removesuffix('.weight')}"
        tensors[f"{name}.lora_A.weight"] = np.ascontiguousarray(a.T)
        tensors[f"{name}.lora_B.weight"] = np.ascontiguousarray((b * low_rank.scale).T)
    with written_aside(folder / LORA_WEIGHTS) as aside:
        save_marked(aside, tensors)
