"""Rows as conversations about one image, and the words that stand for it in their text.

A chat template marks the place of an image by one word. There the text then has that word as often
as the image has vectors, with words between its tiles, as `Idefics3Processor` of `transformers`
and SmolVLM's write it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxft.data.image.grid import Cut
from jaxft.data.text.answers import Conversation, WrittenConversation
from jaxft.data.text.tokenizer import Tokenizer
from jaxft.errors import UserError
from jaxft.tasks.parts.labels import BadValue, text_of
from jaxft.tasks.vision_language.section import VisionLanguageSection

IMAGE = {"type": "image"}
ONE_IMAGE = "A row has one image, so its conversation has one part {type: image}."
# Words around an image and its tiles.
FRAME, WHOLE, TILE = "<fake_token_around_image>", "<global-img>", "<row_{row}_col_{column}>"


def asked(text: str) -> dict[str, Any]:
    """Return the message that shows an image and asks something of it."""
    words = [{"type": "text", "text": text}] if text else []
    return {"role": "user", "content": [IMAGE, *words]}


def answered(text: str) -> dict[str, Any]:
    """Return the message with an answer."""
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def conversation_of(section: VisionLanguageSection, row: Mapping[str, Any]) -> Conversation:
    """Read a row's conversation, whose messages have lists of parts.

    Args:
        section: it names the columns.
        row: the row.

    Raises:
        BadValue: a cell has another kind of value, or the conversation not one place of an image.
    """
    if section.caption is not None:
        caption = text_of(row[section.caption], section.caption)
        return [asked(section.instruction), answered(caption)]
    if section.messages is None:
        assert section.prompt is not None  # the section has one of the forms
        assert section.answer is not None
        question, answer = (text_of(row[name], name) for name in (section.prompt, section.answer))
        return [asked(question), answered(answer)]
    cell = row[section.messages]
    if not isinstance(cell, list | tuple) or not all(isinstance(one, Mapping) for one in cell):
        raise BadValue(f"has no conversation in {section.messages}: a list of {{role, content}}")
    messages = [{**one, "content": _parts(one.get("content"))} for one in cell]
    count = sum(part == IMAGE for one in messages for part in one["content"])
    if count != 1:
        problem = "no place for its image" if count == 0 else f"{count} images"
        raise BadValue(f"has {problem} in {section.messages}", ONE_IMAGE)
    return messages


def _parts(content: Any) -> list[dict[str, Any]]:
    """Return a message's content as a list of parts: texts, and the place of the image."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    parts = list(content) if isinstance(content, list | tuple) else [None]
    read = [_part(part) for part in parts]
    if None in read:
        raise BadValue(
            "has a message whose content is no text and no list of parts {type: text, text: ...} "
            "and {type: image}"
        )
    return [part for part in read if part is not None]


def _part(part: Any) -> dict[str, Any] | None:
    """Return a part without keys that say nothing here; None if it is of another kind."""
    if not isinstance(part, Mapping):
        return None
    if part.get("type") == "image":
        return IMAGE
    if part.get("type") == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    return None


@dataclass(frozen=True)
class ImageWords:
    """Words that stand for an image in a text.

    Args:
        word: the one that marks an image, and each of its vectors.
        count: the vectors of a tile.
    """

    word: str
    count: int

    def of(self, cut: Cut) -> str:
        """Return the words of an image with those tiles."""
        vectors = self.word * self.count
        whole = f"{FRAME}{WHOLE}{vectors}{FRAME}"
        if not cut.rows:
            return whole
        rows = (
            "".join(
                f"{FRAME}{TILE.format(row=row + 1, column=column + 1)}{vectors}"
                for column in range(cut.columns)
            )
            for row in range(cut.rows)
        )
        return "".join(f"{row}\n" for row in rows) + f"\n{whole}"

    def place(self, text: str, cut: Cut, name: str) -> str:
        """Return the text with an image's words in the place that it marks.

        Args:
            text: from a chat template.
            cut: the image's tiles.
            name: of the row, in messages.

        Raises:
            UserError: it marks none, or more than one.
        """
        if (count := text.count(self.word)) != 1:
            problem = (
                "the chat template writes no place for an image."
                if count == 0
                else f"its text has '{self.word}' {count} times, which stands for an image."
            )
            raise UserError(f"{name}: {problem}", "A row has one image.")
        return text.replace(self.word, self.of(cut))

    def write(self, one: WrittenConversation, cut: Cut, name: str) -> WrittenConversation:
        """Return a conversation with an image's words, its answers where they then are."""
        at, text = one.text.find(self.word), self.place(one.text, cut, name)
        more = len(text) - len(one.text)
        spans = [
            (start + more * (start > at), stop + more * (stop > at)) for start, stop in one.spans
        ]
        return replace(one, text=text, spans=spans)


def words_of(tokenizer: Tokenizer, word_id: int, count: int) -> ImageWords:
    """Return the words that stand for a model's images.

    Args:
        tokenizer: the model's.
        word_id: the id that marks a vector.
        count: the vectors of a tile.

    Raises:
        UserError: the tokenizer writes that id as another word or as several.
    """
    word = tokenizer.piece(word_id)
    (ids,) = tokenizer.encode([word or FRAME], spelled=True).ids
    if not word or ids.tolist() != [word_id]:
        raise UserError(
            f"model.checkpoint: image_token_id is {word_id}, which is no word of its own in the "
            f"tokenizer of '{tokenizer.folder}'.",
            "Use the tokenizer of the checkpoint's own processor.",
        )
    return ImageWords(word, count)


def as_ids(values: Sequence[int]) -> tuple[int, ...]:
    """Return token ids in order, as arguments of a compiled program."""
    return tuple(sorted(values))
