"""Settings of timm's image processing, which a config.json of timm has beside the model.

Source: timm's `transforms_factory.transforms_imagenet_eval`, as transformers'
`TimmWrapperImageProcessor` calls it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxft.bounds import MOST_SIDE_PIXELS
from jaxft.data.image.config import FILES, channels
from jaxft.data.image.processors import (
    BICUBIC,
    BILINEAR,
    IMAGENET_MEAN,
    IMAGENET_STD,
    LANCZOS,
    TIMM,
)
from jaxft.errors import UserError
from jaxft.storage.json_files import is_number, read_json_object

CONFIG, PROCESSING = "config.json", "pretrained_cfg"
FILTERS = {"bilinear": BILINEAR, "bicubic": BICUBIC, "lanczos": LANCZOS}
CROP_SHARE = 0.875  # where a file has none


def timm_processing(folder: Path) -> dict[str, Any] | None:
    """Return what config.json of a checkpoint of timm says of its images; None of another.

    A file of `transformers`' own has precedence, as it has there.
    """
    file = folder / CONFIG
    if not file.is_file() or any((folder / name).is_file() for name in FILES):
        return None
    fields = read_json_object(file).get(PROCESSING)
    return fields if isinstance(fields, dict) else None


def timm_settings(folder: Path, size: int | None) -> dict[str, Any] | None:
    """Return the arguments of an `ImageProcessor`, from a checkpoint of timm; None of another.

    Args:
        folder: the checkpoint's.
        size: height and width of what comes out; None for the checkpoint's own.

    Raises:
        UserError: a setting that is not known.
    """
    fields, file = timm_processing(folder), folder / CONFIG
    if fields is None:
        return None
    side, share = size or _side(file, fields), _share(file, fields)
    mode, named = fields.get("crop_mode") or "center", fields.get("interpolation") or "bicubic"
    if mode not in ("center", "squash"):
        raise UserError(f"{file}: crop_mode '{mode}' is not supported.", "Known: center, squash.")
    if named not in FILTERS:
        known = ", ".join(FILTERS)
        raise UserError(f"{file}: interpolation '{named}' is not supported.", f"Known: {known}.")
    whole = math.floor(side / share)
    return {
        "kind": TIMM,
        "blend": False,
        "resize": whole if mode == "center" else (whole, whole),
        "resample": FILTERS[named],
        "crop": (side, side),
        "factor": 1 / 255,
        "mean": channels(file, "mean", fields.get("mean") or IMAGENET_MEAN),
        "std": channels(file, "std", fields.get("std") or IMAGENET_STD),
    }


def _side(file: Path, fields: Mapping[str, Any]) -> int:
    """Return the height and width of the images, in pixels."""
    size = fields.get("input_size", [3, 224, 224])
    square = isinstance(size, list) and len(size) == 3 and size[0] == 3 and size[1] == size[2]
    if not (square and isinstance(size[1], int) and 0 < size[1] <= MOST_SIDE_PIXELS):
        raise UserError(
            f"{file}: input_size is {size!r}, which jaxft does not support.",
            f"It is [3, N, N], with N from 1 to {MOST_SIDE_PIXELS:,}.",
        )
    return size[1]


def _share(file: Path, fields: Mapping[str, Any]) -> float:
    """Return how much of the resized image is cut out, along a side."""
    share = fields.get("crop_pct") or CROP_SHARE
    if not is_number(share) or not 0 < share <= 1:
        raise UserError(f"{file}: crop_pct is {share!r}, and must be a number from 0 to 1.")
    return share
