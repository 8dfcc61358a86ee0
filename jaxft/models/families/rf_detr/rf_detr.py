"""RF-DETR: a detector of a DINOv2 backbone and a decoder of queries.

The backbone's blocks, the selection of the queries and the decoder's blocks are the blocks of one
tower, so that the depth of a parameter is how far it is from the image.

Source: Robinson et al. (2025), https://arxiv.org/abs/2511.09554; Chen et al. (2024),
https://arxiv.org/abs/2406.03459. The computation follows `transformers`' `modeling_rf_detr.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.models.families.rf_detr.backbone import Context, Stem, blocks_of
from jaxft.models.families.rf_detr.config import Config
from jaxft.models.families.rf_detr.deformable import DeformableAttention
from jaxft.models.families.rf_detr.names import HEAD_NAMES, UNUSED, RfDetrNames, names_of
from jaxft.models.families.rf_detr.queries import (
    NORM_EPS,
    Layers,
    Selection,
    Stream,
    class_head,
    refined,
)
from jaxft.models.families.vit.yolos_from_vit import same_detections
from jaxft.models.family import ComposedFamily, Family
from jaxft.models.layers.attention import AttentionOptions, attention
from jaxft.models.layers.batch import Batch
from jaxft.models.layers.cache import BlockCache
from jaxft.models.layers.math import ACTIVATIONS, dropout
from jaxft.models.layers.modules import Keys, LayerNorm, Linear, block_keys
from jaxft.models.layers.vision import grid_of
from jaxft.models.tower.tower import Part, Tower

Outputs = dict[str, jax.Array]
MODEL_TYPE = "rf_detr"
HEAD = "object_detection"
MODEL_TYPES: dict[str, dict[str | None, str]] = {
    MODEL_TYPE: {None: "RfDetrModel", HEAD: "RfDetrForObjectDetection"}
}


class QueryAttention(nnx.Module):
    """Attention of the queries of a group to each other: positions are in queries and keys."""

    def __init__(self, config: Config):
        own = config.fields
        width, std, bias = own["d_model"], own["init_std"], own["attention_bias"]
        self.query = Linear(width, width, ("embed", "heads"), std, bias)
        self.key = Linear(width, width, ("embed", "heads"), std, bias)
        self.value = Linear(width, width, ("embed", "heads"), std, bias)
        self.output = Linear(width, width, ("heads", "embed"), std, bias)
        self.heads, self.rate = own["decoder_self_attention_heads"], own["attention_dropout"]

    def __call__(
        self, x: jax.Array, position: jax.Array, context: Context, keys: Keys
    ) -> jax.Array:
        """Attend within each of the groups of `x` [B, G Q, D]."""
        shape, groups = x.shape, (len(x) * context.groups, -1, x.shape[-1])
        x, position = x.reshape(groups), position.reshape(groups)
        query, key = (self.query(x + position, keys.block), self.key(x + position, keys.block))
        options = AttentionOptions(self.heads, self.rate, keys.own)
        mixed = attention(query, key, self.value(x, keys.block), context.queries, options)
        return self.output(mixed, keys.block).reshape(shape)


class DecoderBlock(nnx.Module):
    """Attention of the queries to each other and to the image, and an MLP, each normalized behind.

    A stream has a query's state behind every block, so that each can be scored.
    """

    def __init__(self, config: Config):
        own = config.fields
        width, std = own["d_model"], own["init_std"]
        heads, points = own["decoder_cross_attention_heads"], own["decoder_n_points"]
        self.attention = QueryAttention(config)
        self.attention_norm = LayerNorm(width, NORM_EPS)
        self.source_attention = DeformableAttention(width, heads, points, std)
        self.source_norm = LayerNorm(width, NORM_EPS)
        self.up = Linear(width, own["decoder_ffn_dim"], ("embed", "mlp"), std)
        self.down = Linear(own["decoder_ffn_dim"], width, ("mlp", "embed"), std)
        self.norm = LayerNorm(width, NORM_EPS)
        self.rate, self.activation = own["dropout"], own["decoder_activation_function"]

    def __call__(
        self, stream: Stream, context: Context, key: jax.Array | None, cache: BlockCache
    ) -> tuple[Stream, BlockCache]:
        keys = block_keys(key, 5)
        x, position = stream.x, stream.position
        branch = self.attention(x, position, context, keys[0])
        x = self.attention_norm(x + dropout(branch, self.rate, keys[1].own))
        branch = self.source_attention(
            x + position, stream.image, stream.boxes, context.grid, keys[2]
        )
        x = self.source_norm(x + dropout(branch, self.rate, keys[2].own))
        inner = ACTIVATIONS[self.activation](self.up(x, keys[3].block))
        branch = self.down(dropout(inner, self.rate, keys[3].own), keys[3].block)
        x = self.norm(x + dropout(branch, self.rate, keys[4].own))
        return stream._replace(x=x, layers=(*stream.layers, x)), cache


class Top(nnx.Module):
    """Top of a bare model: the outputs of `states`."""

    def __init__(self, config: Config):
        self.norm = LayerNorm(config.fields["d_model"], NORM_EPS)
        self.patch = config.backbone.patch

    def __call__(self, stream: Stream, batch: Batch, key: jax.Array | None) -> Outputs:
        rows = grid_of(batch["pixel_values"].shape[2:], self.patch)[0]
        return states(stream, self.norm(jnp.stack(stream.layers)), rows)


def states(stream: Stream, layers: jax.Array, rows: int) -> Outputs:
    """Return the queries behind each block, and what they began with.

    Args:
        stream: behind the last block.
        layers: the normalized queries behind each block, [L, B, Q, D].
        rows: pixels down of the image.

    Returns:
        Under the names of `transformers`, with Q of all groups in training: `last_hidden_state`
        [B, Q, D], `intermediate_hidden_states` [L, B, Q, D], `init_reference_points` [B, Q, 4],
        `intermediate_reference_points` [1, B, Q, 4], `enc_outputs_class` [B, Q, D],
        `enc_outputs_coord_logits` [B, Q, 4] and `backbone_features` [B, D, R, C].
    """
    image = stream.image.reshape(len(stream.image), rows, -1, stream.image.shape[-1])
    return {
        "last_hidden_state": layers[-1],
        "intermediate_hidden_states": layers,
        "init_reference_points": stream.boxes,
        "intermediate_reference_points": stream.boxes[None],
        "enc_outputs_class": stream.first,
        "enc_outputs_coord_logits": stream.first_boxes,
        "backbone_features": image.transpose(0, 3, 1, 2),
    }


class Detector(nnx.Module):
    """Top of a detector: the outputs of `states`, with classes and boxes.

    `logits` [B, Q, C], each class by itself; `pred_boxes` [B, Q, 4], center, width and height as
    shares of the image; `enc_outputs_class` [B, Q, C]. A batch with `box_labels`, of which a loss
    is computed, has those behind every block too: `layer_logits` and `layer_boxes` [L, B, Q, ...].
    """

    def __init__(self, config: Config, num_labels: int):
        own = config.fields
        width, std = own["d_model"], own["init_std"]
        self.norm = LayerNorm(width, NORM_EPS)
        self.head = class_head(width, num_labels, std)
        self.box_mlp = Layers.of_boxes(width, std)
        self.patch = config.backbone.patch

    def __call__(self, stream: Stream, batch: Batch, key: jax.Array | None) -> Outputs:
        layers = self.norm(jnp.stack(stream.layers))
        logits = self.head(layers).astype(jnp.float32)
        boxes = refined(stream.boxes, self.box_mlp(layers))
        rows = grid_of(batch["pixel_values"].shape[2:], self.patch)[0]
        outputs = states(stream, layers, rows) | {
            "logits": logits[-1],
            "pred_boxes": boxes[-1],
            "enc_outputs_class": stream.first_logits.astype(jnp.float32),
        }
        losses = {"layer_logits": logits, "layer_boxes": boxes} if "box_labels" in batch else {}
        return outputs | losses


def towers(config: Config, head: str | None, num_labels: int | None) -> dict[str, Tower]:
    """Build the one tower: backbone, selection, decoder."""
    labels = num_labels or 2
    # Each of the decoder's blocks is a part of its own: a stream grows, which no scan does.
    decoder = (Part(DecoderBlock(config)) for _ in range(config.fields["decoder_layers"]))
    blocks = (*blocks_of(config), Part(Selection(config, labels)), *decoder)
    top = Part(Detector(config, labels) if head else Top(config))
    alike = config.backbone.fields["num_hidden_layers"]
    return {"vision": Tower(Part(Stem(config)), blocks, top, alike=alike)}


def compose(fields: Mapping[str, Any], families: Mapping[str, Any], from_two: bool) -> Family:
    """Build the family of the detectors with a config.json's blocks."""
    del families, from_two
    config = Config.from_hf(fields, tuple(fields))
    selection = f"blocks/{config.backbone.fields['num_hidden_layers']}/"
    proposers = [f"{selection}groups/{n}/head/" for n in range(config.fields["group_detr"])]
    heads = ("head/", *proposers)
    fresh = (*heads, "box_mlp/")
    tensors = RfDetrNames({MODEL_TYPE: names_of(config)}, {HEAD: HEAD_NAMES}, UNUSED, fresh=fresh)
    return Family(
        *(MODEL_TYPE, Config, MODEL_TYPES, tensors, towers),
        text=False,
        images=True,
        head=heads,
    )


FAMILY = ComposedFamily(MODEL_TYPE, Config, MODEL_TYPES, compose, for_task=same_detections)
