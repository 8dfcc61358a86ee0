"""Llama and its kin: decoders of pre-norm blocks with rotary positions and a gated MLP.

Mistral sees through a sliding window, Qwen2 has biases, Qwen3 normalizes queries and keys, SmolLM3
leaves some blocks without positions, Phi-3 may rotate a part of each head only, Granite has factors
on embeddings, scores and branches, OLMo 2 normalizes behind attention and MLP and not before them,
and queries and keys over all heads; Qwen3's mixtures, Mixtral and OLMoE choose among experts in
place of one MLP (`experts.py`), gpt-oss with a sink in each head of attention too (`sinks.py`);
Gemma scales its embeddings, has norms after attention and MLP too (2, 3), and caps scores (2) or
turns positions by another base in windows (3). All else is one computation, which EuroBERT and
T5Gemma (in files of their own) have as encoders too.

Source: Touvron et al. (2023), https://arxiv.org/abs/2302.13971; Gemma Team (2024),
https://arxiv.org/abs/2408.00118; the computation follows `transformers`' `modeling_llama.py`,
`modeling_mistral.py`, `modeling_qwen2.py`, `modeling_qwen3.py`, `modeling_smollm3.py`,
`modeling_phi3.py`, `modeling_granite.py`, `modeling_olmo2.py`, `modeling_qwen3_moe.py`,
`modeling_mixtral.py`, `modeling_olmoe.py`, `modeling_gpt_oss.py`, `modeling_gemma.py`,
`modeling_gemma2.py` and `modeling_gemma3.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.models.families.llama.config import NORMED_QUERIES, UNPADDED, Config
from jaxft.models.families.llama.experts import ClampedExperts, Experts, Router
from jaxft.models.families.llama.names import HEAD_NAMES, TIED, UNUSED, LlamaNames, lines_of
from jaxft.models.families.llama.sinks import attention_with_sinks
from jaxft.models.family import Family, architectures
from jaxft.models.layers.attention import AttentionOptions, cached_attention
from jaxft.models.layers.batch import Batch, groups_of, positions_of, put_soft_tokens
from jaxft.models.layers.cache import BlockCache, KeyValues
from jaxft.models.layers.cross import source_of
from jaxft.models.layers.decoder import decoder_top, text_mask
from jaxft.models.layers.kernels import Needs
from jaxft.models.layers.loss import Routed
from jaxft.models.layers.math import ACTIVATIONS, dropout
from jaxft.models.layers.modules import Embedding, Leaf, Linear, RMSNorm, parameter
from jaxft.models.layers.rotary import RotaryContext, rotary_context, rotate
from jaxft.models.tower.tower import Compute, Part, Tower

HEADS = ("causal_lm", "text_classification")
TAGS = "token_classification"
ALL_HEADS = (*HEADS, TAGS, "question_answering")
MODEL_TYPES = {
    "llama": architectures("Llama", *ALL_HEADS),
    "mistral": architectures("Mistral", *ALL_HEADS),
    "qwen2": architectures("Qwen2", *ALL_HEADS),
    "qwen3": architectures("Qwen3", *ALL_HEADS),
    "smollm3": architectures("SmolLM3", *ALL_HEADS),
    "phi3": architectures("Phi3", *HEADS, TAGS),
    "granite": architectures("Granite", "causal_lm"),
    "olmo2": architectures("Olmo2", *HEADS),
    "qwen3_moe": architectures("Qwen3Moe", *ALL_HEADS),
    "mixtral": architectures("Mixtral", *ALL_HEADS),
    "olmoe": architectures("Olmoe", "causal_lm"),
    "gpt_oss": architectures("GptOss", *HEADS, TAGS),
    "gemma": architectures("Gemma", *HEADS, TAGS),
    "gemma2": architectures("Gemma2", *HEADS, TAGS),
    "gemma3_text": architectures("Gemma3Text", *HEADS) | {"causal_lm": "Gemma3ForCausalLM"},
}


TENSORS = LlamaNames(
    {name: lines_of(name) for name in MODEL_TYPES},
    HEAD_NAMES,
    UNUSED,
    prefixes={"model.": "embed_tokens|layers|norm"},
    tied=TIED,
)


class Embeddings(nnx.Module):
    """Word vectors, times `scale`; an image's own in place of those that mark it."""

    def __init__(self, config: Config):
        own = config.fields
        std, width = own["initializer_range"], own["hidden_size"]
        self.word = Embedding(own["vocab_size"], width, "vocab", std)
        self.scale, self.rate = config.embedding_scale, own.get("dropout_rate", 0.0)

    def __call__(self, batch: Batch, key: jax.Array | None) -> jax.Array:
        x = self.word(batch["input_ids"])  # [B, T, D]
        x = x if self.scale is None else x * jnp.asarray(self.scale, x.dtype)
        return dropout(put_soft_tokens(x, batch), self.rate, key)


class Stem(nnx.Module):
    """Stem: the embeddings, the attention mask, and the rotary cosines and sines."""

    def __init__(self, config: Config):
        self.embeddings = Embeddings(config)
        self.max_positions = config.max_positions
        self.rotaries, self.causal, self.reads = config.rotaries, config.causal, config.reads
        # One window for all blocks is the stem's; windows that differ are the blocks' own.
        self.window = config.windows[0] if len(set(config.windows)) == 1 else None
        self.needs = Needs(
            heads=config.fields["num_attention_heads"],
            groups=config.fields["num_key_value_heads"],
            width=config.fields["head_dim"],
            rate=config.fields["attention_dropout"],
            soft_cap=config.soft_cap,
            positions=config.sinks,
            causal=config.causal,
        )

    def __call__(
        self, batch: Batch, key: jax.Array | None, compute: Compute
    ) -> tuple[jax.Array, RotaryContext]:
        grouped = groups_of(batch)[0] is not None  # which no kernel has in its mask
        needs = replace(self.needs, positions=True) if grouped else self.needs
        kernel = partial(compute.kernel, needs)
        mask = text_mask(batch, self.max_positions, self.window, kernel, self.causal)
        context = rotary_context(mask, self.rotaries, positions_of(batch))
        context = replace(context, source=source_of(batch)) if self.reads else context
        return self.embeddings(batch, key), replace(context, mesh=compute.mesh)


@dataclass(frozen=True)
class Residual:
    """Sum of the stream and what attention or MLP gives.

    Args:
        scale: the factor on what they give.
        rate: the dropout of it.
        number: tells one dropout of a block from another.
    """

    scale: float
    rate: float
    number: int

    def __call__(self, x: jax.Array, out: jax.Array, key: jax.Array | None) -> jax.Array:
        """Add `out` [B, T, D] to the stream `x` [B, T, D]; `key` turns dropout on."""
        if key is not None and self.rate:
            out = dropout(out, self.rate, jax.random.fold_in(key, self.number))
        return x + (out if self.scale == 1.0 else out * self.scale)


def residual_of(config: Config, number: int) -> Residual:
    """Return a branch's sum with the stream as the config describes it."""
    own = config.fields
    rate = own.get("resid_pdrop", own.get("dropout_rate", 0.0))
    return Residual(own.get("residual_multiplier", 1.0), rate, number)


class Attention(nnx.Module):
    """Self-attention of grouped queries, between its norms, added to its input."""

    def __init__(self, config: Config):
        own = config.fields
        width, std, eps = own["hidden_size"], own["initializer_range"], own["rms_norm_eps"]
        self.heads, self.head_width = own["num_attention_heads"], own["head_dim"]
        queries = self.heads * self.head_width
        keys = own["num_key_value_heads"] * self.head_width
        biased = own.get("attention_bias", False)
        inward = biased or config.model_type == "qwen2"
        self.norm = RMSNorm(width, eps, from_one=config.gemma) if config.normed_inputs else None
        self.query = Linear(width, queries, ("embed", "heads"), std, inward)
        self.key = Linear(width, keys, ("embed", "heads"), std, inward)
        self.value = Linear(width, keys, ("embed", "heads"), std, inward)
        self.output = Linear(queries, width, ("heads", "embed"), std, biased)
        self.normed = NORMED_QUERIES.get(config.model_type)
        whole = self.normed == "heads"
        norm = partial(RMSNorm, eps=eps, axis=self.normed or "head", from_one=config.gemma)
        self.query_norm = norm(queries if whole else self.head_width) if self.normed else None
        self.key_norm = norm(keys if whole else self.head_width) if self.normed else None
        normed = config.normed_outputs
        self.output_norm = RMSNorm(width, eps, from_one=config.gemma) if normed else None
        self.scale, self.soft_cap = config.scale, config.soft_cap
        self.rate, self.most = own["attention_dropout"], own.get("clip_qkv")
        sinks = Leaf((self.heads,), ("heads",), std=std, decay=False)
        self.sinks = parameter(sinks) if config.sinks else None
        self.add = residual_of(config, 1)

    def __call__(
        self,
        x: jax.Array,
        context: RotaryContext,
        key: jax.Array | None,
        cache: KeyValues | None,
        waves: jax.Array | int,
    ) -> tuple[jax.Array, KeyValues | None]:
        normal = x if self.norm is None else self.norm(x)

        def placed(projection: Linear, norm: RMSNorm | None) -> jax.Array:
            flat = projection(normal, key)
            if norm is not None and self.normed == "heads":
                flat = norm(flat)
            flat = self._clipped(flat)
            heads = flat.reshape(*flat.shape[:2], -1, self.head_width)  # [B, T, H or G, K]
            if norm is not None and self.normed == "head":
                heads = norm(heads)
            turn = context.cosine[waves], context.sine[waves]
            return rotate(heads, turn).reshape(flat.shape)

        attend: Callable[..., tuple[jax.Array, KeyValues | None]] = cached_attention
        if self.sinks is not None:
            attend = partial(attention_with_sinks, sinks=self.sinks[...])
        mixed, cache = attend(
            placed(self.query, self.query_norm),
            placed(self.key, self.key_norm),
            self._clipped(self.value(normal, key)),
            context.mask,
            cache,
            AttentionOptions(self.heads, self.rate, key, self.scale, self.soft_cap),
        )
        out = self.output(mixed, key)
        out = out if self.output_norm is None else self.output_norm(out)
        return self.add(x, out, key), cache

    def _clipped(self, flat: jax.Array) -> jax.Array:
        """Bound queries, keys or values, as OLMoE may."""
        return flat if self.most is None else jnp.clip(flat, -self.most, self.most)


class Mlp(nnx.Module):
    """Two maps up, one of them a gate, and one down, between norms, added to the input.

    Source: Shazeer (2020), https://arxiv.org/abs/2002.05202.
    """

    def __init__(self, config: Config):
        own = config.fields
        width, inner, std = own["hidden_size"], own["intermediate_size"], own["initializer_range"]
        bias, eps = own.get("mlp_bias", False), own["rms_norm_eps"]
        self.norm = RMSNorm(width, eps, from_one=config.gemma) if config.normed_inputs else None
        self.gate = Linear(width, inner, ("embed", "mlp"), std, bias)
        self.up = Linear(width, inner, ("embed", "mlp"), std, bias)
        self.down = Linear(inner, width, ("mlp", "embed"), std, bias)
        normed = config.normed_outputs
        self.output_norm = RMSNorm(width, eps, from_one=config.gemma) if normed else None
        self.activation, self.rate = config.activation, own.get("dropout_rate", 0.0)
        self.add = residual_of(config, 2)

    def __call__(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        normal = x if self.norm is None else self.norm(x)
        gate = ACTIVATIONS[self.activation](self.gate(normal, key))
        inner = gate * self.up(normal, key)  # [B, T, F]
        if key is not None and self.rate:
            inner = dropout(inner, self.rate, jax.random.fold_in(key, 3))
        out = self.down(inner, key)
        out = out if self.output_norm is None else self.output_norm(out)
        return self.add(x, out, key)


class Mixture(nnx.Module):
    """Mixture of experts behind a norm, added to its input.

    Args:
        config: of the model.
        counts: whether the use of the experts is summed up, for the load-balancing loss.
    """

    def __init__(self, config: Config, counts: bool):
        own = config.fields
        width, std, count = own["hidden_size"], own["initializer_range"], own["num_experts"]
        self.norm = RMSNorm(width, own["rms_norm_eps"])
        chosen, normalized = own["num_experts_per_tok"], config.normalized_choice
        bounded = "swiglu_limit" in own
        self.router = Router(width, count, chosen, normalized, std, bias=bounded)
        sizes = count, width, config.expert_width, std
        self.experts = (
            ClampedExperts(*sizes, own["swiglu_alpha"], own["swiglu_limit"])
            if bounded
            else Experts(*sizes, config.activation)
        )
        self.add = residual_of(config, 2)
        self.counts = counts

    def __call__(
        self, x: jax.Array, context: RotaryContext, key: jax.Array | None, cached: bool
    ) -> tuple[jax.Array, Routed | None]:
        normal = self.norm(x)
        choice = self.router(normal)
        out = self.add(x, self.experts(normal, choice, context.mesh), key)
        if cached or not self.counts:
            return out, None
        return out, choice.use((context.mask.segments > 0).astype(jnp.float32))


class Block(nnx.Module):
    """Attention, then MLP or experts: [B, T, D] -> [B, T, D].

    Where blocks differ, `window` is how many positions back this one sees, and `waves` which of
    the rotary embeddings it has.

    Args:
        config: of the model.
        mixture: whether it has experts.
        counts: as `Mixture` has it.
    """

    def __init__(self, config: Config, mixture: bool = False, counts: bool = False):
        self.attention = Attention(config)
        self.mlp = Mixture(config, counts) if mixture else Mlp(config)

    def __call__(
        self,
        x: jax.Array,
        context: RotaryContext,
        key: jax.Array | None,
        cache: BlockCache,
        window: jax.Array | int | None = None,
        waves: jax.Array | int = 0,
    ) -> tuple[jax.Array, BlockCache]:
        if window is not None:
            context = replace(context, mask=context.mask.within(window, cache.slot))
        x, own = self.attention(x, context, key, cache.own, waves)
        if isinstance(self.mlp, Mlp):
            return self.mlp(x, key), BlockCache(own)
        x, use = self.mlp(x, context, key, own is not None)
        return x, BlockCache(own, routed=use)


def towers(config: Config, head: str | None, num_labels: int | None) -> dict[str, Tower]:
    """Build the tower of a model under a head."""
    own = config.fields
    width = own["hidden_size"]
    top, ties = decoder_top(
        head,
        RMSNorm(width, own["rms_norm_eps"], from_one=config.gemma),
        vocab_size=own["vocab_size"],
        width=width,
        std=own["initializer_range"],
        tied=own["tie_word_embeddings"],
        num_labels=num_labels,
        pad_token_id=own["pad_token_id"],
        soft_cap=own.get("final_logit_softcapping"),
        divisor=own.get("logits_scaling", 1.0),
        token_rate=config.token_rate,
    )
    counts = head == "causal_lm" and own.get("output_router_logits", False)
    kinds = {kind: Part(Block(config, kind, counts)) for kind in set(config.mixtures)}
    blocks = tuple(kinds[kind] for kind in config.mixtures)
    return {"text": replace(tower_of(config, Part(top), ties), blocks=blocks, balanced=counts)}


def tower_of(
    config: Config,
    top: Part,
    ties: dict[str, str],
    block: nnx.Module | None = None,
    prefix: str = "",
    reads: Tower | None = None,
) -> Tower:
    """Build the tower of a config under a top.

    Args:
        config: the model's, or a part's of it.
        top, ties, prefix, reads: as `Tower` has them.
        block: what it repeats; None for a block that reads no source.
    """
    blocks = (Part(block or Block(config)),) * config.fields["num_hidden_layers"]
    stem, numbers = Stem(config), _numbers(config)
    return Tower(
        Part(stem), blocks, top, ties, numbers, prefix=prefix, reads=reads, needs=stem.needs
    )


def _numbers(config: Config) -> dict[str, list[int]]:
    """Collect the numbers in which the blocks differ, if any."""
    numbers = {}
    if len(set(config.windows)) > 1:
        everything = config.max_positions
        numbers["window"] = [window or everything for window in config.windows]
    if len(set(config.waves)) > 1:
        numbers["waves"] = list(config.waves)
    return numbers


FAMILY = Family("llama", Config, MODEL_TYPES, TENSORS, towers, unpadded=UNPADDED)
