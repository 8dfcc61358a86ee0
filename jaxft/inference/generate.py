"""Text generation: the continuation of each prompt by a trained model.

The model is a run's best checkpoint, or any checkpoint with a language-model head. A decoder
continues its prompt, an encoder-decoder answers it; an image-to-text model takes image files, one
that also reads text each with a question behind a tab.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from jaxft.data.image.grid import stored_side
from jaxft.data.image.images import ImageProcessor, decode
from jaxft.data.text.chat import ChatTemplate, load_chat_template
from jaxft.data.text.stream import TextStream
from jaxft.data.text.tokenizer import Tokenizer
from jaxft.device.distributed import processes
from jaxft.device.mesh import spread_over_all
from jaxft.engine.trained import Which, open_trained, task_of
from jaxft.errors import UserError
from jaxft.inference.predictor import head_of, is_checkpoint, is_run, task_of_checkpoint
from jaxft.models.generate.decode import FROM_SOURCES, WRITES, Generator
from jaxft.models.generate.prompts import Images, Prompts
from jaxft.models.generate.settings import Settings, read_settings
from jaxft.models.load import load
from jaxft.storage.files import place
from jaxft.tasks.parts.contract import BoundTask
from jaxft.tasks.parts.images import paths_from_input
from jaxft.tasks.parts.tools import Tools

PROMPTS = 8  # the most prompts of a batch

Message = Mapping[str, str]  # `role` and `content`


@dataclass(frozen=True)
class Writer:
    """A model ready to generate text.

    Args:
        generator: the model.
        tokenizer: its tokenizer.
        template: the chat template; None if prompts are plain text.
        settings: the generation settings.
        notes: a sentence on each setting of the checkpoint that is not supported.
        prefix: text put before every prompt, as in the run's training.
        images: the image processor of an image-to-text model; None if prompts are texts.
        bound: the task of such a model, which may make prompts of images; None without images.
        length: the tokens that a source is truncated to, as in the run's training; None truncates
            nothing, as a prompt that is to go on.
    """

    generator: Generator
    tokenizer: Tokenizer
    template: ChatTemplate | None
    settings: Settings
    notes: tuple[str, ...]
    prefix: str = ""
    images: ImageProcessor | None = None
    bound: BoundTask[Any, Any] | None = None
    length: int | None = None


def writes(name: str, kind: str | None = None) -> bool:
    """Return whether a run or a checkpoint generates text.

    Args:
        name: a run folder or a checkpoint.
        kind: the kind of task of a checkpoint whose config.json does not name one.
    """
    if is_run(name):
        return task_of(place(name)).head in WRITES
    return is_checkpoint(name) and head_of(name, kind) in WRITES


def open_writer(
    name: str,
    chat: bool | None,
    asked: Mapping[str, Any],
    which: Which = "best",
    kind: str | None = None,
) -> Writer:
    """Open a run or a checkpoint for text generation; several processes hold it together.

    Args:
        name: a run folder, or a checkpoint as in `model.checkpoint`.
        chat: whether to use the chat template; None uses it if there is one, but not for a run
            that was trained on sources and targets.
        asked: fields of `jaxft.models.generate.settings.Settings` set by the user.
        which: the checkpoint of a run: `best`, `last`, or a step.
        kind: the kind of task of a checkpoint whose config.json does not name one.

    Raises:
        UserError: the model generates no text, lacks a tokenizer or the requested chat template,
            or a setting is out of range.
    """
    several = processes() > 1
    trained = open_trained(place(name), which, spread=several) if is_run(name) else None
    if trained is None:
        model = load(name, task=kind, sharding=spread_over_all() if several else None)
    else:
        model = trained.model
    generator = Generator(model)
    # Sources are read without a template in training.
    plain = chat is None and trained is not None and model.head in FROM_SOURCES
    template = None if chat is False or plain else load_chat_template(model.tokenizer_folder)
    if chat and template is None:
        raise UserError(f"'{name}' has no chat template.", "Leave --chat out.")
    settings, notes = read_settings(model.source.folder, model.fields, asked)
    prefix = "" if trained is None else trained.task.prompt_prefix
    tools = Tools(model, None, None)
    if trained is not None and model.head not in FROM_SOURCES:  # as its evaluation ends texts
        settings = replace(settings, eos_token_id=tuple(sorted(tools.end_ids)))
    length = model.text_length if model.head in FROM_SOURCES else None
    writer = Writer(generator, tools.tokenizer, template, settings, notes, prefix, length=length)
    if model.image_size is None:
        return writer
    if trained is None:
        tiled = getattr(model.config, "tiled", False)
        stated = {"grid": stored_side(model.source.folder)} if tiled else {}
        task = task_of_checkpoint(name, str(model.head), stated)
    else:
        task = trained.task
    return replace(writer, images=tools.images, bound=task.bind(tools, ()))


def prompts_of(writer: Writer, inputs: Iterable[str]) -> Iterable[str]:
    """Return the prompts: the texts themselves, or image files, those of folders included."""
    return inputs if writer.images is None else paths_from_input(inputs)


def write(writer: Writer, conversation: Sequence[Message]) -> Iterator[str]:
    """Continue one conversation, and yield the text as it is generated.

    Args:
        writer: the opened model.
        conversation: the messages; without a chat template only the last one is read, as a text
            or as the path of an image.

    Raises:
        UserError: the prompt is empty or longer than the model's positions.
    """
    ids, images = _encode(writer, [conversation])
    if writer.settings.num_beams > 1:
        (tokens,) = writer.generator.generate(ids, writer.settings, images=images)
        yield writer.tokenizer.decode(tokens)
        return
    stream = TextStream(writer.tokenizer, writer.settings.stop_strings)
    pieces: list[str] = []

    def stopped(row: int, tokens: Sequence[int]) -> bool:
        pieces.append(stream.add(tokens[-1]))
        return stream.stopped

    for _ in writer.generator.stream(ids, writer.settings, stopped, images):
        yield from filter(None, pieces)
        pieces.clear()
    yield stream.end()


def complete(writer: Writer, prompts: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Continue each prompt, in batches.

    Args:
        writer: the opened model.
        prompts: texts, or image files and folders of them.

    Yields:
        `prompt` (`file` for an image), `text`, `tokens` (the number generated), `whole` (whether
        the text ended before the token limit), and `tokens_per_second` of the batch, not counting
        the first token; None for beam search, which returns all tokens at once.

    Raises:
        UserError: a prompt is empty or longer than the model's positions.
    """
    remaining = iter(prompts_of(writer, prompts))
    rows = 0
    while part := list(islice(remaining, PROMPTS)):
        rows = max(rows, len(part))
        # The last batch is padded to the shape compiled already; the padding's output is dropped.
        yield from _complete(writer, part, rows)


def _complete(writer: Writer, asked: list[str], rows: int) -> Iterator[dict[str, Any]]:
    """Continue the prompts of one batch, padded to `rows` rows."""
    prompts = asked + asked[-1:] * (rows - len(asked))
    settings = writer.settings
    ids, images = _encode(writer, [[{"role": "user", "content": prompt}] for prompt in prompts])
    streams = [TextStream(writer.tokenizer, settings.stop_strings) for _ in ids]

    def stopped(row: int, tokens: Sequence[int]) -> bool:
        streams[row].add(tokens[-1])
        if row < len(asked):
            moments.append(time.perf_counter())
        return streams[row].stopped

    moments: list[float] = []
    written = writer.generator.generate(ids, settings, stopped, images)
    seconds = moments[-1] - moments[0] if moments else 0.0
    speed = round((len(moments) - len(asked)) / seconds, 1) if seconds else None
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
) -> tuple[Prompts, Images | None]:
    """Return the token ids of each prompt and the images among them, or the pixels of each."""
    if writer.images is not None and writer.bound is not None:
        last = [messages[-1]["content"] for messages in conversations]
        own = writer.bound.prompts(last)
        return own or ([writer.images(decode(file)) for file in last], None)
    if writer.template is None:
        texts = [writer.prefix + messages[-1]["content"] for messages in conversations]
        encoded = writer.tokenizer.encode(texts, max_length=writer.length)
    else:
        texts = writer.template.render(conversations, add_generation_prompt=True)
        encoded = writer.tokenizer.encode(texts, spelled=True)
    return [ids.tolist() for ids in encoded.ids], None
