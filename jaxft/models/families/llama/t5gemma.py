"""T5Gemma: an encoder and a decoder of Gemma 2's blocks; the decoder's attend to the source too.

The encoder's positions see those after them too, in windows to both sides. Each of the two has its
own width and its own word embeddings. Under the heads of classes the encoder is alone.

Source: Zhang et al. (2025), https://arxiv.org/abs/2504.06225; the computation follows
`transformers`' `modeling_t5gemma.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Self

import jax
from flax import nnx

from jaxft.errors import UserError
from jaxft.models.families.llama.config import MODULE
from jaxft.models.families.llama.config import Config as PartConfig
from jaxft.models.families.llama.llama import Attention, Mlp, residual_of, tower_of
from jaxft.models.families.llama.names import scale
from jaxft.models.family import Family, architectures, run_pair_or_encoder
from jaxft.models.layers.attention import AttentionOptions
from jaxft.models.layers.cache import BlockCache, KeyValues
from jaxft.models.layers.cross import Source, cross_attention
from jaxft.models.layers.decoder import Bare, CausalLm, LastToken, OnStream, TokenClasses
from jaxft.models.layers.modules import Embedding, Linear, RMSNorm
from jaxft.models.layers.rotary import RotaryContext
from jaxft.models.tower.tower import Part, Tower
from jaxft.models.weights.hf_config import HfConfig
from jaxft.models.weights.names import Name, dense, embedding
from jaxft.models.weights.tensor_names import HeadLines, PrefixedNames

WORDS, ENCODER = "seq2seq", "encoder"
CLASSES = ("text_classification", "token_classification")  # of the encoder alone
MODEL_TYPES = {
    "t5gemma": architectures("T5Gemma", *CLASSES)
    | {ENCODER: "T5GemmaEncoderModel", WORDS: "T5GemmaForConditionalGeneration"}
}
PARTS = ("encoder", "decoder")
DEFAULTS: dict[str, Any] = {
    "dropout_rate": 0.0,
    "classifier_dropout_rate": 0.0,
    "attention_dropout": 0.0,
    "tie_word_embeddings": True,
    "vocab_size": 256_000,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "decoder_start_token_id": None,
}
HANDED_DOWN = ("dropout_rate", "attention_dropout")  # to the parts, as transformers does


@dataclass(frozen=True)
class Config(HfConfig):
    """Config of a T5Gemma.

    Args:
        model_type, fields: as `HfConfig` has them.
        encoder, decoder: the parts' own.
        stored: part -> its fields in config.json, which are written back.
    """

    # Whether it has a decoder follows from the head, and an export says so.
    UNREAD: ClassVar[tuple[str, ...]] = ("is_encoder_decoder", *PARTS)
    READ_ONLY = ("vocab_size", "decoder_start_token_id")

    encoder: PartConfig
    decoder: PartConfig
    stored: Mapping[str, Mapping[str, Any]]

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any], ignore: Sequence[str] = ()) -> Self:
        own = cls._read(fields, DEFAULTS, (), ignore)
        _check_alone(fields)
        for part in PARTS:
            if not isinstance(fields.get(part), dict):
                raise UserError(f"config.json: {part} must be an object, the config of a part.")
        handed = {name: own[name] for name in HANDED_DOWN}
        encoder, decoder = (
            PartConfig.from_hf(
                {**fields[part], "model_type": MODULE, **handed, "is_decoder": part == "decoder"},
                ignore,
            )
            for part in PARTS
        )
        # To both sides transformers counts a window without the position itself.
        windows = tuple(None if one is None else one + 1 for one in encoder.windows)
        stored = {part: fields[part] for part in PARTS}
        return cls(fields["model_type"], own, replace(encoder, windows=windows), decoder, stored)

    def to_hf(self) -> dict[str, Any]:
        parts = {part: {**self.stored[part], **getattr(self, part).to_hf()} for part in PARTS}
        return {**super().to_hf(), **parts}

    def with_dropout(self, rate: float) -> Self:
        rates = (*HANDED_DOWN, "classifier_dropout_rate")
        both = {part: getattr(self, part).with_dropout(rate) for part in PARTS}
        return replace(self.with_fields(rates, rate), **both)

    @property
    def max_positions(self) -> int:
        """Return the most tokens that a source may have, and a target."""
        return min(self.encoder.max_positions, self.decoder.max_positions)

    @property
    def vocab_size(self) -> int:
        """Return the number of words that both parts know."""
        return min(self.encoder.vocab_size, self.decoder.vocab_size)

    @property
    def start_token_id(self) -> int:
        """Return the id of the token that every target starts with."""
        start = self.fields["decoder_start_token_id"]
        return self.fields["bos_token_id"] if start is None else start

    @property
    def end_token_id(self) -> int:
        """Return the id of the token that ends a target, the first if there are several."""
        ends = self.fields["eos_token_id"]
        return ends[0] if isinstance(ends, list) else ends


def _check_alone(fields: Mapping[str, Any]) -> None:
    """Raise a UserError if a checkpoint classifies by its decoder, which is not computed."""
    named = (fields.get("architectures") or [""])[0]
    if named in (MODEL_TYPES["t5gemma"][head] for head in CLASSES) and fields.get(
        "is_encoder_decoder", True
    ):
        raise UserError(
            f"config.json: a {named} with is_encoder_decoder classifies by its decoder; only "
            "classes of the encoder alone are supported.",
            "Fine-tune the T5GemmaForConditionalGeneration that it was made from.",
        )


def fields_of(head: str | None) -> Mapping[str, Any]:
    """Return whether a head has a decoder, by the name of config.json."""
    return {"is_encoder_decoder": head in (None, WORDS)}


def _maps(hf: str, ours: str, parts: Mapping[str, str]) -> Iterator[Name]:
    """Yield the lines of linear maps, from the name of each in a file to ours."""
    for theirs, own in parts.items():
        yield from dense(f"{hf}.{theirs}", f"{ours}/{own}")


def _tower_names(tower: str) -> Iterator[Name]:
    """Yield the lines of a part."""
    hf, ours = f"model.{tower}.layers.{{i}}", f"{tower}/blocks/{{i}}"
    yield from embedding(f"model.{tower}.embed_tokens", f"{tower}/embeddings/word")
    maps = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "output"}
    attentions = {"self_attn": "attention"} | (
        {"cross_attn": "cross"} if tower == "decoder" else {}
    )
    for theirs, own in attentions.items():
        yield from _maps(f"{hf}.{theirs}", f"{ours}/{own}", maps)
        yield from scale(f"{hf}.pre_{theirs}_layernorm", f"{ours}/{own}/norm")
        yield from scale(f"{hf}.post_{theirs}_layernorm", f"{ours}/{own}/output_norm")
    maps = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down"}
    yield from _maps(f"{hf}.mlp", f"{ours}/mlp", maps)
    yield from scale(f"{hf}.pre_feedforward_layernorm", f"{ours}/mlp/norm")
    yield from scale(f"{hf}.post_feedforward_layernorm", f"{ours}/mlp/output_norm")
    yield from scale(f"model.{tower}.norm", f"{tower}/norm")


HEAD_NAMES: HeadLines = {
    WORDS: (Name("lm_head.out_proj.weight", "decoder/head/head/kernel", transpose=True),),
    **dict.fromkeys(CLASSES, dense("score.out_proj", "encoder/head/head")),
}
UNUSED = (r"(lm_head|score)\.out_proj\..*",)


class T5GemmaNames(PrefixedNames):
    """Tensor names of a T5Gemma, whose bare encoder has no prefix either."""

    def exported(self, name: str, head: str | None, model_type: str) -> str:
        return super().exported(name, None if head == ENCODER else head, model_type)


TENSORS = T5GemmaNames(
    {"t5gemma": (*_tower_names("encoder"), *_tower_names("decoder"))},
    HEAD_NAMES,
    UNUSED,
    ("encoder/head/", "decoder/head/"),
    prefixes={"model.": "encoder|decoder"},
    unread=dict.fromkeys((ENCODER, *CLASSES), (r"model\.decoder\..*",)),
    tied=(("model.decoder.embed_tokens.weight", "lm_head.out_proj.weight"),),
)


class CrossAttention(nnx.Module):
    """Attention of grouped queries over the source, between its norms, added to its input.

    Args:
        config: the decoder's.
        source_width: of what the encoder puts out.
    """

    def __init__(self, config: PartConfig, source_width: int):
        own = config.fields
        width, std, bias = own["hidden_size"], own["initializer_range"], own["attention_bias"]
        self.heads = own["num_attention_heads"]
        queries, keys = (
            own[name] * own["head_dim"] for name in ("num_attention_heads", "num_key_value_heads")
        )
        norm = partial(RMSNorm, width, own["rms_norm_eps"], from_one=True)
        self.norm, self.output_norm = norm(), norm()
        self.query = Linear(width, queries, ("embed", "heads"), std, bias)
        self.key = Linear(source_width, keys, ("source", "heads"), std, bias)
        self.value = Linear(source_width, keys, ("source", "heads"), std, bias)
        self.output = Linear(queries, width, ("heads", "embed"), std, bias)
        self.scale, self.soft_cap = config.scale, config.soft_cap
        self.rate, self.add = own["attention_dropout"], residual_of(config, 4)

    def __call__(
        self, x: jax.Array, source: Source, key: jax.Array | None, cache: KeyValues | None
    ) -> tuple[jax.Array, KeyValues | None]:
        # The block's own attention draws by its key as it is.
        weights_key = None if key is None else jax.random.fold_in(key, 5)
        mixed, cache = cross_attention(
            self.query(self.norm(x), key),
            lambda hidden: (self.key(hidden, key), self.value(hidden, key)),
            source,
            cache,
            AttentionOptions(self.heads, self.rate, weights_key, self.scale, self.soft_cap),
        )
        return self.add(x, self.output_norm(self.output(mixed, key)), key), cache


class Block(nnx.Module):
    """Attention, attention over the source, then MLP: [B, T, D] -> [B, T, D].

    Where blocks differ, `window` is how many positions back this one sees.
    """

    def __init__(self, config: PartConfig, source_width: int):
        self.attention = Attention(config)
        self.cross = CrossAttention(config, source_width)
        self.mlp = Mlp(config)

    def __call__(
        self,
        x: jax.Array,
        context: RotaryContext,
        key: jax.Array | None,
        cache: BlockCache,
        window: jax.Array | int | None = None,
    ) -> tuple[jax.Array, BlockCache]:
        if window is not None:
            context = replace(context, mask=context.mask.within(window, cache.slot))
        assert context.source is not None  # a decoder's context has one
        x, own = self.attention(x, context, key, cache.own, 0)
        x, source = self.cross(x, context.source, key, cache.source)
        return self.mlp(x, key), BlockCache(own, source)


def _on_stream(config: PartConfig, head: Bare) -> Part:
    """Build the top of a part that ends in `head`."""
    own = config.fields
    norm = RMSNorm(own["hidden_size"], own["rms_norm_eps"], from_one=True)
    return Part(OnStream(norm, head, own["dropout_rate"]))


def _classes(config: Config, head: str, num_labels: int | None) -> Bare:
    """Build the head of classes of texts or of tokens."""
    own, rate = config.encoder.fields, config.fields["classifier_dropout_rate"]
    classes = Linear(
        own["hidden_size"], num_labels or 2, ("embed", "labels"), own["initializer_range"]
    )
    if head == "token_classification":
        return TokenClasses(None, classes, rate)
    return LastToken(None, classes, config.fields["pad_token_id"], rate=rate)


def _words(config: Config) -> tuple[Bare, dict[str, str]]:
    """Build the scores of words, and return their ties."""
    own = config.decoder.fields
    width, words, std = own["hidden_size"], own["vocab_size"], own["initializer_range"]
    if config.fields["tie_word_embeddings"]:
        ties = {"head/head/embedding": "embeddings/word/embedding"}
        scores: Embedding | Linear = Embedding(words, width, "vocab", std)
    else:
        ties, scores = {}, Linear(width, words, ("embed", "vocab"), std, bias=False)
    return CausalLm(None, scores, soft_cap=own["final_logit_softcapping"]), ties


def towers(config: Config, head: str | None, num_labels: int | None) -> dict[str, Tower]:
    """Build the encoder, and the decoder that reads its output where the head has one."""
    build = partial(tower_of, config.encoder, prefix="encoder/")
    if head in CLASSES:
        top = _on_stream(config.encoder, _classes(config, head, num_labels))
        return {"encoder": build(top, {})}
    encoder = build(_on_stream(config.encoder, Bare(None)), {})
    if head == ENCODER:
        return {"encoder": encoder}
    scores, ties = _words(config) if head == WORDS else (Bare(None), {})
    decoder = tower_of(
        config.decoder,
        _on_stream(config.decoder, scores),
        ties,
        Block(config.decoder, config.encoder.fields["hidden_size"]),
        prefix="decoder/",
        reads=encoder,
    )
    return {"encoder": encoder, "decoder": decoder}


FAMILY = Family(
    *("t5gemma", Config, MODEL_TYPES, TENSORS, towers),
    apply=run_pair_or_encoder,
    fields_of=fields_of,
    norm="encoder/norm/",
    head=("encoder/head/", "decoder/head/"),
)
