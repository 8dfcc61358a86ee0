"""The `task` section of kind `captioning`."""

from __future__ import annotations

from typing import Literal

from jaxft.config.fields import fixed
from jaxft.tasks.parts.sections import ImageTextSection


class CaptioningSection(ImageTextSection):
    """Captions of images."""

    kind: Literal["captioning"] = fixed(..., "the kind of task")
