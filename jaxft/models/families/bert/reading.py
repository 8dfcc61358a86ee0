"""BERT as a decoder: each word sees those before it, and every block reads a source."""

from __future__ import annotations

from functools import partial

import jax
from flax import nnx

from jaxft.models.families.bert.config import Config
from jaxft.models.families.bert.modules import Attention, Embeddings, Mlp, Predictor
from jaxft.models.layers.batch import Batch
from jaxft.models.layers.cache import BlockCache
from jaxft.models.layers.cross import Reading, SourceReader
from jaxft.models.layers.decoder import CausalLm, causal_mask
from jaxft.models.layers.kernels import Needs
from jaxft.models.layers.modules import split_key
from jaxft.models.tower.tower import Compute, Part, Tower


class ReadingStem(nnx.Module):
    """What comes before the blocks: the embeddings, the mask, and the source.

    Args:
        config: the decoder's.
        source_width: the width of the source.
    """

    def __init__(self, config: Config, source_width: int):
        self.embeddings = Embeddings(config)
        self.source = SourceReader(config.width, source_width, config.std)
        self.max_positions = config.max_positions
        heads, rate = config.heads, config.weights_rate
        self.needs = Needs(heads, heads, config.width // heads, rate)

    def __call__(
        self, batch: Batch, key: jax.Array | None, compute: Compute
    ) -> tuple[jax.Array, Reading]:
        kernel = partial(compute.kernel, self.needs)
        mask = causal_mask(batch, self.max_positions, None, kernel)
        return self.embeddings(batch, key), Reading(mask, self.source(batch))


class ReadingBlock(nnx.Module):
    """Attention, attention over the source, then MLP: [B, T, D] -> [B, T, D]."""

    def __init__(self, config: Config):
        self.attention = Attention(config)
        self.cross = Attention(config)
        self.mlp = Mlp(config)

    def __call__(
        self, x: jax.Array, context: Reading, key: jax.Array | None, cache: BlockCache
    ) -> tuple[jax.Array, BlockCache]:
        attention_key, cross_key, mlp_key = split_key(key, 3)
        x, own = self.attention(x, context.mask, attention_key, key, cache.own)
        x, source = self.cross(x, context.source, cross_key, key, cache.source)
        return self.mlp(x, mlp_key, key), BlockCache(own, source)


def reading_tower(config: Config, source_width: int) -> Tower:
    """A BERT that scores next tokens and reads a source of that width in every block."""
    return Tower(
        Part(ReadingStem(config, source_width)),
        (Part(ReadingBlock(config)),) * config.blocks,
        Part(CausalLm(None, Predictor(config, config.activation))),
        {"head/decoder/embedding": "embeddings/word/embedding"},
    )
