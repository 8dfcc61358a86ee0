"""COCO's average precision of boxes, by pycocotools."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

MOST_FOUND = 100  # a picture's best boxes that COCO counts; more where a picture has more in it
SIZES = ("small", "medium", "large")  # of boxes, as COCO parts them


def box_scores(
    gold: Sequence[dict[str, np.ndarray]],
    detections: Sequence[dict[str, np.ndarray]],
    names: Sequence,
) -> dict[str, float]:
    """The mean over classes and overlaps of the average precision, as COCO has it.

    Args:
        gold: of each picture `boxes` `[N, 4]` (left, top, right, bottom), `labels` `[N]` and
            `crowd` `[N]`: boxes that are neither to be found nor wrong to find.
        found: of each picture `boxes`, `labels` and `scores`.
        names: the classes.

    Returns:
        `map` over overlaps of 0.5 to 0.95, `map_50` and `map_75` at one each, `map_small`,
        `map_medium` and `map_large` of boxes below 32 x 32 pixels, up to 96 x 96, and above, and
        of several classes `map/NAME`, where there are any. Classes of which there is nothing count
        nowhere; without any box, the first three are nan.

    Source: https://cocodataset.org/#detection-eval; Lin et al. (2014),
    https://arxiv.org/abs/1405.0312.
    """
    truth, predicted = COCO(), COCO()
    pictures = [{"id": number} for number in range(len(gold))]
    classes = [{"id": number, "name": name} for number, name in enumerate(names)]
    for data, boxes in ((truth, gold), (predicted, detections)):
        annotations = list(_annotations(boxes))
        data.dataset = {"images": pictures, "categories": classes, "annotations": annotations}
    most = max([MOST_FOUND, *(len(one["boxes"]) for one in gold)])
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        predicted.createIndex()
        scored = COCOeval(truth, predicted, "bbox")
        scored.params.maxDets = [1, 10, most]
        scored.evaluate()
        scored.accumulate()
    by_size = scored.eval["precision"][..., -1]  # [overlaps, recalls, classes, sizes]
    precision = by_size[..., 0]
    scores = {"map": _mean(precision), "map_50": _mean(precision[0]), "map_75": _mean(precision[5])}
    parts = {f"map_{size}": _mean(by_size[..., 1 + n]) for n, size in enumerate(SIZES)}
    if len(names) > 1:
        parts |= {f"map/{name}": _mean(precision[:, :, i]) for i, name in enumerate(names)}
    return scores | {name: value for name, value in parts.items() if not math.isnan(value)}


def _mean(values: np.ndarray) -> float:
    """The mean of what is there: COCO writes -1 where a class has no box."""
    there = values[values > -1]
    return float(there.mean()) if there.size else float("nan")


def _annotations(pictures: Sequence[dict[str, np.ndarray]]) -> Any:
    number = 0
    for picture, one in enumerate(pictures):
        for index, (left, top, right, bottom) in enumerate(np.asarray(one["boxes"], float)):
            number += 1  # COCO takes the id 0 for no match
            scored = {"score": float(one["scores"][index])} if "scores" in one else {}
            yield scored | {
                "id": number,
                "image_id": picture,
                "category_id": int(one["labels"][index]),
                "bbox": [left, top, right - left, bottom - top],
                "area": (right - left) * (bottom - top),
                "iscrowd": int(one["crowd"][index]) if "crowd" in one else 0,
            }
