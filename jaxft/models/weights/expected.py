"""Tensors that a checkpoint is expected to hold when only its config is at hand: to plan with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxft.errors import UserError
from jaxft.models.layers.modules import Leaf
from jaxft.models.weights.names import Name, stored_shape
from jaxft.models.weights.shards import WEIGHTS
from jaxft.models.weights.tensor import Index, Tensor


def expected_tensors(
    names: Mapping[str, Name],
    leaves: Mapping[str, Leaf],
    folder: Path,
    headless: tuple[str, ...] | None,
) -> dict[str, Tensor]:
    """Describe the tensors that a checkpoint of this config has; reading one is an error.

    Args:
        names: parameter -> its line of the name table.
        leaves: parameter -> its description.
        folder: the folder of the absent weights.
        headless: name prefixes of the head if the checkpoint lacks one or has another task's.
    """

    def read(index: Index) -> np.ndarray:
        del index
        raise UserError(f"{folder} has no weights.", "Fetch the whole checkpoint to train.")

    return {
        line.hf: Tensor(folder / WEIGHTS, stored_shape(line, leaves[name]), "F32", read)
        for name, line in names.items()
        if headless is None or not name.startswith(headless)
    }
