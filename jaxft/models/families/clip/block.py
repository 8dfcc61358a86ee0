"""Block and config fields that the towers of CLIP, SigLIP and SigLIP 2 share.

Both are stacks of pre-norm blocks; what comes before and after the blocks is each tower's own.

Source: Radford et al. (2021), https://arxiv.org/abs/2103.00020; Zhai et al. (2023),
https://arxiv.org/abs/2303.15343; the computation follows `transformers`' `modeling_clip.py` and
`modeling_siglip.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
from flax import nnx

from jaxft.models.layers.attention import Mask
from jaxft.models.layers.cache import BlockCache
from jaxft.models.layers.cross import AttentionMaps
from jaxft.models.layers.kernels import Needs
from jaxft.models.layers.math import ACTIVATIONS
from jaxft.models.layers.modules import Keys, LayerNorm, Linear, block_keys
from jaxft.models.weights.config_fields import (
    check_activation,
    check_divides,
    read_fields,
)
from jaxft.models.weights.names import Name, dense, norm
from jaxft.models.weights.tensor_names import BareNames

STD = 0.02  # of fresh kernels
# What the fields of a tower are where its config does not name them.
CLIP = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "attention_dropout": 0.0}
SIGLIP = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "attention_dropout": 0.0}
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
FIXED = {"is_encoder_decoder": False, "add_cross_attention": False, "is_decoder": False}
# The initialization of weights, and fields of older files.
UNREAD = (
    "initializer_factor",
    "dropout",
    "cross_attention_hidden_size",
    "tie_encoder_decoder",
    "tie_word_embeddings",
)

BLOCK_NAMES = (
    *norm("encoder.layers.{i}.layer_norm1", "blocks/{i}/attention/norm"),
    *dense("encoder.layers.{i}.self_attn.q_proj", "blocks/{i}/attention/query"),
    *dense("encoder.layers.{i}.self_attn.k_proj", "blocks/{i}/attention/key"),
    *dense("encoder.layers.{i}.self_attn.v_proj", "blocks/{i}/attention/value"),
    *dense("encoder.layers.{i}.self_attn.out_proj", "blocks/{i}/attention/output"),
    *norm("encoder.layers.{i}.layer_norm2", "blocks/{i}/mlp/norm"),
    *dense("encoder.layers.{i}.mlp.fc1", "blocks/{i}/mlp/up"),
    *dense("encoder.layers.{i}.mlp.fc2", "blocks/{i}/mlp/down"),
)
UNUSED = (r"embeddings\.position_ids",)  # a buffer of older files


def tower_names(
    bare: Sequence[str], projected: str, names: Sequence[Name], prefix: str, projection: Name
) -> BareNames:
    """Return the tensor names of CLIP's and SigLIP's towers of one modality.

    Args:
        bare: SigLIP's model types, which have no projection.
        projected: CLIP's, which may have one.
        names: the lines of the bare tower.
        prefix: of a tower with a projection.
        projection: its line.
    """
    return BareNames(
        dict.fromkeys((*bare, projected), names),
        {"projection": (projection,)},
        (*UNUSED, re.escape(projection.hf)),
        prefixes={projected: prefix},
    )


def read_tower(
    fields: Mapping[str, Any],
    defaults: Mapping[str, Any],
    sizes: Sequence[str],
    ignore: Sequence[str],
    fixed: Mapping[str, Any] = FIXED,
) -> dict[str, Any]:
    """Read and check the fields of a tower's config, with defaults for absent ones.

    Args:
        fields: the content of a config.json, or of its part for the tower.
        defaults: every field that the tower reads, and what it is where it is not named.
        sizes: those that must be whole numbers above 0.
        ignore: fields that may be passed over.
        fixed: those that are computed for one value only.

    Raises:
        UserError: a field is unknown or has a value that is not supported.
    """
    whole = read_fields(
        fields, defaults, sizes=(*SIZES, *sizes), fixed=fixed, ignore=(*ignore, *UNREAD)
    )
    check_activation("hidden_act", whole["hidden_act"], ACTIVATIONS)
    check_divides("hidden_size", whole["hidden_size"], whole["num_attention_heads"], "heads")
    return whole


class Attention(AttentionMaps):
    """Self-attention over the normalized input, added to the input."""

    def __init__(self, fields: Mapping[str, Any]):
        width, heads = fields["hidden_size"], fields["num_attention_heads"]
        super().__init__(width, heads, STD, fields["attention_dropout"])
        self.norm = LayerNorm(width, fields["layer_norm_eps"])

    def __call__(self, x: jax.Array, mask: Mask | None, keys: Keys) -> jax.Array:
        return x + self.attend(self.norm(x), mask, keys)[0]


class Mlp(nnx.Module):
    """Two linear maps with an activation between, over the normalized input, added to it."""

    def __init__(self, fields: Mapping[str, Any]):
        width, inner = fields["hidden_size"], fields["intermediate_size"]
        self.norm = LayerNorm(width, fields["layer_norm_eps"])
        self.up = Linear(width, inner, ("embed", "mlp"), STD)
        self.down = Linear(inner, width, ("mlp", "embed"), STD)
        self.activation = fields["hidden_act"]

    def __call__(self, x: jax.Array, block_key: jax.Array | None) -> jax.Array:
        inner = ACTIVATIONS[self.activation](self.up(self.norm(x), block_key))  # [B, T, F]
        return x + self.down(inner, block_key)


class Block(nnx.Module):
    """Attention, then MLP: [B, T, D] -> [B, T, D]."""

    def __init__(self, fields: Mapping[str, Any]):
        self.attention = Attention(fields)
        self.mlp = Mlp(fields)

    def __call__(
        self, x: jax.Array, mask: Mask | None, key: jax.Array | None, cache: BlockCache
    ) -> tuple[jax.Array, BlockCache]:
        (keys,) = block_keys(key, 1)
        return self.mlp(self.attention(x, mask, keys), key), cache


class UnreadBlock(Block):
    """Block above the stream that a model reads: a checkpoint has it, and nothing runs it."""

    def __init__(self, fields: Mapping[str, Any]):
        super().__init__(fields)
        for _, one in nnx.iter_graph(self):
            if isinstance(one, nnx.Param):
                one.set_metadata(leaf=replace(one.get_metadata()["leaf"], decay=False))

    def __call__(
        self, x: jax.Array, mask: Mask | None, key: jax.Array | None, cache: BlockCache
    ) -> tuple[jax.Array, BlockCache]:
        return x, cache


def needs_of(fields: Mapping[str, Any]) -> Needs:
    """Return what the blocks ask of an attention kernel."""
    heads = fields["num_attention_heads"]
    return Needs(heads, heads, fields["hidden_size"] // heads, fields["attention_dropout"])


def projection(fields: Mapping[str, Any]) -> Linear:
    """Build the map of a tower's vector into the common space; it has no bias."""
    axes = ("embed", "projected")
    return Linear(fields["hidden_size"], fields["projection_dim"], axes, STD, bias=False)
