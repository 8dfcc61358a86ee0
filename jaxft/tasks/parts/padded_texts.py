"""Padded texts, the input of the text tower of a dual encoder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxft.data.batching.packing import round_up
from jaxft.tasks.parts.tools import Tools

STRIDE = 8  # tokens: the padded length is a multiple of it, one shape per split


def pad_texts(
    texts: Sequence[np.ndarray], length: int, pad_id: int, masked: bool
) -> dict[str, np.ndarray]:
    """Pad token ids to one length: `input_ids` and, if masked, `attention_mask` `[R, T]`.

    Args:
        texts: the token ids of each text; empty if a row has no text.
        length: T.
        pad_id: the padding token.
        masked: whether the model takes an attention mask.
    """
    ids = np.full((len(texts), length), pad_id, np.int32)
    mask = np.zeros((len(texts), length), np.int32)
    mask[:, 0] = 1  # softmax needs a position to attend to, even in an empty row
    for row, text in enumerate(texts):
        ids[row, : len(text)] = text
        mask[row, : len(text)] = 1
    return {"input_ids": ids} | ({"attention_mask": mask} if masked else {})


def text_batch(texts: Sequence[str], tools: Tools) -> dict[str, np.ndarray]:
    """Make a batch of texts for a model's text tower.

    Args:
        texts: the texts; longer ones than the model's positions are truncated.
        tools: the checkpoint's tools.
    """
    encoded = tools.tokenizer.encode(list(texts), max_length=tools.max_length)
    fixed = tools.model.config.fixed_length
    length = fixed or padded_length(max(map(len, encoded.ids)), tools)
    return pad_texts(encoded.ids, length, tools.tokenizer.pad_id, masked=fixed is None)


def padded_length(longest: int, tools: Tools) -> int:
    """Return the padded length of texts whose longest has `longest` tokens."""
    return min(round_up(longest, STRIDE), tools.model.max_positions)
