"""Text towers of a pipeline, and their tokenizers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxft.data.text.tokenizer import Tokenizer, load_tokenizer
from jaxft.errors import UserError
from jaxft.models.load import LoadOptions, describe
from jaxft.models.model import Model
from jaxft.models.pipeline import Pipeline

T5 = "T5EncoderModel"
HEADS = {"CLIPTextModel": None, "CLIPTextModelWithProjection": "projection", T5: "encoder"}
TOWERS = {
    "text_encoder": "tokenizer",
    "text_encoder_2": "tokenizer_2",
    "text_encoder_3": "tokenizer_3",
}
T5_LENGTH = 256  # tokens to which the pipelines of diffusers pad a prompt for T5


@dataclass(frozen=True)
class TextTower:
    """Text tower of a pipeline.

    Attributes:
        model: its model.
        tokenizer: its tokenizer.
        is_t5: whether it is T5's encoder.
    """

    model: Model
    tokenizer: Tokenizer
    is_t5: bool

    @property
    def length(self) -> int:
        """Return the tokens of a prompt, with its padding."""
        return T5_LENGTH if self.is_t5 else self.model.max_positions

    @property
    def has_vector(self) -> bool:
        """Return whether it gives a projected vector of the whole text."""
        return self.model.head == "projection"

    def ids(self, texts: Sequence[str]) -> np.ndarray:
        """Return the padded tokens of texts that are not too long: `[N, length]` int32."""
        ids = np.full((len(texts), self.length), self.tokenizer.pad_id, np.int32)
        for row, one in zip(ids, self.tokenizer.encode(texts).ids, strict=True):
            row[: len(one)] = one
        return ids


def vector_name(denoiser: Model) -> str | None:
    """Return the batch key of the vectors of whole texts that a denoiser reads; None of none."""
    if denoiser.config.fields.get("addition_embed_type") == "text_time":
        return "text_embeds"
    return "pooled_projections" if "pooled_projection_dim" in denoiser.config.fields else None


def text_towers_of(denoiser: Model, pipeline: Pipeline, weights: bool) -> tuple[TextTower, ...]:
    """Describe the text towers of a pipeline, in order, with their tokenizers.

    Args:
        denoiser: of the pipeline.
        pipeline: see there.
        weights: whether the checkpoint has weights.

    Raises:
        UserError: there is none, or one is not supported, or the denoiser reads other ones.
    """
    names = [name for name in TOWERS if name in pipeline.parts]
    if not names or any(TOWERS[name] not in pipeline.parts for name in names):
        raise UserError(
            f"task.text: the pipeline in {pipeline.folder} has no text tower with a tokenizer.",
            "Set task.label for a model of classes, or leave both out.",
        )
    for name in names:
        if pipeline.parts[name] not in HEADS:
            raise UserError(
                f"{pipeline.folder}/model_index.json: the part '{name}' is a "
                f"{pipeline.parts[name]}, which is not supported.",
                f"Supported: {', '.join(HEADS)}.",
            )
    towers = tuple(_tower(pipeline, name, weights) for name in names)
    vectors = sum(tower.has_vector for tower in towers)
    if (vectors > 0) != (vector_name(denoiser) is not None) or (not vectors and len(towers) > 1):
        raise UserError(
            f"model.checkpoint: a {denoiser.model_type} does not read the text towers of "
            f"{pipeline.folder}, {', '.join(pipeline.parts[name] for name in names)}.",
            "Use the whole pipeline of Stable Diffusion 1.5, 2.1, 3, 3.5 or SDXL.",
        )
    return towers


def _tower(pipeline: Pipeline, name: str, weights: bool) -> TextTower:
    kind = pipeline.parts[name]
    options = LoadOptions(task=HEADS[kind])
    model = describe(str(pipeline.folder / name), options, weights=weights)
    return TextTower(model, load_tokenizer(pipeline.folder / TOWERS[name]), kind == T5)


def overlong(text: str, towers: Sequence[TextTower]) -> tuple[int, int] | None:
    """Return the tokens of a prompt and those that a text tower takes, if these are fewer."""
    for tower in towers:
        count = len(tower.tokenizer.encode([text]).ids[0])
        if count > tower.length:
            return count, tower.length
    return None
