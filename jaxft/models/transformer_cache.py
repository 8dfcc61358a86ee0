"""A tower that keeps keys and values, so that the next position costs one position.

B batch, T positions, S slots, G heads of keys and values, K width of a head, V words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxft.models.layers_attention import Mask
from jaxft.models.layers_cache import KeyValues
from jaxft.models.transformer import PLAIN, Compute, Params, Part, Tower

Cache = tuple[tuple[jax.Array, jax.Array], ...]  # block -> keys and values, each [B G, S, K]


def prefill(
    tower: Tower,
    params: Params,
    ids: jax.Array,
    seen: jax.Array,
    room: int,
    compute: Compute = PLAIN,
) -> tuple[jax.Array, Cache]:
    """The scores after the last position of each prompt, and what was kept of the prompts.

    Args:
        tower: a decoder under its `causal_lm` head.
        params: the flat dict.
        ids: [B, T] int32, filled up on the left.
        seen: [B, T] int32, 0 where `ids` is filled up, else 1.
        room: how many positions there is room for beyond T.
        compute: how to run.

    Returns:
        [B, V] float32, and the cache with T + `room` slots.
    """
    batch = {"input_ids": ids, "attention_mask": seen, "position_ids": _positions(seen)}
    blank = KeyValues(ids.shape[1] + room)
    return _run(tower, params, batch, [replace(blank) for _ in tower.blocks], compute)


def decode(
    tower: Tower,
    params: Params,
    ids: jax.Array,
    seen: jax.Array,
    slot: jax.Array,
    cache: Cache,
    compute: Compute = PLAIN,
) -> tuple[jax.Array, Cache]:
    """The scores after one more token of each text.

    Args:
        tower: a decoder under its `causal_lm` head.
        params: the flat dict.
        ids: [B] int32.
        seen: [B, S] int32, 0 in the slots that were filled up, else 1.
        slot: where the new tokens go, an int32: those before are taken, those after are not.
        cache: what was kept so far; given to `jax.jit` to write into (donated), it is not copied.
        compute: how to run.

    Returns:
        [B, V] float32, and the cache with the new tokens.
    """
    batch = {
        "input_ids": ids[:, None],
        "attention_mask": seen,
        "position_ids": _positions(seen)[:, slot][:, None],
        "slot": slot,
    }
    slots = seen.shape[1]
    kept = [KeyValues(slots, slot, key, value) for key, value in cache]
    return _run(tower, params, batch, kept, compute)


def _positions(seen: jax.Array) -> jax.Array:
    """Each slot's position in its own text: [B, S] int32, 0 in what is filled up."""
    return jnp.maximum(jnp.cumsum(seen, axis=-1) - 1, 0)


def _run(
    tower: Tower,
    params: Params,
    batch: Mapping[str, jax.Array],
    kept: list[KeyValues],
    compute: Compute,
) -> tuple[jax.Array, Cache]:
    """Stem, blocks (each with its own of `kept`), and the top of the last position."""

    def bind(part: Part, names: Mapping[str, str]) -> Any:
        return part.bind({p: params[name].astype(compute.dtype) for p, name in names.items()})

    with jax.default_matmul_precision(compute.precision):
        stem = bind(tower.stem, tower.end_names(tower.stem))
        stream, context = stem(batch, None, compute)
        for index, (part, own) in enumerate(zip(tower.blocks, kept, strict=True)):
            numbers = {name: of[index] for name, of in tower.numbers.items()}
            within = f"{tower.prefix}blocks/{index}/"
            block = bind(part, {path: within + path for path in part.leaves})
            stream = block(stream, _keeping(context, own), None, **numbers)
        outputs = bind(tower.top, tower.end_names(tower.top))(stream[:, -1:], batch, None)
    return outputs["logits"][:, 0], tuple(own.arrays() for own in kept)


def _keeping(context: Any, kept: KeyValues) -> Any:
    """A context whose masks have `kept`."""

    def is_mask(node: Any) -> bool:
        return isinstance(node, Mask)

    return jax.tree.map(
        lambda node: replace(node, kept=kept) if is_mask(node) else node, context, is_leaf=is_mask
    )
