"""DETR's loss: each true box is matched with one detection; the target of others is `no object`.

The matching is exact (`optax.assignment`, the Hungarian algorithm) and part of the compiled step,
without a callback to the host. If detections have positions, each whose position is on a box is
matched with that box instead, which heads with random initialization learn from few images.

Source: Carion et al. (2020), https://arxiv.org/abs/2005.12872; the numbers are those of
`transformers`' `loss_for_object_detection.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxft.tasks.object_detection.assignment import assign

CLASS_COST, BOX, GIOU = 1.0, 5.0, 2.0  # weights of the matching; the last two also of the loss
NOTHING_WEIGHT = 0.1  # the cross-entropy's weight of a detection whose target is `no object`


def detection_loss(
    outputs: Mapping[str, jax.Array], batch: Mapping[str, Any]
) -> tuple[jax.Array, jax.Array]:
    """Return a batch's summed loss and its weight, the number of true boxes, or 1 without any.

    Args:
        outputs: `logits` `[R, Q, C + 1]`, the last for `no object`; `pred_boxes` `[R, Q, 4]`,
            center, width and height as shares of the image.
        batch: `boxes` `[R, M, 4]`, `box_labels` `[R, M]` (-1 for none) and `weights` `[R, 1]`;
            with `task.match: place` also `places` `[R, Q, 2]`, across and down.
    """
    if "places" in batch:
        return _loss_by_place(outputs, batch)
    logits = outputs["logits"].astype(jnp.float32)
    predicted, nothing = outputs["pred_boxes"].astype(jnp.float32), logits.shape[-1] - 1
    boxes, labels, rows = batch["boxes"], batch["box_labels"], batch["weights"]  # rows [R, 1]
    real = (labels >= 0) * rows  # [R, M]
    query = match(logits, predicted, boxes, labels)  # [R, M]
    each = jnp.arange(len(logits))[:, None]
    target = (
        jnp.full(logits.shape[:2], nothing)
        .at[each, query]
        .set(jnp.where(labels >= 0, labels, nothing))
    )  # [R, Q]
    counts = jnp.where(target == nothing, NOTHING_WEIGHT, 1.0) * rows
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, target)
    chosen = jnp.take_along_axis(predicted, query[..., None], axis=1)  # [R, M, 4]
    number = jnp.maximum(real.sum(), jnp.minimum(rows.sum(), 1.0))
    mean_class = jnp.sum(losses * counts) / jnp.maximum(counts.sum(), 1e-9)
    return mean_class * number + jnp.sum(box_loss(chosen, boxes) * real), number


def _loss_by_place(
    outputs: Mapping[str, jax.Array], batch: Mapping[str, Any]
) -> tuple[jax.Array, jax.Array]:
    """Compute the loss by position; the weight is the number of detections on a box."""
    logits, predicted = (outputs[name].astype(jnp.float32) for name in ("logits", "pred_boxes"))
    rows = batch["weights"]  # [R, 1]
    box = on_box(batch["places"], batch["boxes"], batch["box_labels"])  # [R, Q]
    matched = (box >= 0) * rows
    box = jnp.maximum(box, 0)
    labels = jnp.take_along_axis(batch["box_labels"], box, axis=1)
    target = jnp.where(matched > 0, labels, logits.shape[-1] - 1)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, target)
    wanted = jnp.take_along_axis(batch["boxes"], box[..., None], axis=1)  # [R, Q, 4]
    number = jnp.maximum(matched.sum(), jnp.minimum(rows.sum(), 1.0))
    total = jnp.maximum(rows.sum() * logits.shape[1], 1.0)
    mean_class = jnp.sum(losses * rows) / total
    return mean_class * number + jnp.sum(box_loss(predicted, wanted) * matched), number


def on_box(places: jax.Array, boxes: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the box that each place is on, or -1; of several, that of nearest center: `[R, Q]`.

    A box that no place is on gets the place nearest to its center.

    Args:
        places: `[R, Q, 2]`, across and down.
        boxes: `[R, M, 4]`.
        labels: `[R, M]`, -1 for none.

    Source: the centers of Tian et al. (2019), https://arxiv.org/abs/1904.01355.
    """
    away = jnp.abs(places[:, :, None] - boxes[:, None, :, :2])  # [R, Q, M, 2]
    halves = (away / jnp.maximum(boxes[:, None, :, 2:] / 2, 1e-9)).max(-1)
    lone = (halves.min(1, keepdims=True) > 1) & (
        away.sum(-1) == away.sum(-1).min(1, keepdims=True)
    )  # the nearest place of a box that has none on it
    halves = jnp.where(lone, 0.0, halves)
    halves = jnp.where(labels[:, None] < 0, jnp.inf, halves)
    return jnp.where(halves.min(-1) <= 1, halves.argmin(-1), -1)


def box_loss(predicted: jax.Array, boxes: jax.Array) -> jax.Array:
    """Compute DETR's weighted distance of each box from its target: `[..., 4]` -> `[...]`."""
    distance = jnp.abs(predicted - boxes).sum(-1)
    apart = 1.0 - generalised_iou(corners(predicted), corners(boxes))
    return BOX * distance + GIOU * apart


def match(
    logits: jax.Array, predicted: jax.Array, boxes: jax.Array, labels: jax.Array
) -> jax.Array:
    """Match each box with a detection at the least total cost: `[R, M]`, all different.

    Padding takes the remaining detections.

    Args:
        logits: `[R, Q, C + 1]`.
        predicted: `[R, Q, 4]`.
        boxes: `[R, M, 4]`, M at most Q.
        labels: `[R, M]`, -1 for none.
    """
    shares = jax.nn.softmax(logits, axis=-1)
    likely = jnp.take_along_axis(shares, jnp.maximum(labels, 0)[:, None, :], axis=2)  # [R, Q, M]
    far = jnp.abs(predicted[:, :, None] - boxes[:, None]).sum(-1)
    near = generalised_iou(corners(predicted)[:, :, None], corners(boxes)[:, None])
    cost = BOX * far - CLASS_COST * likely - GIOU * near
    return assign(cost, labels)


def corners(boxes: jax.Array) -> jax.Array:
    """Convert center, width and height to left, top, right, bottom: `[..., 4]`."""
    center, half = boxes[..., :2], boxes[..., 2:] / 2
    return jnp.concatenate([center - half, center + half], axis=-1)


def generalised_iou(first: jax.Array, second: jax.Array) -> jax.Array:
    """Compute generalized IoU: IoU less the share of the enclosing box outside both: `[...]`.

    Identical boxes without area give 0, not NaN.

    Args:
        first, second: `[..., 4]` left, top, right, bottom.

    Source: Rezatofighi et al. (2019), https://arxiv.org/abs/1902.09630.
    """
    shared, union = _areas(first, second)
    (a, b), (c, d) = (jnp.split(boxes, 2, axis=-1) for boxes in (first, second))
    around = jnp.maximum(_area(jnp.minimum(a, c), jnp.maximum(b, d)), 1e-9)
    return shared / union - (around - union) / around


def overlap(first: jax.Array, second: jax.Array) -> jax.Array:
    """Compute intersection over union of boxes `[..., 4]`, left, top, right, bottom: `[...]`."""
    shared, union = _areas(first, second)
    return shared / union


def _areas(first: jax.Array, second: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the areas of the intersection and of the union, which is not 0."""
    (a, b), (c, d) = (jnp.split(boxes, 2, axis=-1) for boxes in (first, second))
    shared = _area(jnp.maximum(a, c), jnp.minimum(b, d))
    return shared, jnp.maximum(_area(a, b) + _area(c, d) - shared, 1e-9)


def _area(low: jax.Array, high: jax.Array) -> jax.Array:
    """Return the area of boxes by their corners; 0 where there is none."""
    return jnp.prod(jnp.maximum(high - low, 0.0), axis=-1)
