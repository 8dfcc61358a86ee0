"""Decoding with a key-value cache: prefill of prompts, then one position at a time.

B batch, T positions, S slots, G heads of keys and values, K width of a head, V words; a decoder
that reads an encoder also caches those of the source, R positions, which never change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxft.models.layers.batch import Batch, decoder_batch
from jaxft.models.layers.cache import BlockCache, KeyValues
from jaxft.models.tower.blocks import run_blocks
from jaxft.models.tower.run import run_tower
from jaxft.models.tower.stretch import part_values
from jaxft.models.tower.tower import PLAIN, Compute, Params, Part, Tower

Cache = tuple[tuple[jax.Array, jax.Array], ...]  # block -> keys and values, each [B G, S, K]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Read:
    """Cache of the sources that a decoder reads.

    Args:
        cache: block -> keys and values of the source, each [B G, R, K].
        segments: [B, R] int32, 0 at padding of a source; None without padding.
    """

    cache: Cache
    segments: jax.Array | None


def prefill(
    tower: Tower,
    params: Params,
    ids: jax.Array,
    mask: jax.Array,
    room: int,
    compute: Compute = PLAIN,
    images: Mapping[str, jax.Array] | None = None,
) -> tuple[jax.Array, Cache]:
    """Score the first new token of each prompt, and cache the prompts.

    Args:
        tower: a decoder under its `causal_lm` head.
        params: the flat dict.
        ids: [B, T] int32, padded on the left.
        mask: [B, T] int32, 0 at padding, else 1.
        room: slots for new positions beyond T.
        compute: how to run.
        images: the input of the tower whose vectors stand among a prompt's words; None for none.

    Returns:
        [B, V] float32, and the cache with T + `room` slots.
    """
    batch: Batch = {"input_ids": ids, "attention_mask": mask, "position_ids": _positions(mask)}
    if images is not None:
        assert tower.reads is not None  # else nothing reads them
        vectors = run_tower(tower.reads, params, images, None, compute)["last_hidden_state"]
        batch = tower.input_of({**batch, "token_type_ids": jnp.zeros_like(ids)}, vectors)
    blank = BlockCache(KeyValues(ids.shape[1] + room))
    scores, added = _run(tower, params, batch, [blank] * len(tower.blocks), compute)
    return scores, _own(added)


def prefill_from(
    tower: Tower,
    params: Params,
    sources: Mapping[str, jax.Array],
    ids: jax.Array,
    room: int,
    compute: Compute = PLAIN,
) -> tuple[jax.Array, Cache, Read]:
    """Score the first new token of each text that is generated from a source.

    Args:
        tower: a decoder that reads an encoder.
        params: the flat dict of both.
        sources: the encoder's input: `input_ids` [B, R] and `attention_mask`, or images.
        ids: [B, T] int32, the start of every text.
        room: slots for new positions beyond T.
        compute: how to run.

    Returns:
        [B, V] float32, the cache with T + `room` slots, and that of the sources.
    """
    assert tower.reads is not None  # else there is no source
    encoded = run_tower(tower.reads, params, sources, None, compute)["last_hidden_state"]
    batch = {**decoder_batch(sources, encoded), "input_ids": ids}
    blank = BlockCache(KeyValues(ids.shape[1] + room), KeyValues(encoded.shape[1]))
    scores, added = _run(tower, params, batch, [blank] * len(tower.blocks), compute)
    of_source = tuple(one.source.arrays() for one in added if one.source is not None)
    return scores, _own(added), Read(of_source, batch.get("encoder_segment_ids"))


def decode(
    tower: Tower,
    params: Params,
    ids: jax.Array,
    mask: jax.Array,
    slot: jax.Array,
    cache: Cache,
    compute: Compute = PLAIN,
    read: Read | None = None,
) -> tuple[jax.Array, Cache]:
    """Score the next token after one more token of each text.

    Args:
        tower: a decoder under its `causal_lm` head.
        params: the flat dict.
        ids: [B] int32.
        mask: [B, S] int32, 0 in slots of padding, else 1.
        slot: the slot of the new tokens, an int32; only slots before it are in use.
        cache: of the positions so far; `jax.jit` writes into it without a copy if it is donated.
        compute: how to run.
        read: the cache of the sources, if any.

    Returns:
        [B, V] float32, and the cache with the new tokens.
    """
    batch = {
        "input_ids": ids[:, None],
        "attention_mask": mask,
        "position_ids": _positions(mask)[:, slot][:, None],
        "slot": slot,
    }
    slots = mask.shape[1]
    caches = [BlockCache(KeyValues(slots, slot, *arrays)) for arrays in cache]
    if read is not None:
        if read.segments is not None:
            batch["encoder_segment_ids"] = read.segments
        of_source = [KeyValues(key.shape[1], None, key, value) for key, value in read.cache]
        caches = [replace(one, source=s) for one, s in zip(caches, of_source, strict=True)]
    scores, added = _run(tower, params, batch, caches, compute)
    return scores, _own(added)


def _positions(mask: jax.Array) -> jax.Array:
    """Return each slot's position in its own text: [B, S] int32, 0 in padding."""
    return jnp.maximum(jnp.cumsum(mask, axis=-1) - 1, 0)


def _run(
    tower: Tower,
    params: Params,
    batch: Mapping[str, jax.Array],
    cache: Sequence[BlockCache],
    compute: Compute,
) -> tuple[jax.Array, Sequence[BlockCache]]:
    """Run stem, blocks and the top of the last position: its scores [B, V], and the caches."""

    def bind(part: Part) -> Any:
        return part.bind(part_values(params, tower.end_names(part), compute), mesh=compute.mesh)

    compute = replace(compute, whole_rows=True)
    with jax.default_matmul_precision(compute.precision):
        stream, context = bind(tower.stem)(batch, None, compute)
        blocks = range(len(tower.blocks))
        plain = replace(compute, remat="none")  # nothing is differentiated
        stream, added, _ = run_blocks(tower, params, stream, context, None, plain, blocks, cache)
        outputs = bind(tower.top)(stream[:, -1:], batch, None)
    assert added is not None  # a cache was passed
    return outputs["logits"][:, 0], added


def _own(caches: Sequence[BlockCache]) -> Cache:
    """Take the keys and values of self-attention out of the blocks' caches."""
    return tuple(one.own.arrays() for one in caches if one.own is not None)
