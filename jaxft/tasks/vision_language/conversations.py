"""Rows as conversations about one image, and the words that stand for it in their text.

A chat template marks the place of an image by one word. There the text then has that word as often
as the image has vectors, with words between its tiles, as `Idefics3Processor` of `transformers`
and SmolVLM's write it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from jaxft.data.image.grid import Cut
from jaxft.data.text.answers import Conversation, WrittenConversation
from jaxft.data.text.chat import ChatTemplate
from jaxft.data.text.tokenizer import Tokenizer
from jaxft.errors import UserError
from jaxft.tasks.parts.labels import BadValue, text_of, with_role
from jaxft.tasks.parts.tools import Tools
from jaxft.tasks.vision_language.section import VisionLanguageSection

IMAGE = {"type": "image"}
IMAGE_WORD = "<image>"  # its place in a value of ShareGPT, as in LLaVA's data sets
ONE_IMAGE = "A row has one image, so its conversation has one part {type: image}."
# A prompt and an answer behind the image.
PREFIX = (
    "{% for message in messages %}{% if message.role == 'user' %}IMAGEFIRST"
    "{% for part in message.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}"
    "{% endfor %}{{ '\\n' }}{% else %}{{ message.content[0].text }}LAST{% endif %}{% endfor %}"
)
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
    messages = [_message(one) for one in cell]
    count = sum(part == IMAGE for one in messages for part in one["content"])
    if count != 1:
        problem = "no place for its image" if count == 0 else f"{count} images"
        raise BadValue(f"has {problem} in {section.messages}", ONE_IMAGE)
    return messages


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message with a list of parts; one of ShareGPT's shows its image by `<image>`."""
    if (own := with_role(message)) is message:
        return {**message, "content": _parts(message.get("content"))}
    if not isinstance(own["content"], str):
        raise BadValue("has a message whose value is no text")
    if IMAGE_WORD not in own["content"]:
        return {**own, "content": _parts(own["content"])}
    texts = [text.strip("\n") for text in own["content"].split(IMAGE_WORD)]
    words = [_parts(text) if text else [] for text in texts]
    return {**own, "content": [part for parts in words for part in (IMAGE, *parts)][1:]}


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
        mark: the one that a chat template writes in the place of an image.
        word: the one of a vector; the mark where a model has one word for both.
        count: the vectors of an image, or of a tile of it.
        frame: the words before and behind an image's; None for those of tiles.
    """

    mark: str
    word: str
    count: int
    frame: tuple[str, str] | None = None

    def of(self, cut: Cut) -> str:
        """Return the words of an image with those tiles."""
        vectors = self.word * self.count
        if self.frame is not None:
            return vectors.join(self.frame)
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
        count = text.count(self.mark)
        if count == 0:
            raise UserError(f"{name}: the chat template writes no place for an image.")
        spelled = self.mark if count > 1 else self.word
        if count > 1 or (spelled != self.mark and spelled in text):
            raise UserError(
                f"{name}: its text spells '{spelled}', which stands for an image.",
                "Write it otherwise, or leave the row out.",
            )
        return text.replace(self.mark, self.of(cut))

    def write(self, one: WrittenConversation, cut: Cut, name: str) -> WrittenConversation:
        """Return a conversation with an image's words, its answers where they then are."""
        at, text = one.text.find(self.mark), self.place(one.text, cut, name)
        more = len(text) - len(one.text)
        spans = [
            (first + more * (first > at), last + more * (last > at)) for first, last in one.spans
        ]
        return replace(one, text=text, spans=spans)


def words_of(tokenizer: Tokenizer, config: Any) -> ImageWords:
    """Return the words that stand for a model's images.

    Args:
        tokenizer: the model's.
        config: the model's.

    Raises:
        UserError: the tokenizer writes one of their ids as another word or as several.
    """
    word = _word(tokenizer, config.image_token_id)
    if config.frame is not None:  # Gemma 3's
        first, last = (_word(tokenizer, one) for one in config.frame)
        return ImageWords(first, word, config.tile_tokens, (f"\n\n{first}", f"{last}\n\n"))
    return ImageWords(word, word, config.tile_tokens, None if config.tiled else ("", ""))


def _word(tokenizer: Tokenizer, number: int) -> str:
    word = tokenizer.piece(number)
    (ids,) = tokenizer.encode([word or FRAME], spelled=True).ids
    if not word or ids.tolist() != [number]:
        raise UserError(
            f"model.checkpoint: config.json has {number} for a word of images, which is none of "
            f"its own in the tokenizer of '{tokenizer.folder}'.",
            "Use the tokenizer of the checkpoint's own processor.",
        )
    return word


def template_of(tools: Tools) -> ChatTemplate:
    """Return a model's chat template; PaliGemma's, which has none, is what its processor writes.

    Raises:
        UserError: it has none.
    """
    model, tokenizer = tools.model, tools.tokenizer
    if not model.config.prefix:
        return tools.chat_template
    ends = (tokenizer.first_id, tokenizer.end_id)
    first, last = (tokenizer.piece(one) if one is not None else "" for one in ends)
    image = tokenizer.piece(model.config.image_token_id)
    text = PREFIX.replace("IMAGE", image).replace("FIRST", first).replace("LAST", last)
    return ChatTemplate(model.tokenizer_folder, text, {})
