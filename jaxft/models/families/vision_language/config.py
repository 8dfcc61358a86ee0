"""Config of an image tower and a decoder that reads its vectors among its words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from jaxft.errors import UserError
from jaxft.models.weights.field_kinds import is_whole, quoted

PARTS = ("vision_config", "text_config")


@dataclass(frozen=True)
class VisionLanguageConfig:
    """Config of an image tower, a decoder, and what joins them.

    Args:
        model_type: which of the family's.
        vision, text: the towers' own configs.
        image_token_id: the word that marks the place of an image's vector.
        shuffle: patches a side that become one vector.
        fields: the other fields of config.json that are read.
        stored: part -> its fields in config.json, which are written back.
    """

    model_type: str
    vision: Any
    text: Any
    image_token_id: int
    shuffle: int
    fields: Mapping[str, Any]
    stored: Mapping[str, Mapping[str, Any]]

    def to_hf(self) -> dict[str, Any]:
        """Return the fields of config.json that this config owns."""
        towers = zip(PARTS, (self.vision, self.text), strict=True)
        parts = {part: {**self.stored[part], **config.to_hf()} for part, config in towers}
        return {"model_type": self.model_type, **self.fields, **parts}

    def with_dropout(self, rate: float) -> VisionLanguageConfig:
        """Return the same config with one dropout rate throughout."""
        both = self.vision.with_dropout(rate), self.text.with_dropout(rate)
        return replace(self, vision=both[0], text=both[1])

    def with_image_size(self, size: int) -> VisionLanguageConfig:
        """Return the same config for images of another size, where its tower takes one."""
        return replace(self, vision=self.vision.with_image_size(size))

    @property
    def max_positions(self) -> int:
        """Return the most tokens of a text, an image's among them."""
        return self.text.max_positions

    @property
    def vocab_size(self) -> int:
        """Return the number of words."""
        return self.text.vocab_size

    @property
    def image_size(self) -> tuple[int, int]:
        """Return the height and width of a tile."""
        return self.vision.image_size

    @property
    def tile_tokens(self) -> int:
        """Return the number of vectors that a tile becomes."""
        rows, columns = self.vision.grid
        return rows * columns // self.shuffle**2


def check_shuffle(shuffle: Any, grid: tuple[int, int]) -> None:
    """Raise a UserError unless `shuffle`, of config.json, divides a tile's patches a side."""
    if not is_whole(shuffle) or shuffle < 1 or any(side % shuffle for side in grid):
        raise UserError(
            f"config.json: scale_factor is {quoted(shuffle)}, which does not divide the "
            f"{grid[0]} patches of a tile's side."
        )
