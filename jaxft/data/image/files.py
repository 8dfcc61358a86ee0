"""Files of image processors beside the weights of an export."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxft.data.image.config import FILES, with_patches
from jaxft.data.image.images import ImageProcessor, load_image_processor
from jaxft.data.image.timm import timm_processing
from jaxft.storage.files import write_atomic
from jaxft.storage.json_files import read_json_object


def has_processor(folder: Path) -> bool:
    """Return whether a checkpoint's folder says how images are read."""
    files = any((folder / name).is_file() for name in FILES)
    return files or timm_processing(folder) is not None


def processor_files(
    source: Path, processor: ImageProcessor, size: int | None = None
) -> dict[str, dict[str, Any]]:
    """Return the content of a checkpoint's processor files with another processor, by name.

    Args:
        source: the checkpoint's folder; none where it has no processor.
        processor: the one to write.
        size: height and width, in pixels, if not the checkpoint's.
    """
    contents = {}
    for name in FILES:
        if not (source / name).is_file():
            continue
        fields = processor.to_hf()
        if size is not None:
            fields = with_patches(fields, source, size)
        if name == FILES[0]:  # what reads texts is in it too
            fields = read_json_object(source / name) | {"image_processor": fields}
        contents[name] = fields
    return contents


def save_processor(source: Path, folder: Path, size: int) -> None:
    """Write how images are read beside weights that take another size than the source's.

    Args:
        source: the checkpoint's folder; nothing is written where it has no processor.
        folder: where to.
        size: height and width, in pixels.
    """
    if not any((source / name).is_file() for name in FILES):
        return
    contents = processor_files(source, load_image_processor(source, size), size)
    for name, content in contents.items():
        write_atomic(folder / name, json.dumps(content, indent=2, sort_keys=True) + "\n")


def whole_image_files(
    source: Path, size: int | None, kind: str | None = None
) -> dict[str, dict[str, Any]]:
    """Return the processor files of an export whose images were read whole, without a crop.

    Args:
        source: the checkpoint's folder.
        size: height and width, in pixels, if not the checkpoint's.
        kind: the processor that the model's class is read with; None for the checkpoint's.

    Returns:
        Nothing where the checkpoint's own files say the same.
    """
    own = load_image_processor(source, size)
    wanted = replace(own.whole, kind=kind or own.kind)
    return {} if wanted == own else processor_files(source, wanted, size)
