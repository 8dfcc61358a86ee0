"""Encoder-decoders of two families: images or texts to text.

Each is its family's own; this module joins them: tensor names, the tokens that start and end a
text, and the projection of the encoder's output where the widths differ. The decoder attends to
the encoder's last hidden states, as in `transformers`.

Source: Rothe et al. (2020), https://arxiv.org/abs/1907.12461; Li et al. (2021),
https://arxiv.org/abs/2109.10282; the computation follows `transformers`'
`modeling_vision_encoder_decoder.py` and `modeling_encoder_decoder.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar, cast

import numpy as np

from jaxft.errors import UserError
from jaxft.models.families.encoder_decoder.config import (
    DECODERS,
    ENCODERS,
    KNOWN,
    PARTS,
    READS,
    PairConfig,
    join_configs,
    tokens_of,
    without_neutral,
)
from jaxft.models.family import ComposedFamily, Family, ModelTypes, ReadingDecoder
from jaxft.models.tower.run import run_pair
from jaxft.models.tower.tower import Tower
from jaxft.models.weights.config_fields import check_fields
from jaxft.models.weights.field_kinds import check_kind
from jaxft.models.weights.names import dense
from jaxft.models.weights.tensor_names import ComposedNames, Member, unused_of, within

__all__ = ["join_configs"]

MODEL_TYPES: ModelTypes = {
    "vision-encoder-decoder": {"captioning": "VisionEncoderDecoderModel"},
    "encoder-decoder": {"seq2seq": "EncoderDecoderModel"},
}
HEAD = "causal_lm"  # the head of a decoder in its own family
PROJECTION_NAMES = dense("enc_to_dec_proj", "decoder/source/projection")
# Parameters that two checkpoints lack: the decoder's cross-attention and head.
PAIRED_FRESH = ("decoder/source/", "decoder/head/", r"decoder/blocks/\d+/cross/")
T = TypeVar("T")


def join_tensors(encoder: Mapping[str, T], decoder: Mapping[str, T]) -> dict[str, T]:
    """Collect the tensors of two checkpoints under the names of one file of both."""
    both = zip(PARTS, (encoder, decoder), strict=True)
    return {f"{part}.{name}": value for part, own in both for name, value in own.items()}


def compose(fields: Mapping[str, Any], families: Mapping[str, Any], paired: bool) -> Family:
    """Build the family of a config.json of an encoder and a decoder.

    Args:
        fields: its content.
        families: model type -> family, where both are looked for.
        paired: whether they come from two checkpoints, which lack the cross-attention.

    Raises:
        UserError: a part is missing, or its model type is not known.
    """
    types = []
    for part, known in zip(PARTS, (ENCODERS[fields["model_type"]], DECODERS), strict=True):
        own = fields.get(part)
        model_type = own.get("model_type") if isinstance(own, Mapping) else None
        if model_type not in known:
            problem = "names no" if model_type is None else f"has a '{model_type}' for its"
            raise UserError(
                f"config.json: the {fields['model_type']} {problem} {part}"
                f"{'.' if model_type is None else ', which is not supported.'}",
                f"Known: {', '.join(known)}.",
            )
        types.append(model_type)
    encoder, decoder = types
    return EncoderDecoder(families[encoder], families[decoder], encoder, decoder, paired).family()


@dataclass(frozen=True)
class EncoderDecoder:
    """Encoder and decoder of two families, which a config.json names.

    Args:
        encoder, decoder: the parts' families.
        encoder_type, decoder_type: which of their model types.
        paired: as `compose` has it.
    """

    FIXED: ClassVar[Mapping[str, Any]] = {"is_encoder_decoder": True}
    # The decoder's config says whether its words are tied, and how many there are.
    UNREAD: ClassVar[tuple[str, ...]] = (
        "tie_word_embeddings",
        "vocab_size",
    )

    encoder: Family
    decoder: Family
    encoder_type: str
    decoder_type: str
    paired: bool

    def family(self) -> Family:
        """Return the family of both together."""
        return Family(
            *("encoder_decoder", self, MODEL_TYPES, self.tensors(), self.towers),
            images=self.encoder.images,
            apply=run_pair,
            infer_fields=self.infer_fields,
            refits=self.refits,
            unpadded=tuple(MODEL_TYPES),
        )

    def from_hf(self, fields: Mapping[str, Any], ignore: Sequence[str] = ()) -> PairConfig:
        """Read a config.json, with the arguments and errors of `HfConfig.from_hf`."""
        check_fields(fields, known=KNOWN, fixed=self.FIXED, ignore=(*ignore, *self.UNREAD))
        parts = {part: dict(fields[part]) for part in PARTS}
        for name in READS:
            if parts["decoder"].get(name) is False:
                raise UserError(
                    f"config.json: the decoder's {name} is false, so it reads no encoder.",
                    "Set it to true; its attention over the encoder is then initialized at random.",
                )
        if parts["decoder"].get("is_causal") is False:
            raise UserError(
                "config.json: is_causal of the decoder is false; only true is supported."
            )
        for name, value in tokens_of(fields).items():
            check_kind(name, value, None)
        own = {name: value for name, value in parts["decoder"].items() if name not in READS}
        source = without_neutral("encoder", parts["encoder"])
        encoder = self.encoder.config.from_hf(source, ignore)
        decoder = self.decoder.config.from_hf(without_neutral("decoder", own), ignore)
        reads = self.encoder.text, self.encoder.images
        return PairConfig(fields["model_type"], encoder, decoder, tokens_of(fields), parts, *reads)

    def tensors(self) -> ComposedNames:
        """Return the tensor names of both."""
        encoder = Member(self.encoder.tensors, self.encoder_type)
        decoder = Member(self.decoder.tensors, self.decoder_type, HEAD)
        lines = (
            *within(encoder.names.table(None, self.encoder_type), "encoder.", "encoder/"),
            *within(self._reading.names(self.decoder_type), "decoder.", "decoder/"),
            *PROJECTION_NAMES,
        )
        members = {"encoder.": encoder, "decoder.": decoder}
        fresh = tuple(f"encoder/{one}" for one in encoder.names.fresh)
        return ComposedNames(
            dict.fromkeys(MODEL_TYPES, lines),
            {},
            unused_of(members),
            (*fresh, *PAIRED_FRESH) if self.paired else fresh,
            members,
            tied=[(f"decoder.{n}", f"decoder.{copy}") for n, copy in decoder.names.tied],
            tied_part="decoder",
        )

    def infer_fields(self, fields: Mapping[str, Any], tensors: Iterable[str]) -> dict[str, Any]:
        """Add the token ids of the decoder's config to the fields of a config.json."""
        return {**fields, **{n: v for n, v in tokens_of(fields).items() if v is not None}}

    @property
    def _reading(self) -> ReadingDecoder:
        assert self.decoder.reading is not None  # compose takes decoders that read
        return self.decoder.reading

    def refits(
        self, config: PairConfig, fields: Mapping[str, Any]
    ) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
        """Return the functions that fit the encoder's tensors to another image size."""
        of_encoder = self.encoder.refits(config.encoder, fields["encoder"])
        return {f"encoder/{name}": compute for name, compute in of_encoder.items()}

    def towers(
        self, config: PairConfig, head: str | None, num_labels: int | None
    ) -> dict[str, Tower]:
        """Build the encoder and the decoder."""
        (bare,) = self.encoder.towers(config.encoder, None, None).values()
        encoder = replace(cast(Tower, bare), prefix="encoder/")
        decoder = self._reading.tower(config.decoder, config.source_width)
        return {"encoder": encoder, "decoder": replace(decoder, prefix="decoder/", reads=encoder)}


FAMILY = ComposedFamily("encoder_decoder", EncoderDecoder, MODEL_TYPES, compose)
