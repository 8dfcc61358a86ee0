"""Loss and scores of the classes of pixels.

R rows of a batch, H x W pixels of the model's input, h x w of its logits, C classes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from jaxft.models.layers.vision import resize_linear

CHUNK = 4096  # pixels of an image that are counted at once


def enlarged_logits(logits: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Resize logits `[R, C, h, w]` bilinearly to an image's size: `[R, H, W, C]` float32."""
    return resize_linear(logits.astype(jnp.float32).transpose(0, 2, 3, 1), size)


def pixel_loss(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the summed cross-entropy of labeled pixels, and their number (at least 1).

    Args:
        logits: `[R, H, W, C]`.
        labels: `[R, H, W]`, -1 for none.

    Source: `SegformerForSemanticSegmentation` of `transformers`' `modeling_segformer.py`.
    """
    labeled = labels >= 0
    targets = jnp.where(labeled, labels, 0).astype(jnp.int32)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return jnp.where(labeled, losses, 0.0).sum(), number_of(labeled)


def number_of(labeled: jax.Array) -> jax.Array:
    """Count labeled pixels `[R, H, W]`; 1 without any, so that there is a mean."""
    return jnp.maximum(labeled.sum(dtype=jnp.float32), 1.0)


def confusion(labels: jax.Array, predicted: jax.Array, classes: int) -> jax.Array:
    """Count the pixels of each true and predicted class, by row: `[R, C, C]` float32.

    It is a product of indicators, a chunk of pixels at a time: rows stay on their devices, and no
    array of all pixels by all classes is made.

    Args:
        labels: `[R, H, W]`, -1 for none.
        predicted: `[R, H, W]`.
        classes: C.
    """
    rows, pixels = len(labels), labels[0].size
    room = -pixels % CHUNK

    def chunks(ids: jax.Array) -> jax.Array:
        flat = ids.reshape(rows, pixels).astype(jnp.int32)
        padded = jnp.pad(flat, ((0, 0), (0, room)), constant_values=-1)
        return padded.reshape(rows, -1, CHUNK).swapaxes(0, 1)  # [chunks, R, CHUNK]

    def add(total: jax.Array, part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        true, chosen = (jax.nn.one_hot(ids, classes, dtype=jnp.float32) for ids in part)
        return total + jnp.einsum("rnc,rnd->rcd", true, chosen), None

    start = jnp.zeros((rows, classes, classes))
    return jax.lax.scan(add, start, (chunks(labels), chunks(predicted)))[0]
