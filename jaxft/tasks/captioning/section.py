"""The `task` section of kind `captioning`."""

from __future__ import annotations

from typing import Literal

from jaxft.config.fields import TaskSection, key


class CaptioningSection(TaskSection):
    """What is to be seen in an image, written as a text."""

    kind: Literal["captioning"] = key(..., "the kind of task", resume="fixed")
    image: str = key(
        "image", "column that holds the image, or the path to its file", resume="fixed"
    )
    text: str = key("text", "column that holds the text that is written", resume="fixed")
