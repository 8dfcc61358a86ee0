"""Settings of image processors, from `preprocessor_config.json` with the processor's defaults."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxft.bounds import MOST_SIDE_PIXELS
from jaxft.data.image.processors import OF_MODEL, ONLY, PROCESSORS, WITHOUT_EFFECT
from jaxft.errors import UserError, did_you_mean
from jaxft.storage.json_files import is_number, read_json_object

UNCROPPED = 384  # pixels from which a ConvNeXt's images are resized without a crop
STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
FILES = ("processor_config.json", "preprocessor_config.json")  # the first one may hold the second


def read_settings(folder: Path) -> dict[str, Any]:
    """Return the arguments of an `ImageProcessor`, from a checkpoint's folder.

    Raises:
        UserError: no file, or a processor or a setting that is not known.
    """
    file, fields = read_processor(folder)
    kind = _kind(file, fields)
    defaults = PROCESSORS[kind]
    known = {*defaults, "do_center_crop", "crop_size", "do_convert_rgb", "default_to_square"}
    for name, value in fields.items():
        if name in ONLY and name not in defaults and value not in (None, ONLY[name]):
            raise UserError(f"{file}: '{name}' is {value!r}, which jaxft does not support.")
        if name not in known and name not in ONLY and name not in WITHOUT_EFFECT:
            raise UserError(
                f"{file}: unknown setting '{name}', which may change the images.",
                did_you_mean(name, known),
            )
    # null turns a step off there, and leaves any other setting to the defaults.
    off = {name: False for name in STEPS if name in fields and fields[name] is None}
    settings = off | {name: value for name, value in fields.items() if value is not None}
    merged = {**defaults, **settings}
    if "max_num_patches" in defaults:
        merged["size"] = _side(file, merged["patch_size"], merged["max_num_patches"])
    if "max_image_size" in defaults:
        merged["size"] = _tile(file, merged["max_image_size"])
    if "crop_pct" in defaults:
        kind, merged = _with_crop(file, merged)
    return {"kind": kind, **_settings(file, merged)}


def with_patches(fields: dict[str, Any], source: Path, size: int) -> dict[str, Any]:
    """Return a processor's fields with SigLIP 2's number of patches for images of another size.

    Args:
        fields: the processor's, changed to that size.
        source: the checkpoint's folder.
        size: height and width, in pixels.
    """
    defaults = PROCESSORS[fields["image_processor_type"]]
    if "max_num_patches" not in defaults:
        return fields
    _, stored = read_processor(source)
    patch = stored.get("patch_size") or defaults["patch_size"]
    return fields | {"patch_size": patch, "max_num_patches": (size // patch) ** 2}


def _side(file: Path, patch: Any, most: Any) -> int:
    """Return the side of the largest square of at most so many patches, in pixels."""
    if not all(isinstance(one, int) and 0 < one <= MOST_SIDE_PIXELS for one in (patch, most)):
        raise UserError(f"{file}: patch_size and max_num_patches must be whole numbers above 0.")
    return patch * math.isqrt(most)


def _with_crop(file: Path, fields: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return a processor that does what a ConvNeXt's does, and its settings.

    Source: `image_processing_pil_convnext.py` of `transformers`.
    """
    size, share = fields["size"], fields["crop_pct"]
    side = size.get("shortest_edge") if isinstance(size, dict) else size
    if not isinstance(side, int) or not 1 <= side <= MOST_SIDE_PIXELS:
        raise UserError(f"{file}: 'size' is {size!r}, and must have a shortest_edge in pixels.")
    if not is_number(share) or not 0 < share <= 1:
        raise UserError(f"{file}: 'crop_pct' is {share!r}, and must be a number from 0 to 1.")
    if side >= UNCROPPED:
        return "ViTImageProcessor", {**fields, "size": {"height": side, "width": side}}
    cut = {"do_center_crop": bool(fields["do_resize"]), "crop_size": side}
    return "BitImageProcessor", {**fields, **cut, "size": {"shortest_edge": int(side / share)}}


def _tile(file: Path, value: Any) -> int:
    """Return the side of a tile, in pixels."""
    side = value.get("longest_edge") if isinstance(value, dict) else None
    if not isinstance(side, int) or not 1 <= side <= MOST_SIDE_PIXELS:
        raise UserError(
            f"{file}: 'max_image_size' is {value!r}, and must have a longest_edge of 1 to "
            f"{MOST_SIDE_PIXELS:,} pixels."
        )
    return side


def _settings(file: Path, fields: Mapping[str, Any]) -> dict[str, Any]:
    square = fields.get("default_to_square", True)
    normalise, size = fields["do_normalize"], fields["size"]
    if "max_size" in fields and isinstance(size, dict) and "shortest_edge" in size:
        size = {"shortest_edge": size["shortest_edge"]}
    return {
        "blend": bool(fields.get("do_convert_rgb", False)),
        "resize": _size(file, "size", size, square) if fields["do_resize"] else None,
        "resample": _resample(file, fields["resample"]),
        "crop": _size(file, "crop_size", fields.get("crop_size"), True)
        if fields.get("do_center_crop")
        else None,
        "factor": _factor(file, fields["rescale_factor"]) if fields["do_rescale"] else None,
        "mean": channels(file, "image_mean", fields["image_mean"]) if normalise else None,
        "std": channels(file, "image_std", fields["image_std"]) if normalise else None,
        "clusters": _clusters(file, fields["clusters"]) if "clusters" in fields else None,
    }


def read_processor(folder: Path) -> tuple[Path, dict[str, Any]]:
    for name in FILES:
        file = folder / name
        if not file.is_file():
            continue
        content = read_json_object(file)
        fields = content.get("image_processor") if name == FILES[0] else content
        if isinstance(fields, dict):
            return file, fields
    raise UserError(
        f"'{folder}' holds no image processor: there is no preprocessor_config.json.",
        "Copy it from the original checkpoint, or use a checkpoint that reads images.",
    )


def _kind(file: Path, fields: Mapping[str, Any]) -> str:
    """Return the processor's name, without the suffixes of older and newer versions."""
    named = fields.get("image_processor_type") or fields.get("feature_extractor_type")
    if named is None:
        config = file.parent / "config.json"
        model_type = read_json_object(config).get("model_type") if config.is_file() else None
        named = OF_MODEL.get(str(model_type), f"none, for a '{model_type}'")
    name = str(named).removesuffix("Fast").removesuffix("Pil")
    name = name.replace("FeatureExtractor", "ImageProcessor")
    if name not in PROCESSORS:
        raise UserError(
            f"{file}: jaxft does not know the image processor {named}.",
            f"Known: {', '.join(PROCESSORS)}.",
        )
    return name


def _size(file: Path, name: str, value: Any, square: bool) -> tuple[int, int] | int:
    """Return height and width, or the shorter edge alone, in any spelling of the file."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = {"height": value, "width": value} if square else {"shortest_edge": value}
    if isinstance(value, list) and len(value) == 2:
        value = {"height": value[0], "width": value[1]}
    numbers = value.values() if isinstance(value, dict) else [None]
    if all(isinstance(number, int) and 0 < number <= MOST_SIDE_PIXELS for number in numbers):
        if set(value) == {"height", "width"}:
            return value["height"], value["width"]
        if set(value) == {"shortest_edge"} and name == "size":
            return value["shortest_edge"]
    raise UserError(
        f"{file}: '{name}' is {value!r}, which jaxft does not support.",
        f"A side has 1 to {MOST_SIDE_PIXELS:,} pixels.",
    )


def check_scaled(size: int, resize: tuple[int, int] | int | None) -> None:
    """Raise a UserError if images of `size` would first be resized to no side that there can be."""
    for side in (resize,) if isinstance(resize, int) else resize or ():
        if not 1 <= side <= MOST_SIDE_PIXELS:
            raise UserError(
                f"model.image_size: {size} would be a resize to {resize} pixels before the crop.",
                "Check size and crop_size in preprocessor_config.json.",
            )


def _resample(file: Path, value: Any) -> int:
    if not isinstance(value, int) or value not in range(6):
        raise UserError(f"{file}: 'resample' is {value!r}; Pillow's filters are 0 to 5.")
    return int(value)


def channels(file: Path, name: str, value: Any) -> tuple[float, ...]:
    """Return a setting of the three channels; one number is for all of them.

    Args:
        file, name, value: where it is, what it is called there, and what it holds.

    Raises:
        UserError: it is no number or three, or a deviation that is not above 0.
    """
    values = value if isinstance(value, list | tuple) else [value] * 3
    if len(values) != 3 or not all(map(is_number, values)):
        raise UserError(
            f"{file}: '{name}' is {value!r}; there are three channels, a number for each."
        )
    if name in ("image_std", "std") and not all(one > 0 for one in values):
        raise UserError(f"{file}: '{name}' is {value!r}; pixels are divided by it.")
    return tuple(float(one) for one in values)


def _factor(file: Path, value: Any) -> float:
    if not is_number(value) or value <= 0:
        raise UserError(f"{file}: 'rescale_factor' is {value!r}, and must be a number above 0.")
    return float(value)


def _clusters(file: Path, value: Any) -> tuple[tuple[float, ...], ...]:
    """Return the colors of an ImageGPT, each of three channels as normalised."""
    if isinstance(value, list) and value:
        return tuple(channels(file, "clusters", one) for one in value)
    raise UserError(
        f"{file}: 'clusters' is {value!r}; an ImageGPT needs a list of colors.",
        "Copy the file from the original checkpoint.",
    )
