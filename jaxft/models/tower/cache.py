"""A tower that keeps keys and values, so that the next position costs one position.

B batch, T positions, S slots, G heads of keys and values, K width of a head, V words; a decoder
that reads an encoder keeps those of the source too, R positions, which never change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxft.models.layers.attention import Mask
from jaxft.models.layers.batch import decoder_batch
from jaxft.models.layers.cache import KeyValues
from jaxft.models.layers.cross import Source
from jaxft.models.tower.blocks import taken
from jaxft.models.tower.run import run_tower
from jaxft.models.tower.tower import PLAIN, Compute, Params, Part, Tower

Cache = tuple[tuple[jax.Array, jax.Array], ...]  # block -> keys and values, each [B G, S, K]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Read:
    """What is kept of the sources that a decoder reads.

    Args:
        cache: block -> keys and values of the source, each [B G, R, K].
        segments: [B, R] int32, 0 where a source is filled up; None where none is.
    """

    cache: Cache
    segments: jax.Array | None


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
    return _run(tower, params, batch, [replace(blank) for _ in tower.blocks], None, compute)


def prefill_from(
    tower: Tower,
    params: Params,
    sources: Mapping[str, jax.Array],
    ids: jax.Array,
    room: int,
    compute: Compute = PLAIN,
) -> tuple[jax.Array, Cache, Read]:
    """The scores of the first new token of each text that is written from a source.

    Args:
        tower: a decoder that reads an encoder.
        params: the flat dict of both.
        sources: what the encoder reads: `input_ids` [B, R] and `attention_mask`, or images.
        ids: [B, T] int32, what every text begins with.
        room: how many positions there is room for beyond T.
        compute: how to run.

    Returns:
        [B, V] float32, the cache with T + `room` slots, and what is kept of the sources.
    """
    assert tower.reads is not None  # else there is nothing to write from
    encoded = run_tower(tower.reads, params, sources, None, compute)["last_hidden_state"]
    batch = {**decoder_batch(sources, encoded), "input_ids": ids}
    own, read = KeyValues(ids.shape[1] + room), KeyValues(encoded.shape[1])
    kept, crossed = ([replace(blank) for _ in tower.blocks] for blank in (own, read))
    scores, cache = _run(tower, params, batch, kept, crossed, compute)
    of_source = tuple(one.arrays() for one in crossed)
    return scores, cache, Read(of_source, batch.get("encoder_segment_ids"))


def decode(
    tower: Tower,
    params: Params,
    ids: jax.Array,
    seen: jax.Array,
    slot: jax.Array,
    cache: Cache,
    compute: Compute = PLAIN,
    read: Read | None = None,
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
        read: what is kept of the sources, where the texts have some.

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
    if read is None:
        return _run(tower, params, batch, kept, None, compute)
    if read.segments is not None:
        batch["encoder_segment_ids"] = read.segments
    crossed = [KeyValues(key.shape[1], None, key, value) for key, value in read.cache]
    return _run(tower, params, batch, kept, crossed, compute)


def _positions(seen: jax.Array) -> jax.Array:
    """Each slot's position in its own text: [B, S] int32, 0 in what is filled up."""
    return jnp.maximum(jnp.cumsum(seen, axis=-1) - 1, 0)


def _run(
    tower: Tower,
    params: Params,
    batch: Mapping[str, jax.Array],
    kept: list[KeyValues],
    crossed: list[KeyValues] | None,
    compute: Compute,
) -> tuple[jax.Array, Cache]:
    """Stem, blocks (each with its own of `kept` and `crossed`), the top of the last position."""

    def bind(part: Part, names: Mapping[str, str]) -> Any:
        return part.bind(taken(params, names, compute), mesh=compute.mesh)

    with jax.default_matmul_precision(compute.precision):
        stem = bind(tower.stem, tower.end_names(tower.stem))
        stream, context = stem(batch, None, compute)
        for index, (part, own) in enumerate(zip(tower.blocks, kept, strict=True)):
            numbers = {name: of[index] for name, of in tower.numbers.items()}
            block = bind(part, tower.block_names(index))
            of_source = None if crossed is None else crossed[index]
            stream = block(stream, _keeping(context, own, of_source), None, **numbers)
        outputs = bind(tower.top, tower.end_names(tower.top))(stream[:, -1:], batch, None)
    return outputs["logits"][:, 0], tuple(own.arrays() for own in kept)


def _keeping(context: Any, kept: KeyValues, crossed: KeyValues | None) -> Any:
    """A context whose masks have `kept`, and whose source has `crossed`."""

    def with_kept(node: Any) -> Any:
        if isinstance(node, Source):
            return replace(node, mask=replace(node.mask, kept=crossed))
        return replace(node, kept=kept) if isinstance(node, Mask) else node

    return jax.tree.map(with_kept, context, is_leaf=lambda node: isinstance(node, Source | Mask))
