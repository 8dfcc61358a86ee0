"""Images drawn by a run of diffusion: of prompts, of its classes or of one, or of nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from jaxft.data.image.annotate import write_png
from jaxft.data.image.colors import enlarged
from jaxft.engine.trained import Trained, Which, open_trained, task_of
from jaxft.errors import UserError, did_you_mean
from jaxft.inference.generate_images import LEAST, ROWS, stem_of
from jaxft.inference.predictor import is_run
from jaxft.models.tower.tower import PLAIN
from jaxft.storage.files import place
from jaxft.storage.outputs import check_apart, distinct_name
from jaxft.tasks.diffusion.pipeline import (
    autoencoder_of,
    painted,
    pipeline_of,
    schedule_of,
    side_of,
)
from jaxft.tasks.diffusion.prompts import of_nothing, states_of
from jaxft.tasks.diffusion.sampling import Sampling, classes_of
from jaxft.tasks.diffusion.section import DiffusionSection
from jaxft.tasks.diffusion.text_towers import overlong, text_towers_of
from jaxft.tasks.parts.tools import Tools


def denoises(name: str) -> bool:
    """Return whether a name is a run of the task `diffusion`."""
    return is_run(name) and task_of(place(name)).kind == "diffusion"


def draw(
    name: str,
    prompts: Iterable[str],
    count: int,
    label: str | None,
    to: Path,
    asked: Mapping[str, Any],
    which: Which = "best",
) -> Iterator[dict[str, Any]]:
    """Sample images with a run's sampler, steps and guidance.

    Args:
        name: the run folder.
        prompts: of a run that was trained on prompts.
        count: the number of images; of each prompt or class.
        label: the class; None for all classes of a run by class.
        to: the output folder of the PNG files; created if missing.
        asked: settings of the command line; the `seed` of the noise alone applies.
        which: the checkpoint: `best`, `last`, or a step.

    Yields:
        `generated`, the path of the file, and its `prompt` or `class`.

    Raises:
        UserError: the run has no such class, takes no prompts or needs some, a prompt is longer
            than its text tower, or a setting does not apply.
    """
    # An option of sampling sets `do_sample` beside its own.
    if odd := sorted(set(asked) - {"seed"}, key=lambda name: (name == "do_sample", name)):
        raise UserError(
            f"A run of diffusion has no setting {odd[0]}: it samples as its config says.",
            "Leave the options of texts out.",
        )
    trained = open_trained(place(name), which)
    section = trained.task.section
    assert isinstance(section, DiffusionSection)  # callers check
    named = _named(trained, section, list(prompts), label)
    check_apart(to, (), "--out")
    wanted = [one for one in named for _ in range(count)]
    used_names, seed = set[str](), asked.get("seed") or 0
    key = "class" if section.label else "prompt"
    for number, (own, pixels) in enumerate(_pictures(trained, section, wanted, seed)):
        stem = stem_of(own, number % count) if section.label else stem_of(None, number)
        file = to / distinct_name(stem, ".png", used_names)
        write_png(file, Image.fromarray(enlarged(pixels, LEAST)), "--out")
        yield {**({} if own is None else {key: own}), "generated": str(file)}


def _named(
    trained: Trained, section: DiffusionSection, prompts: Sequence[str], label: str | None
) -> Sequence[str | None]:
    """Return the prompt or class of each kind of image that is asked for.

    Raises:
        UserError: the run does not have it.
    """
    classes = trained.label_names
    if label is not None and label not in classes:
        hint = did_you_mean(label, classes) or "It was not trained by class."
        raise UserError(f"--class: '{label}' is no class of this model.", hint)
    if bool(prompts) != (section.text is not None):
        without = "was trained without prompts" if prompts else "needs a prompt for each image"
        raise UserError(f"The run {without}.", "Use --class, or write the prompts behind the run.")
    return prompts or ([label] if label is not None else list(classes) or [None])


def _pictures(
    trained: Trained, section: DiffusionSection, wanted: Sequence[str | None], seed: int
) -> Iterator[tuple[str | None, np.ndarray]]:
    """Yield the name and the pixels `[H, W, 3]` uint8 of each image."""
    model = trained.model
    autoencoder, fields = autoencoder_of(model), model.config.fields
    factor = 1 if autoencoder is None else autoencoder.config.factor
    side = side_of(model, autoencoder, section.size)
    sampling = Sampling(model, section, schedule_of(model))
    shape = (fields["in_channels"], side // factor, side // factor)

    @jax.jit
    def run(params: Any, batch: Any, ids: jax.Array) -> jax.Array:
        return sampling.images(params, batch, PLAIN, ids, shape, seed)

    conditions = _conditions(trained, section, wanted, side)
    rows = min(ROWS, len(wanted))
    for first in range(0, len(wanted), rows):
        # The last batch is padded to the shape compiled already; the padding's output is dropped.
        index = np.minimum(np.arange(first, first + rows), len(wanted) - 1)
        batch = {name: value[index] for name, value in conditions.items()}
        drawn = np.asarray(run(model.params, batch, index))
        pixels = painted(pipeline_of(model).folder, autoencoder, drawn)
        yield from zip(wanted[first : first + rows], pixels, strict=False)


def _conditions(
    trained: Trained, section: DiffusionSection, wanted: Sequence[str | None], side: int
) -> dict[str, np.ndarray]:
    """Return the arrays of a batch of all images that say what is drawn.

    Args:
        trained: the model.
        section: the run's.
        wanted: the class or prompt of each image.
        side: height and width of the images, in pixels.

    Raises:
        UserError: a prompt is longer than the text tower.
    """
    model, names = trained.model, trained.label_names
    if (classes := classes_of(model)) is not None:
        labels = [classes if one is None else list(names).index(one) for one in wanted]
        return {"class_labels": np.array(labels, np.int32)}
    if section.text is None:
        width = int(np.max(model.config.fields["cross_attention_dim"]))
        return {"encoder_hidden_states": np.zeros((len(wanted), 1, width), np.float32)}
    pipeline, prompts = pipeline_of(model), [one or "" for one in wanted]
    towers = text_towers_of(model, pipeline, weights=True)
    for prompt in prompts:
        if (lengths := overlong(prompt, towers)) is not None:
            raise UserError(
                f"The prompt '{prompt[:40]}' has {lengths[0]} tokens, and the text tower takes "
                f"{lengths[1]}.",
                "Shorten it.",
            )
    states = states_of(Tools(model, None, None), model, pipeline, towers, prompts, side)
    own = [states.of(int(prompt)) for prompt in states.prompts]
    nothing = of_nothing(states.of(0))
    both = [one | nothing for one in own]
    return {name: np.concatenate([one[name] for one in both]) for name in both[0]}
