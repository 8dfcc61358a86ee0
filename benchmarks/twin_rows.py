"""What the PyTorch twin reads and how it is scored, task by task, as `transformers` has it.

A split's rows are tokenised or processed by `AutoTokenizer` and `AutoImageProcessor`; the scores
are those of the same libraries that score jaxft.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from jaxft.engine.inputs import Split
from jaxft.engine.setup import Setup
from jaxft.metrics.entities import entity_scores
from jaxft.tasks.image_classification.section import ImageClassificationSection
from jaxft.tasks.parts.images import open_image
from jaxft.tasks.text_classification.section import TextClassificationSection
from jaxft.tasks.token_classification.section import TokenClassificationSection
from jaxft.tasks.token_classification.tagged import tag_ids

UNSCORED = -100  # PyTorch's cross-entropy leaves such labels out
Inputs = dict[str, Any]


class Rows(Protocol):
    """One split as the twin reads it.

    Attributes:
        architecture: the `Auto` class that loads the model.
        metric: what `score` gives, by jaxft's name.
    """

    architecture: Any
    metric: str

    def __init__(self, built: Setup, split: Split): ...

    def __len__(self) -> int: ...

    def batch(self, index: Sequence[int]) -> Inputs:
        """What the model is called with for the examples `index`, their `labels` among it."""

    def score(self, said: Sequence[np.ndarray]) -> float:
        """The metric of all examples in order, by the class that each logit is highest at."""


class Texts:
    """Texts with a class each, padded to the longest of a batch."""

    architecture = AutoModelForSequenceClassification
    metric = "accuracy"

    def __init__(self, built: Setup, split: Split):
        task, length = built.config.task, built.config.data.max_length
        assert isinstance(task, TextClassificationSection)
        self.tokenizer = AutoTokenizer.from_pretrained(built.model.source.folder)
        texts = [row[task.text] for _, row in split.source.each([task.text])]
        self.tokens = _each(self.tokenizer(texts, truncation=True, max_length=length))
        self.labels = torch.from_numpy(split.examples.labels).long()

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: Sequence[int]) -> Inputs:
        padded = _padded(self.tokenizer, self.tokens, index)
        return {**padded, "labels": self.labels[list(index)]}

    def score(self, said: Sequence[np.ndarray]) -> float:
        return _accuracy(said, self.labels)


class Sentences:
    """Words with a tag each, told at a word's first token."""

    architecture = AutoModelForTokenClassification
    metric = "f1"

    def __init__(self, built: Setup, split: Split):
        task, length = built.config.task, built.config.data.max_length
        assert isinstance(task, TokenClassificationSection)
        self.tokenizer = AutoTokenizer.from_pretrained(built.model.source.folder)
        words = [list(row[task.tokens]) for _, row in split.source.each([task.tokens])]
        encoded = self.tokenizer(
            words, is_split_into_words=True, truncation=True, max_length=length
        )
        self.tokens = _each(encoded)
        self.tags = tag_ids(split.source, task, built.label_names)
        self.names = built.label_names
        self.firsts = [_firsts(encoded.word_ids(i)) for i in range(len(words))]

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, index: Sequence[int]) -> Inputs:
        padded = _padded(self.tokenizer, self.tokens, index)
        labels = torch.full_like(padded["input_ids"], UNSCORED)
        for row, number in enumerate(index):
            for word, place in self.firsts[number].items():
                labels[row, place] = int(self.tags[number][word])
        return {**padded, "labels": labels}

    def score(self, said: Sequence[np.ndarray]) -> float:
        true = [[self.names[tag] for tag in tags] for tags in self.tags]
        found = []
        for number, tags in enumerate(true):
            own = ["O"] * len(tags)  # of a word that was cut off nothing is said
            for word, place in self.firsts[number].items():
                own[word] = self.names[said[number][place]]
            found.append(own)
        return entity_scores(true, found)["f1"]


class Images:
    """Images with a class each."""

    architecture = AutoModelForImageClassification
    metric = "accuracy"

    def __init__(self, built: Setup, split: Split):
        task, size = built.config.task, built.config.model.image_size
        assert isinstance(task, ImageClassificationSection)
        given = {"size": {"height": size, "width": size}} if size else {}
        folder = built.model.source.folder
        processor = AutoImageProcessor.from_pretrained(folder, backend="pil", **given)
        rows = split.source.each([task.image])
        images = [
            open_image(split.source, number, row[task.image]).convert("RGB") for number, row in rows
        ]
        self.values = processor(images, return_tensors="pt")["pixel_values"]
        self.labels = torch.from_numpy(split.examples.labels).long()

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: Sequence[int]) -> Inputs:
        chosen = list(index)
        return {
            "pixel_values": self.values[chosen],
            "labels": self.labels[chosen],
            "interpolate_pos_encoding": True,  # to images of another size than the checkpoint's
        }

    def score(self, said: Sequence[np.ndarray]) -> float:
        return _accuracy(said, self.labels)


ROWS: dict[str, type[Rows]] = {
    "text_classification": Texts,
    "token_classification": Sentences,
    "image_classification": Images,
}


def _each(encoded: dict[str, list[list[int]]]) -> list[dict[str, list[int]]]:
    """What a tokenizer gives of many texts, text by text."""
    return [dict(zip(encoded, row, strict=True)) for row in zip(*encoded.values(), strict=True)]


def _padded(tokenizer: Any, tokens: Sequence[Inputs], index: Sequence[int]) -> Inputs:
    """Some of the rows, as long as the longest of them."""
    return tokenizer.pad([tokens[i] for i in index], return_tensors="pt")


def _accuracy(said: Sequence[np.ndarray], labels: torch.Tensor) -> float:
    return float((np.array(said) == labels.numpy()).mean())


def _firsts(words: Sequence[int | None]) -> dict[int, int]:
    """Each word's first token, from the word that each token is of."""
    found: dict[int, int] = {}
    for place, word in enumerate(words):
        if word is not None:
            found.setdefault(word, place)
    return found
