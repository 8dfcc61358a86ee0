"""Nomic BERT, the encoder of `nomic-embed-text`: BERT with rotary positions and a gated MLP.

Its linear maps have no biases; norms come after the sums, as BERT's.

Source: Nussbaum et al. (2024), https://arxiv.org/abs/2402.01613; the computation follows
`transformers`' `modeling_nomic_bert.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.models.families.bert.modules import Classifier, MaskedLm, Plain, TokenClassifier
from jaxft.models.families.bert.names import HEADS, tied_names
from jaxft.models.families.nomic_bert.config import Config
from jaxft.models.family import Family, architectures
from jaxft.models.layers.attention import AttentionOptions, attention, make_mask
from jaxft.models.layers.batch import Batch, check_length, positions_of, segments_of
from jaxft.models.layers.cache import BlockCache
from jaxft.models.layers.kernels import Needs
from jaxft.models.layers.math import ACTIVATIONS, dropout
from jaxft.models.layers.modules import Embedding, Keys, LayerNorm, Linear, block_keys
from jaxft.models.layers.rotary import RotaryContext, rotary_context, rotate
from jaxft.models.tower.tower import Compute, Part, Tower
from jaxft.models.weights.names import Name, dense, embedding, fused, norm
from jaxft.models.weights.tensor_names import HeadLines, PrefixedNames

MODEL_TYPES = {"nomic_bert": architectures("NomicBert", *HEADS)}
ROOT = "nomic_bert."
LAYER, BLOCK = f"{ROOT}encoder.layers.{{i}}", "blocks/{i}"
INWARD = (f"{BLOCK}/attention/query", f"{BLOCK}/attention/key", f"{BLOCK}/attention/value")
NAMES = (
    *embedding(f"{ROOT}embeddings.word_embeddings", "embeddings/word"),
    *embedding(f"{ROOT}embeddings.token_type_embeddings", "embeddings/token_type"),
    *norm(f"{ROOT}emb_ln", "embeddings/norm"),
    *fused(f"{LAYER}.attn.Wqkv", *INWARD),
    *dense(f"{LAYER}.attn.out_proj", f"{BLOCK}/attention/output"),
    *norm(f"{LAYER}.norm1", f"{BLOCK}/attention/norm"),
    *dense(f"{LAYER}.mlp.fc11", f"{BLOCK}/mlp/up"),
    *dense(f"{LAYER}.mlp.fc12", f"{BLOCK}/mlp/gate"),
    *dense(f"{LAYER}.mlp.fc2", f"{BLOCK}/mlp/down"),
    *norm(f"{LAYER}.norm2", f"{BLOCK}/mlp/norm"),
)
SCORES = "cls.predictions"
HEAD_NAMES: HeadLines = {
    "text_classification": (*dense(f"{ROOT}pooler.dense", "pooler"), *dense("classifier", "head")),
    "token_classification": dense("classifier", "head"),
    "masked_lm": (
        *dense(f"{SCORES}.transform.dense", "head/transform"),
        *norm(f"{SCORES}.transform.layer_norm", "head/norm"),
        Name(f"{SCORES}.bias", "head/bias"),
    ),
}
UNUSED = (
    r"nomic_bert\.embeddings\.position_ids",
    r".*rotary_emb\.inv_freq",  # computed
    r"nomic_bert\.pooler\..*",
    r"cls\..*",
    r"classifier\..*",
)
# How files begin or name a part -> how the modules of transformers do.
IN_MEMORY = (
    ("encoder.layers.", "layers."),
    ("emb_ln.", "embeddings.LayerNorm."),
    (".attn.out_proj.", ".self_attn.o_proj."),
    (".attn.", ".self_attn."),
    (".fc11.", ".up_proj."),
    (".fc12.", ".gate_proj."),
    (".fc2.", ".down_proj."),
    (".norm1.", ".post_attention_layernorm."),
    (".norm2.", ".post_mlp_layernorm."),
)


@dataclass(frozen=True)
class NomicNames(PrefixedNames):
    """Tensor names of a Nomic BERT, whose modules transformers names otherwise than files do."""

    def canonical(self, name: str) -> str:
        # The hub's own code calls the encoder below a head so.
        return super().canonical(re.sub(r"^bert\.", ROOT, name))

    def in_memory(self, name: str, model_type: str) -> str:
        for stored, module in IN_MEMORY:
            name = name.replace(stored, module)
        return name

    def module_line(self, line: Name) -> Name:
        if line.part is None:
            return line
        name = line.hf.replace("Wqkv", f"{'qkv'[line.part[0]]}_proj")
        return replace(line, hf=name, part=None, span=None)


TENSORS = NomicNames(
    {"nomic_bert": NAMES},
    HEAD_NAMES,
    UNUSED,
    ("pooler/", "head/"),
    {ROOT: "embeddings|emb_ln|encoder|pooler"},
    aliases={f"{SCORES}.bias": (f"{SCORES}.decoder.bias",)},
    tied=tied_names(ROOT, f"{SCORES}."),
)


class Embeddings(nnx.Module):
    """Word and token-type vectors, normalized: [B, T, D]."""

    def __init__(self, config: Config):
        own = config.fields
        width, std = own["hidden_size"], own["initializer_range"]
        self.word = Embedding(own["vocab_size"], width, "vocab", std)
        self.token_type = Embedding(own["type_vocab_size"], width, "types", std)
        self.norm = LayerNorm(width, own["layer_norm_eps"])
        self.rate = own["hidden_dropout_prob"]

    def __call__(self, batch: Batch, key: jax.Array | None) -> jax.Array:
        ids = batch["input_ids"]  # [B, T]
        x = self.word(ids) + self.token_type(batch.get("token_type_ids", jnp.zeros_like(ids)))
        return dropout(self.norm(x), self.rate, key)


class Stem(nnx.Module):
    """Stem: the embeddings, the attention mask, and the rotary cosines and sines."""

    def __init__(self, config: Config):
        own, heads = config.fields, config.fields["num_attention_heads"]
        self.embeddings = Embeddings(config)
        self.max_positions = config.max_positions
        self.rotary = config.rotary
        self.needs = Needs(heads, heads, own["head_dim"], own["attention_probs_dropout_prob"])

    def __call__(
        self, batch: Batch, key: jax.Array | None, compute: Compute
    ) -> tuple[jax.Array, RotaryContext]:
        check_length(batch, self.max_positions)
        segments = segments_of(batch)
        mask = make_mask(segments, kernel=compute.kernel(self.needs, segments.shape))
        waves = rotary_context(mask, (self.rotary,), positions_of(batch))
        return self.embeddings(batch, key), waves


class Attention(nnx.Module):
    """Self-attention, added to its input and normalized."""

    def __init__(self, config: Config):
        own = config.fields
        width, std, self.heads = own["hidden_size"], own["initializer_range"], config.bert.heads
        inner, axes = self.heads * own["head_dim"], ("embed", "heads")
        self.query = Linear(width, inner, axes, std, bias=False)
        self.key = Linear(width, inner, axes, std, bias=False)
        self.value = Linear(width, inner, axes, std, bias=False)
        self.output = Linear(inner, width, ("heads", "embed"), std, bias=False)
        self.norm = LayerNorm(width, own["layer_norm_eps"])
        self.rate, self.weights_rate = config.bert.rate, config.bert.weights_rate

    def __call__(self, x: jax.Array, context: RotaryContext, keys: Keys) -> jax.Array:
        weights_keys, output_keys = keys.split(2)
        turn = context.cosine[0], context.sine[0]

        def placed(projection: Linear) -> jax.Array:
            flat = projection(x, keys.block)
            return rotate(flat.reshape(*flat.shape[:2], self.heads, -1), turn).reshape(flat.shape)

        mixed = attention(
            placed(self.query),
            placed(self.key),
            self.value(x, keys.block),
            context.mask,
            AttentionOptions(self.heads, self.weights_rate, weights_keys.own),
        )
        return self.norm(x + dropout(self.output(mixed, keys.block), self.rate, output_keys.own))


class Mlp(nnx.Module):
    """Two maps up, one of them a gate, and one down, added to the input and normalized."""

    def __init__(self, config: Config):
        own = config.fields
        width, inner, std = own["hidden_size"], own["intermediate_size"], own["initializer_range"]
        self.gate = Linear(width, inner, ("embed", "mlp"), std, bias=False)
        self.up = Linear(width, inner, ("embed", "mlp"), std, bias=False)
        self.down = Linear(inner, width, ("mlp", "embed"), std, bias=False)
        self.norm = LayerNorm(width, own["layer_norm_eps"])
        self.activation, self.rate = own["hidden_act"], own["hidden_dropout_prob"]

    def __call__(self, x: jax.Array, keys: Keys) -> jax.Array:
        gate = ACTIVATIONS[self.activation](self.gate(x, keys.block))
        inner = gate * self.up(x, keys.block)  # [B, T, F]
        return self.norm(x + dropout(self.down(inner, keys.block), self.rate, keys.own))


class Block(nnx.Module):
    """Attention, then MLP: [B, T, D] -> [B, T, D]."""

    def __init__(self, config: Config):
        self.attention = Attention(config)
        self.mlp = Mlp(config)

    def __call__(
        self, x: jax.Array, context: RotaryContext, key: jax.Array | None, cache: BlockCache
    ) -> tuple[jax.Array, BlockCache]:
        attention_keys, mlp_keys = block_keys(key, 2)
        return self.mlp(self.attention(x, context, attention_keys), mlp_keys), cache


def towers(config: Config, head: str | None, num_labels: int | None) -> dict[str, Tower]:
    """Build the tower of a Nomic BERT under a head."""
    top: nnx.Module = Plain()
    ties = {}
    if head == "text_classification":
        top = Classifier(config.bert, num_labels or 2, "tanh", drops_first=False)
    elif head == "token_classification":
        top = TokenClassifier(config.bert, num_labels or 2)
    elif head == "masked_lm":
        top = MaskedLm(config.bert, config.fields["hidden_act"])
        ties = {"head/decoder/embedding": "embeddings/word/embedding"}
    blocks = (Part(Block(config)),) * config.fields["num_hidden_layers"]
    stem = Stem(config)
    return {"text": Tower(Part(stem), blocks, Part(top), ties, needs=stem.needs)}


FAMILY = Family("nomic_bert", Config, MODEL_TYPES, TENSORS, towers)
