"""The `task` section of kind `image_generation`."""

from __future__ import annotations

from typing import Literal

from jaxft.config.fields import fixed
from jaxft.tasks.parts.sections import GeneratedImagesSection


class ImageGenerationSection(GeneratedImagesSection):
    """Image generation: pixel by pixel, each pixel one of the checkpoint's colors."""

    kind: Literal["image_generation"] = fixed(..., "the kind of task")
    samples: int = fixed(
        16,
        "images sampled at each evaluation, and held-out ones completed from their upper half",
        ge=0,
    )
