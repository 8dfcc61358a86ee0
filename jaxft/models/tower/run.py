"""Towers as pure functions of their flat parameters: stem, blocks in segments, top."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import accumulate
from typing import Any

import jax
import jax.numpy as jnp

from jaxft.models.layers.modules import split_key
from jaxft.models.tower.blocks import run_blocks, segment
from jaxft.models.tower.dealt import deal_of, scores_positions
from jaxft.models.tower.sampled import is_sampled, run_sampled
from jaxft.models.tower.stretch import part_values
from jaxft.models.tower.tower import PLAIN, Compute, Params, Part, Tower

TRUNK = "trunk"  # the key of a tower's precomputed stream in a batch, behind the tower's prefix


def run_tower(
    tower: Tower,
    params: Params,
    batch: Mapping[str, jax.Array],
    key: jax.Array | None = None,
    compute: Compute = PLAIN,
) -> dict[str, jax.Array]:
    """Run a tower on a batch: stem, blocks, top.

    Args:
        tower: what to run.
        params: the flat dict; names the tower does not have are not read.
        batch: input of the stem and the top; with a `trunk` (behind the tower's prefix) from
            `run_trunk`, the tower starts where the trunk ends.
        key: turns dropout on.
        compute: how to run.

    Returns:
        The top's outputs, by name; and the `aux_loss` of blocks that give the use of their experts.
    """
    compute = replace(compute, dropout=key is not None)
    stem_key, blocks_key, top_key = split_key(key, 3)
    trunk = batch.get(tower.prefix + TRUNK)
    deal = deal_of(tower, batch, compute)
    whole, batch = batch, batch if deal is None else deal.batch(batch)
    with jax.default_matmul_precision(compute.precision):
        with segment(tower, "embeddings"):
            stem, stem_key = _bind_end(tower, tower.stem, params, stem_key, compute)
            # If a trunk replaces the stem's stream, XLA computes the context alone.
            stream, context = stem(batch, stem_key, compute)
        first = 0
        if trunk is not None:
            stream, first = apart(trunk, stream), tower.frozen_blocks(compute) or 0
        use = None
        if is_sampled(tower, params):
            stream = run_sampled(tower, params, stream, context, blocks_key, compute)
        else:
            blocks = range(first, len(tower.blocks))
            stream, _, use = run_blocks(tower, params, stream, context, blocks_key, compute, blocks)
        with segment(tower, "top"):
            top, top_key = _bind_end(tower, tower.top, params, top_key, compute)
            if deal is None:
                outputs = top(stream, batch, top_key)
            elif scores_positions(tower, batch):
                outputs = {n: deal.undone(x) for n, x in top(stream, batch, top_key).items()}
            else:
                outputs = top(deal.undone(stream), whole, top_key)
        return outputs if use is None else outputs | {"aux_loss": use.loss()}


def run_trunk(
    tower: Tower, params: Params, batch: Mapping[str, jax.Array], compute: Compute
) -> jax.Array:
    """Run a tower up to the end of its trunk: the stream [B, T, D], its arrays side by side.

    Args:
        tower: one with a trunk (`Tower.frozen_blocks`).
        params: the flat dict.
        batch: what the stem reads; of a decoder, what its encoder reads too.
        compute: how to run; says what trains.
    """
    if tower.reads is not None:
        encoded = run_tower(tower.reads, params, batch, None, compute)["last_hidden_state"]
        batch = tower.input_of(batch, encoded)
    blocks = range(tower.frozen_blocks(compute) or 0)
    with jax.default_matmul_precision(compute.precision):
        stream, context = run_stem(tower, params, batch, compute)
        stream, _, _ = run_blocks(tower, params, stream, context, None, compute, blocks)
        return together(stream)


def together(stream: Any) -> jax.Array:
    """Lay the arrays of a stream, [B, T, ...] each, side by side."""
    arrays = jax.tree.leaves(stream)
    return arrays[0] if len(arrays) == 1 else jnp.concatenate(arrays, axis=-1)


def apart(joined: jax.Array, stream: Any) -> Any:
    """Undo `together`, in the shapes and types of a stream."""
    arrays, structure = jax.tree.flatten(stream)
    ends = list(accumulate(array.shape[-1] for array in arrays))[:-1]
    parts = jnp.split(joined, ends, axis=-1)
    typed = [part.astype(array.dtype) for part, array in zip(parts, arrays, strict=True)]
    return jax.tree.unflatten(structure, typed)


def run_streams(
    tower: Tower, params: Params, batch: Mapping[str, jax.Array], compute: Compute
) -> list[jax.Array]:
    """Return a tower's stream at each depth below its top: [B, T, D] after the stem and each block.

    Args:
        tower: one that reads no other.
        params: the flat dict.
        batch: what the stem reads.
        compute: how to run.
    """
    deal = deal_of(tower, batch, compute)
    batch = batch if deal is None else deal.batch(batch)
    with jax.default_matmul_precision(compute.precision):
        stream, context = run_stem(tower, params, batch, compute)
        streams = [stream]
        for index in range(len(tower.blocks)):
            block = range(index, index + 1)
            stream, _, _ = run_blocks(tower, params, stream, context, None, compute, block)
            streams.append(stream)
        return streams if deal is None else [deal.undone(stream) for stream in streams]


def run_stem(
    tower: Tower, params: Params, batch: Mapping[str, jax.Array], compute: Compute
) -> tuple[jax.Array, Any]:
    """Run a tower's stem without dropout: the stream [B, T, D], and what every block reads.

    Args:
        tower: whose stem.
        params: the flat dict.
        batch: what the stem reads.
        compute: how to run.
    """
    stem, _ = _bind_end(tower, tower.stem, params, None, compute)
    return stem(batch, None, compute)


def run_pair(
    towers: Mapping[str, Tower | Part],
    params: Params,
    batch: Mapping[str, jax.Array],
    key: jax.Array | None = None,
    compute: Compute = PLAIN,
) -> dict[str, jax.Array]:
    """Run an encoder, and a decoder that reads its output.

    Args:
        towers: `encoder` and `decoder`.
        params: the flat dict.
        batch: the encoder's input, and the decoder's under names that start with `decoder_`.
        key: turns dropout on.
        compute: how to run.

    Returns:
        The decoder's outputs, and `encoder_last_hidden_state` [B, S, D].

    Raises:
        UserError: the batch has no input for the decoder.
    """
    encoder, decoder = towers["encoder"], towers["decoder"]
    assert isinstance(encoder, Tower) and isinstance(decoder, Tower)  # noqa: PT018 - one fact
    encoder_key, decoder_key = split_key(key, 2)
    encoded = run_tower(encoder, params, batch, encoder_key, compute)["last_hidden_state"]
    targets = decoder.input_of(batch, encoded)
    outputs = run_tower(decoder, params, targets, decoder_key, compute)
    return outputs | {"encoder_last_hidden_state": encoded}


def run_joint(part: Part, params: Params, compute: Compute, *inputs: Any) -> Any:
    """Run a part that belongs to no tower and reads the outputs of several.

    Args:
        part: what to run.
        params: the flat dict, under the part's own paths.
        compute: how to run.
        inputs: what the part is called with.
    """
    values = {path: params[path] for path in part.leaves}
    # Scalars and vectors stay in float32: a scale of scores in bfloat16 would be off by a percent.
    cast = {path: v.astype(compute.dtype) if v.ndim > 1 else v for path, v in values.items()}
    with jax.default_matmul_precision(compute.precision), jax.named_scope("[joint]"):
        return part.bind(cast, mesh=compute.mesh)(*inputs)


def _bind_end(
    tower: Tower,
    part: Part,
    params: Params,
    key: jax.Array | None,
    compute: Compute,
) -> tuple[Callable[..., Any], jax.Array | None]:
    """Bind a stem or top, and return its dropout key too: None if nothing in it is trained."""
    names = tower.end_names(part)
    module = part.bind(part_values(params, names, compute), mesh=compute.mesh)
    trained = any(compute.trains(name) for path, name in names.items() if tower.owns(path))
    return module, key if trained else None
