"""What a checkpoint brings for reading data: lengths, tokenizer, image processor, and a cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jaxft.data.cache import InMemory, Ragged, build_or_open, cache_key
from jaxft.data.image.images import ImageProcessor, load_image_processor
from jaxft.data.text.chat import ChatTemplate, load_chat_template
from jaxft.data.text.tokenizer import Tokenizer, load_tokenizer
from jaxft.errors import UserError
from jaxft.models.model import Model


@dataclass(frozen=True)
class Tools:
    """A checkpoint's parts for reading data; each is loaded when a task asks for it.

    Args:
        model: the model that will read the examples.
        asked_length: the most tokens of an example, where the config says so.
        cache: the folder of what is computed once per example; None keeps it in memory.
        weights: whether checkpoints' weights may be read; a plan needs none.
    """

    model: Model
    asked_length: int | None
    cache: Path | None
    weights: bool = True

    @property
    def max_length(self) -> int:
        """The most tokens of an example: the config's number, else what the positions allow.

        Raises:
            UserError: the config asks for more than the model's positions hold.
        """
        asked, most = self.asked_length, self.model.max_positions
        if asked is not None and asked > most:
            raise UserError(
                f"data.max_length: {asked} tokens do not fit the model's {most} positions.",
                f"Set it to {most} or less; longer texts are cut there.",
            )
        return asked or most

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer.

        Raises:
            UserError: it can give ids that the embeddings do not have.
        """
        found = load_tokenizer(self.model.tokenizer_folder)
        if found.vocab_size > self.model.vocab_size:
            raise UserError(
                f"model.checkpoint: the tokenizer knows {found.vocab_size:,} pieces and the model "
                f"has embeddings for {self.model.vocab_size:,}.",
                "If it is the model's own, model.resize_vocab=true adds the missing embeddings.",
            )
        return found

    @cached_property
    def chat_template(self) -> ChatTemplate:
        """The checkpoint's chat template.

        Raises:
            UserError: it has none.
        """
        folder = self.model.tokenizer_folder
        template = load_chat_template(folder)
        if template is None:
            raise UserError(
                f"model.checkpoint: '{folder}' has no chat template, and the task is "
                "conversations.",
                "Take a chat model, or train on texts that are written out: task.text.",
            )
        return template

    @cached_property
    def images(self) -> ImageProcessor:
        """The checkpoint's image processor.

        Raises:
            UserError: the checkpoint has none, or one that is not known; or one whose pixels or
                colours are more than the model has embeddings for.
        """
        found = load_image_processor(self.model.source.folder, self.model.asked_size)
        if found.clusters is not None:
            _check_colours(found, self.model)
        return found

    def once(
        self,
        build: Callable[[], tuple[Iterable[Mapping[str, np.ndarray]], Mapping[str, Any]]],
        **key: Any,
    ) -> Ragged | InMemory:
        """Arrays per example, built unless an earlier run has cached them.

        Args:
            build: gives the examples, and what to keep of the whole (see `build_or_open`).
            key: all that the arrays depend on.
        """
        if self.cache is None:
            return InMemory(*build())
        return build_or_open(self.cache, cache_key(**key), build)


def _check_colours(processor: ImageProcessor, model: Model) -> None:
    """Raise a UserError where a model cannot read images as a processor's rows of colours."""
    (height, width), most = processor.size, model.max_positions
    if height * width > most:
        raise UserError(
            f"model.checkpoint: images of {height} x {width} are {height * width:,} pixels, and "
            f"the model has positions for {most:,}.",
            f"Set model.image_size to {math.isqrt(most)} or less.",
        )
    if (colours := len(processor.clusters or ())) >= model.vocab_size:
        raise UserError(
            f"model.checkpoint: the image processor has {colours:,} colours, and the model has "
            f"embeddings for {model.vocab_size - 1:,} and for what an image begins with.",
            "Take the preprocessor_config.json that it was made with.",
        )
