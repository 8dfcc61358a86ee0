"""The generation story: prompts in, the text that a model writes out.

The model is a run's best checkpoint, or any checkpoint that ends in next-token scores: a decoder
goes on with its prompt, an encoder-decoder answers it; of one that reads images, prompts are files.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from jaxft.data.image.images import ImageProcessor, decode
from jaxft.data.text.chat import ChatTemplate, load_chat_template
from jaxft.data.text.stream import TextStream
from jaxft.data.text.tokenizer import Tokenizer
from jaxft.engine.trained import open_trained, task_of
from jaxft.errors import UserError
from jaxft.models.generate.decode import WRITES, Generator
from jaxft.models.generate.settings import Settings, read_settings
from jaxft.models.load import describe, load
from jaxft.runs.folder import RUN_FILE
from jaxft.storage.files import place
from jaxft.tasks.parts.images import paths_from_input
from jaxft.tasks.parts.tools import Tools

PROMPTS = 8  # prompts a batch, where there are more than one

Message = Mapping[str, str]  # `role` and `content`


@dataclass(frozen=True)
class Writer:
    """A model ready to write.

    Args:
        generator: the model.
        tokenizer: its tokenizer.
        template: how its conversations are written; None where prompts are plain text.
        settings: how texts go on.
        notes: a sentence on each thing that the checkpoint asks for and does not get.
        prefix: what every prompt is put behind, as in the run's training.
        images: how images are read, where a text is written for one.
    """

    generator: Generator
    tokenizer: Tokenizer
    template: ChatTemplate | None
    settings: Settings
    notes: tuple[str, ...]
    prefix: str = ""
    images: ImageProcessor | None = None


def writes(name: str) -> bool:
    """Whether what a person named writes text: a run of such a task, or such a checkpoint.

    A name that is nowhere is taken for a hub id where it looks like one and is in no folder that
    is here.
    """
    path = place(name)
    if (path / RUN_FILE).is_file():
        return task_of(path).head in WRITES
    if (path / "config.json").is_file() or name.startswith("package:"):
        return describe(name).head in WRITES
    return not path.parent.is_dir() and name.count("/") == 1


def open_writer(name: str, chat: bool | None, asked: Mapping[str, Any]) -> Writer:
    """The model that a person named, with what it takes to write.

    Args:
        name: a run folder, or a checkpoint as `model.checkpoint` has it.
        chat: write through the chat template; None where there is one.
        asked: fields of `generate_settings.Settings` that the person set.

    Raises:
        UserError: it writes no text, has no tokenizer or no chat template where one is
            wanted, or a setting is out of range.
    """
    trained = open_trained(place(name)) if (place(name) / RUN_FILE).is_file() else None
    model = load(name) if trained is None else trained.model
    generator = Generator(model)
    template = None if chat is False else load_chat_template(model.tokenizer_folder)
    if chat and template is None:
        raise UserError(f"'{name}' has no chat template.", "Leave --chat out.")
    settings, notes = read_settings(model.source.folder, model.fields, asked)
    prefix = "" if trained is None else trained.task.prompt_prefix
    tools = Tools(model, None, None)
    images = tools.images if model.image_size is not None else None
    return Writer(generator, tools.tokenizer, template, settings, notes, prefix, images)


def prompts_of(writer: Writer, given: Iterable[str]) -> Iterable[str]:
    """What is to be written for: texts, or image files and those below the folders named."""
    return given if writer.images is None else paths_from_input(given)


def write(writer: Writer, conversation: Sequence[Message]) -> Iterator[str]:
    """Go on with one conversation, and give the text as it comes.

    Args:
        writer: what writes.
        conversation: the messages; a writer without a template reads the last one's text alone,
            or the image file that it names.

    Raises:
        UserError: the prompt is empty or longer than the model's positions.
    """
    ids = _encode(writer, [conversation])
    if writer.settings.num_beams > 1:
        yield writer.tokenizer.decode(writer.generator.generate(ids, writer.settings)[0])
        return
    stream = TextStream(writer.tokenizer, writer.settings.stop_strings)
    pieces: list[str] = []

    def stopped(row: int, tokens: Sequence[int]) -> bool:
        pieces.append(stream.add(tokens[-1]))
        return stream.stopped

    for _ in writer.generator.stream(ids, writer.settings, stopped):
        yield from filter(None, pieces)
        pieces.clear()
    yield stream.end()


def complete(writer: Writer, prompts: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Go on with each prompt, some of them at a time.

    Args:
        writer: what writes.
        prompts: one text each, or image files and folders of them.

    Yields:
        `prompt` (of an image `file`), `text`, `tokens` (how many are new), `whole` (whether it
        ended by itself), and `tokens_per_second`: after the first, of all that were written
        together with it; None for beam search, which gives them at once.

    Raises:
        UserError: a prompt is empty or longer than the model's positions.
    """
    waiting = iter(prompts_of(writer, prompts))
    rows = 0
    while part := list(islice(waiting, PROMPTS)):
        rows = max(rows, len(part))
        # The last batch is filled up, so that it compiles nothing; what is too much is left out.
        yield from _complete(writer, part, rows)


def _complete(writer: Writer, asked: list[str], rows: int) -> Iterator[dict[str, Any]]:
    """What is written after each prompt of one batch, which has so many rows."""
    prompts = asked + asked[-1:] * (rows - len(asked))
    settings = writer.settings
    ids = _encode(writer, [[{"role": "user", "content": prompt}] for prompt in prompts])
    streams = [TextStream(writer.tokenizer, settings.stop_strings) for _ in ids]

    def stopped(row: int, tokens: Sequence[int]) -> bool:
        streams[row].add(tokens[-1])
        if row < len(asked):
            moments.append(time.perf_counter())
        return streams[row].stopped

    moments: list[float] = []
    written = writer.generator.generate(ids, settings, stopped)
    taken = moments[-1] - moments[0] if moments else 0.0
    speed = round((len(moments) - len(asked)) / taken, 1) if taken else None
    for prompt, tokens, stream in zip(asked, written, streams, strict=False):
        stream.end()
        yield {
            "prompt" if writer.images is None else "file": prompt,
            "text": stream.text if settings.num_beams == 1 else writer.tokenizer.decode(tokens),
            "tokens": len(tokens),
            "whole": tokens[-1] in settings.eos_token_id or stream.stopped,
            "tokens_per_second": speed,
        }


def _encode(
    writer: Writer, conversations: Sequence[Sequence[Message]]
) -> Sequence[Sequence[int] | np.ndarray]:
    """The token ids of each prompt, or the pixels of each image."""
    if writer.images is not None:
        return [writer.images(decode(messages[-1]["content"])) for messages in conversations]
    if writer.template is None:
        texts = [writer.prefix + messages[-1]["content"] for messages in conversations]
        encoded = writer.tokenizer.encode(texts)
    else:
        texts = writer.template.render(conversations, add_generation_prompt=True)
        encoded = writer.tokenizer.encode(texts, spelled=True)
    return [ids.tolist() for ids in encoded.ids]
