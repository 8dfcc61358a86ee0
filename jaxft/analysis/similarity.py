"""Similarity of each depth before and after fine-tuning, on the same examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.engine.evaluate import in_order, run_split
from jaxft.engine.inputs import Split
from jaxft.engine.setup import Setup
from jaxft.engine.step import make_eval_step
from jaxft.errors import UserError
from jaxft.metrics.similarity import linear_cka
from jaxft.models.tower.run import run_streams
from jaxft.models.tower.tower import Tower
from jaxft.tasks.parts.token_examples import of_segments

Params = Mapping[str, jax.Array]
FEWEST = 4  # examples: below them the estimate is not defined


def similarity(setup: Setup, start: Params, end: Params, split: Split) -> list[float]:
    """The alignment (CKA) of each depth's stream under two sets of parameters.

    Args:
        setup: the run.
        start, end: every parameter, before and after.
        split: the examples; a text or an image is the mean of its positions.

    Returns:
        One number a depth: the embeddings, then each block.

    Raises:
        UserError: the model has several towers, or the examples are too few.
    """
    towers = [part for part in setup.model.towers.values() if isinstance(part, Tower)]
    if len(towers) > 1:
        names = ", ".join(setup.model.towers)
        raise UserError(f"--similarity supports models with one tower; this model has {names}.")
    if len(split.examples) < FEWEST:
        raise UserError(
            f"--similarity needs at least {FEWEST} examples; {split.source.spec} has "
            f"{len(split.examples)}.",
            "Give more with --data.",
        )
    step = make_eval_step(
        lambda params, batch: ({}, features(setup, towers[0], params, batch)),
        param_shardings=dict(setup.shardings),
        mesh=setup.mesh,
    )
    before, after = (_of_split(setup, step, params, split) for params in (start, end))
    return [linear_cka(before[:, depth], after[:, depth]) for depth in range(before.shape[1])]


def features(
    setup: Setup, tower: Tower, params: Params, batch: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
    """The mean over each example's positions of the stream at each depth.

    Returns:
        `features` [R, S, depths, K, D], K texts an example, and `example_ids` [R, S].
    """
    streams = run_streams(tower, params, batch, setup.compute)
    means = jnp.stack([example_means(stream, batch) for stream in streams], axis=2)
    return {"features": means, "example_ids": batch["example_ids"]}


def example_means(stream: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
    """The mean of a stream over the positions of each example's texts, or over its picture.

    Args:
        stream: [R, T, D].
        batch: of what it was computed.

    Returns:
        [R, S, K, D] float32: S examples a row, K texts an example.
    """
    values = stream.astype(jnp.float32)
    rows, segments = batch["example_ids"].shape
    if "segment_ids" not in batch:
        return values.mean(1)[:, None, None]
    texts = batch["text_numbers"].shape[-1] if "text_numbers" in batch else 1
    own = of_segments(batch["segment_ids"], segments * texts).astype(jnp.float32)
    sums = jnp.einsum("rst,rtd->rsd", own, values)
    means = sums / jnp.maximum(own.sum(-1, keepdims=True), 1)
    return means.reshape(rows, segments, texts, -1)


def _of_split(setup: Setup, step: Any, params: Params, split: Split) -> np.ndarray:
    """Every text's or picture's features: [N, depths, D]."""
    outputs_of_all = [
        outputs for _, outputs in run_split(setup.mesh, setup.layout, step, params, split.examples)
    ]
    each = in_order(outputs_of_all, len(split.examples))["features"]  # [examples, depths, K, D]
    return each.swapaxes(1, 2).reshape(-1, each.shape[1], each.shape[-1])
