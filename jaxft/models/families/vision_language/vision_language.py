"""Image and text to text: an image's vectors stand in a decoder's stream among its words.

The towers are other families'; here is what joins them: tensor names, and the connector, which
makes vectors of the decoder's width out of patches. SmolVLM and Idefics3 put `scale_factor` x
`scale_factor` neighboring patches into one vector and map it linearly.

Source: Laurençon et al. (2024), https://arxiv.org/abs/2408.12637; Marafioti et al. (2025),
https://arxiv.org/abs/2504.05299; the computation follows `transformers`' `modeling_idefics3.py`
and `modeling_smolvlm.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import jax
from flax import nnx

from jaxft.errors import UserError
from jaxft.models.families.vision_language.config import (
    PARTS,
    VisionLanguageConfig,
    check_shuffle,
)
from jaxft.models.family import ComposedFamily, Family, ModelTypes, Towers
from jaxft.models.layers.batch import Batch, with_soft_tokens
from jaxft.models.layers.modules import LayerNorm, Linear, split_key
from jaxft.models.tower.run import run_tower
from jaxft.models.tower.tower import Compute, Params, Part, Tower
from jaxft.models.weights.config_fields import GENERATION, check_fields
from jaxft.models.weights.field_kinds import check_kind, is_whole, quoted
from jaxft.models.weights.names import Name
from jaxft.models.weights.tensor_names import ComposedNames, Member, unused_of, within

HEAD = "vision_language"
MODEL_TYPES: ModelTypes = {
    "idefics3": {HEAD: "Idefics3ForConditionalGeneration"},
    "smolvlm": {HEAD: "SmolVLMForConditionalGeneration"},
}
# Model type -> that of its image tower, and those that its decoder may have.
TOWERS = {
    "idefics3": ("idefics3_vision", ("llama",)),
    "smolvlm": ("smolvlm_vision", ("llama",)),
}
# What a config.json without the field means.
DEFAULTS = {"scale_factor": 2, "image_token_id": 128_257, "tie_word_embeddings": False}
VISION, TEXT = "model.vision_model.", "model.text_model."  # what tensors' names begin with
OWN_NAMES = (
    Name("model.connector.modality_projection.proj.weight", "vision/connector/kernel", True),
    Name("lm_head.weight", "text/head/kernel", transpose=True),
)
UNUSED = (r"lm_head\.weight",)  # of tied words
# Of the first files: what their own code read of the decoder, and of a resampler that is not there.
TEXT_UNREAD = (
    *("_flash_attn_2_enabled", "perceiver_config", "pixel_shuffle_factor"),
    *("tie_word_embeddings", "vision_config"),
)
STD = 0.02  # of a fresh connector


def compose(fields: Mapping[str, Any], families: Mapping[str, Any], paired: bool = False) -> Family:
    """Build the family of a config.json of an image tower and a decoder.

    Args:
        fields: its content.
        families: model type -> family, where both are looked for.
        paired: whether they were two checkpoints, which changes nothing here.

    Raises:
        UserError: a part is no object, or the decoder's model type is not known.
    """
    del paired
    vision_type, known = TOWERS[fields["model_type"]]
    for part in PARTS:
        if not isinstance(fields.get(part), Mapping):
            raise UserError(f"config.json: {part} is {quoted(fields.get(part))}, and no object.")
    text_type = fields["text_config"].get("model_type", known[0])
    if text_type not in known:
        raise UserError(
            f"config.json: a '{text_type}' is not supported as the decoder of a "
            f"{fields['model_type']}.",
            f"Known: {', '.join(known)}.",
        )
    return VisionLanguage(families[vision_type], families[text_type], vision_type, text_type).family


class Connector(nnx.Module):
    """Top of the image tower: its normalized patches as vectors of the decoder.

    Args:
        config: of both towers.
    """

    def __init__(self, config: VisionLanguageConfig):
        vision, width = config.vision.fields, config.text.fields["hidden_size"]
        inner = vision["hidden_size"] * config.shuffle**2
        self.norm = LayerNorm(vision["hidden_size"], vision["layer_norm_eps"])
        self.connector = Linear(inner, width, ("embed", "projected"), STD, bias=False)
        self.grid, self.shuffle = config.vision.grid, config.shuffle

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> dict[str, jax.Array]:
        """Connect [B, N P, D] to `last_hidden_state` [B, N P / F^2, E]."""
        (rows, columns), side = self.grid, self.shuffle
        shape = -1, rows // side, side, columns // side, side, x.shape[-1]
        near = self.norm(x).reshape(shape).swapaxes(2, 3)  # [B N, h, w, F, F, D]
        vectors = near.reshape(len(x), -1, side**2 * x.shape[-1])
        return {"last_hidden_state": self.connector(vectors)}


@dataclass(frozen=True)
class VisionLanguage:
    """Image tower and decoder of two families, which a config.json names.

    Args:
        vision, text: their families.
        vision_type, text_type: which of their model types.
    """

    FIXED: ClassVar[Mapping[str, Any]] = {"is_encoder_decoder": False}
    UNREAD: ClassVar[tuple[str, ...]] = (
        *("_pad_token_id", "image_seq_len", "use_reentrant_checkpointing", "vocab_size"),
        *GENERATION,
    )

    vision: Family
    text: Family
    vision_type: str
    text_type: str

    @property
    def family(self) -> Family:
        """Return the family of both together."""
        parts = self, MODEL_TYPES, self.tensors(), self.towers
        return Family(
            *("vision_language", *parts),
            images=True,
            apply=apply,
            head=("text/head/",),
            joins=("vision/connector/",),
        )

    def from_hf(
        self, fields: Mapping[str, Any], ignore: Sequence[str] = ()
    ) -> VisionLanguageConfig:
        """Read a config.json, with the arguments and errors of `HfConfig.from_hf`."""
        known = (*PARTS, *DEFAULTS)
        check_fields(fields, known=known, fixed=self.FIXED, ignore=(*ignore, *self.UNREAD))
        own = {name: fields.get(name, default) for name, default in DEFAULTS.items()}
        for name in ("image_token_id", "tie_word_embeddings"):
            check_kind(name, own[name], DEFAULTS[name])
        stored = {part: fields[part] for part in PARTS}
        types = {"vision_config": self.vision_type, "text_config": self.text_type}
        parts = {part: {**stored[part], "model_type": types[part]} for part in PARTS}
        words = {"tie_word_embeddings": own["tie_word_embeddings"]}
        vision = self.vision.config.from_hf(parts["vision_config"], ignore)
        text = _without(parts["text_config"], TEXT_UNREAD) | words
        text = self.text.config.from_hf(text, (*ignore, *GENERATION))
        check_shuffle(own["scale_factor"], vision.grid)
        _check_word(own["image_token_id"], text.vocab_size)
        numbers = own["image_token_id"], own["scale_factor"]
        return VisionLanguageConfig(fields["model_type"], vision, text, *numbers, own, stored)

    def tensors(self) -> ComposedNames:
        """Return the tensor names of both."""
        vision = Member(self.vision.tensors, self.vision_type)
        text = Member(self.text.tensors, self.text_type)
        lines = (
            *within(vision.names.table(None, self.vision_type), VISION, "vision/"),
            *within(text.names.table(None, self.text_type), TEXT, "text/"),
            *OWN_NAMES,
        )
        members = {VISION: vision, TEXT: text}
        unused = (*unused_of(members), *UNUSED)
        return ComposedNames(dict.fromkeys(MODEL_TYPES, lines), {}, unused, (), members)

    def towers(
        self, config: VisionLanguageConfig, head: str | None, num_labels: int | None
    ) -> dict[str, Tower]:
        """Build the image tower, which ends in the connector, and the decoder that reads it."""
        (seeing,) = self.vision.towers(config.vision, None, None).values()
        (writing,) = self.text.towers(config.text, "causal_lm", None).values()
        assert isinstance(seeing, Tower) and isinstance(writing, Tower)  # noqa: PT018 - one fact
        vision = replace(seeing, top=Part(Connector(config)), prefix="vision/")
        places = partial(with_soft_tokens, word=config.image_token_id)
        text = replace(writing, prefix="text/", reads=vision, input_of=places)
        return {"vision": vision, "text": text}


def _without(fields: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return the fields but those of these names."""
    return {name: value for name, value in fields.items() if name not in names}


def _check_word(word: Any, count: int) -> None:
    """Raise a UserError unless the word that marks an image is one of the decoder's."""
    if not is_whole(word) or not 0 <= word < count:
        raise UserError(
            f"config.json: image_token_id is {quoted(word)}; the decoder has {count:,} words."
        )


def apply(
    towers: Towers, params: Params, batch: Batch, key: jax.Array | None, compute: Compute
) -> dict[str, jax.Array]:
    """Run the image tower, and the decoder on its words and the image's vectors.

    Args:
        towers: `vision` and `text`.
        params: the flat dict.
        batch: `pixel_values` [B, N, C, H, W] and `input_ids` [B, T] with as many marked places as
            a row's tiles that are not padding have vectors.
        key: turns dropout on.
        compute: how to run.
    """
    vision, text = towers["vision"], towers["text"]
    assert isinstance(vision, Tower) and isinstance(text, Tower)  # noqa: PT018 - one fact
    vision_key, text_key = split_key(key, 2)
    vectors = run_tower(vision, params, batch, vision_key, compute)["last_hidden_state"]
    return run_tower(text, params, text.input_of(batch, vectors), text_key, compute)


FAMILY = ComposedFamily("vision_language", VisionLanguage, MODEL_TYPES, compose)
