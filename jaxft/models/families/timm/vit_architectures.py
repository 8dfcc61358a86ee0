"""Architectures of timm that are plain vision transformers: what each name stands for.

The numbers are those of `timm/models/vision_transformer.py` and `deit.py` (timm 1.0), which a
config.json names and does not have.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

# Size -> width, blocks, heads, and width of the MLP over the width.
SIZES = {
    "tiny": (192, 12, 3, 4.0),
    "xsmall": (256, 10, 4, 4.0),
    "wee": (256, 14, 4, 5.0),
    "little": (320, 14, 5, 5.6),
    "small": (384, 12, 6, 4.0),
    "medium": (512, 12, 8, 4.0),
    "mediumd": (512, 20, 8, 4.0),
    "betwixt": (640, 12, 10, 4.0),
    "base": (768, 12, 12, 4.0),
    "plus": (896, 12, 14, 4.0),
    "so150m": (896, 18, 14, 2.572),
    "so150m2": (832, 21, 13, 2.6153846153846154),
    "large": (1024, 24, 16, 4.0),
    "so400m": (1152, 27, 16, 3.7362),
    "huge": (1280, 32, 16, 4.0),
    "giant": (1408, 40, 16, 4.363636363636363),
    "giantopt": (1536, 40, 16, 4.0),
    "gigantic": (1664, 48, 16, 4.923076923076923),
}
# Arguments of timm's `VisionTransformer`, and what they are where nothing else is said. The last
# two are ours: the epsilon of its norms, and whether its MLP has a gate.
DEFAULTS: dict[str, Any] = {
    "img_size": 224,
    "patch_size": 16,
    "in_chans": 3,
    "global_pool": "token",
    "embed_dim": 768,
    "depth": 12,
    "num_heads": 12,
    "mlp_ratio": 4.0,
    "qkv_bias": True,
    "init_values": None,
    "class_token": True,
    "no_embed_class": False,
    "reg_tokens": 0,
    "pre_norm": False,
    "fc_norm": None,
    "pool_include_prefix": False,
    "drop_rate": 0.0,
    "pos_drop_rate": 0.0,
    "proj_drop_rate": 0.0,
    "attn_drop_rate": 0.0,
    "drop_path_rate": 0.0,
    "act_layer": "gelu",
    "eps": 1e-6,
    "gated": False,
}
CLIP = {"pre_norm": True, "eps": 1e-5}
MEAN = {"global_pool": "avg", "class_token": False}
MAP = {"global_pool": "map", "class_token": False}
BARE = {"no_embed_class": True}
GATED = {
    "act_layer": "silu",
    "gated": True,
    "embed_dim": 1536,
    "num_heads": 24,
    "mlp_ratio": 5.33334,
}
# What architectures have beside their size -> their names.
GROUPS: tuple[tuple[Mapping[str, Any], str], ...] = (
    (
        {},
        """
        vit_base_patch8_224 vit_base_patch16_224 vit_base_patch16_384 vit_base_patch32_224
        vit_base_patch32_384 vit_giant_patch14_224 vit_gigantic_patch14_224
        vit_huge_patch14_224 vit_large_patch14_224 vit_large_patch16_224
        vit_large_patch16_384 vit_large_patch32_224 vit_large_patch32_384
        vit_small_patch8_224 vit_small_patch16_224 vit_small_patch16_384
        vit_small_patch32_224 vit_small_patch32_384 vit_tiny_patch16_224
        vit_tiny_patch16_384 deit_base_patch16_224 deit_base_patch16_384
        deit_small_patch16_224 deit_tiny_patch16_224
        """,
    ),
    (
        {"global_pool": "avg"},
        """
        eva_large_patch14_196 eva_large_patch14_336
        """,
    ),
    (
        BARE,
        """
        flexivit_base flexivit_large flexivit_small
        """,
    ),
    (
        CLIP,
        """
        vit_base_patch16_clip_224 vit_base_patch16_clip_384 vit_base_patch16_plus_clip_240
        vit_base_patch32_clip_224 vit_base_patch32_clip_256 vit_base_patch32_clip_384
        vit_base_patch32_clip_448 vit_betwixt_patch32_clip_224 vit_giant_patch14_clip_224
        vit_gigantic_patch14_clip_224 vit_gigantic_patch14_clip_378
        vit_huge_patch14_clip_224 vit_huge_patch14_clip_336 vit_huge_patch14_clip_378
        vit_large_patch14_clip_224 vit_large_patch14_clip_336 vit_medium_patch16_clip_224
        vit_medium_patch32_clip_224 vit_xsmall_patch16_clip_224
        """,
    ),
    (
        MEAN | {"fc_norm": False},
        """
        vit_base_patch16_gap_224 vit_base_patch16_siglip_gap_224
        vit_base_patch16_siglip_gap_256 vit_base_patch16_siglip_gap_384
        vit_base_patch16_siglip_gap_512 vit_giant_patch16_gap_224 vit_huge_patch14_gap_224
        vit_huge_patch16_gap_448 vit_large_patch16_siglip_gap_256
        vit_large_patch16_siglip_gap_384 vit_so400m_patch14_siglip_gap_224
        vit_so400m_patch14_siglip_gap_378 vit_so400m_patch14_siglip_gap_384
        vit_so400m_patch14_siglip_gap_448 vit_so400m_patch14_siglip_gap_896
        """,
    ),
    (
        {"qkv_bias": False},
        """
        vit_base_patch16_224_miil
        """,
    ),
    (
        {"init_values": 1e-5},
        """
        vit_base_patch14_dinov2 vit_base_patch16_plus_240 vit_base_patch32_plus_256
        vit_large_patch14_dinov2 vit_small_patch14_dinov2 vit_small_patch16_36x1_224
        """,
    ),
    (
        CLIP | {"act_layer": "quick_gelu"},
        """
        vit_base_patch16_clip_quickgelu_224 vit_base_patch32_clip_quickgelu_224
        vit_gigantic_patch14_clip_quickgelu_224 vit_huge_patch14_clip_quickgelu_224
        vit_huge_patch14_clip_quickgelu_378 vit_large_patch14_clip_quickgelu_224
        vit_large_patch14_clip_quickgelu_336
        """,
    ),
    (
        MEAN | {"fc_norm": False, "reg_tokens": 4},
        """
        vit_so150m_patch16_reg4_gap_256 vit_so150m_patch16_reg4_gap_384
        """,
    ),
    (
        MEAN | {"fc_norm": False, "act_layer": "gelu_pytorch_tanh"},
        """
        vit_base_patch32_siglip_gap_256 vit_giantopt_patch16_siglip_gap_256
        vit_giantopt_patch16_siglip_gap_384 vit_large_patch16_siglip_gap_512
        vit_so400m_patch16_siglip_gap_256 vit_so400m_patch16_siglip_gap_384
        vit_so400m_patch16_siglip_gap_512
        """,
    ),
    (
        {"init_values": 1e-5} | GATED,
        """
        vit_giant_patch14_dinov2
        """,
    ),
    (
        {"init_values": 1e-6} | BARE,
        """
        deit3_base_patch16_224 deit3_base_patch16_384 deit3_huge_patch14_224
        deit3_large_patch16_224 deit3_large_patch16_384 deit3_medium_patch16_224
        deit3_small_patch16_224 deit3_small_patch16_384
        """,
    ),
    (
        MEAN | {"fc_norm": False, "qkv_bias": False, "init_values": 1e-6},
        """
        vit_betwixt_patch16_gap_256 vit_medium_patch16_gap_240 vit_medium_patch16_gap_256
        vit_medium_patch16_gap_384
        """,
    ),
    (
        MEAN | BARE | {"reg_tokens": 4},
        """
        vit_base_patch16_reg4_gap_256
        """,
    ),
    (
        {"init_values": 1e-5} | BARE | {"reg_tokens": 4},
        """
        vit_base_patch14_reg4_dinov2 vit_large_patch14_reg4_dinov2
        vit_small_patch14_reg4_dinov2
        """,
    ),
    (
        {"init_values": 1.0} | BARE | {"reg_tokens": 1},
        """
        vit_base_patch14_reg1_tipsv2 vit_large_patch14_reg1_tipsv2
        vit_so400m_patch14_reg1_tipsv2
        """,
    ),
    (
        MEAN | {"qkv_bias": False, "init_values": 1e-5, "reg_tokens": 1},
        """
        vit_so150m2_patch16_reg1_gap_256 vit_so150m2_patch16_reg1_gap_384
        vit_so150m2_patch16_reg1_gap_448
        """,
    ),
    (
        MEAN | {"init_values": 1e-5} | BARE | {"reg_tokens": 1},
        """
        vit_betwixt_patch16_reg1_gap_256 vit_little_patch16_reg1_gap_256
        vit_medium_patch16_reg1_gap_256 vit_wee_patch16_reg1_gap_256
        """,
    ),
    (
        MEAN | {"init_values": 1e-5} | BARE | {"reg_tokens": 4},
        """
        vit_betwixt_patch16_reg4_gap_256 vit_betwixt_patch16_reg4_gap_384
        vit_little_patch16_reg4_gap_256 vit_medium_patch16_reg4_gap_256
        vit_mediumd_patch16_reg4_gap_256 vit_mediumd_patch16_reg4_gap_384
        """,
    ),
    (
        {"init_values": 1e-5} | BARE | GATED | {"reg_tokens": 4},
        """
        vit_giant_patch14_reg4_dinov2
        """,
    ),
    (
        {"init_values": 1.0} | BARE | GATED | {"reg_tokens": 1},
        """
        vit_giant_patch14_reg1_tipsv2
        """,
    ),
    (
        MAP,
        """
        vit_base_patch16_siglip_224 vit_base_patch16_siglip_256 vit_base_patch16_siglip_384
        vit_base_patch16_siglip_512 vit_large_patch16_siglip_256
        vit_large_patch16_siglip_384 vit_so400m_patch14_siglip_224
        vit_so400m_patch14_siglip_378 vit_so400m_patch14_siglip_384
        """,
    ),
    (
        MAP | {"act_layer": "gelu_pytorch_tanh"},
        """
        vit_base_patch32_siglip_256 vit_giantopt_patch16_siglip_256
        vit_giantopt_patch16_siglip_384 vit_large_patch16_siglip_512
        vit_so400m_patch16_siglip_256 vit_so400m_patch16_siglip_384
        vit_so400m_patch16_siglip_512
        """,
    ),
    (
        MAP | {"reg_tokens": 4},
        """
        vit_so150m_patch16_reg4_map_256
        """,
    ),
)
SMALLEST = {"img_size": 160, "embed_dim": 64, "num_heads": 2, "mlp_ratio": 3.0}  # for tests
OTHERS: dict[str, dict[str, Any]] = {
    "vit_base_patch16_gap_224": {"num_heads": 16},
    "vit_small_patch16_36x1_224": {"depth": 36},
    "test_vit": SMALLEST | {"depth": 6},
    "test_vit2": SMALLEST | MEAN | {"depth": 8, "init_values": 1e-5, "reg_tokens": 1},
    "test_vit3": MAP
    | {"img_size": 160, "embed_dim": 96, "depth": 9, "num_heads": 3, "mlp_ratio": 2.0}
    | {"init_values": 1e-5, "reg_tokens": 1, "pool_include_prefix": True},
}
# Image sizes that a name does not have.
UNNAMED = {"miil": 224, "dinov2": 518, "tipsv2": 448, "flexivit": 240}


@cache
def architectures() -> dict[str, dict[str, Any]]:
    """Map each architecture to what timm gives its `VisionTransformer`."""
    named = {name: _size_of(name) | dict(own) for own, names in GROUPS for name in names.split()}
    return {name: DEFAULTS | named.get(name, {}) | OTHERS.get(name, {}) for name in named | OTHERS}


def _size_of(name: str) -> dict[str, Any]:
    """Return the sizes that a name says."""
    words = name.split("_")
    size = next(word for word in (*reversed(words[2:]), words[1]) if word in SIZES)
    fields = dict(zip(("embed_dim", "depth", "num_heads", "mlp_ratio"), SIZES[size], strict=True))
    if patch := re.search(r"patch(\d+)", name):
        fields["patch_size"] = int(patch.group(1))
    unnamed = [pixels for word, pixels in UNNAMED.items() if word in words]
    fields["img_size"] = unnamed[0] if unnamed else int(words[-1])
    return fields
