"""Tensor names of an RF-DETR: its files have those of its authors' code."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from jaxft.models.families.rf_detr.config import Config
from jaxft.models.families.vit.vit import DINOV2_NAMES, IN_MEMORY
from jaxft.models.weights.names import Name, dense, embedding, norm
from jaxft.models.weights.tensor_names import TensorNames, within

BACKBONE = "backbone.0.encoder.encoder."
PROJECTOR = "backbone.0.projector.stages.0."
QUERY_MAPS = ("query", "key", "value")
BOX_LAYERS = 3  # of the maps that make a box
HEAD_NAMES = (
    *dense("class_embed", "head"),
    *(
        line
        for number in range(BOX_LAYERS)
        for line in dense(f"bbox_embed.layers.{number}", f"box_mlp/layers/{number}")
    ),
)
# Of a bare model the head's; what makes masks; and classes that are others now.
UNUSED = (r"(class_embed|bbox_embed|segmentation_head|transformer\.enc_out_class_embed)\..*",)
DECODER_NAMES = (
    *(
        line
        for number, ours in enumerate(QUERY_MAPS)
        for line in (
            Name("self_attn.in_proj_weight", f"attention/{ours}/kernel", True, (number, 3)),
            Name("self_attn.in_proj_bias", f"attention/{ours}/bias", False, (number, 3)),
        )
    ),
    *dense("self_attn.out_proj", "attention/output"),
    *norm("norm1", "attention_norm"),
    *dense("cross_attn.sampling_offsets", "source_attention/offset"),
    *dense("cross_attn.attention_weights", "source_attention/weight"),
    *dense("cross_attn.value_proj", "source_attention/value"),
    *dense("cross_attn.output_proj", "source_attention/output"),
    *norm("norm2", "source_norm"),
    *dense("linear1", "up"),
    *dense("linear2", "down"),
    *norm("norm3", "norm"),
)
# What `transformers` makes of a file's name, in this order.
RENAMED = (
    (r"^backbone\.0\.encoder\.encoder\.", "backbone.backbone."),
    (r"^backbone\.0\.projector\.stages\.0\.1\.", "backbone.projector.layer_norm."),
    (r"^backbone\.0\.projector\.stages\.0\.0\.", "backbone.projector.projector_layer."),
    (r"(?<=projector_layer\.)m\.", "bottlenecks."),
    (r"\bcv(\d)\.conv\.", r"conv\1.conv."),
    (r"\bcv(\d)\.bn\.", r"conv\1.norm."),
    (r"^transformer\.", ""),
    (r"^(decoder\.layers\.\d+\.)norm1\.", r"\1self_attn_layer_norm."),
    (r"^(decoder\.layers\.\d+\.)norm2\.", r"\1cross_attn_layer_norm."),
    (r"^(decoder\.layers\.\d+\.)norm3\.", r"\1layer_norm."),
    (r"^(decoder\.layers\.\d+\.)linear(\d)\.", r"\1mlp.fc\2."),
    (r"^decoder\.norm\.", "decoder.layernorm."),
    (r"^refpoint_embed\.", "reference_point_embed."),
    (r"self_attn\.out_proj\.", "self_attn.o_proj."),
)


@dataclass(frozen=True)
class RfDetrNames(TensorNames):
    """Tensor names of an RF-DETR."""

    def in_memory(self, name: str, model_type: str) -> str:
        del model_type
        for pattern, module in RENAMED:
            name = re.sub(pattern, module, name)
        for stored, module in IN_MEMORY[:4]:
            name = name.replace(stored, module)
        return name if any(line.hf == name for line in HEAD_NAMES) else f"model.{name}"

    def module_line(self, line: Name) -> Name:
        if line.part is None:
            return line
        name = line.hf.replace("in_proj_", f"{'qkv'[line.part[0]]}_proj.")
        return replace(line, hf=name, part=None, span=None)


def names_of(config: Config) -> tuple[Name, ...]:
    """Return the lines that all heads share."""
    selection = config.backbone.fields["num_hidden_layers"]
    prefix = f"blocks/{selection}/"
    lines = [
        *within(_backbone(selection), BACKBONE, ""),
        *norm(f"{BACKBONE}layernorm", f"{prefix}backbone_norm"),
        *within(_projector(config), PROJECTOR, f"{prefix}projector/"),
        *embedding("refpoint_embed", f"{prefix}boxes"),
        *embedding("query_feat", f"{prefix}queries"),
        *norm("transformer.decoder.norm", "norm"),
    ]
    for number in range(2):
        hf = f"transformer.decoder.ref_point_head.layers.{number}"
        lines += dense(hf, f"{prefix}position_mlp/layers/{number}")
    for group in range(config.fields["group_detr"]):
        lines += _group(group, f"{prefix}groups/{group}/")
    for number in range(config.fields["decoder_layers"]):
        hf, ours = f"transformer.decoder.layers.{number}.", f"blocks/{selection + 1 + number}/"
        lines += within(DECODER_NAMES, hf, ours)
    return tuple(lines)


def _backbone(blocks: int) -> list[Name]:
    """Return the lines of a DINOv2's embeddings and so many blocks, which are not all blocks."""
    shared = [line for line in DINOV2_NAMES if not line.ours.startswith("norm/")]
    return [
        replace(line, hf=line.hf.replace("{i}", number), ours=line.ours.replace("{i}", number))
        for line in shared
        for number in (map(str, range(blocks)) if "{i}" in line.ours else "0")
    ]


def _group(group: int, ours: str) -> list[Name]:
    """Return the lines of the proposer of a group of queries."""
    lines = [
        *dense(f"transformer.enc_output.{group}", f"{ours}map"),
        *norm(f"transformer.enc_output_norm.{group}", f"{ours}norm"),
        *dense(f"transformer.enc_out_class_embed.{group}", f"{ours}head"),
    ]
    for number in range(BOX_LAYERS):
        hf = f"transformer.enc_out_bbox_embed.{group}.layers.{number}"
        lines += dense(hf, f"{ours}box_mlp/layers/{number}")
    return lines


def _projector(config: Config) -> list[Name]:
    """Return the lines of the projector."""
    lines = [*_convolutions("0.", ""), *norm("1", "norm")]
    for number in range(config.fields["c2f_num_blocks"]):
        lines += _convolutions(f"0.m.{number}.", f"bottlenecks/{number}/")
    return lines


def _convolutions(hf: str, ours: str) -> list[Name]:
    """Return the lines of two normalized convolutions."""
    lines: list[Name] = []
    for number in (1, 2):
        kernel, _ = dense(f"{hf}cv{number}.conv", f"{ours}conv{number}/conv")
        lines += [kernel, *norm(f"{hf}cv{number}.bn", f"{ours}conv{number}/norm")]
    return lines
