"""Image generation: images sampled from an ImageGPT, of any class or of one, or completed.

The model is a run's best checkpoint, or any ImageGPT checkpoint.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from jaxft.data.image.annotate import write_png
from jaxft.data.image.colors import colors_of, enlarged, painted
from jaxft.data.image.images import ImageProcessor
from jaxft.data.sources.open import given_rows
from jaxft.engine.trained import Which, open_trained, task_of
from jaxft.errors import UserError, did_you_mean
from jaxft.inference.predictor import head_of, is_run
from jaxft.models.generate.decode import numbers_of
from jaxft.models.generate.images import draw_images, first_word
from jaxft.models.generate.settings import Settings
from jaxft.models.load import IMAGE_GENERATION, Model, load
from jaxft.models.tower.tower import PLAIN, Tower
from jaxft.storage.files import place
from jaxft.storage.outputs import check_apart, distinct_name
from jaxft.tasks.parts.images import open_image, paths_from_input
from jaxft.tasks.parts.tools import Tools

ROWS = 16  # images per batch
LEAST = 112  # pixels: images with a shorter side are enlarged by an integer factor


@dataclass(frozen=True)
class ImageGenerator:
    """A model ready to generate images.

    Args:
        model: an ImageGPT.
        processor: its image processor.
        classes: the class names in order of class id; empty for an unconditional model.
        settings: the sampling settings.
    """

    model: Model
    processor: ImageProcessor
    classes: tuple[str, ...]
    settings: Settings


def generates_images(name: str, kind: str | None = None) -> bool:
    """Return whether a run or a checkpoint generates images.

    Args:
        name: a run folder or a checkpoint's folder.
        kind: the kind of task of a checkpoint whose config.json does not name one.
    """
    if is_run(name):
        return task_of(place(name)).head == IMAGE_GENERATION
    return (place(name) / "config.json").is_file() and head_of(name, kind) == IMAGE_GENERATION


def open_generator(name: str, asked: Mapping[str, Any], which: Which = "best") -> ImageGenerator:
    """Open a run or a checkpoint that generates images.

    Args:
        name: a run folder, or a checkpoint's folder, which has no classes.
        asked: fields of `jaxft.models.generate.settings.Settings` set by the user; by default,
            colors are sampled from the model's distribution.
        which: the checkpoint of a run: `best`, `last`, or a step.

    Raises:
        UserError: the model generates no images or cannot be read, or a setting is out of range.
    """
    if not generates_images(name):
        raise UserError(
            f"'{name}' generates no images, so --samples and --class do not apply.", "Remove them."
        )
    if is_run(name):
        trained = open_trained(place(name), which)
        model, classes = trained.model, trained.label_names
    else:
        model, classes = load(name), ()
    settings = Settings(**{"do_sample": True, "top_k": 0, **asked})
    return ImageGenerator(model, Tools(model, None, None).images, classes, settings)


def sample(
    generator: ImageGenerator, count: int, label: str | None, to: Path
) -> Iterator[dict[str, Any]]:
    """Generate images.

    Args:
        generator: the opened model.
        count: the number of images; per class if the model has classes and `label` is None.
        label: the class, or None.
        to: the output folder of the PNG files; created if missing.

    Yields:
        `generated`, the path of the file, and `class` if the model has classes.

    Raises:
        UserError: the model has no such class.
    """
    named: list[str | None] = [label] if label is not None else [*generator.classes] or [None]
    wanted = [(name, number) for name in named for number in range(count)]
    starts = np.array([[_start_token(generator, name)] for name, _ in wanted], np.int32)
    check_apart(to, (), "--out")
    used_names: set[str] = set()
    for (name, number), pixels in zip(wanted, _generated(generator, starts), strict=True):
        file = to / distinct_name(stem_of(name, number), ".png", used_names)
        line = {} if name is None else {"class": name}
        yield {**line, "generated": _write(file, pixels)}


def stem_of(name: str | None, number: int) -> str:
    """Return the name, without its ending, of a generated image's file.

    Args:
        name: its class; None without classes.
        number: of the image among those of its class.
    """
    return f"{'sample' if name is None else _safe(name)}-{number:04d}"


def complete(
    generator: ImageGenerator, inputs: Iterable[str], label: str | None, to: Path
) -> Iterator[dict[str, Any]]:
    """Generate the lower half of images.

    Args:
        generator: the opened model.
        inputs: image files, and folders of them.
        label: the class to condition on; None for an unconditional model.
        to: the output folder.

    Yields:
        `file` and `generated`, the path of the image with a new lower half.

    Raises:
        UserError: an image does not decode, the model has no such class, the output folder is
            that of the images, or an output would replace a file that jaxft did not write.
    """
    inputs = list(inputs)
    check_apart(to, inputs, "--out")
    first, used_names = _start_token(generator, label), set[str]()
    height, width = generator.processor.size
    files = paths_from_input(inputs)
    while part := list(islice(files, ROWS)):
        source = given_rows([{"image": file} for file in part])
        rows = [generator.processor(open_image(source, n, file)) for n, file in enumerate(part)]
        colors = np.stack([colors_of(one, generator.processor) for one in rows])
        upper = colors[:, : height // 2 * width]
        starts = np.concatenate([np.full((len(part), 1), first, np.int32), upper], axis=1)
        for file, pixels in zip(part, _generated(generator, starts), strict=True):
            name = distinct_name(f"{Path(file).stem}-completed", ".png", used_names)
            yield {"file": file, "generated": _write(to / name, pixels)}


def _start_token(generator: ImageGenerator, label: str | None) -> int:
    """Return the start token of an image: that of its class, or the unconditional one.

    Raises:
        UserError: the model has no such class.
    """
    colors, classes = len(generator.processor.clusters or ()), generator.classes
    if label is None:
        return first_word(colors, None)
    if label not in classes:
        hint = did_you_mean(label, classes) or "It was not trained by class."
        raise UserError(f"--class: '{label}' is no class of this model.", hint)
    return first_word(colors, classes.index(label))


def _generated(generator: ImageGenerator, starts: np.ndarray) -> Iterator[np.ndarray]:
    """Continue images `[N, 1 + G]` (a start token and G pixels); yield `[H, W, 3]` uint8 each."""
    (tower,) = generator.model.towers.values()
    assert isinstance(tower, Tower)  # ImageGPT has one tower
    settings, processor = generator.settings, generator.processor
    seed = jax.random.key(settings.seed)
    generate = jax.jit(
        partial(
            draw_images,
            tower,
            compute=PLAIN,
            pixels=math.prod(processor.size),
            colours=len(processor.clusters or ()),
            numbers=numbers_of(settings),
            top_k=settings.top_k,
        )
    )
    rows = min(ROWS, len(starts))
    for first in range(0, len(starts), rows):
        # The last batch is padded to the shape compiled already; the padding's output is dropped.
        index = np.minimum(np.arange(first, first + rows), len(starts) - 1)
        keys = jax.vmap(partial(jax.random.fold_in, seed))(index) if settings.do_sample else None
        colors = np.asarray(generate(generator.model.params, starts[index], keys))
        for one in colors[: len(starts) - first]:
            yield painted(one, processor)


def _write(file: Path, pixels: np.ndarray) -> str:
    """Write an image, enlarged if it is small, and return its path."""
    write_png(file, Image.fromarray(enlarged(pixels, LEAST)), "--out")
    return str(file)


def _safe(name: str) -> str:
    """Return a class name with the characters that file names may not have replaced."""
    return re.sub(r"[^\w.-]+", "_", name)
