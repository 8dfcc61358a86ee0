"""Config of an image tower and a decoder that reads its vectors among its words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from jaxft.errors import UserError
from jaxft.models.layers.math import ACTIVATIONS
from jaxft.models.weights.config_fields import check_activation, check_choices
from jaxft.models.weights.field_kinds import check_kind, is_whole, quoted

PARTS = ("vision_config", "text_config")
STRATEGIES = ("default", "full")  # LLaVA's, of the vectors that it reads: but the first, or all


@dataclass(frozen=True)
class VisionLanguageConfig:
    """Config of an image tower, a decoder, and what joins them.

    Args:
        model_type: which of the family's.
        vision, text: the towers' own configs.
        image_token_id: the word that marks the place of an image's vector.
        side: patches a side of the square that becomes one vector.
        fields: the other fields of config.json that are read.
        stored: part -> its fields in config.json, which are written back.
        frame: the words before and behind an image's; None where its processor names them.
        prefix: whether a text is a prompt, all of which sees all of it, and one answer.
        read: the blocks of the image tower whose output is read; None for its normalized end.
        extra: the vectors of an image that are no square of patches.
    """

    model_type: str
    vision: Any
    text: Any
    image_token_id: int
    side: int
    fields: Mapping[str, Any]
    stored: Mapping[str, Mapping[str, Any]]
    frame: tuple[int, int] | None = None
    prefix: bool = False
    read: int | None = None
    extra: int = 0

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
        """Raise a UserError: an image becomes as many words as its size has room for."""
        raise UserError(
            f"model.image_size: {size} is not the size that {self.model_type} reads images in, "
            f"{self.image_size[0]} pixels a side.",
            "Leave it out.",
        )

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
        """Return the height and width of an image, or of a tile of it."""
        return self.vision.image_size

    @property
    def tiled(self) -> bool:
        """Return whether an image is an array of tiles."""
        return "scale_factor" in self.fields

    @property
    def tile_tokens(self) -> int:
        """Return the number of vectors that an image, or a tile of it, becomes."""
        rows, columns = self.vision.grid
        return rows * columns // self.side**2 + self.extra


def blocks_read(fields: Mapping[str, Any], vision: Any) -> tuple[int, int]:
    """Return the blocks of its image tower whose output a LLaVA reads, and `extra`.

    Args:
        fields: its own of config.json. `vision_feature_layer` counts the outputs of blocks behind
            the stem's, or from the last one; `default` as a strategy leaves out the first vector.
        vision: the tower's config.

    Raises:
        UserError: a field has another kind of value, or names no output.
    """
    check_kind("multimodal_projector_bias", fields["multimodal_projector_bias"], True)
    check_activation("projector_hidden_act", fields["projector_hidden_act"], ACTIVATIONS)
    strategy = fields["vision_feature_select_strategy"]
    check_choices("vision_feature_select_strategy", [strategy], STRATEGIES)
    layer, blocks = fields["vision_feature_layer"], vision.fields["num_hidden_layers"]
    count = layer + (blocks + 1 if layer < 0 else 0) if is_whole(layer) else -1
    if not 0 < count <= blocks:
        raise UserError(
            f"config.json: vision_feature_layer is {quoted(layer)}, and must be one of the image "
            f"tower's {blocks} blocks, or from -{blocks} to -1."
        )
    return count, int(vision.class_token) - int(strategy == "default")


def check_side(name: str, value: Any, side: Any, grid: tuple[int, int]) -> None:
    """Raise a UserError unless a grid is made of whole squares of patches.

    Args:
        name, value: the field of config.json that says so.
        side: patches a side of a square.
        grid: the patches of a tile, down and across.
    """
    if not is_whole(side) or side < 1 or any(count % side for count in grid):
        raise UserError(
            f"config.json: {name} is {quoted(value)}, which does not divide the {grid[0]} x "
            f"{grid[1]} patches of an image into squares."
        )


def check_word(name: str, word: Any, count: int) -> None:
    """Raise a UserError unless the word that marks an image is one of the decoder's."""
    if not is_whole(word) or not 0 <= word < count:
        raise UserError(f"config.json: {name} is {quoted(word)}; the decoder has {count:,} words.")
