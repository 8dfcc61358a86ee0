"""RF-DETR's loss: that of each of the decoder's blocks, and of the boxes its queries begin at.

Each class has a score by itself, between 0 and 1, and the target of a matched query is how well its
box fits; without a class for nothing, all other scores are to be 0. Groups of queries are matched
each by itself, so that one image teaches many queries.

S stages (the beginning and each block), R rows, G groups of Q queries, M boxes, C classes.

Source: Cai et al. (2023), https://arxiv.org/abs/2303.17189; Chen et al. (2022),
https://arxiv.org/abs/2207.13085; the numbers are those of `transformers`' `loss_lw_detr.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxft.tasks.object_detection.assignment import assign
from jaxft.tasks.object_detection.detection_loss import corners, generalised_iou, overlap

COST_ALPHA, COST_GAMMA, COST_FLOOR = 0.25, 2.0, 1e-8  # of the cost of a class
LEAST_TARGET = 0.01  # of a matched query's class


def query_loss(
    outputs: Mapping[str, jax.Array], batch: Mapping[str, Any], weights: Mapping[str, Any]
) -> tuple[jax.Array, jax.Array]:
    """Return a batch's summed loss and its weight, the number of true boxes, or 1 without any.

    Args:
        outputs: `layer_logits` `[S - 1, R, G Q, C]`, `layer_boxes` `[S - 1, R, G Q, 4]` center,
            width and height as shares of the image; `enc_outputs_class`,
            `enc_outputs_coord_logits` likewise, without the first axis.
        batch: `boxes` `[R, M, 4]`, `box_labels` `[R, M]` (-1 for none) and `weights` `[R, 1]`.
        weights: the fields of config.json that weigh matching and loss, `num_queries` and
            `auxiliary_loss`: whether there is a loss of each block, or of the last alone.
    """
    last = 0 if weights["auxiliary_loss"] else -1
    pairs = (("layer_logits", "enc_outputs_class"), ("layer_boxes", "enc_outputs_coord_logits"))
    logits, predicted = (
        jnp.concatenate([outputs[later][last:], outputs[first][None]]) for later, first in pairs
    )
    queries = weights["num_queries"]
    shape = (*logits.shape[:2], -1, queries)
    logits, predicted = (x.reshape(*shape, x.shape[-1]) for x in (logits, predicted))
    boxes, labels = batch["boxes"], batch["box_labels"]
    query = match(logits, predicted, boxes, labels, weights)  # [S, R, G, M]
    real = (labels >= 0) * batch["weights"]  # [R, M]
    chosen = jnp.take_along_axis(predicted, query[..., None], axis=3)  # [S, R, G, M, 4]
    true = boxes[:, None]  # [R, 1, M, 4]
    fit = overlap(corners(chosen), corners(true))
    classes = class_loss(logits, query, labels, fit, weights["focal_alpha"])  # [S, R, G]
    far = jnp.abs(chosen - true).sum(-1)
    apart = 1.0 - generalised_iou(corners(chosen), corners(true))
    of_boxes = weights["bbox_loss_coefficient"] * far + weights["giou_loss_coefficient"] * apart
    total = weights["class_loss_coefficient"] * jnp.sum(classes * batch["weights"])
    total += jnp.sum(of_boxes * real[:, None])
    number = jnp.maximum(real.sum(), jnp.minimum(batch["weights"].sum(), 1.0))
    return total / logits.shape[2], number


def class_loss(
    logits: jax.Array, query: jax.Array, labels: jax.Array, fit: jax.Array, alpha: float
) -> jax.Array:
    """Return the cross-entropy of all scores, whose targets know how well boxes fit: `[S, R, G]`.

    Args:
        logits: `[S, R, G, Q, C]`.
        query: `[S, R, G, M]`, of each box.
        labels: `[R, M]`, -1 for none.
        fit: `[S, R, G, M]`, the overlap of each box and its query's.
        alpha: the power of the score in the target, and what is left of 1 that of the fit.
    """
    label = jnp.broadcast_to(labels[:, None], query.shape)
    of_box = jnp.take_along_axis(logits, query[..., None], axis=3)  # [S, R, G, M, C]
    score = jnp.take_along_axis(of_box, jnp.maximum(label, 0)[..., None], axis=4)[..., 0]
    target = jax.nn.sigmoid(score) ** alpha * fit ** (1 - alpha)
    target = jax.lax.stop_gradient(jnp.maximum(target, LEAST_TARGET))
    places = tuple(jnp.indices(query.shape)[:3])
    where = (*places, query, jnp.where(label < 0, logits.shape[-1], label))  # padding: beyond
    positive = jnp.zeros_like(logits).at[where].set(target, mode="drop")
    share = jax.nn.sigmoid(logits)
    negative = jnp.where(positive > 0, 1.0 - positive, jnp.square(share))
    losses = positive * jax.nn.log_sigmoid(logits) + negative * jax.nn.log_sigmoid(-logits)
    return -losses.sum((-2, -1))


def match(
    logits: jax.Array,
    predicted: jax.Array,
    boxes: jax.Array,
    labels: jax.Array,
    weights: Mapping[str, Any],
) -> jax.Array:
    """Match each box with a query of each group at the least total cost: `[S, R, G, M]`.

    Args:
        logits: `[S, R, G, Q, C]`.
        predicted: `[S, R, G, Q, 4]`.
        boxes: `[R, M, 4]`, M at most Q.
        labels: `[R, M]`, -1 for none.
        weights: as `query_loss` has them.
    """
    share = jax.nn.sigmoid(logits)
    positive = -COST_ALPHA * (1 - share) ** COST_GAMMA * jnp.log(share + COST_FLOOR)
    negative = -(1 - COST_ALPHA) * share**COST_GAMMA * jnp.log(1 - share + COST_FLOOR)
    label = jnp.maximum(labels, 0)[:, None, None, :]
    classes = jnp.take_along_axis(positive - negative, label[None], axis=4)  # [S, R, G, Q, M]
    true, shown = boxes[:, None, None], predicted[..., None, :]
    far = jnp.abs(shown - true).sum(-1)
    near = generalised_iou(corners(shown), corners(true))
    cost = weights["class_cost"] * classes + weights["bbox_cost"] * far
    return assign(cost - weights["giou_cost"] * near, labels[:, None])
