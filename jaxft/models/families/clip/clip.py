"""CLIP, SigLIP, and dual encoders of any two families: images and texts in one vector space.

The towers are other families' bare models; here is what joins them: projections into the common
space, and the scale (and SigLIP's bias) of the similarity.

Source: Radford et al. (2021), https://arxiv.org/abs/2103.00020; Zhai et al. (2023),
https://arxiv.org/abs/2303.15343; the computation follows `transformers`' `modeling_clip.py`,
`modeling_siglip.py` and `modeling_vision_text_dual_encoder.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxft.errors import UserError
from jaxft.models.family import ComposedFamily, Family, ModelTypes
from jaxft.models.layers.batch import Batch
from jaxft.models.layers.modules import Leaf, Linear, parameter, split_key
from jaxft.models.tower.run import run_joint, run_tower
from jaxft.models.tower.tower import Compute, Part, Tower
from jaxft.models.weights.config_fields import check_fields
from jaxft.models.weights.field_kinds import quoted
from jaxft.models.weights.names import Name, dense
from jaxft.models.weights.tensor_names import ComposedNames, HeadLines, Member, unused_of, within

MODEL_TYPES: ModelTypes = {
    "clip": {"contrastive": "CLIPModel", "image_classification": "CLIPForImageClassification"},
    "siglip": {
        "contrastive": "SiglipModel",
        "image_classification": "SiglipForImageClassification",
    },
    "siglip2": {
        "contrastive": "Siglip2Model",
        "image_classification": "Siglip2ForImageClassification",
    },
    "vision-text-dual-encoder": {"contrastive": "VisionTextDualEncoderModel"},
}
# The towers where config.json does not name them.
TOWERS = {
    "clip": ("clip_vision_model", "clip_text_model"),
    "siglip": ("siglip_vision_model", "siglip_text_model"),
    "siglip2": ("siglip2_vision_model", "siglip2_text_model"),
    "vision-text-dual-encoder": ("vit", "bert"),
}
# The model types whose bare model ends in one vector.
POOLED = {
    "vision_config": (
        "vit",
        "deit",
        "dinov2",
        "dinov2_with_registers",
        "dinov3_vit",
        "clip_vision_model",
        "siglip_vision_model",
    ),
    "text_config": ("bert", "clip_text_model", "siglip_text_model"),
}
KNOWN = ("vision_config", "text_config", "projection_dim")
T = TypeVar("T")
VISION, TEXT = "vision_model.", "text_model."
JOINT_NAMES = (
    Name("visual_projection.weight", "head/vision/kernel", transpose=True),
    Name("text_projection.weight", "head/text/kernel", transpose=True),
    Name("logit_scale", "head/logit_scale"),
    Name("logit_bias", "head/logit_bias"),
)
STD = 0.02  # of fresh projections
PROJECTION = 512  # the width of a common space that no config names
SCALE = 2.6592  # of a fresh model: 1 / 0.07, as a logarithm
SIGMOID = ("siglip", "siglip2")
# SigLIP starts with a scale of 10 and with nearly every pair told apart.
SIGMOID_SCALE, SIGMOID_BIAS = math.log(10.0), -10.0


@dataclass(frozen=True)
class DualConfig:
    """Config of two towers and their common space.

    Args:
        model_type: which of `MODEL_TYPES`.
        vision, text: the towers' own configs.
        projection_dim: the width of the common space; None where the towers' own width is it.
        stored: the fields of config.json of each tower, to be handed back: part -> its fields.
    """

    model_type: str
    vision: Any
    text: Any
    projection_dim: int | None
    stored: Mapping[str, Mapping[str, Any]]

    def to_hf(self) -> dict[str, Any]:
        """Return the fields of config.json that this config owns."""
        parts = {"vision_config": self.vision, "text_config": self.text}
        fields: dict[str, Any] = {
            part: {**self.stored[part], **config.to_hf()} for part, config in parts.items()
        }
        if self.projection_dim is not None:
            fields["projection_dim"] = self.projection_dim
        return fields | {"model_type": self.model_type}

    def with_dropout(self, rate: float) -> DualConfig:
        """Return the same config with one dropout rate throughout."""
        return replace(
            self, vision=self.vision.with_dropout(rate), text=self.text.with_dropout(rate)
        )

    @property
    def max_positions(self) -> int:
        """Return the most tokens a text may have."""
        return self.text.max_positions

    @property
    def vocab_size(self) -> int:
        """Return the number of words."""
        return self.text.vocab_size

    def with_image_size(self, size: int) -> DualConfig:
        """Return the same config for square images of that many pixels a side."""
        return replace(self, vision=self.vision.with_image_size(size))

    @property
    def image_size(self) -> tuple[int, int]:
        """Return the height and width of an image."""
        return self.vision.image_size

    @property
    def sigmoid(self) -> bool:
        """Return whether the loss judges each pair by itself, as SigLIP's does."""
        return self.model_type in SIGMOID

    @property
    def fixed_length(self) -> int | None:
        """Return the length to which texts are padded if padding is read as text; else None."""
        return self.max_positions if self.sigmoid else None


def check_space(config: DualConfig) -> None:
    """Raise a UserError unless the towers end in vectors that can be compared."""
    if config.vision.to_hf().get("vision_use_head") is False:
        raise UserError(
            "config.json: vision_use_head is false, so an image has no vector to compare "
            "texts with."
        )
    pooled = config.vision.to_hf().get("pooler_output_size")
    image, text = _width(config.vision), _width(config.text)
    if pooled not in (None, image):
        raise UserError(
            f"config.json: pooler_output_size is {pooled}; beside a text tower only the tower's "
            f"width, {image}, is supported."
        )
    if config.projection_dim is None and image != text:
        raise UserError(
            f"config.json: the image vectors have {image} numbers and the text vectors {text}; "
            "to be compared they need the same width."
        )


def _width(config: Any) -> int:
    """Return the width of the vector that a tower ends in."""
    fields = config.to_hf()
    return fields.get("projection_size") or fields["hidden_size"]


def part_of_config(fields: Mapping[str, Any], part: str) -> dict[str, Any]:
    """Return one tower's part of a config.json, with its `model_type`.

    Args:
        fields: the whole.
        part: `vision_config` or `text_config`.

    Raises:
        UserError: it is no object.
    """
    own = TOWERS[fields["model_type"]][part == "text_config"]
    stored = fields.get(part)
    if fields["model_type"] == "clip" and fields.get(f"{part}_dict") is not None:
        stored = fields[f"{part}_dict"]  # the first files say it twice; transformers goes by this
    if not isinstance(stored, dict | None):
        raise UserError(f"config.json: {part} is {quoted(stored)}, and must be an object.")
    return {"model_type": own} | (stored or {})


def join_configs(vision: Mapping[str, Any], text: Mapping[str, Any]) -> dict[str, Any]:
    """Build the config.json of a model whose towers are two checkpoints.

    Args:
        vision, text: the content of each one's config.json; where one has two towers itself, the
            tower of that name is meant.
    """
    towers = {"vision_config": vision, "text_config": text}
    return {
        "model_type": "vision-text-dual-encoder",
        "logit_scale_init_value": SCALE,
        "projection_dim": PROJECTION,
        **{part: one_config(fields, part) for part, fields in towers.items()},
    }


def one_config(fields: Mapping[str, Any], part: str) -> dict[str, Any]:
    """Return a tower's config.json: the whole, or its part of a dual encoder's."""
    return part_of_config(fields, part) if fields["model_type"] in TOWERS else dict(fields)


def join_tensors(vision: Mapping[str, T], text: Mapping[str, T]) -> dict[str, T]:
    """Collect a dual encoder's tensors from two checkpoints, under the names of its file."""
    both = ((VISION, one_tower(vision, VISION)), (TEXT, one_tower(text, TEXT)))
    return {start + name: value for start, own in both for name, value in own.items()}


def one_tower(tensors: Mapping[str, T], prefix: str) -> dict[str, T]:
    """Return a tower's tensors: those with `prefix` of a dual encoder's, else all."""
    prefixed = {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}
    return prefixed or dict(tensors)


def compose(fields: Mapping[str, Any], families: Mapping[str, Any], paired: bool = False) -> Family:
    """Build the family of a config.json with two towers.

    Args:
        fields: its content.
        families: model type -> family, where the towers' are looked for.
        paired: whether they were two checkpoints, which changes nothing here.

    Raises:
        UserError: a tower's model type is not known.
    """
    del paired
    types = []
    for part, known in POOLED.items():
        model_type = part_of_config(fields, part)["model_type"]
        if fields["model_type"] == "siglip2":  # whose images no other model has in that form
            known = TOWERS["siglip2"]
        if model_type not in known:
            side = "image" if part == "vision_config" else "text"
            raise UserError(
                f"config.json: a '{model_type}' is not supported as the {side} tower of two.",
                f"Known: {', '.join(known)}.",
            )
        types.append(model_type)
    return DualEncoder(families[types[0]], families[types[1]], *types).family()


EMBEDDINGS = ("image_embeds", "text_embeds")


class Space(nnx.Module):
    """Common space: projections into it if any, and the scale and bias of the similarity."""

    def __init__(self, config: DualConfig):
        self.vision = _projection(config.vision, config.projection_dim)
        self.text = _projection(config.text, config.projection_dim)
        shape, axes = ((1,), ("one",)) if config.sigmoid else ((), ())
        scale = SIGMOID_SCALE if config.sigmoid else SCALE
        self.logit_scale = parameter(Leaf(shape, axes, mean=scale, decay=False))
        bias = Leaf(shape, axes, mean=SIGMOID_BIAS, decay=False)
        self.logit_bias = parameter(bias) if config.sigmoid else None


def _projection(tower: Any, width: int | None) -> Linear | None:
    """Build the map of a tower's vector into a common space of that width; None without a width."""
    if width is None:
        return None
    return Linear(_width(tower), width, ("embed", "projected"), STD, bias=False)


class Joint(nnx.Module):
    """Joint part of both towers: unit embeddings from their vectors, and the similarities."""

    def __init__(self, config: DualConfig):
        self.head = Space(config)

    def __call__(
        self,
        image: jax.Array | None,
        text: jax.Array | None,
        embedded: Mapping[str, jax.Array],
    ) -> dict[str, jax.Array]:
        """Embed image vectors [I, D], text vectors [T, E], or both, and then compare them.

        `embedded` has embeddings that are known already.
        """
        head, outputs = self.head, dict(embedded)
        if image is not None:
            outputs["image_embeds"] = _unit(image if head.vision is None else head.vision(image))
        if text is not None:
            outputs["text_embeds"] = _unit(text if head.text is None else head.text(text))
        if len(outputs) < 2:
            return outputs
        scores = outputs["text_embeds"] @ outputs["image_embeds"].T  # [T, I]
        scores = scores * jnp.exp(head.logit_scale[...].astype(jnp.float32))
        if head.logit_bias is not None:
            scores = scores + head.logit_bias[...].astype(jnp.float32)
        return outputs | {"logits_per_text": scores, "logits_per_image": scores.T}


def _unit(x: jax.Array) -> jax.Array:
    """Scale rows to length 1, in float32."""
    x = x.astype(jnp.float32)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


@dataclass(frozen=True)
class DualEncoder:
    """Dual encoder of two families, which a config.json names.

    Args:
        vision, text: the towers' families.
        vision_type, text_type: which of their model types.
    """

    FIXED: ClassVar[Mapping[str, Any]] = {"is_encoder_decoder": False}
    UNREAD: ClassVar[tuple[str, ...]] = (
        "initializer_factor",
        "logit_scale_init_value",
        "text_config_dict",
        "vision_config_dict",
    )

    vision: Family
    text: Family
    vision_type: str
    text_type: str

    def family(self) -> Family:
        """Return the family of both together."""
        parts = self, MODEL_TYPES, self.tensors(), self.towers
        return Family("clip", *parts, images=True, apply=self.apply, refits=self.refits)

    def from_hf(self, fields: Mapping[str, Any], ignore: Sequence[str] = ()) -> DualConfig:
        """Read a config.json, with the arguments and errors of `HfConfig.from_hf`."""
        check_fields(fields, known=KNOWN, fixed=self.FIXED, ignore=(*ignore, *self.UNREAD))
        parts = {part: part_of_config(fields, part) for part in POOLED}
        vision, text = (
            family.config.from_hf(parts[part], ignore)
            for part, family in (("vision_config", self.vision), ("text_config", self.text))
        )
        model_type = fields["model_type"]
        width = None if model_type in SIGMOID else fields.get("projection_dim", PROJECTION)
        return DualConfig(model_type, vision, text, width, parts)

    def tensors(self) -> ComposedNames:
        """Return the tensor names of both, whose towers are bare models under every head."""
        vision = Member(self.vision.tensors, self.vision_type)
        text = Member(self.text.tensors, self.text_type)
        image_lines = vision.names.table(None, self.vision_type)
        heads: HeadLines = {
            "image_classification": (
                *within(image_lines, VISION, ""),
                *dense("classifier", "head"),
            ),
            "contrastive": (
                *within(image_lines, VISION, "vision/"),
                *within(text.names.table(None, self.text_type), TEXT, "text/"),
                *JOINT_NAMES,
            ),
        }
        # A checkpoint may hold all that another head reads.
        read = {
            re.escape(n.hf).replace(r"\{i\}", r"\d+") for lines in heads.values() for n in lines
        }
        members = {VISION: vision, TEXT: text}
        fresh = (("vision/", vision), ("text/", text))
        return ComposedNames(
            dict.fromkeys(MODEL_TYPES, ()),
            heads,
            (*sorted(read), *unused_of(members)),
            ("head/", *(start + one for start, part in fresh for one in part.names.fresh)),
            members,
        )

    def refits(
        self, config: DualConfig, fields: Mapping[str, Any]
    ) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
        """Return the functions that fit the image tower's tensors to another image size."""
        stored = part_of_config(fields, "vision_config")
        of_vision = self.vision.refits(config.vision, stored)
        return {f"vision/{name}": compute for name, compute in of_vision.items()} | dict(of_vision)

    def towers(
        self, config: DualConfig, head: str | None, num_labels: int | None
    ) -> dict[str, Tower | Part]:
        """Build both towers and their joint part; only the image tower of a classifier."""
        if head == "image_classification":
            return dict(self.vision.towers(config.vision, head, num_labels))
        check_space(config)
        towers: dict[str, Tower | Part] = {}
        for name, family, own in (
            ("vision", self.vision, config.vision),
            ("text", self.text, config.text),
        ):
            (tower,) = family.towers(own, None, None).values()
            assert isinstance(tower, Tower), "compose takes families of one tower"
            towers[name] = replace(tower, prefix=f"{name}/")
        return towers | {"head": Part(Joint(config))}

    def apply(
        self,
        towers: Mapping[str, Tower | Part],
        params: Mapping[str, jax.Array],
        batch: Batch,
        key: jax.Array | None,
        compute: Compute,
    ) -> dict[str, jax.Array]:
        """Compute the outputs for a batch, under Hugging Face's names.

        Args:
            towers: as `towers` gives them.
            params: the flat dict.
            batch: `pixel_values` [I, C, H, W] and what the text tower reads; or one of the two,
                for embeddings alone; or the embeddings, under their names, for similarities alone.
            key: turns dropout on.
            compute: how to run.

        Raises:
            UserError: a text or an image is of a size that its tower does not take.
        """
        keys = dict(zip(("vision", "text"), split_key(key, 2), strict=True))

        def run(name: str, wanted: str) -> dict[str, jax.Array]:
            tower = towers[name]
            assert isinstance(tower, Tower)
            return run_tower(tower, params, batch, keys[name], compute) if wanted in batch else {}

        image = run("vision", "pixel_values")
        if "head" not in towers:
            return image
        text = run("text", "input_ids")
        vectors = [outputs.get("pooler_output") for outputs in (image, text)]
        joint = towers["head"]
        assert isinstance(joint, Part)
        embedded = {name: batch[name] for name in EMBEDDINGS if name in batch}
        return run_joint(joint, params, compute, *vectors, embedded)


FAMILY = ComposedFamily("clip", DualEncoder, MODEL_TYPES, compose)
