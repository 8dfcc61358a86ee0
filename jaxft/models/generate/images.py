"""Image generation pixel by pixel inside a traced program, so that whole batches are scored.

B batch, G pixels that are given, N pixels in all, C colours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxft.models.generate.choose import NEVER, warp
from jaxft.models.tower.cache import decode, prefill
from jaxft.models.tower.tower import Compute, Params, Tower

Numbers = Mapping[str, Any]  # what `generate_choose.warp` reads: numbers, or None for without
# Draw from all colours, as the model says.
AS_IT_IS: Numbers = {"temperature": None, "top_p": None, "min_p": None}


def first_word(colours: int, label: int | None) -> int:
    """Return the word that an image begins with: that of its class, or of none.

    Args:
        colours: C.
        label: the class id; None for an image of no class.
    """
    return colours if label is None else colours + 1 + label


def draw_images(
    tower: Tower,
    params: Params,
    begun: jax.Array,
    keys: jax.Array | None,
    compute: Compute,
    *,
    pixels: int,
    colours: int,
    numbers: Numbers = AS_IT_IS,
    top_k: int = 0,
) -> jax.Array:
    """Return images that go on from what is given of them.

    Args:
        tower: an ImageGPT under its `image_generation` head.
        params: the flat dict.
        begun: [B, 1 + G] int32: the word that each image begins with, and the pixels given.
        keys: [B], a sampling key for each image, whatever else is in the batch; None takes the
            likeliest colour each time.
        compute: how to run.
        pixels: N.
        colours: C: words from there on are none.
        numbers: as `generate_choose.warp` has them.
        top_k: draw from so many of the most likely; 0 for all.

    Returns:
        [B, N] int32, the pixels given among them.
    """
    rows, length = begun.shape
    # The last pixel is output and never input, so it needs no slot.
    mask = jnp.ones((rows, pixels), jnp.int32)

    def next_of(scores: jax.Array, slot: jax.Array | int) -> jax.Array:
        words = jnp.arange(scores.shape[-1])
        scores = jnp.where(words < colours, scores, NEVER)
        if keys is None:
            return scores.argmax(-1).astype(jnp.int32)
        own = jax.vmap(lambda key: jax.random.fold_in(key, slot))(keys)
        return jax.vmap(jax.random.categorical)(own, warp(scores, numbers, top_k)).astype(jnp.int32)

    def one_more(state: Any, slot: jax.Array) -> tuple[Any, jax.Array]:
        token, cache = state
        scores, cache = decode(tower, params, token, mask, slot, cache, compute)
        token = next_of(scores, slot)
        return (token, cache), token

    scores, cache = prefill(tower, params, begun, mask[:, :length], pixels - length, compute)
    first = next_of(scores, length - 1)
    slots = jnp.arange(length, pixels)
    _, rest = jax.lax.scan(one_more, (first, cache), slots)  # [N - G - 1, B]
    return jnp.concatenate([begun[:, 1:], first[:, None], rest.T], axis=1)
