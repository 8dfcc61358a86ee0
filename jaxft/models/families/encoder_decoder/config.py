"""Config of an encoder and a decoder of two families."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from jaxft.errors import UserError

# The model types that each of the two may have. An encoder is its family's bare model.
ENCODERS = {
    "vision-encoder-decoder": (
        "vit",
        "deit",
        "dinov2",
        "dinov2_with_registers",
        "dinov3_vit",
        "clip_vision_model",
        "siglip_vision_model",
    ),
    "encoder-decoder": ("bert", "roberta", "xlm-roberta", "camembert"),
}
DECODERS = ("gpt2", "bert", "trocr")
PARTS = ("encoder", "decoder")
TOKENS = ("decoder_start_token_id", "eos_token_id", "pad_token_id")
KNOWN = (*PARTS, *TOKENS)
# Fields of a decoder's config, which is otherwise read as any config of its model type.
READS = ("is_decoder", "add_cross_attention")
# What older files repeat in each part, with the values under which it says nothing.
NEUTRAL: Mapping[str, Any] = {
    "add_cross_attention": False,
    "bad_words_ids": None,
    "cross_attention_hidden_size": None,
    "is_causal": True,
    "is_decoder": False,
    "is_encoder_decoder": False,
    "tie_encoder_decoder": False,
}


@dataclass(frozen=True)
class PairConfig:
    """Config of an encoder and a decoder that reads it.

    Args:
        model_type: `vision-encoder-decoder` or `encoder-decoder`.
        encoder, decoder: their families' own configs.
        tokens: those of `TOKENS`, None for an unknown one.
        stored: part -> its fields in config.json, which are written back.
        reads_text, reads_images: what the encoder reads.
    """

    model_type: str
    encoder: Any
    decoder: Any
    tokens: Mapping[str, Any]
    stored: Mapping[str, Mapping[str, Any]]
    reads_text: bool
    reads_images: bool

    def to_hf(self) -> dict[str, Any]:
        """Return the fields of config.json that this config owns."""
        reads = dict.fromkeys(READS, True)
        return {
            "model_type": self.model_type,
            "is_encoder_decoder": True,
            "encoder": {**self.stored["encoder"], **self.encoder.to_hf()},
            "decoder": {**self.stored["decoder"], **self.decoder.to_hf(), **reads},
            **{name: token for name, token in self.tokens.items() if token is not None},
        }

    def with_dropout(self, rate: float) -> PairConfig:
        """Return the same config with one dropout rate throughout."""
        both = self.encoder.with_dropout(rate), self.decoder.with_dropout(rate)
        return replace(self, encoder=both[0], decoder=both[1])

    @property
    def max_positions(self) -> int:
        """Return the most tokens that a target may have, and a source that is a text too."""
        most = self.decoder.max_positions
        return min(most, self.encoder.max_positions) if self.reads_text else most

    @property
    def vocab_size(self) -> int:
        """Return the size of the decoder's vocabulary."""
        return self.decoder.vocab_size

    @property
    def source_width(self) -> int:
        """Return the width of the encoder's output."""
        return self.encoder.to_hf()["hidden_size"]

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Return the height and width of an image; None where the source is a text."""
        return self.encoder.image_size if self.reads_images else None

    def with_image_size(self, size: int) -> PairConfig:
        """Return the same config for square images of that many pixels a side."""
        return replace(self, encoder=self.encoder.with_image_size(size))

    @property
    def start_token_id(self) -> int:
        """Return the id of the token that every target starts with."""
        return self._token("decoder_start_token_id", "the token that starts a text")

    @property
    def end_token_id(self) -> int:
        """Return the id of the token that ends a target, the first if there are several."""
        return self._token("eos_token_id", "the token that ends a text")

    def _token(self, name: str, meaning: str) -> int:
        token = self.tokens[name]
        token = token[0] if isinstance(token, list) and token else token
        if not isinstance(token, int):
            raise UserError(
                f"config.json has no {name}, {meaning}.",
                "Add it; transformers needs it too.",
            )
        return token


def without_neutral(part: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return a part's fields without those of older files that say nothing.

    Args:
        part: `encoder`, which scores no words and so ties none, or `decoder`.
        fields: the part's in config.json.
    """
    passed = ("tie_word_embeddings",) if part == "encoder" else ()
    return {
        name: value
        for name, value in fields.items()
        if name not in passed and not (name in NEUTRAL and value in (NEUTRAL[name], None))
    }


def tokens_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of `TOKENS` that a config.json names, as transformers looks them up.

    The config itself comes first, then its decoder; a `bos_token_id` may start a text.
    """
    decoder = fields["decoder"]

    def named(name: str) -> Any:
        return fields.get(name) if fields.get(name) is not None else decoder.get(name)

    tokens = {name: named(name) for name in TOKENS}
    start = tokens["decoder_start_token_id"]
    return tokens | {"decoder_start_token_id": named("bos_token_id") if start is None else start}


def join_configs(
    encoder: Mapping[str, Any], decoder: Mapping[str, Any], start: int | None, end: int | None
) -> dict[str, Any]:
    """Build the config.json of a model whose parts are two checkpoints.

    Args:
        encoder, decoder: the content of each one's config.json.
        start, end: the ids with which the decoder's tokenizer starts and ends a text.

    Raises:
        UserError: the decoder is of a type that reads no encoder.
    """
    images = encoder["model_type"] in ENCODERS["vision-encoder-decoder"]
    joined = {
        "model_type": "vision-encoder-decoder" if images else "encoder-decoder",
        "is_encoder_decoder": True,
        "encoder": dict(encoder),
        "decoder": {**decoder, **dict.fromkeys(READS, True)},
    }
    tokens = tokens_of(joined)
    own = {"decoder_start_token_id": start, "eos_token_id": end}
    return joined | {n: v for n, v in {**own, **_true(tokens)}.items() if v is not None}


def _true(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that are not None."""
    return {name: value for name, value in fields.items() if value is not None}
