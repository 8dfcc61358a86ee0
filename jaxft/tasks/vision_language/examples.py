"""Examples of conversations about an image each.

R rows, T positions of the texts, P of the prompts, A of the answers, N tiles of an image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np

from jaxft.data.batching.packing import round_up
from jaxft.data.cache import fingerprint
from jaxft.data.image.grid import Grid
from jaxft.data.random import FIRST_EPOCH, EpochRandom
from jaxft.data.sources.source import Source
from jaxft.models.layers.loss import UNSCORED
from jaxft.tasks.parts.examples import row_marks
from jaxft.tasks.parts.images import images_fingerprint, open_image
from jaxft.tasks.parts.token_examples import CachedExamples
from jaxft.tasks.vision_language.encode import padded, sequence

STRIDE = 8  # tokens: the padded lengths are multiples of it, one shape per split


@dataclass(frozen=True)
class ImageLessons(CachedExamples):
    """Conversations about an image each; see `jaxft.tasks.parts.examples.Examples`.

    Args:
        tokens: as `encode_lessons` gives them.
        source: the rows.
        column: the column of the image.
        grid: how an image is read.
        pad: the padding token.
        prefix: whether batches say what is the prompt, which a model reads as one.
        decoded: whether batches include the images.
    """

    source: Source
    column: str
    grid: Grid
    pad: int
    prefix: bool
    decoded: bool = field(default=True, kw_only=True)

    @property
    def rows(self) -> np.ndarray:
        return np.asarray(self.tokens.meta["rows"])

    @property
    def remarks(self) -> dict[int, dict[str, Any]]:
        """The number of truncated tokens, where there are any."""
        return {int(n): {"cut": count} for n, count in self.tokens.meta["cut"].items()}

    @property
    def inputs(self) -> Mapping[str, tuple[int, ...]]:
        return {"pixel_values": self.grid.shape}

    @property
    def fingerprint(self) -> str:
        images = images_fingerprint(self.source, self.column, self.grid.processor)
        parts = f"{images} {self.grid.side} {fingerprint(self.tokens)}"
        return hashlib.sha256(parts.encode()).hexdigest()

    def without(self, inputs: Collection[str]) -> Self:
        return replace(self, decoded=self.decoded and not set(inputs) & set(self.inputs))

    def collate(
        self, index: np.ndarray, row_length: int, epoch_random: EpochRandom = FIRST_EPOCH
    ) -> dict[str, np.ndarray]:
        del row_length, epoch_random
        taken = self.tokens.take(index)
        own = [taken.get(number) for number in index[:, 0].tolist()]
        longest = self.tokens.meta["longest"]
        length, before = (round_up(longest[name], STRIDE) for name in ("input_ids", "prompt"))

        def rows(name: str) -> list[np.ndarray | None]:
            return [None if one is None else sequence(one, name) for one in own]

        ids, mask = padded(rows("input_ids"), length, self.pad)
        prompts, mask_before = padded(rows("prompt"), before, self.pad, left=True)
        targets = np.full_like(ids, UNSCORED)
        for row, one in enumerate(own):
            if one is not None:
                targets[row, : len(one["targets"])] = one["targets"]
        batch = {"input_ids": ids, "attention_mask": mask, "targets": targets}
        answers, _ = padded(rows("answer"), longest["answer"], self.pad)
        batch |= {"prompt_ids": prompts, "prompt_mask": mask_before, "answer_ids": answers}
        if self.prefix:
            batch["token_type_ids"] = np.pad(_begun(targets), ((0, 0), (1, 0)))[:, :-1]
        batch |= row_marks(index)
        return batch | (self._pixels(index[:, 0]) if self.decoded else {})

    def _pixels(self, numbers: np.ndarray) -> dict[str, np.ndarray]:
        """Decode the images of a batch: `pixel_values` `[R, N, 3, H, W]`, zeros without example."""
        (shape,) = self.inputs.values()
        values = np.zeros((len(numbers), *shape), np.float32)
        present = np.flatnonzero(numbers >= 0)
        images = self.source.each([self.column], self.rows[numbers[present]])
        for row, (number, cells) in zip(present, images, strict=True):
            values[row] = self.grid(open_image(self.source, number, cells[self.column]))
        return {"pixel_values": values}


def _begun(targets: np.ndarray) -> np.ndarray:
    """Return where a row's first target, the first word of its answer, is or lies before."""
    return (np.cumsum(targets != UNSCORED, axis=1) > 0).astype(np.int32)
