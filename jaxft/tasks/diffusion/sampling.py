"""Sampling in an evaluation, with guidance; and whether a pipeline serves a config."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxft.errors import UserError
from jaxft.models.diffusion.sample import sample
from jaxft.models.diffusion.samplers import make_sampler
from jaxft.models.diffusion.schedule import Schedule
from jaxft.models.model import Model
from jaxft.models.tower.tower import Compute
from jaxft.tasks.diffusion.prompts import CONDITIONS, NOTHING
from jaxft.tasks.diffusion.section import DiffusionSection as Section
from jaxft.tasks.diffusion.text_towers import vector_name
from jaxft.tasks.parts.contract import Batch, Params

SEED = 0  # the same noise at every evaluation, so that only the model differs


def classes_of(model: Model) -> int | None:
    """Return the number of classes of a denoiser, the id of none; None where it has no classes."""
    return model.config.fields.get("num_embeds_ada_norm")


def check_pipeline(model: Model, section: Section, schedule: Schedule, labels: int) -> None:
    """Raise a UserError where a pipeline does not serve the config.

    Args:
        model: its denoiser.
        section: the config's.
        schedule: its schedule.
        labels: the number of classes of the data.
    """
    classes = classes_of(model)
    if section.label is not None and classes is None:
        raise UserError(
            f"task.label: a {model.model_type} has no classes.", "Set task.text for prompts."
        )
    if classes is not None and labels > classes:
        raise UserError(
            f"task.label: the data have {labels:,} classes, and the model has {classes:,}."
        )
    if section.text is not None and classes is not None:
        raise UserError(
            f"task.text: a {model.model_type} reads no text.", "Set task.label for classes."
        )
    if vector_name(model) is not None and section.text is None:
        raise UserError(
            f"task.text: this {model.model_type} reads vectors of whole prompts.",
            "Set task.text to the column of the prompts.",
        )
    if model.config.fields.get("addition_embed_type") not in (None, "text_time"):
        raise UserError(
            "model.checkpoint: a U-Net that reads "
            f"'{model.config.fields['addition_embed_type']}' is not trained yet."
        )
    if section.min_snr is not None and schedule.is_flow:
        raise UserError(
            "task.min_snr: flow matching has no signal-to-noise ratio to bound.",
            "Set task.timesteps=logit_normal instead.",
        )
    make_sampler(schedule, section.sampling_steps, section.sampler)


@dataclass(frozen=True)
class Sampling:
    """Sampling of a denoiser.

    Args:
        model: the denoiser.
        section: the config's.
        schedule: the pipeline's.
    """

    model: Model
    section: Section
    schedule: Schedule

    def first_images(self, params: Params, batch: Batch, compute: Compute) -> jax.Array:
        """Sample an image for each of the first examples of a split: `[R, C, h, w]` float32.

        A batch without any of them costs nothing, and gives zeros.
        """
        ids, shape = batch["example_ids"][:, 0], batch["sample"].shape
        draw = partial(self.images, params, batch, compute, ids, shape[1:], SEED)
        wanted = ((ids >= 0) & (ids < self.section.samples)).any()
        return jax.lax.cond(wanted, draw, lambda: jnp.zeros(shape))

    def images(
        self,
        params: Params,
        batch: Batch,
        compute: Compute,
        ids: jax.Array,
        shape: tuple[int, ...],
        seed: int,
    ) -> jax.Array:
        """Sample an image from the noise of each number: `[R, C, h, w]` float32.

        Args:
            params: every parameter.
            batch: the images' classes or prompts, and the empty prompt.
            compute: how to run.
            ids: `[R]` numbers of the images, which with the seed give the noise.
            shape: C, h and w.
            seed: of the noise.
        """
        keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(ids)
        sampler = make_sampler(self.schedule, self.section.sampling_steps, self.section.sampler)
        noise = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
        return sample(sampler, partial(self.denoise, params, batch, compute), noise)

    def denoise(
        self, params: Params, batch: Batch, compute: Compute, x: jax.Array, step: Any
    ) -> jax.Array:
        """Run the model on noisy images at one step, with guidance.

        Args:
            params: every parameter.
            batch: the images' classes or prompts, and the empty prompt.
            compute: how to run.
            x: `[R, C, h, w]`.
            step: what the model is told, a scalar.
        """
        condition = {name: batch[name] for name in CONDITIONS if name in batch}
        run = partial(self.model.apply, params, key=None, compute=compute)
        steps, guidance, channels = jnp.full(len(x), step), self.section.guidance, x.shape[1]
        if guidance == 1 or not (self.section.label or self.section.text):
            return run({"sample": x, "timestep": steps, **condition})["sample"][:, :channels]
        nothing: dict[str, jax.Array] = {}
        if (classes := classes_of(self.model)) is not None:
            nothing["class_labels"] = jnp.full_like(batch["class_labels"], classes)
        else:
            nothing |= {name: batch[f"{NOTHING}{name}"] for name in condition}
        both = {name: jnp.concatenate([value, nothing[name]]) for name, value in condition.items()}
        twice = {"sample": jnp.concatenate([x, x]), "timestep": jnp.concatenate([steps, steps])}
        own, none = jnp.split(run({**twice, **both})["sample"][:, :channels], 2)
        return none + guidance * (own - none)
