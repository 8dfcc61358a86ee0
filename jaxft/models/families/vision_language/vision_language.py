"""Image and text to text: an image's vectors stand in a decoder's stream among its words.

The towers are other families'; here is what joins them: tensor names, and the connector, which
makes vectors of the decoder's width out of patches (`connectors.py`). The kinds are in `kinds.py`.

Source: Laurençon et al. (2024), https://arxiv.org/abs/2408.12637; Marafioti et al. (2025),
https://arxiv.org/abs/2504.05299; Beyer et al. (2024), https://arxiv.org/abs/2407.07726; Gemma Team
(2025), https://arxiv.org/abs/2503.19786; Liu et al. (2023), https://arxiv.org/abs/2310.03744; the
computation follows `transformers`' `modeling_idefics3.py`, `modeling_smolvlm.py`,
`modeling_paligemma.py`, `modeling_gemma3.py` and `modeling_llava.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import jax

from jaxft.errors import UserError
from jaxft.models.families.clip.block import UnreadBlock
from jaxft.models.families.vision_language.config import (
    PARTS,
    VisionLanguageConfig,
    check_side,
    check_word,
)
from jaxft.models.families.vision_language.connectors import Connector
from jaxft.models.families.vision_language.kinds import (
    CONNECTOR,
    KINDS,
    TEXT_SIZES,
    Kind,
    see_prefix,
)
from jaxft.models.family import ComposedFamily, Family, ModelTypes, Towers
from jaxft.models.layers.batch import Batch, with_soft_tokens
from jaxft.models.layers.modules import split_key
from jaxft.models.tower.run import run_tower
from jaxft.models.tower.tower import Compute, Params, Part, Tower
from jaxft.models.weights.config_fields import check_fields
from jaxft.models.weights.field_kinds import check_kind, quoted
from jaxft.models.weights.tensor_names import ComposedNames, Member, unused_of, within

HEAD = "vision_language"
MODEL_TYPES: ModelTypes = {
    "idefics3": {HEAD: "Idefics3ForConditionalGeneration"},
    "smolvlm": {HEAD: "SmolVLMForConditionalGeneration"},
    "paligemma": {HEAD: "PaliGemmaForConditionalGeneration"},
    "gemma3": {HEAD: "Gemma3ForConditionalGeneration"},
    "llava": {HEAD: "LlavaForConditionalGeneration"},
}
START, END = "boi_token_index", "eoi_token_index"  # the words around an image's
UNUSED = (r"(language_model\.)?lm_head\.weight",)  # of tied words
# Fields of an image tower that it has for one value only.
TOWER: dict[str, dict[str, Any]] = {"siglip_vision_model": {"vision_use_head": False}}
# Notes of PaliGemma on the whole in its image tower's part.
VISION_UNREAD = (
    *("num_image_tokens", "num_positions", "projection_dim", "projector_hidden_act", "vocab_size"),
)
# Of the first files: what their own code read of the decoder, and of a resampler that is not there;
# and what PaliGemma notes of the whole in its decoder's part.
TEXT_UNREAD = (
    *("_flash_attn_2_enabled", "perceiver_config", "pixel_shuffle_factor", "vision_config"),
    *("tie_word_embeddings", "num_image_tokens", "use_bidirectional_attention"),
)


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
    kind = KINDS[fields["model_type"]]
    for part in PARTS:
        if not isinstance(fields.get(part), Mapping):
            raise UserError(f"config.json: {part} is {quoted(fields.get(part))}, and no object.")
    one = kind.visions[0]  # the first files of a kind with one call it otherwise
    vision = one if len(kind.visions) == 1 else fields["vision_config"].get("model_type", one)
    text = fields["text_config"].get("model_type", kind.texts[0])
    parts = ((vision, kind.visions, "image tower"), (text, kind.texts, "decoder"))
    for model_type, known, part in parts:
        if model_type not in known:
            raise UserError(
                f"config.json: a '{model_type}' is not supported as the {part} of a "
                f"{fields['model_type']}.",
                f"Known: {', '.join(known)}.",
            )
    return VisionLanguage(kind, families[vision], families[text], vision, text).family


@dataclass(frozen=True)
class VisionLanguage:
    """Image tower and decoder of two families, which a config.json names.

    Args:
        kind: how they are put together.
        vision, text: their families.
        vision_type, text_type: which of their model types.
    """

    FIXED: ClassVar[Mapping[str, Any]] = {"is_encoder_decoder": False}
    UNREAD: ClassVar[tuple[str, ...]] = (
        *dict.fromkeys(name for kind in KINDS.values() for name in kind.unread),
    )

    kind: Kind
    vision: Family
    text: Family
    vision_type: str
    text_type: str

    @property
    def family(self) -> Family:
        """Return the family of both together."""
        return Family(
            *("vision_language", self, MODEL_TYPES, self.tensors(), self.towers),
            images=True,
            apply=apply,
            head=("text/head/",),
            joins=(f"{CONNECTOR}/",),
        )

    def from_hf(
        self, fields: Mapping[str, Any], ignore: Sequence[str] = ()
    ) -> VisionLanguageConfig:
        """Read a config.json, with the arguments and errors of `HfConfig.from_hf`."""
        kind = self.kind
        known, passed = (*PARTS, *kind.defaults), (*ignore, *kind.unread)
        check_fields(fields, known=known, fixed=self.FIXED, ignore=passed)
        own = {name: fields.get(name, default) for name, default in kind.defaults.items()}
        check_kind("tie_word_embeddings", own["tie_word_embeddings"], False)
        vision = self._vision(fields["vision_config"], ignore)
        text = TEXT_SIZES[self.text_type] | _without(fields["text_config"], TEXT_UNREAD)
        if kind.text_ties:
            own["tie_word_embeddings"] |= bool(fields["text_config"].get("tie_word_embeddings"))
        text |= {"model_type": self.text_type, "tie_word_embeddings": own["tie_word_embeddings"]}
        text = self.text.config.from_hf(text, ignore)
        side, word = kind.side(own, vision.grid), own[kind.word]
        check_side(kind.by, own.get(kind.by), side, vision.grid)
        check_word(kind.word, word, text.vocab_size)
        read, extra = kind.read(own, vision) if kind.read else (None, 0)
        return VisionLanguageConfig(
            *(fields["model_type"], vision, text, word, side, own),
            stored={part: fields[part] for part in PARTS},
            frame=(own[START], own[END]) if START in own else None,
            prefix=kind.join is see_prefix,
            read=read,
            extra=extra,
        )

    def _vision(self, fields: Mapping[str, Any], ignore: Sequence[str]) -> Any:
        """Read the config of the image tower."""
        fixed = TOWER.get(self.vision_type, {})
        for name, value in fixed.items():
            if fields.get(name, value) != value:
                raise UserError(
                    f"config.json: {name} of the image tower is {quoted(fields[name])}; only "
                    f"{quoted(value)} is supported."
                )
        own = {**fixed, **fields, "model_type": self.vision_type}
        return self.vision.config.from_hf(_without(own, VISION_UNREAD), ignore)

    def tensors(self) -> ComposedNames:
        """Return the tensor names of both."""
        kind, (seeing, writing) = self.kind, self.kind.files
        vision = Member(self.vision.tensors, self.vision_type)
        text = Member(self.text.tensors, self.text_type, kind.text_head)
        lines = (
            *within(vision.names.table(None, self.vision_type), seeing, "vision/"),
            *within(text.names.table(kind.text_head, self.text_type), writing, "text/"),
            *kind.lines,
        )
        members = {seeing: vision, writing: text}
        stored = {line.ours: line.hf for line in lines}
        return kind.names(
            *(dict.fromkeys(MODEL_TYPES, lines), {}, (*unused_of(members), *UNUSED), ()),
            members=members,
            tied=[(stored["text/embeddings/word/embedding"], stored["text/head/kernel"])],
        )

    def towers(
        self, config: VisionLanguageConfig, head: str | None, num_labels: int | None
    ) -> dict[str, Tower]:
        """Build the image tower, which ends in the connector, and the decoder that reads it."""
        (seeing,) = self.vision.towers(config.vision, None, None).values()
        own = config.text.with_fields(self.kind.unused, None)
        (writing,) = self.text.towers(own, "causal_lm", None).values()
        assert isinstance(seeing, Tower) and isinstance(writing, Tower)  # noqa: PT018 - one fact
        top = Part(Connector(config, self.kind.connector(config)))
        blocks = seeing.blocks[: config.read]
        unread = len(seeing.blocks) - len(blocks)
        if unread:
            blocks = (*blocks, *[Part(UnreadBlock(config.vision.fields))] * unread)
        vision = replace(seeing, blocks=blocks, top=top, prefix="vision/")
        join = partial(self.kind.join, word=config.image_token_id)
        needs = writing.needs
        if needs is not None and self.kind.join is not with_soft_tokens:
            needs = replace(needs, positions=True)  # no kernel has such a mask
        text = replace(writing, prefix="text/", reads=vision, input_of=join, needs=needs)
        return {"vision": vision, "text": text}


def _without(fields: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return the fields but those of these names."""
    return {name: value for name, value in fields.items() if name not in names}


def apply(
    towers: Towers, params: Params, batch: Batch, key: jax.Array | None, compute: Compute
) -> dict[str, jax.Array]:
    """Run the image tower, and the decoder on its words and the image's vectors.

    Args:
        towers: `vision` and `text`.
        params: the flat dict.
        batch: `pixel_values` as the image tower takes them, and `input_ids` [B, T] with as many
            marked places as a row's image has vectors.
        key: turns dropout on.
        compute: how to run.
    """
    vision, text = towers["vision"], towers["text"]
    assert isinstance(vision, Tower) and isinstance(text, Tower)  # noqa: PT018 - one fact
    vision_key, text_key = split_key(key, 2)
    vectors = run_tower(vision, params, batch, vision_key, compute)["last_hidden_state"]
    return run_tower(text, params, text.input_of(batch, vectors), text_key, compute)


FAMILY = ComposedFamily("vision_language", VisionLanguage, MODEL_TYPES, compose)
