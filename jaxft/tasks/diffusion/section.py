"""The `task` section of kind `diffusion`."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from jaxft.config.fields import fixed, may_change
from jaxft.tasks.parts.sections import GeneratedImagesSection


class DiffusionSection(GeneratedImagesSection):
    """Image generation by denoising: a pipeline of `diffusers`, whose denoiser trains."""

    kind: Literal["diffusion"] = fixed(..., "the kind of task")
    text: str | None = fixed(None, "column that holds the prompt of an image, for a text tower")
    size: int | None = fixed(
        None,
        "height and width of the images; null is the pipeline's own",
        unit="pixels",
        ge=1,
    )
    loss_weight: str | None = fixed(
        None,
        "column that holds the weight of an image's loss (DreamBooth: that of the prior on images "
        "of the class, and 1 on those of the subject); null weights all alike",
    )
    condition_dropout: float = fixed(
        0.1,
        "share of the examples that train without their class or prompt, for guidance",
        ge=0,
        lt=1,
    )
    timesteps: Literal["uniform", "logit_normal"] = fixed(
        "uniform", "distribution of the steps of noise in training"
    )
    logit_mean: float = fixed(0.0, "mean of the logit of the step, for logit_normal")
    logit_std: float = fixed(1.0, "its standard deviation", gt=0)
    min_snr: float | None = fixed(
        None,
        "bound of the signal-to-noise ratio that weights the loss; null weights all steps alike",
        gt=0,
    )
    sampler: Literal["auto", "ddim", "euler", "dpm++", "flow"] = may_change(
        "auto", "sampler of the evaluation; auto is that of the pipeline's scheduler"
    )
    sampling_steps: int = may_change(30, "its steps", ge=1)
    guidance: float = may_change(
        4.0, "classifier-free guidance of sampling with a class or prompt; 1 is none", ge=1
    )

    @model_validator(mode="after")
    def _one_condition(self) -> DiffusionSection:
        if self.label is not None and self.text is not None:
            raise ValueError("label and text are two conditions; set one of them")
        return self
