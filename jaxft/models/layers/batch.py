"""Batch of a model, plain or packed: positions, segments, and where an example is read.

A plain batch has Hugging Face's names: `input_ids` and perhaps `attention_mask` [B, T]. Packed
rows have `input_ids`, `position_ids`, `segment_ids` [R, T] and `read_positions` [R, S].
Where an encoder reads sources and a decoder targets, the decoder's are `decoder_input_ids` and so
on, with the same rows.
The `masked_positions` [B, M] are those of tokens to predict.
A batch that decodes one position has `input_ids` and `position_ids` [B, 1], its `slot` (an
int32) and the `attention_mask` [B, S] of all slots.
Where vectors stand in place of words, those of an image, a batch has `soft_tokens` [B, S, D] and
`soft_places` [B, T] int32: which of them stands at a position, -1 where the word does; and perhaps
`groups` [B, T] int32: positions with the same number see each other both ways, -1 for none; under
the name `groups_ahead` only those ahead are seen in any window.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import lax

from jaxft.errors import UserError

Batch = Mapping[str, jax.Array]
# Where in its row each position is, by device, if not in order: [N, T / N]; see `tower.dealt`.
PLACES = "places"
DECODER = "decoder_"  # prefix of the decoder's names in the batch of an encoder-decoder
SOFT_TOKENS, SOFT_PLACES = "soft_tokens", "soft_places"
GROUPS, GROUPS_AHEAD = "groups", "groups_ahead"
TEXT_NAMES = (
    *("input_ids", "attention_mask", "token_type_ids", "position_ids", "segment_ids"),
    *(SOFT_PLACES, GROUPS, GROUPS_AHEAD),
)


def check_length(batch: Batch, most: int) -> None:
    """Raise a UserError if a plain batch has more positions than the model takes."""
    length = batch["input_ids"].shape[1]
    if "position_ids" not in batch and length > most:
        raise UserError(f"The text has {length} tokens; the model takes {most}.", "Truncate it.")


def positions_of(batch: Batch) -> jax.Array:
    """Return each token's position in its example: [B or 1, T] int32."""
    length = batch["input_ids"].shape[1]
    places = batch.get(PLACES, jnp.arange(length, dtype=jnp.int32))
    return batch.get("position_ids", places.reshape(1, -1))


def after_padding(ids: jax.Array, positions: jax.Array, padding: int) -> jax.Array:
    """Compute RoBERTa's positions, [B, T] int32, which count from the padding token's id.

    A padding word has that id for its position and is not counted, wherever it stands.

    Args:
        ids: [B, T].
        positions: [B or 1, T], each token's place in its own example.
        padding: the padding word's id.
    """
    true = (ids != padding).astype(jnp.int32)
    before = jnp.cumsum(true, axis=1) - true  # words of the row before each place
    first = jnp.arange(ids.shape[1], dtype=jnp.int32) - positions  # where its example begins
    counted = before - jnp.take_along_axis(before, jnp.broadcast_to(first, ids.shape), axis=1)
    return (counted + 1) * true + padding


def devices_of(batch: Batch) -> int:
    """Return over how many devices the positions of a row are dealt."""
    return len(batch[PLACES]) if PLACES in batch else 1


def counted(ones: jax.Array, batch: Batch) -> jax.Array:
    """Count the ones of a row up to each position, itself included: [B, T] int32."""
    if PLACES not in batch:
        return jnp.cumsum(ones, axis=1)
    places = batch[PLACES].reshape(-1)
    return jnp.cumsum(ones[:, jnp.argsort(places)], axis=1)[:, places]


def segments_of(batch: Batch) -> jax.Array:
    """Return the segment, an example or padding, of each token: [B, T] int32.

    A mask is one segment and its padding: a padding position then attends only to padding, and no
    other position attends to it.
    """
    alone = batch.get("attention_mask", jnp.ones_like(batch["input_ids"]))
    return batch.get("segment_ids", alone).astype(jnp.int32)


def groups_of(batch: Batch) -> tuple[jax.Array | None, bool]:
    """Return the groups of positions that see each other, if any; whether only ahead in windows."""
    return batch.get(GROUPS, batch.get(GROUPS_AHEAD)), GROUPS_AHEAD in batch


def slot_of(batch: Batch) -> jax.Array | None:
    """Return the slot of the one new position, after those that are cached; None if none are."""
    return batch.get("slot")


def decoder_batch(batch: Batch, encoded: jax.Array) -> Batch:
    """Build a decoder's batch from one of sources and targets, under a text's own names.

    Args:
        batch: of both; names that start with `decoder_` are the decoder's.
        encoded: the encoder's output, [B, S, D].

    Returns:
        The decoder's, with `encoder_hidden_states`, the `encoder_segment_ids` [B, S] of their
        positions, and all that is neither's by its name.
    """
    own = {n.removeprefix(DECODER): v for n, v in batch.items() if n.startswith(DECODER)}
    read = {n: v for n, v in batch.items() if n not in TEXT_NAMES and not n.startswith(DECODER)}
    if "input_ids" in batch:
        read["encoder_segment_ids"] = segments_of(batch)
    return {**read, **own, "encoder_hidden_states": encoded}


def decoder_input(batch: Batch, encoded: jax.Array) -> Batch:
    """Build a decoder's batch, as `decoder_batch` does, of one that has targets.

    Raises:
        UserError: the batch has no input for the decoder.
    """
    if f"{DECODER}input_ids" not in batch:
        raise UserError(
            "The batch has no decoder_input_ids, which an encoder-decoder needs.",
            "Give the target's tokens, shifted right by one behind the model's start token.",
        )
    return decoder_batch(batch, encoded)


def repeated_input(batch: Batch, encoded: jax.Array, start: int | None) -> Batch:
    """Build the batch of a decoder that reads the source again, shifted right by one token.

    Args:
        batch: of sources; where it has decoder inputs, those are read.
        encoded: the encoder's output, [B, S, D].
        start: the token before each text; None for its own last one, as in mBART.

    Returns:
        The decoder's, as of `decoder_batch`, with the `encoder_input_ids` [B, T].
    """
    ids, segments = batch["input_ids"], segments_of(batch)
    again = {}
    if f"{DECODER}input_ids" not in batch:
        shared = ("attention_mask", "position_ids", "segment_ids")
        again = {DECODER + name: batch[name] for name in shared if name in batch}
        first = _last_of_segments(ids, segments) if start is None else jnp.full_like(ids, start)
        shifted = jnp.where(positions_of(batch) == 0, first, jnp.roll(ids, 1, axis=1))
        again[f"{DECODER}input_ids"] = shifted
    return {**decoder_batch({**batch, **again}, encoded), "encoder_input_ids": ids}


def _last_of_segments(ids: jax.Array, segments: jax.Array) -> jax.Array:
    """Return at each position the last token of its segment: [B, T]."""
    length = ids.shape[1]
    following = jnp.pad(segments[:, 1:], ((0, 0), (0, 1)), constant_values=-1)
    ends = jnp.where(segments != following, jnp.arange(length, dtype=jnp.int32), length)
    return jnp.take_along_axis(ids, lax.cummin(ends, axis=1, reverse=True), axis=1)


def read_first(x: jax.Array, batch: Batch) -> jax.Array:
    """Select the first position of each example: [B, D], or [R, S, D] with S segments a row."""
    if "read_positions" not in batch:
        return x[:, 0]
    return jnp.take_along_axis(x, batch["read_positions"][..., None], axis=1)


def read_mean(x: jax.Array, batch: Batch) -> jax.Array:
    """Average the positions of each example: [B, D], or [R, S, D] with S segments a row.

    A segment that a row lacks is read as its first one.
    """
    segments = segments_of(batch)  # [B, T]
    if "read_positions" in batch:
        own = jnp.take_along_axis(segments, batch["read_positions"], axis=1)  # [R, S]
        inside = segments[:, None, :] == own[..., None]
    else:
        inside = segments[:, None, :] > 0
    weights = inside.astype(jnp.float32)  # [B, S, T]
    sums = jnp.einsum("bst,btd->bsd", weights, x.astype(jnp.float32), precision="highest")
    means = (sums / weights.sum(-1, keepdims=True)).astype(x.dtype)
    return means if "read_positions" in batch else means[:, 0]


def read_masked(x: jax.Array, batch: Batch) -> jax.Array:
    """Select the masked positions if a batch names them: [B, T, D] -> [B, M, D]."""
    if "masked_positions" not in batch:
        return x
    return jnp.take_along_axis(x, batch["masked_positions"][..., None], axis=1)


def read_last(x: jax.Array, batch: Batch, pad_token_id: int | None) -> jax.Array:
    """Select the last position of each example: [B, D], or [R, S, D] with S segments a row.

    As in transformers, that is the last token that is not `pad_token_id` (the first where all
    are), so that an export reads what was trained, also where a text ends in that token.
    """
    ids = batch["input_ids"]
    true = ids != (-1 if pad_token_id is None else pad_token_id)  # [B, T]
    places = jnp.arange(ids.shape[1], dtype=jnp.int32)
    if "read_positions" not in batch:
        last = jnp.where(true & (segments_of(batch) > 0), places, 0).max(-1)  # [B]
        return jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]
    first = batch["read_positions"]  # [R, S]
    segments = segments_of(batch)
    own = jnp.take_along_axis(segments, first, axis=1)  # [R, S]
    inside = (segments[:, None, :] == own[..., None]) & true[:, None, :]  # [R, S, T]
    last = jnp.where(inside, places, first[..., None]).max(-1)
    return jnp.take_along_axis(x, last[..., None], axis=1)


def read_end(x: jax.Array, batch: Batch, end_token_id: int) -> jax.Array:
    """Select where each source has its last end token: [B, D], or [R, S, D] with S segments a row.

    A source without that token, which transformers refuses, is read at its last one.

    Args:
        x: the stream of a decoder that reads the source again, [B, T, D].
        batch: that decoder's, with `encoder_input_ids`.
        end_token_id: the token.
    """
    length, segments = x.shape[1], segments_of(batch)
    ends = batch["encoder_input_ids"] == end_token_id
    rank = jnp.arange(length, dtype=jnp.int32) + length * ends  # [B, T]
    if "read_positions" not in batch:
        last = jnp.where(segments > 0, rank, 0).max(-1) % length  # [B]
        return jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]
    own = jnp.take_along_axis(segments, batch["read_positions"], axis=1)  # [R, S]
    inside = segments[:, None, :] == own[..., None]  # [R, S, T]
    last = jnp.where(inside, rank[:, None], 0).max(-1) % length
    return jnp.take_along_axis(x, last[..., None], axis=1)


def with_soft_tokens(batch: Batch, vectors: jax.Array, word: int) -> Batch:
    """Return the batch of a text with a vector at each place of a word, in their order.

    Args:
        batch: with `input_ids` [B, T].
        vectors: [B, S, D]; those beyond the places of a row are not read.
        word: the id that marks a place.
    """
    marked = batch["input_ids"] == word
    places = jnp.where(marked, jnp.cumsum(marked, axis=1, dtype=jnp.int32) - 1, -1)
    return {**batch, SOFT_TOKENS: vectors, SOFT_PLACES: places}


def put_soft_tokens(x: jax.Array, batch: Batch) -> jax.Array:
    """Put a batch's vectors, if it has any, into the stream of its words: [B, T, D].

    A place beyond the last vector is filled with NaN: a text marks as many as there are.
    """
    if SOFT_TOKENS not in batch:
        return x
    places = batch[SOFT_PLACES][..., None]
    vectors = batch[SOFT_TOKENS].astype(x.dtype)
    return jnp.where(places >= 0, jnp.take_along_axis(vectors, jnp.maximum(places, 0), axis=1), x)
