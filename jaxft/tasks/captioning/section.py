"""The `task` section of kind `captioning`."""

from __future__ import annotations

from typing import Literal

from jaxft.config.fields import TaskSection, fixed


class CaptioningSection(TaskSection):
    """What is to be seen in an image, written as a text."""

    kind: Literal["captioning"] = fixed(..., "the kind of task")
    image: str = fixed("image", "column that holds the image, or the path to its file")
    text: str = fixed("text", "column that holds the text that is written")
