"""Running a tower as a pure function of its flat parameters: stem, blocks in segments, top."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxft.errors import UserError
from jaxft.models.layers import split_key
from jaxft.models.layers_batch import decoder_batch
from jaxft.models.layers_kernels import HEADS, ROWS
from jaxft.models.layers_math import PRODUCT
from jaxft.models.transformer import PLAIN, Compute, Params, Part, Tower

TRUNK = "trunk"  # a batch may bring a tower's stream under this name, behind the tower's prefix

# What of a block is kept for its way back, beside the stream that it reads.
KEPT = {"full": None, "dots": jax.checkpoint_policies.save_only_these_names(PRODUCT)}

Numbers = Mapping[str, Any]
Step = Callable[[jax.Array, Params, jax.Array | int, Numbers], jax.Array]


def run_tower(
    tower: Tower,
    params: Params,
    batch: Mapping[str, jax.Array],
    key: jax.Array | None = None,
    compute: Compute = PLAIN,
) -> dict[str, jax.Array]:
    """The outputs of a tower for a batch: stem, blocks, top.

    Args:
        tower: what to run.
        params: the flat dict; names the tower does not have are not read.
        batch: what the stem and the top read; with a `trunk` (behind the tower's prefix) as
            `run_trunk` gave it, the tower starts where the trunk ends.
        key: turns dropout on.
        compute: how to run.

    Returns:
        The top's outputs, by name.
    """
    stem_key, blocks_key, top_key = split_key(key, 3)
    given = batch.get(tower.prefix + TRUNK)
    with jax.default_matmul_precision(compute.precision):
        with segment(tower, "embeddings"):
            stem, stem_key = _bind_end(tower, tower.stem, params, stem_key, compute)
            # Of a stem whose stream is not read, XLA computes the context alone.
            stream, context = stem(batch, stem_key, replace(compute, dropout=key is not None))
        first = 0
        if given is not None:
            stream, first = given.astype(stream.dtype), tower.frozen_blocks(compute) or 0
        blocks = range(first, len(tower.blocks))
        stream = run_blocks(tower, params, stream, context, blocks_key, compute, blocks)
        with segment(tower, "top"):
            top, top_key = _bind_end(tower, tower.top, params, top_key, compute)
            return top(stream, batch, top_key)


def run_trunk(
    tower: Tower, params: Params, batch: Mapping[str, jax.Array], compute: Compute
) -> jax.Array:
    """A tower's stream where its trunk ends: [B, T, D].

    Args:
        tower: one with a trunk (`Tower.frozen_blocks`).
        params: the flat dict.
        batch: what the stem reads; of a decoder, what its encoder reads too.
        compute: how to run; says what trains.
    """
    if tower.reads is not None:
        encoded = run_tower(tower.reads, params, batch, None, compute)["last_hidden_state"]
        batch = decoder_batch(batch, encoded)
    blocks = range(tower.frozen_blocks(compute) or 0)
    with jax.default_matmul_precision(compute.precision):
        stem, _ = _bind_end(tower, tower.stem, params, None, compute)
        stream, context = stem(batch, None, compute)
        return run_blocks(tower, params, stream, context, None, compute, blocks)


def run_streams(
    tower: Tower, params: Params, batch: Mapping[str, jax.Array], compute: Compute
) -> list[jax.Array]:
    """A tower's stream at each depth below its top: [B, T, D] after the stem and each block.

    Args:
        tower: one that reads no other.
        params: the flat dict.
        batch: what the stem reads.
        compute: how to run.
    """
    with jax.default_matmul_precision(compute.precision):
        stem, _ = _bind_end(tower, tower.stem, params, None, compute)
        stream, context = stem(batch, None, compute)
        streams = [stream]
        for index in range(len(tower.blocks)):
            block = range(index, index + 1)
            streams.append(run_blocks(tower, params, streams[-1], context, None, compute, block))
        return streams


def run_pair(
    towers: Mapping[str, Tower | Part],
    params: Params,
    batch: Mapping[str, jax.Array],
    key: jax.Array | None = None,
    compute: Compute = PLAIN,
) -> dict[str, jax.Array]:
    """The outputs of a decoder that reads an encoder's.

    Args:
        towers: `encoder` and `decoder`.
        params: the flat dict.
        batch: what the encoder reads, and what the decoder does behind `decoder_`.
        key: turns dropout on.
        compute: how to run.

    Returns:
        The decoder's outputs, and `encoder_last_hidden_state` [B, S, D].

    Raises:
        UserError: the batch has nothing for the decoder.
    """
    if "decoder_input_ids" not in batch:
        raise UserError(
            "The model is an encoder and a decoder, and the batch has no decoder_input_ids.",
            "Give the target's tokens, moved on by one behind the model's start token.",
        )
    encoder, decoder = towers["encoder"], towers["decoder"]
    assert isinstance(encoder, Tower) and isinstance(decoder, Tower)  # noqa: PT018 - one fact
    encoder_key, decoder_key = split_key(key, 2)
    encoded = run_tower(encoder, params, batch, encoder_key, compute)["last_hidden_state"]
    given = decoder_batch(batch, encoded)
    outputs = run_tower(decoder, params, given, decoder_key, compute)
    return outputs | {"encoder_last_hidden_state": encoded}


def run_joint(part: Part, params: Params, compute: Compute, *inputs: Any) -> Any:
    """What a part of no tower, which reads the outputs of several, makes of `inputs`.

    Args:
        part: what to run.
        params: the flat dict, under the part's own paths.
        compute: how to run.
        inputs: what the part is called with.
    """
    values = {path: params[path] for path in part.leaves}
    # What is no matrix stays whole: a scale of scores in bfloat16 would be a per cent off.
    cast = {path: v.astype(compute.dtype) if v.ndim > 1 else v for path, v in values.items()}
    with jax.default_matmul_precision(compute.precision), jax.named_scope("[joint]"):
        return part.bind(cast)(*inputs)


def taken(params: Params, names: Mapping[str, str], compute: Compute) -> dict[str, jax.Array]:
    """What a part is bound to (path -> array), from the names of its parameters, as they run."""
    return {path: params[name].astype(compute.dtype) for path, name in names.items()}


def _bind_end(
    tower: Tower,
    part: Part,
    params: Params,
    key: jax.Array | None,
    compute: Compute,
) -> tuple[Callable[..., Any], jax.Array | None]:
    """A stem or top bound to its leaves, and its dropout key: none where nothing is trained."""
    names = tower.end_names(part)
    module = part.bind(taken(params, names, compute))
    trained = any(compute.trains(name) for path, name in names.items() if tower.owns(path))
    return module, key if trained else None


def run_blocks(
    tower: Tower,
    params: Params,
    stream: jax.Array,
    context: Any,
    key: jax.Array | None,
    compute: Compute,
    blocks: range,
) -> jax.Array:
    """The stream after some of a tower's blocks, cut into runs of alike blocks.

    Blocks are alike when they are the same part and the same of their leaves are trained: then
    their stacked leaves are wholly trained or wholly frozen, and a scan over them computes no
    gradient that nobody asked for.

    Args:
        tower: whose blocks.
        params: the flat dict.
        stream: [B, T, D].
        context: what every block reads beside the stream.
        key: turns dropout on; block i uses `fold_in(key, i)`.
        compute: how to run.
        blocks: which, by their indices.

    Returns:
        [B, T, D].
    """

    def alike(index: int) -> tuple[Part, tuple[str, ...]]:
        names = tower.block_names(index)
        return tower.blocks[index], tuple(p for p, name in names.items() if compute.trains(name))

    for (part, trained), run in groupby(blocks, alike):
        indices = list(run)
        step = partial(_run_block, part, context, key if trained else None, compute)
        with segment(tower, f"blocks {indices[0]}-{indices[-1]}"):
            stream = _placed(stream, compute)
            stream = _run_alike(tower, part, step, indices, params, stream, compute)
    return stream


def _placed(stream: jax.Array, compute: Compute) -> jax.Array:
    """The stream [B, T, D] with each device's rows where its batch is.

    Without a word the partitioner moves activations to where the parameters' shards are: every
    device then computes all rows of its part of the width, and sends whole activations round.
    What every device of a tensor group would hold alike (the stream between the wide matrices)
    is cut along T, so that norms are computed once.
    Source: Korthikanti et al. (2022), https://arxiv.org/abs/2205.05198.
    """
    mesh = compute.mesh
    if mesh is None or mesh.size == 1:
        return stream
    if stream.shape[0] % math.prod(mesh.shape[axis] for axis in ROWS):
        return stream  # such rows are on no mesh's devices alike: leave it to the partitioner
    along = HEADS if stream.shape[1] % mesh.shape[HEADS] == 0 else None
    return jax.lax.with_sharding_constraint(stream, NamedSharding(mesh, PartitionSpec(ROWS, along)))


def segment(tower: Tower, name: str) -> AbstractContextManager:
    """What is run inside is a segment of the tower: so profiles and counted costs name it."""
    return jax.named_scope(f"[{tower.prefix}{name}]")


def _run_block(
    part: Part,
    context: Any,
    key: jax.Array | None,
    compute: Compute,
    stream: jax.Array,
    values: Params,
    index: jax.Array | int,
    numbers: Numbers,
) -> jax.Array:
    block_key = None if key is None else jax.random.fold_in(key, index)
    out = part.bind(values, block_key)(stream, context, block_key, **numbers)
    return _placed(out, compute)


def _run_alike(
    tower: Tower,
    part: Part,
    step: Step,
    indices: list[int],
    params: Params,
    stream: jax.Array,
    compute: Compute,
) -> jax.Array:
    """The stream after a run of alike blocks: one scan over their stacked leaves, or unrolled."""

    def values(index: int) -> dict[str, jax.Array]:
        return taken(params, tower.block_names(index), compute)

    scanned = compute.scan and len(indices) > 1
    if compute.remat in KEPT:
        # Between the iterations of a scan nothing is merged, so the guard would cost for nothing.
        step = jax.checkpoint(step, prevent_cse=not scanned, policy=KEPT[compute.remat])
    if not scanned:
        for index in indices:
            numbers = {name: of[index] for name, of in tower.numbers.items()}
            stream = step(stream, values(index), index, numbers)
        return stream
    per_block = [values(index) for index in indices]
    stacked = {p: jnp.stack([block[p] for block in per_block]) for p in part.leaves}
    chosen = {name: jnp.asarray([of[i] for i in indices]) for name, of in tower.numbers.items()}
    stream, _ = jax.lax.scan(
        lambda x, block: (step(x, *block), None),
        stream,
        (stacked, jnp.asarray(indices), chosen),
    )
    return stream
