"""How far fine-tuning has moved what each depth says of the same examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.engine.build import Build
from jaxft.engine.evaluate import in_order, run_split
from jaxft.engine.inputs import Split
from jaxft.engine.step import make_eval_step
from jaxft.errors import UserError
from jaxft.metrics.similarity import linear_cka
from jaxft.models.layers_batch import segments_of
from jaxft.models.transformer import Tower
from jaxft.models.transformer_run import run_streams

Params = Mapping[str, jax.Array]
FEWEST = 4  # examples: below them the estimate is not defined


def similarity(built: Build, start: Params, end: Params, split: Split) -> list[float]:
    """The alignment (CKA) of each depth's stream under two sets of parameters.

    Args:
        built: the run.
        start, end: every parameter, before and after.
        split: the examples; a text or an image is the mean of its positions.

    Returns:
        One number a depth: the embeddings, then each block.

    Raises:
        UserError: the model has several towers, or the examples are too few.
    """
    towers = [part for part in built.model.towers.values() if isinstance(part, Tower)]
    if len(towers) > 1:
        names = ", ".join(built.model.towers)
        raise UserError(
            f"--similarity follows the depths of one tower, and this model has {names}."
        )
    if len(split.examples) < FEWEST:
        raise UserError(
            f"--similarity takes {FEWEST} examples and more, and {split.source.spec} has "
            f"{len(split.examples)}.",
            "Give more with --data.",
        )
    step = make_eval_step(
        lambda params, batch: ({}, features(built, towers[0], params, batch)),
        param_shardings=dict(built.shardings),
        mesh=built.mesh,
    )
    before, after = (_of_split(built, step, params, split) for params in (start, end))
    return [linear_cka(before[:, depth], after[:, depth]) for depth in range(before.shape[1])]


def features(
    built: Build, tower: Tower, params: Params, batch: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
    """The mean over each example's positions of the stream at each depth.

    Returns:
        `features` [R, S, depths, D] and `example_ids` [R, S].
    """
    streams = run_streams(tower, params, batch, built.compute)
    ids = batch["example_ids"]
    if "input_ids" in batch:
        own = segments_of(batch)[:, None] == jnp.arange(1, ids.shape[1] + 1)[None, :, None]
    else:
        own = jnp.ones((len(ids), 1, streams[0].shape[1]), bool)
    share = own / jnp.maximum(own.sum(axis=-1, keepdims=True), 1)  # [R, S, T]
    means = [jnp.einsum("rst,rtd->rsd", share, stream.astype(jnp.float32)) for stream in streams]
    return {"features": jnp.stack(means, axis=2), "example_ids": ids}


def _of_split(built: Build, step: Any, params: Params, split: Split) -> np.ndarray:
    """Every example's features: [examples, depths, D]."""
    found = [kept for _, kept in run_split(built, step, params, split.examples)]
    return in_order(found, len(split.examples))["features"]
