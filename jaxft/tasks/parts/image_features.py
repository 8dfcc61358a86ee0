"""Features of images by a ViT, by which two sets of images are compared."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import jax
import numpy as np
from PIL import Image

from jaxft.data.image.images import load_image_processor
from jaxft.errors import UserError
from jaxft.models.load import load

HEADLESS = "embedding"  # the task without a head
ROWS = 32  # images per batch

Features = Callable[[np.ndarray], np.ndarray]


@lru_cache(maxsize=1)
def features_by(checkpoint: str, size: int | None) -> Features:
    """Return the function from images `[N, H, W, 3]` uint8 to a ViT's class tokens `[N, D]`.

    Args:
        checkpoint: the ViT's, as in `model.checkpoint`.
        size: height and width of its input; None for its own.

    Raises:
        UserError: the checkpoint cannot be read, or takes no images.
    """
    model = load(checkpoint, task=HEADLESS, image_size=size)
    if model.image_size is None:
        raise UserError(f"task.features: {checkpoint} takes no images.", "Name a ViT.")
    processor = load_image_processor(model.source.folder, size)

    @jax.jit
    def class_tokens(params: dict[str, jax.Array], values: np.ndarray) -> jax.Array:
        return model.apply(params, {"pixel_values": values})["last_hidden_state"][:, 0]

    def features(pictures: np.ndarray) -> np.ndarray:
        tokens = []
        for first in range(0, len(pictures), ROWS):
            some = pictures[first : first + ROWS]
            values = np.zeros((ROWS, 3, *processor.size), np.float32)
            for row, pixels in enumerate(some):
                values[row] = processor(Image.fromarray(pixels))
            tokens.append(np.asarray(class_tokens(model.params, values), np.float64)[: len(some)])
        return np.concatenate(tokens)

    return features
