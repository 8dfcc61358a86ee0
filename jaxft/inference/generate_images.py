"""The drawing story: images that a model draws, of any class or of one, or completes.

The model is a run's best checkpoint, or any checkpoint that ends in scores of colours.
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
from jaxft.engine.trained import open_trained, task_of
from jaxft.errors import UserError, did_you_mean
from jaxft.models.generate.decode import numbers_of
from jaxft.models.generate.images import draw_images, first_word
from jaxft.models.generate.settings import Settings
from jaxft.models.load import IMAGE_GENERATION, Model, describe, load
from jaxft.models.tower.tower import PLAIN, Tower
from jaxft.runs.folder import RUN_FILE
from jaxft.storage.files import place
from jaxft.storage.outputs import check_apart, distinct_name
from jaxft.tasks.parts.images import open_image, paths_from_input
from jaxft.tasks.parts.tools import Tools

ROWS = 16  # images a batch
LEAST = 112  # pixels a side of a picture at least: smaller ones are enlarged by a whole factor


@dataclass(frozen=True)
class ImageGenerator:
    """A model ready to draw.

    Args:
        model: an ImageGPT.
        processor: its image processor.
        classes: what it knows, in order of class id; none where it draws without.
        settings: how colours are drawn.
    """

    model: Model
    processor: ImageProcessor
    classes: tuple[str, ...]
    settings: Settings


def generates_images(name: str) -> bool:
    """Return whether a run or a checkpoint generates images."""
    path = place(name)
    if (path / RUN_FILE).is_file():
        return task_of(path).head == IMAGE_GENERATION
    return (path / "config.json").is_file() and describe(name).head == IMAGE_GENERATION


def open_generator(name: str, asked: Mapping[str, Any]) -> ImageGenerator:
    """Open a run or a checkpoint that generates images.

    Args:
        name: a run folder, or a checkpoint's folder, which knows no classes.
        asked: fields of `generate_settings.Settings` that the person set; without any, colors
            are sampled from the model's distribution.

    Raises:
        UserError: it generates no images, is not understood, or a setting is out of range.
    """
    if not generates_images(name):
        raise UserError(
            f"'{name}' generates no images, so --samples and --class do not apply.", "Remove them."
        )
    if (place(name) / RUN_FILE).is_file():
        trained = open_trained(place(name))
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
        count: how many; of each class where it knows some and none is named.
        label: the class.
        to: the folder of the pictures, PNG files; made where it is not there.

    Yields:
        `generated`, the file, and `class` where there are any.

    Raises:
        UserError: a class that it does not know.
    """
    named: list[str | None] = [label] if label is not None else [*generator.classes] or [None]
    wanted = [(name, number) for name in named for number in range(count)]
    begun = np.array([[_begins(generator, name)] for name, _ in wanted], np.int32)
    check_apart(to, (), "--out")
    taken: set[str] = set()
    for (name, number), pixels in zip(wanted, _drawn(generator, begun), strict=True):
        stem = f"sample-{number:04d}" if name is None else f"{_safe(name)}-{number:04d}"
        line = {} if name is None else {"class": name}
        yield {**line, "generated": _write(to / distinct_name(stem, ".png", taken), pixels)}


def complete(
    generator: ImageGenerator, inputs: Iterable[str], label: str | None, to: Path
) -> Iterator[dict[str, Any]]:
    """Generate the lower half of images.

    Args:
        generator: the opened model.
        inputs: image files, and folders of them.
        label: the class that they are taken to be of; None for none.
        to: the folder of the pictures.

    Yields:
        `file` and `generated`, the image with another lower half.

    Raises:
        UserError: an image that does not decode, or a class that is not known; the folder is
            that of the images, or a file there that is not ours has the name of a picture.
    """
    inputs = list(inputs)
    check_apart(to, inputs, "--out")
    first, taken = _begins(generator, label), set[str]()
    height, width = generator.processor.size
    files = paths_from_input(inputs)
    while part := list(islice(files, ROWS)):
        source = given_rows([{"image": file} for file in part])
        rows = [generator.processor(open_image(source, n, file)) for n, file in enumerate(part)]
        colours = np.stack([colors_of(one, generator.processor) for one in rows])
        upper = colours[:, : height // 2 * width]
        begun = np.concatenate([np.full((len(part), 1), first, np.int32), upper], axis=1)
        for file, pixels in zip(part, _drawn(generator, begun), strict=True):
            name = distinct_name(f"{Path(file).stem}-completed", ".png", taken)
            yield {"file": file, "generated": _write(to / name, pixels)}


def _begins(generator: ImageGenerator, label: str | None) -> int:
    """The word that an image of a class begins with, or of none.

    Raises:
        UserError: a class that it does not know.
    """
    colours, classes = len(generator.processor.clusters or ()), generator.classes
    if label is None:
        return first_word(colours, None)
    if label not in classes:
        hint = did_you_mean(label, classes) or "It was not trained by class."
        raise UserError(f"--class: '{label}' is no class of this model.", hint)
    return first_word(colours, classes.index(label))


def _drawn(generator: ImageGenerator, begun: np.ndarray) -> Iterator[np.ndarray]:
    """What becomes of images that have begun [N, 1 + G]: the pixels of each, [H, W, 3] uint8."""
    (tower,) = generator.model.towers.values()
    assert isinstance(tower, Tower)  # a part alone is no model
    settings, processor = generator.settings, generator.processor
    seed = jax.random.key(settings.seed)
    draw = jax.jit(
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
    rows = min(ROWS, len(begun))
    for first in range(0, len(begun), rows):
        # The last batch is filled up, so that it compiles nothing; what is too much is left out.
        index = np.minimum(np.arange(first, first + rows), len(begun) - 1)
        keys = jax.vmap(partial(jax.random.fold_in, seed))(index) if settings.do_sample else None
        colours = np.asarray(draw(generator.model.params, begun[index], keys))
        for one in colours[: len(begun) - first]:
            yield painted(one, processor)


def _write(file: Path, pixels: np.ndarray) -> str:
    """Write a picture, enlarged where it is small, and say where."""
    write_png(file, Image.fromarray(enlarged(pixels, LEAST)), "--out")
    return str(file)


def _safe(name: str) -> str:
    """A class's name as part of a file's."""
    return re.sub(r"[^\w.-]+", "_", name)
