"""The `task.augment` section: what is done to images by chance while a model learns from them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from jaxft.config.fields import Section, key

Share = Annotated[float, Field(ge=0, le=1)]


class AugmentSection(Section):
    """What is done to an image, drawn anew in each epoch."""

    crop: Annotated[list[Share], Field(min_length=2, max_length=2)] | None = key(
        None,
        "least and most share of the area that is cut out and resized to the whole; [0.08, 1] is "
        "usual from scratch, [0.5, 1] from a checkpoint",
        resume="fixed",
    )
    flip: Share = key(0.0, "how often left and right are exchanged; 0.5 is usual", resume="fixed")
    changes: int = key(
        0,
        "changes of colour and shape one after the other (RandAugment); 2 is usual",
        resume="fixed",
        ge=0,
        le=8,
    )
    magnitude: int = key(9, "how strong those are", resume="fixed", ge=0, le=30)
    mixup: Share = key(
        0.0,
        "lay another image over this one, and its label: alpha of the Beta distribution that the "
        "share is drawn from; 0.2 is usual",
        resume="fixed",
    )
    cutmix: Share = key(
        0.0,
        "put a piece of another image into this one, and its label: alpha likewise; 1 is usual; "
        "with mixup too each is taken half of the time",
        resume="fixed",
    )

    @model_validator(mode="after")
    def _does_something(self) -> AugmentSection:
        if self.crop is not None and not 0 < self.crop[0] <= self.crop[1]:
            raise ValueError("crop goes from a share above 0 to a larger one")
        if self.crop is None and not (self.flip or self.changes or self.mixes):
            raise ValueError("it does nothing: name crop, flip, changes, mixup or cutmix")
        return self

    @property
    def mixes(self) -> bool:
        """Return whether an example is a mixture of two."""
        return bool(self.mixup or self.cutmix)
