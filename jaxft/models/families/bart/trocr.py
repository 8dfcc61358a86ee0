"""TrOCR's decoder: a BART decoder alone, which reads what a vision encoder makes of an image.

Source: Li et al. (2021), https://arxiv.org/abs/2109.10282; the computation follows `transformers`'
`modeling_trocr.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

from jaxft.errors import UserError
from jaxft.models.families.bart.config import DecoderConfig
from jaxft.models.families.bart.modules import Block, Stem
from jaxft.models.families.bart.names import TROCR_NAMES, TROCR_UNUSED
from jaxft.models.family import Family, ReadingDecoder
from jaxft.models.layers.decoder import CausalLm
from jaxft.models.layers.modules import Embedding, Linear
from jaxft.models.tower.tower import Part, Tower
from jaxft.models.weights.names import Name
from jaxft.models.weights.tensor_names import TensorNames

MODEL_TYPES: Mapping[str, Mapping[str | None, str]] = {"trocr": {}}  # no model of its own
TENSORS = TensorNames(
    *(dict.fromkeys(MODEL_TYPES, TROCR_NAMES), {}, TROCR_UNUSED),
    tied=(("model.decoder.embed_tokens.weight", "output_projection.weight"),),
)


def reading_names(model_type: str) -> tuple[Name, ...]:
    """Return the name table of a decoder that reads a source."""
    return TENSORS.table(None, model_type)


def reading_tower(config: DecoderConfig, source_width: int) -> Tower:
    """Build a decoder that scores next tokens and reads a source of that width in every block.

    Raises:
        UserError: the config says that the source has another width.
    """
    own = config.fields
    width, words, std = own["d_model"], own["vocab_size"], own["init_std"]
    if config.cross_width not in (None, source_width):
        raise UserError(
            f"config.json: the decoder's cross_attention_hidden_size is {config.cross_width}, and "
            f"the encoder's output is {source_width} wide."
        )
    # Keys and values read the source itself, or its projection where they read the stream's width.
    projected = source_width if config.cross_width is None else None
    tied = own["tie_word_embeddings"]
    head: Embedding | Linear
    if tied:
        head = Embedding(words, width, "vocab", std)
    else:
        head = Linear(width, words, ("embed", "vocab"), std, bias=False)
    stem = Stem(config, decodes=True, source_width=projected)
    return Tower(
        Part(stem),
        (Part(Block(config, decodes=True)),) * own["decoder_layers"],
        Part(CausalLm(None, head)),
        ties={"head/embedding": "word/embedding"} if tied else {},
        needs=stem.needs,
    )


def towers(config: DecoderConfig, head: str | None, num_labels: int | None) -> dict[str, Tower]:
    """Build a decoder that reads a source of its own width."""
    del head, num_labels
    return {"decoder": reading_tower(config, config.cross_width or config.fields["d_model"])}


FAMILY = Family(
    *("trocr", DecoderConfig, MODEL_TYPES, TENSORS, towers),
    reading=ReadingDecoder(reading_names, reading_tower),
)
