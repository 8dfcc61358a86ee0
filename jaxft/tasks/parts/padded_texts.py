"""Texts in rows of one length, as the text tower of a dual encoder reads them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxft.data.batching.packing import round_up
from jaxft.tasks.parts.tools import Tools

STRIDE = 8  # texts are padded to a multiple of so many tokens: one shape a split


def pad_texts(
    texts: Sequence[np.ndarray], length: int, pad_id: int, masked: bool
) -> dict[str, np.ndarray]:
    """Token ids in rows of one length: `input_ids` and, where masked, `attention_mask` [R, T].

    Args:
        texts: each one's token ids; none where a row has no text.
        length: T.
        pad_id: the token that fills a row.
        masked: whether the model is told which tokens are padding.
    """
    ids = np.full((len(texts), length), pad_id, np.int32)
    mask = np.zeros((len(texts), length), np.int32)
    mask[:, 0] = 1  # a row without a text still attends somewhere
    for row, text in enumerate(texts):
        ids[row, : len(text)] = text
        mask[row, : len(text)] = 1
    return {"input_ids": ids} | ({"attention_mask": mask} if masked else {})


def text_batch(texts: Sequence[str], tools: Tools) -> dict[str, np.ndarray]:
    """What a model's text tower reads of some texts.

    Args:
        texts: the texts; what is longer than the model's positions is cut.
        tools: what the checkpoint brings.
    """
    encoded = tools.tokenizer.encode(list(texts), max_length=tools.max_length)
    fixed = tools.model.config.fixed_length
    length = fixed or padded_length(max(map(len, encoded.ids)), tools)
    return pad_texts(encoded.ids, length, tools.tokenizer.pad_id, masked=fixed is None)


def padded_length(longest: int, tools: Tools) -> int:
    """The length that texts are padded to whose longest has so many tokens."""
    return min(round_up(longest, STRIDE), tools.model.max_positions)
