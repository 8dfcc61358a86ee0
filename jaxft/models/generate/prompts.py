"""Prompts, sources and images that texts are generated from, padded to few shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

Prompts = Sequence[Sequence[int] | np.ndarray]  # token ids; or images, [3, H, W] each
Images = Mapping[str, np.ndarray]  # the input of a tower whose vectors stand among a prompt's words


def fill_sources(sources: Prompts, most: int) -> dict[str, np.ndarray]:
    """Pad sources on the right: `input_ids` and `attention_mask`, [B, R] int32 each.

    They are padded to `most` tokens at most, as many as the model takes. Of images, which are
    all of one size, it is `pixel_values` [B, 3, H, W].
    """
    if np.ndim(sources[0]) == 3:
        return {"pixel_values": np.asarray(sources, np.float32)}
    longest = max(map(len, sources))
    shape = len(sources), min(bucket(longest), max(longest, most))
    ids, mask = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for row, source in enumerate(sources):
        ids[row, : len(source)], mask[row, : len(source)] = source, 1
    return {"input_ids": ids, "attention_mask": mask}


def bucket(length: int) -> int:
    """Round a prompt's length up, to few shapes with little padding."""
    stride = 32 if length <= 256 else 256
    return -(-length // stride) * stride
