"""A checkpoint's tools for reading data: lengths, tokenizer, image processor, and a cache."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxft.data.cache import Encoded, ExampleArrays, InMemory, build_or_open, cache_key
from jaxft.data.image.images import ImageProcessor, load_image_processor
from jaxft.data.shares import Share, read_share
from jaxft.data.sources.source import Source
from jaxft.data.text.chat import ChatTemplate, load_chat_template
from jaxft.data.text.tokenizer import Tokenizer, load_tokenizer
from jaxft.errors import UserError
from jaxft.models.generate.settings import FILE, read_settings, stored_settings
from jaxft.models.model import Model


@dataclass(frozen=True)
class Tools:
    """A checkpoint's tools for reading data, each loaded when a task first uses it.

    Args:
        model: the model that will read the examples.
        asked_length: the config's maximum number of tokens of an example, if set.
        cache: the folder of arrays computed once per example; None keeps them in memory.
        weights: whether checkpoints' weights may be read; a plan needs none.
        share: this host's share of the rows of a split, where each of several reads its own.
    """

    model: Model
    asked_length: int | None
    cache: Path | None
    weights: bool = True
    share: Share | None = None

    @property
    def max_length(self) -> int:
        """The most tokens of an example: the config's number, else the model's positions.

        Raises:
            UserError: the config asks for more than the model's positions hold.
        """
        asked, most = self.asked_length, self.model.max_positions
        if asked is not None and asked > most:
            raise UserError(
                f"data.max_length: {asked} tokens do not fit the model's {most} positions.",
                f"Set it to {most} or less; longer texts are truncated to it.",
            )
        return asked or most

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer.

        Raises:
            UserError: it has more tokens than the model has embeddings.
        """
        tokenizer = load_tokenizer(self.model.tokenizer_folder)
        if tokenizer.vocab_size > self.model.vocab_size:
            tokens, embeddings = f"{tokenizer.vocab_size:,}", f"{self.model.vocab_size:,}"
            hint = "If it is the model's own, model.resize_vocab=true adds the missing embeddings."
            other = self.model.source.tokenizer
            if other is not None:
                raise UserError(
                    f"model.tokenizer: '{other.asked}' has {tokens} tokens and the model "
                    f"embeddings for {embeddings}.",
                    hint,
                )
            raise UserError(
                f"model.checkpoint: the tokenizer has {tokens} tokens and the model embeddings "
                f"for {embeddings}.",
                hint,
            )
        return tokenizer

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
                f"model.checkpoint: '{folder}' has no chat template, and the task reads "
                "conversations.",
                "Use a chat model, or train on plain texts: task.text.",
            )
        return template

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """The tokens at which generation stops: the generation config's and the tokenizer's."""
        settings, _ = read_settings(self.model.source.folder, self.model.fields, {})
        own = self.tokenizer.end_id
        return frozenset(settings.eos_token_id) | ({own} if own is not None else set())

    @cached_property
    def images(self) -> ImageProcessor:
        """The checkpoint's image processor.

        Raises:
            UserError: the checkpoint has none, or an unsupported one; or its images have more
                pixels than the model has positions, or more colors than it has embeddings.
        """
        processor = load_image_processor(self.model.source.folder, self.model.asked_size)
        if processor.clusters is not None:
            _check_colors(processor, self.model)
        return processor

    def once(
        self,
        build: Callable[[], Encoded],
        **key: Any,
    ) -> ExampleArrays:
        """Build arrays per example, or open those that an earlier run has cached.

        Args:
            build: returns the examples, and metadata of the whole (see `build_or_open`).
            key: everything that the arrays depend on.
        """
        if self.cache is None:
            return InMemory(*build())
        return build_or_open(self.cache, cache_key(**key), build)

    def encoded_once(
        self, encode: Callable[[Source], Encoded], source: Source, **key: Any
    ) -> ExampleArrays:
        """Encode a source's texts, or open those that an earlier run has cached.

        Args:
            encode: reads a source with `tokenizer`, each text cut to `max_length`.
            source: the rows.
            key: everything else that the token ids depend on.
        """
        return self.once(
            lambda: encode(source),
            source=source.fingerprint,
            tokenizer=self.tokenizer.fingerprint,
            max_length=self.max_length,
            **key,
        )

    def encoded_by_row(
        self, encode: Callable[[Source], Encoded], source: Source, **key: Any
    ) -> ExampleArrays:
        """Encode texts as `encoded_once` does, of several hosts each the rows of its share.

        Args:
            encode: as there; what it gives of a row does not depend on other rows, and where a row
                may have several examples or none, its metadata `rows` has each one's row.
            source: the rows.
            key: as there.
        """
        if self.share is None or len(source) < self.share.count:
            return self.encoded_once(encode, source, **key)
        return read_share(
            self.share, source, encode, lambda rows: self.encoded_once(encode, rows, **key)
        )


def _check_colors(processor: ImageProcessor, model: Model) -> None:
    """Raise a UserError if a model cannot read a processor's sequences of colors."""
    (height, width), most = processor.size, model.max_positions
    if height * width > most:
        raise UserError(
            f"model.checkpoint: images of {height} x {width} are {height * width:,} pixels, and "
            f"the model has positions for {most:,}.",
            f"Set model.image_size to {math.isqrt(most)} or less.",
        )
    if (colors := len(processor.clusters or ())) >= model.vocab_size:
        raise UserError(
            f"model.checkpoint: the image processor has {colors:,} colors, and the model has "
            f"embeddings for {model.vocab_size - 1:,} and a start token.",
            "Use the preprocessor_config.json of the model's own checkpoint.",
        )


def ending_files(model: Model) -> dict[str, dict[str, Any]]:
    """Return the generation_config.json of an export, where a text ends at the tokenizer's end too.

    A base model with its chat model's tokenizer learns to end answers by a token at which its own
    file does not stop. Nothing where that file has all of them.
    """
    tools, folder = Tools(model, None, None), model.source.folder
    settings, _ = read_settings(folder, model.fields, {})
    if tools.end_ids == set(settings.eos_token_id):
        return {}
    ends = [*settings.eos_token_id, *sorted(tools.end_ids - set(settings.eos_token_id))]
    return {FILE: stored_settings(folder, model.fields) | {"eos_token_id": ends}}
