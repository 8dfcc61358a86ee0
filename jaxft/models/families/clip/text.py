"""The text towers of CLIP, SigLIP and SigLIP 2, alone: one vector for a text.

CLIP's sees backwards only and reads its vector where the text ends; SigLIP's sees every position
and reads the last, padding or not, as it was trained on texts padded to one length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.errors import UserError
from jaxft.models.families.clip import block as clip_block
from jaxft.models.families.clip.block import (
    BLOCK_NAMES,
    STD,
    Block,
    needs_of,
    projection,
    read_tower,
    tower_names,
)
from jaxft.models.family import Family, ModelTypes
from jaxft.models.layers.attention import HIDDEN, Mask, make_mask
from jaxft.models.layers.batch import Batch, check_length, positions_of, segments_of
from jaxft.models.layers.modules import Embedding, LayerNorm, Linear
from jaxft.models.tower.tower import Compute, Part, Tower
from jaxft.models.weights.field_kinds import is_whole, quoted
from jaxft.models.weights.hf_config import TextConfig
from jaxft.models.weights.names import Name, dense, embedding, norm

MODEL_TYPES: ModelTypes = {
    "clip_text_model": {None: "CLIPTextModel", "projection": "CLIPTextModelWithProjection"},
    "siglip_text_model": {None: "SiglipTextModel"},
    "siglip2_text_model": {None: "Siglip2TextModel"},
}
SIZES = ("vocab_size", "max_position_embeddings")
SIGLIP: dict[str, Any] = clip_block.SIGLIP | {
    "vocab_size": 32000,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 64,
    "projection_size": None,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "clip_text_model": clip_block.CLIP
    | {
        "vocab_size": 49408,
        "hidden_size": 512,
        "intermediate_size": 2048,
        "projection_dim": 512,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "max_position_embeddings": 77,
        "eos_token_id": 49407,
    },
    "siglip_text_model": SIGLIP,
    "siglip2_text_model": SIGLIP,
}
# CLIP's first configs name a wrong end of text; transformers takes it for the highest word.
HIGHEST_ENDS = 2


class Config(TextConfig):
    """Config of a text tower."""

    # The last is CLIP's, which transformers lets see both ways.
    FIXED = MappingProxyType({**clip_block.FIXED, "is_causal": True})
    UNREAD = clip_block.UNREAD

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any], ignore: Sequence[str] = ()) -> Self:
        model_type = fields["model_type"]
        ignore = ignore if model_type == "clip_text_model" else (*ignore, "is_causal")
        own = read_tower(fields, DEFAULTS[model_type], SIZES, ignore, cls.FIXED)
        if "eos_token_id" in own and not is_whole(own["eos_token_id"]):
            raise UserError(
                f"config.json: eos_token_id is {quoted(own['eos_token_id'])}; a {model_type} reads "
                "its vector at one token, the end of the text.",
                "Name that token's id.",
            )
        return cls(model_type, own)

    def with_dropout(self, rate: float) -> Self:
        return self.with_fields(["attention_dropout"], rate)

    @property
    def output_width(self) -> int:
        """Return the width of the text's vector."""
        return self.fields.get("projection_size") or self.fields["hidden_size"]

    @property
    def causal(self) -> bool:
        """Return whether a position attends only to itself and those before it."""
        return self.model_type == "clip_text_model"


NAMES = (
    *embedding("embeddings.token_embedding", "embeddings/word"),
    *embedding("embeddings.position_embedding", "embeddings/position"),
    *BLOCK_NAMES,
    *norm("final_layer_norm", "norm"),
    *dense("head", "pooler"),
)
PROJECTION = Name("text_projection.weight", "head/kernel", transpose=True)
BARE = ("siglip_text_model", "siglip2_text_model")
TENSORS = tower_names(BARE, "clip_text_model", NAMES, "text_model.", PROJECTION)


class Embeddings(nnx.Module):
    """Sum of word and position vectors."""

    def __init__(self, config: Config):
        width = config.fields["hidden_size"]
        self.word = Embedding(config.vocab_size, width, "vocab", STD)
        self.position = Embedding(config.max_positions, width, "positions", STD, decay=False)

    def __call__(self, batch: Batch) -> jax.Array:
        return self.word(batch["input_ids"]) + self.position(positions_of(batch))  # [B, T, D]


class Stem(nnx.Module):
    """Stem: the embeddings and the attention mask."""

    def __init__(self, config: Config):
        self.embeddings = Embeddings(config)
        self.max_positions = config.max_positions
        self.causal = config.causal
        self.needs = needs_of(config.fields)

    def __call__(
        self, batch: Batch, key: jax.Array | None, compute: Compute
    ) -> tuple[jax.Array, Mask]:
        check_length(batch, self.max_positions)
        x, ids = self.embeddings(batch), batch["input_ids"]
        if not self.causal and "attention_mask" in batch:
            # SigLIP reads its vector at the end of the row, so that padding sees the text too.
            hidden = batch["attention_mask"][:, None, None, :] == 0
            bias = jnp.where(hidden, HIDDEN, 0.0)  # [B, 1, 1, T]
            return x, replace(make_mask(jnp.ones_like(ids)), bias=bias)
        kernel = compute.kernel(self.needs, ids.shape)
        segments = segments_of(batch) if self.causal else jnp.ones_like(ids)
        return x, make_mask(segments, causal=self.causal, kernel=kernel)


class Top(nnx.Module):
    """Normalized stream, and the vector of each text: `pooler_output` [B, D], or `text_embeds`.

    Args:
        config: the tower's.
        projected: whether the vector is taken on into the common space.
    """

    def __init__(self, config: Config, projected: bool):
        fields, width = config.fields, config.fields["hidden_size"]
        self.norm = LayerNorm(width, fields["layer_norm_eps"])
        ends = ("embed", "pooled")
        self.pooler = None if config.causal else Linear(width, config.output_width, ends, STD)
        self.head = projection(fields) if projected else None
        self.end = fields["eos_token_id"] if config.causal else None

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> dict[str, jax.Array]:
        x = self.norm(x)
        if self.pooler is None:
            pooled = self._at_end(x, batch["input_ids"])
        else:
            pooled = self.pooler(x[:, -1])
        if self.head is None:
            return {"last_hidden_state": x, "pooler_output": pooled}
        return {"last_hidden_state": x, "text_embeds": self.head(pooled)}

    def _at_end(self, x: jax.Array, ids: jax.Array) -> jax.Array:
        """Select the first end of text in each row, else the first token: [B, T, D] -> [B, D]."""
        end = jnp.argmax(ids if self.end == HIGHEST_ENDS else ids == self.end, axis=-1)  # [B]
        return jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]


def towers(config: Config, head: str | None, num_labels: int | None) -> dict[str, Tower]:
    """Build the tower under a head."""
    blocks = (Part(Block(config.fields)),) * config.fields["num_hidden_layers"]
    return {"text": Tower(Part(Stem(config)), blocks, Part(Top(config, head is not None)))}


FAMILY = Family("clip_text", Config, MODEL_TYPES, TENSORS, towers)
