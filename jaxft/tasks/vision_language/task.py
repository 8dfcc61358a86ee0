"""Vision-language models: captions, answers to questions, and conversations about an image.

The scores beside the loss are of the answers that the model generates for every row of a split.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple
from typing import Any

import numpy as np

from jaxft.data.image.grid import Cut, Grid, check_grid, grid_fields
from jaxft.data.image.images import decode
from jaxft.data.sources.source import Source
from jaxft.data.text.answers import Conversation, Scoring, check_conversation
from jaxft.errors import UserError
from jaxft.metrics.captions import caption_scores
from jaxft.models.generate.greedy import Limits, continue_greedily
from jaxft.models.generate.prompts import Images
from jaxft.models.model import Model
from jaxft.models.tower.run import TRUNK
from jaxft.models.tower.tower import Compute, Tower
from jaxft.tasks.parts.arrays import Batch, Facts, Outcomes, Outputs, Params
from jaxft.tasks.parts.card import GENERATE, Card
from jaxft.tasks.parts.contract import Task
from jaxft.tasks.parts.images import check_images, open_image, picture, size_of
from jaxft.tasks.parts.labels import read_rows
from jaxft.tasks.parts.metric import loss_and
from jaxft.tasks.parts.tools import ending_files
from jaxft.tasks.parts.written_texts import BoundGenerating
from jaxft.tasks.vision_language.conversations import (
    ImageWords,
    asked,
    conversation_of,
    template_of,
    words_of,
)
from jaxft.tasks.vision_language.encode import Writer, encode_lessons, sequence
from jaxft.tasks.vision_language.examples import ImageLessons
from jaxft.tasks.vision_language.section import VisionLanguageSection as Section

ROOM = 1.25  # the most tokens generated, as a multiple of the longest answer's
PICTURES = 24  # first images stored with their predictions, as many as a report shows


class BoundVisionLanguage(BoundGenerating["VisionLanguage", ImageLessons]):
    """`VisionLanguage` on a model."""

    @property
    def grid(self) -> Grid:
        """The reading of an image as tiles.

        Raises:
            UserError: the checkpoint's processor cuts none, not as many, or of another size.
        """
        grid, config = Grid(self.tools.images, self.task.section.grid), self.tools.model.config
        check_grid(grid, config.tiled, "task.grid")
        if grid.processor.size != config.image_size:
            raise UserError(
                f"model.checkpoint: its image processor makes images of {grid.tile} pixels, and "
                f"the model takes {config.image_size[0]}.",
                "Copy preprocessor_config.json from the original checkpoint.",
            )
        return grid

    @property
    def words(self) -> ImageWords:
        """The words that stand for an image."""
        return words_of(self.tools.tokenizer, self.tools.model.config)

    def check_row(self, source: Source, number: int, row: Mapping[str, Any]) -> None:
        check_conversation(conversation_of(self.task.section, row), source.place(number))
        open_image(source, number, row[self.task.section.image])

    def examples(self, source: Source, *, labelled: bool = True) -> ImageLessons:
        own, tools, grid = self.task.section, self.tools, self.grid
        check_images(source, own.image)
        template = template_of(tools)
        tokens = tools.encoded_by_row(
            self._encode,
            source,
            kind="vision language",
            template=[template.text, dict(template.tokens), sorted(tools.end_ids)],
            task=own.model_dump(),
            image=[*astuple(self.words), grid.fingerprint],
        )
        prefix = tools.model.config.prefix
        return ImageLessons(tokens, source, own.image, grid, tools.tokenizer.pad_id, prefix)

    def _encode(self, source: Source) -> tuple[list[dict[str, np.ndarray]], dict[str, Any]]:
        """Encode every conversation, with the words of its image."""
        own, tools = self.task.section, self.tools
        scoring = Scoring(own.train_on, end_ids=tools.end_ids)
        parts = template_of(tools), tools.tokenizer, self.words, scoring, tools.max_length
        conversations = [
            check_conversation(one, source.place(row))
            for row, one in enumerate(read_rows(source, self.task.columns, self._conversation))
        ]
        return encode_lessons(Writer(*parts), conversations, self._cuts(source), source.place)

    def _conversation(self, row: Mapping[str, Any]) -> Conversation:
        return conversation_of(self.task.section, row)

    def _cuts(self, source: Source) -> list[Cut]:
        """Return the tiles of each row's image."""
        grid, column = self.grid, self.task.section.image
        if grid.side == 1:
            return [Cut(0, 0)] * len(source)
        return [grid.cut(size_of(source, n, row[column])) for n, row in source.each([column])]

    def generated(self, params: Params, batch: Batch, compute: Compute) -> Outputs:
        """Generate each last answer greedily: `written` `[R, M]` token ids."""
        model = self.tools.model
        text = model.towers["text"]
        assert isinstance(text, Tower)
        assert text.reads is not None
        prompts = {"input_ids": batch["prompt_ids"], "attention_mask": batch["prompt_mask"]}
        names = ("pixel_values", text.reads.prefix + TRUNK)
        images = {name: batch[name] for name in names if name in batch}
        room = model.max_positions - prompts["input_ids"].shape[1]
        most = max(min(int(batch["answer_ids"].shape[1] * ROOM), room), 1)
        limits = Limits(most, tuple(sorted(self.tools.end_ids)))
        return {"written": continue_greedily(text, params, prompts, images, compute, limits)}

    def text_of(self, ids: np.ndarray) -> str:
        return super().text_of(ids).strip()

    def _wanted(self, examples: ImageLessons) -> list[str]:
        """Return the last answer of each example."""
        tokens = examples.tokens
        return [self.text_of(sequence(tokens[n], "answer")) for n in range(len(tokens))]

    def summarise(self, outcomes: Outcomes, examples: ImageLessons) -> dict[str, float]:
        return caption_scores(self.texts(outcomes), self._wanted(examples))

    def describe(
        self, source: Source, outcomes: Outcomes, examples: ImageLessons
    ) -> Iterator[dict[str, Any]]:
        column, losses = self.task.section.image, outcomes["loss"] / outcomes["scored"]
        texts = zip(self._wanted(examples), self.texts(outcomes), losses, strict=True)
        rows = source.each([column], examples.rows)
        for count, ((number, row), (target, written, loss)) in enumerate(
            zip(rows, texts, strict=True)
        ):
            value = row[column]
            line: dict[str, Any] = {"file": value} if isinstance(value, str) else {}
            line |= {"target": target, "written": written, "loss": float(loss)}
            if count < PICTURES:
                line["image"] = picture(open_image(source, number, value))
            yield line

    def prompts(self, inputs: Sequence[str]) -> tuple[list[list[int]], Images]:
        """Read image files, each perhaps with a question behind a tab."""
        grid, words, tools = self.grid, self.words, self.tools
        files, questions = zip(*(one.partition("\t")[::2] for one in inputs), strict=True)
        conversations = [[asked(text or self.task.section.instruction)] for text in questions]
        images = [decode(file) for file in files]
        texts = template_of(tools).render(conversations, add_generation_prompt=True)
        texts = [
            words.place(text, grid.cut((image.height, image.width)), f"'{file}'")
            for text, image, file in zip(texts, images, files, strict=True)
        ]
        ids = [own.tolist() for own in tools.tokenizer.encode(texts, spelled=True).ids]
        return ids, {"pixel_values": np.stack([grid(image) for image in images])}


class VisionLanguage(Task):
    """Texts about an image: captions, answers to questions, conversations."""

    section: Section

    bound = BoundVisionLanguage
    card = Card(
        "image-text-to-text",
        "AutoModelForImageTextToText",
        (
            'content = [{"type": "image"}, {"type": "text", "text": "Describe this image."}]',
            'messages = [{"role": "user", "content": content}]',
            "text = processor.apply_chat_template(messages, add_generation_prompt=True)",
            'image = Image.open("image.png").convert("RGB")',
            'inputs = processor(text=text, images=[image], return_tensors="pt")',
            GENERATE,
            "print(processor.decode(generated[0], skip_special_tokens=True))",
        ),
    )
    metrics = loss_and("accuracy", "chrf", "cider", "exact_match")
    primary = "chrf"
    view = "texts"
    truncates = False

    @property
    def columns(self) -> tuple[str, ...]:
        own = self.section
        names = (own.image, own.caption, own.prompt, own.answer, own.messages)
        return tuple(name for name in names if name is not None)

    @property
    def text_column(self) -> str | None:
        return self.section.caption

    def export_files(self, model: Model, labels: Sequence[str]) -> Mapping[str, Facts]:
        del labels
        return grid_fields(model.source.folder, self.section.grid) | ending_files(model)


make = VisionLanguage
