"""Choices after a prompt: read from rows, and side by side in a row of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxft.data.batching.loader import collate_rows
from jaxft.data.random import FIRST_EPOCH, EpochRandom
from jaxft.tasks.multiple_choice.section import MultipleChoiceSection as Section
from jaxft.tasks.parts.examples import row_marks, values_of
from jaxft.tasks.parts.labels import FILL, BadValue, text_of
from jaxft.tasks.parts.token_examples import CachedExamples

FEWEST = 2  # choices


def read_choices(row: Mapping[str, Any], section: Section) -> tuple[str, list[str]]:
    """Read the prompt of a row and its choices.

    Raises:
        BadValue: a text is missing or empty, or there are fewer than two choices.
    """
    prompt = text_of(row[section.prompt], section.prompt)
    if not isinstance(section.choices, str):
        return prompt, [text_of(row[column], column) for column in section.choices]
    cell, column = row[section.choices], section.choices
    if not isinstance(cell, list | tuple | np.ndarray):
        raise BadValue(
            f"has {column} that are not a list ({str(cell)[:40]!r})",
            "Write rows as JSON lines, or name a column per choice: task.choices=[a, b].",
        )
    if len(cell) < FEWEST:
        raise BadValue(f"has {len(cell)} choices in {column}; there are at least {FEWEST}")
    return prompt, [text_of(one, column) for one in cell]


def read_label(row: Mapping[str, Any], section: Section) -> int:
    """Read the number of the right choice of a row.

    Raises:
        BadValue: it is missing, or there is no such choice.
    """
    cell, count = row[section.label], len(read_choices(row, section)[1])
    value = "" if cell is None else str(cell).strip()
    if not value:
        raise BadValue(f"has no {section.label}", FILL)
    letter = len(value) == 1 and value.isascii() and value.isalpha()
    number = ord(value.upper()) - ord("A") if letter else -1
    number = int(value) if value.isascii() and value.isdecimal() else number
    if not 0 <= number < count:
        raise BadValue(
            f"has the label '{value[:40]}', which is none of its {count} choices",
            "Labels are numbers from 0, or letters from A.",
        )
    return number


@dataclass(frozen=True)
class Choices(CachedExamples):
    """Choices as token ids, those of an example side by side; see `Examples`.

    Args:
        tokens: `input_ids` and `token_type_ids` of each prompt with a choice, row by row.
        numbers: `[examples, K]` int32, the texts of each example; -1 where it has fewer than K.
        right: `[examples]` int32, the right choice; None without labels.
    """

    numbers: np.ndarray
    right: np.ndarray | None

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def lengths(self) -> np.ndarray:
        own = np.append(self.tokens.lengths, 0)  # -1 is the last
        return own[self.numbers].sum(axis=1)

    @property
    def remarks(self) -> dict[int, dict[str, Any]]:
        """The number of truncated tokens of an example's texts, where there are any."""
        cut = {int(text): count for text, count in self.tokens.meta["cut"].items()}
        totals = {
            example: sum(cut.get(text, 0) for text in own)
            for example, own in enumerate(self.numbers.tolist())
        }
        return {example: {"cut": count} for example, count in totals.items() if count}

    def collate(
        self, index: np.ndarray, row_length: int, epoch_random: EpochRandom = FIRST_EPOCH
    ) -> dict[str, np.ndarray]:
        """Collate one batch: K texts an example, so that S K sequences are in a row.

        Returns:
            The arrays of `collate_rows`, whose `read_positions` are `[R, S K]`; `present`
            `[R, S, K]`, 1 for a choice, and, with labels, `right` `[R, S]`.
        """
        texts = values_of(self.numbers, index)
        texts = np.where(index[..., None] >= 0, texts, -1)  # [R, S, K]
        taken = self.tokens.take(texts)
        batch = collate_rows(taken, texts.reshape(len(index), -1), row_length)
        batch |= row_marks(index) | {"present": (texts >= 0).astype(np.float32)}
        if self.right is not None:
            batch["right"] = values_of(self.right, index)
        return batch


def number_choices(rows: Sequence[tuple[str, Sequence[str]]]) -> np.ndarray:
    """Number the choices of some rows: `[rows, K]` int32, -1 where a row has fewer than K."""
    counts = [len(choices) for _, choices in rows]
    starts = np.cumsum([0, *counts[:-1]])
    width = np.arange(max(counts))
    numbers = np.where(width < np.array(counts)[:, None], starts[:, None] + width, -1)
    return numbers.astype(np.int32)
