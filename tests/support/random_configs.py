"""Small random Hugging Face configs of any model type, drawn field by field.

A config has the fields of its own class; what a field is drawn from is said once, by its name, in
`FIELDS`. A new model type with fields of known names is drawn with no new line, and
`undrawn_fields` names the fields that need one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import AutoConfig, PretrainedConfig

from jaxft.models import load as registry
from jaxft.models.weights.config_fields import HARMLESS_FIELDS


@dataclass(frozen=True)
class Draw:
    """A generator, the config as it is by default, and the sizes that several fields share.

    Args:
        generator: where all chance comes from.
        defaults: field -> what it is by default.
        groups, queries: heads of keys, and heads of queries that each of them serves.
        head: the width of a head where the width of the model is cut into heads.
        head_dim: the width of a head, which may be another where a field says so.
        layers: blocks.
        positions: the most tokens.
        patch: pixels a side of a patch.
        slides: whether blocks may have sliding windows.
        projection: the width that two towers are projected to.
        vision: the width of the vision tower, where there is one.
        joined: whether it is a tower whose vector is compared with another's.
    """

    generator: np.random.Generator
    defaults: dict[str, Any]
    groups: int
    queries: int
    head: int
    head_dim: int
    layers: int
    positions: int
    patch: int
    slides: bool
    projection: int
    vision: int | None = None
    joined: bool = False

    @property
    def heads(self) -> int:
        return self.groups * self.queries

    @property
    def width(self) -> int:
        return self.heads * self.head

    def number(self, low: int, high: int) -> int:
        """A whole number from `low` up to `high`, without it."""
        return int(self.generator.integers(low, high))

    def one_of(self, *choices: Any) -> Any:
        return choices[self.number(0, len(choices))]

    def flag(self) -> bool:
        return self.one_of(False, True)


def make_draw(generator: np.random.Generator, defaults: dict[str, Any], **shared: Any) -> Draw:
    """The sizes of one config, or of one part of it; `shared` are those of all its parts."""
    grouped = "num_key_value_heads" in defaults
    named = not {"head_dim", "d_kv"}.isdisjoint(defaults)
    step = 4 if "pos_embed_rescale" in defaults else 2  # DINOv3 turns quarters of a head
    groups, queries = (int(n) for n in generator.integers(1, 4, 2))
    own = {
        "groups": groups if grouped else groups * queries,
        "queries": queries if grouped else 1,
        # A norm over four numbers may divide by nearly nothing, in PyTorch too: not so over eight.
        "head": (head := 2 * int(generator.integers(4, 8)) // step * step),
        "head_dim": 2 * int(generator.integers(2, 7)) if named else head,
        "layers": int(generator.integers(2, 5)),
        "positions": int(generator.integers(24, 40)),
        "patch": int(generator.integers(2, 5)),
        "slides": "use_sliding_window" not in defaults or bool(generator.integers(3)),
        "projection": int(generator.integers(5, 20)),
    }
    return Draw(generator, defaults, **own | shared)


def inner(name: str) -> Callable[[Draw], int | None]:
    """The width of an MLP; none is said where the default says none."""

    def draw(draw: Draw) -> int | None:
        if draw.defaults[name] is None and draw.flag():
            return None
        return draw.number(9, 50)

    return draw


# Those of published models; test_layers.py compares all that are known.
PUBLISHED = ("gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu", "swish", "tanh")


def activation(draw: Draw) -> str:
    return draw.one_of(*PUBLISHED)


def epsilon(draw: Draw) -> float:
    return draw.one_of(1e-12, 1e-6, 1e-5, 1e-3)


def pooling(draw: Draw) -> str:
    """ModernBERT's or EuroBERT's, by what is the default."""
    of_cls = draw.defaults["classifier_pooling"] == "cls"
    return draw.one_of("cls", "mean") if of_cls else draw.one_of("bos", "mean", "late")


def soft_cap(draw: Draw) -> float | None:
    return draw.one_of(None, 0.7, 3.0)


def rotary(draw: Draw) -> dict[str, Any]:
    """Any kind of rotary embedding, its base and numbers; one for each kind of block if asked."""
    default = draw.defaults["rope_parameters"]
    kinds = [k for k, v in default.items() if isinstance(v, dict)]
    if "partial_rotary_factor" in default:
        phi3 = "original_max_position_embeddings" in draw.defaults
        return phi3_rotary(draw) if phi3 else part_rotary(draw)
    return {kind: one_rotary(draw) for kind in kinds} or one_rotary(draw)


def phi3_rotary(draw: Draw) -> dict[str, Any]:
    """Phi-3's: of a whole head or a part of it, plain or stretched."""
    shares = [share for share in (1.0, 0.5, 0.75, 0.4) if int(draw.head * share) % 2 == 0]
    share = draw.one_of(*shares)
    rope = {"rope_theta": draw.one_of(100.0, 1e4), "partial_rotary_factor": share}
    if draw.flag():
        return rope | {"rope_type": "default"}
    factors = [
        [1.0 + draw.number(0, 9) / 4 for _ in range(int(draw.head * share) // 2)] for _ in "12"
    ]
    return rope | {"rope_type": "longrope", "short_factor": factors[0], "long_factor": factors[1]}


def part_rotary(draw: Draw) -> dict[str, Any]:
    """Any kind but `longrope`, whose factors count the width, of a whole head or a part of it."""
    shares = [share for share in (1.0, 0.5, 0.25) if int(draw.head * share) % 2 == 0]
    rope = one_rotary(draw)
    rope = {"rope_type": "default", "rope_theta": 1e4} if "long_factor" in rope else rope
    return rope | {"partial_rotary_factor": draw.one_of(*shares)}


def one_rotary(draw: Draw) -> dict[str, Any]:
    kind = draw.one_of("default", "linear", "dynamic", "llama3", "yarn", "longrope")
    rope = {"rope_type": kind, "rope_theta": draw.one_of(100.0, 1e4, 5e5)}
    if kind != "default":
        rope["factor"] = draw.one_of(2.0, 4.0, 8.0)
    if kind in ("llama3", "yarn"):
        rope["original_max_position_embeddings"] = draw.positions // 2
    if kind == "llama3":
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": draw.one_of(2.0, 4.0)}
    if kind == "longrope":
        # Every text of a test is beyond it or none is: a cache from before it is none from after.
        rope["original_max_position_embeddings"] = draw.one_of(6, draw.positions)
        for name in ("short_factor", "long_factor"):
            rope[name] = [1.0 + draw.number(0, 9) / 4 for _ in range(draw.head_dim // 2)]
    if kind == "yarn":
        rope |= draw.one_of(
            {},
            {"beta_fast": 4.0, "beta_slow": 0.5, "truncate": False},
            {"attention_factor": 1.3},
            {"mscale": 1.0, "mscale_all_dim": 0.7},
        )
    return rope


def sliding_window(draw: Draw) -> int | None:
    """Sometimes none, where no block asks for one by its kind."""
    some = draw.number(2, 9)
    return some if "layer_types" in draw.defaults else draw.one_of(None, some)


def layer_types(draw: Draw) -> list[str] | None:
    """Windows on any blocks, or as the other fields say."""
    if draw.flag():
        return None
    kinds = ("full_attention", "sliding_attention") if draw.slides else ("full_attention",)
    return [draw.one_of(*kinds) for _ in range(draw.layers)]


def attention_types(draw: Draw) -> list[Any]:
    """GPT-Neo's: patterns of blocks, each with how often it comes."""
    first = draw.number(0, draw.layers + 1)
    rest = [[draw.one_of(["global"], ["local"]), draw.layers - first]]
    return [[["local", "global"], first // 2], [["local"], first % 2], *rest]


def token_types(draw: Draw) -> int:
    """Two or three; or none where that is the default."""
    return draw.number(2, 4) if draw.defaults["type_vocab_size"] else draw.one_of(0, 2, 3)


def distance_kinds(draw: Draw) -> Any:
    """DeBERTa's relative scores, as a list or joined by a bar, as its own files have them."""
    return draw.one_of(["c2p", "p2c"], ["p2c", "c2p"], "p2c|c2p", ["c2p"], ["p2c"], None)


def of_deberta(draw: Draw, legacy: bool) -> dict[str, Any]:
    """Fields that its files have and its config class does not name."""
    return {
        "position_buckets": draw.one_of(-1, 6, 8, 16),
        "share_att_key": draw.flag(),
        "norm_rel_ebd": draw.one_of("layer_norm", "none"),
        "conv_kernel_size": draw.one_of(0, 3, 5),
        "conv_act": activation(draw),
        # transformers scores words by the other head only with embeddings as wide as the model.
        "embedding_size": draw.one_of(draw.width, draw.number(6, 20)) if legacy else draw.width,
        "cls_dropout": rate(draw),
    }


def rate(draw: Draw) -> float:
    """A dropout rate: outputs are compared without dropout, but tests turn it on."""
    return 0.1


def image_size(draw: Draw) -> int | list[int]:
    """The side of a square, or height and width where the default has both."""
    sides = [draw.patch * draw.number(2, 5)]
    if not isinstance(draw.defaults["image_size"], int):
        return [*sides, draw.patch * draw.number(2, 5)]
    return sides[0]


FIELDS: dict[str, Callable[[Draw], Any]] = {
    # Sizes.
    "vocab_size": lambda draw: draw.number(40, 90),
    "type_vocab_size": token_types,
    "hidden_size": lambda draw: draw.width,
    "num_hidden_layers": lambda draw: draw.layers,
    "num_attention_heads": lambda draw: draw.heads,
    "num_key_value_heads": lambda draw: draw.groups,
    "head_dim": lambda draw: draw.head_dim,
    "max_position_embeddings": lambda draw: draw.positions,
    "intermediate_size": inner("intermediate_size"),
    "n_inner": inner("n_inner"),
    "ffn_dim": inner("ffn_dim"),
    "d_ff": inner("d_ff"),
    "encoder_ffn_dim": inner("encoder_ffn_dim"),
    "decoder_ffn_dim": inner("decoder_ffn_dim"),
    "decoder_attention_heads": lambda draw: draw.one_of(draw.heads, 1),
    "decoder_layers": lambda draw: draw.number(2, 5),
    "decoder_hidden_size": lambda draw: draw.number(5, 20),
    "decoder_vocab_size": lambda draw: None,  # as many as of the encoder
    "num_decoder_layers": lambda draw: draw.one_of(None, draw.number(2, 5)),
    "mlp_ratio": lambda draw: draw.number(1, 4),
    "hidden_dim": inner("hidden_dim"),
    "embedding_size": lambda draw: draw.one_of(draw.width, draw.number(6, 20)),
    "word_embed_proj_dim": lambda draw: draw.one_of(draw.width, draw.number(6, 20)),
    "projection_dim": lambda draw: draw.projection,
    "projection_size": lambda draw: draw.vision,
    "image_size": image_size,
    "patch_size": lambda draw: draw.patch,
    "num_patches": lambda draw: draw.number(2, 5) ** 2,
    # transformers projects a tower's vector as if it were as wide as the tower.
    "pooler_output_size": lambda draw: draw.width if draw.joined else draw.number(5, 20),
    "num_register_tokens": lambda draw: draw.number(1, 4),
    "num_detection_tokens": lambda draw: draw.number(2, 6),
    # Of a detector of queries: `of_detector`.
    "d_model": lambda draw: 16,
    "num_queries": lambda draw: 4,
    "group_detr": lambda draw: draw.number(1, 4),
    "decoder_self_attention_heads": lambda draw: 2,
    "decoder_cross_attention_heads": lambda draw: 2,
    "decoder_n_points": lambda draw: draw.number(1, 4),
    "c2f_num_blocks": lambda draw: draw.number(1, 3),
    "hidden_expansion": lambda draw: draw.one_of(0.5, 1.0),
    "decoder_activation_function": activation,
    # Functions and their numbers.
    "hidden_act": activation,
    "hidden_activation": activation,
    "activation_function": activation,
    "activation": activation,
    "pooler_act": activation,
    "pooler_hidden_act": activation,
    "projector_hidden_act": activation,
    "feed_forward_proj": lambda draw: draw.one_of("relu", "silu", "gated-gelu", "gated-silu"),
    "classifier_activation": activation,
    "layer_norm_eps": epsilon,
    "norm_eps": epsilon,
    "layer_norm_epsilon": epsilon,
    "rms_norm_eps": epsilon,
    "layerscale_value": lambda draw: draw.one_of(1.0, 0.3),
    "layer_scale_init_value": lambda draw: draw.one_of(0.0, 0.3),
    "query_pre_attn_scalar": lambda draw: draw.number(3, 20),
    "embedding_multiplier": lambda draw: draw.one_of(1.0, 12.0),
    "attention_multiplier": lambda draw: draw.one_of(1.0, 0.125),
    "residual_multiplier": lambda draw: draw.one_of(1.0, 0.22),
    "logits_scaling": lambda draw: draw.one_of(1.0, 8.0),
    "attn_logit_softcapping": soft_cap,
    "final_logit_softcapping": soft_cap,
    "logit_scale_init_value": lambda draw: draw.one_of(1.0, 2.6592),
    # Switches.
    "attention_bias": Draw.flag,
    "mlp_bias": Draw.flag,
    "qkv_bias": Draw.flag,
    "query_bias": Draw.flag,
    "key_bias": Draw.flag,
    "value_bias": Draw.flag,
    "proj_bias": Draw.flag,
    "enable_bias": Draw.flag,
    "norm_bias": Draw.flag,
    "decoder_bias": Draw.flag,
    "classifier_bias": Draw.flag,
    "tie_word_embeddings": Draw.flag,
    "scale_attn_weights": lambda draw: draw.one_of(True, True, True, False),
    "scale_attn_by_inverse_layer_idx": Draw.flag,
    "do_layer_norm_before": Draw.flag,
    "_remove_final_layer_norm": Draw.flag,
    "layer_norm_elementwise_affine": Draw.flag,
    "use_parallel_residual": Draw.flag,
    "use_swiglu_ffn": Draw.flag,
    "use_gated_mlp": Draw.flag,
    "scale_embedding": Draw.flag,
    # Words of an image: `of_images`.
    "scale_factor": lambda draw: 1,
    "mm_tokens_per_image": lambda draw: 1,
    "image_token_id": lambda draw: 4,
    "image_token_index": lambda draw: 4,
    "vision_feature_layer": lambda draw: -1,
    "vision_feature_select_strategy": lambda draw: draw.one_of("default", "full"),
    "multimodal_projector_bias": Draw.flag,
    "boi_token_index": lambda draw: 5,
    "eoi_token_index": lambda draw: 6,
    "use_learned_position_embeddings": Draw.flag,
    "layernorm_embedding": Draw.flag,
    "cross_attention_hidden_size": lambda draw: None,  # or the encoder's, in a pair
    "share_encoder_decoder_embeddings": Draw.flag,
    "use_mask_token": Draw.flag,
    "use_absolute_position_embeddings": Draw.flag,
    "use_relative_position_bias": Draw.flag,
    "use_shared_relative_position_bias": Draw.flag,
    "use_mean_pooling": Draw.flag,
    "use_mid_position_embeddings": Draw.flag,
    "vision_use_head": lambda draw: draw.joined or draw.flag(),
    # Positions and windows.
    "rope_theta": lambda draw: draw.one_of(100.0, 1e4),
    "pos_embed_shift": lambda draw: draw.one_of(None, 0.1),
    "pos_embed_jitter": lambda draw: draw.one_of(None, 1.5),
    "pos_embed_rescale": lambda draw: draw.one_of(None, 2.0),
    "rope_parameters": rotary,
    # Every text of a test is beyond it or none is: a cache from before it is none from after.
    "original_max_position_embeddings": lambda draw: draw.one_of(6, draw.positions),
    "use_sliding_window": lambda draw: draw.slides,
    "sliding_window": sliding_window,
    "max_window_layers": lambda draw: draw.number(0, draw.layers + 1),
    "layer_types": layer_types,
    "no_rope_layer_interval": lambda draw: draw.number(2, 4),
    "no_rope_layers": lambda draw: draw.one_of(
        None, [draw.number(0, 2) for _ in range(draw.layers)]
    ),
    "local_attention": lambda draw: draw.number(2, 12),
    "classifier_pooling": pooling,
    "window_size": lambda draw: draw.number(2, 9),
    "relative_attention_num_buckets": lambda draw: draw.one_of(8, 12, 32),
    "relative_attention_max_distance": lambda draw: draw.one_of(18, 128),
    "attention_types": attention_types,
    "num_experts": lambda draw: draw.one_of(4, 8),
    "num_local_experts": lambda draw: draw.one_of(4, 8),
    # Of one expert the weight may be 1 whatever its score: its router then learns nothing.
    "num_experts_per_tok": lambda draw: draw.number(2, 4),
    "moe_intermediate_size": inner("moe_intermediate_size"),
    "norm_topk_prob": Draw.flag,
    "decoder_sparse_step": lambda draw: draw.one_of(1, 1, 2),
    "mlp_only_layers": lambda draw: draw.one_of([], [], [0]),
    "swiglu_alpha": lambda draw: draw.one_of(1.702, 1.0),
    "swiglu_limit": lambda draw: draw.one_of(7.0, 0.4),
    "clip_qkv": lambda draw: draw.one_of(None, 0.7),
    "output_router_logits": Draw.flag,
    "router_aux_loss_coef": lambda draw: draw.one_of(0.01, 0.3),
    "relative_attention": lambda draw: draw.one_of(False, True, True, True),
    "max_relative_positions": lambda draw: draw.one_of(-1, 12),
    "pos_att_type": distance_kinds,
    "position_biased_input": Draw.flag,
    "legacy": Draw.flag,
    # Tokens: a padding word is never among the others (see `make_pair`).
    "pad_token_id": lambda draw: 0,
    "bos_token_id": lambda draw: 1,
    "decoder_start_token_id": lambda draw: 0,
    "forced_eos_token_id": lambda draw: None,  # tests of generation force tokens themselves
    # CLIP takes 2 for the highest word there is.
    "eos_token_id": lambda draw: draw.number(2, 4),
    # Dropout.
    "activation_dropout": rate,
    "attention_dropout": rate,
    "attention_probs_dropout_prob": rate,
    "attn_pdrop": rate,
    "classifier_dropout": rate,
    "classifier_dropout_prob": rate,
    "classifier_dropout_rate": rate,
    "drop_path_rate": rate,
    "dropout": rate,
    "dropout_rate": rate,
    "embd_pdrop": rate,
    "embedding_dropout": rate,
    "mlp_dropout": rate,
    "embed_dropout": rate,
    "hidden_dropout": rate,
    "hidden_dropout_prob": rate,
    "pooler_dropout": rate,
    "resid_dropout": rate,
    "resid_pdrop": rate,
    "seq_classif_dropout": rate,
    "qa_dropout": rate,
    "summary_last_dropout": rate,
    # ELECTRA's scores of choices.
    "summary_activation": activation,
    "summary_type": lambda draw: "first",
    "summary_use_proj": lambda draw: True,
}


def pyramid(draw: Draw, heads: str, width: int = 4) -> dict[str, Any]:
    """Two to four stages: the blocks and the channels of each, and its heads under a name."""
    stages = draw.number(2, 5)
    each = [draw.number(1, 4) for _ in range(stages)]
    per_head = [width * draw.number(2, 4) for _ in range(stages)]
    return {
        "depths": [draw.number(1, 4) for _ in range(stages)],
        "hidden_sizes": [count * own for count, own in zip(each, per_head, strict=True)],
        heads: each,
    }


def segformer(draw: Draw) -> dict[str, Any]:
    """SegFormer's stages, which do not shrink an image of 60 pixels to nothing."""
    own = pyramid(draw, "num_attention_heads")
    stages = len(own["depths"])
    return own | {
        "num_encoder_blocks": stages,
        "strides": [draw.number(2, 5), *[draw.number(1, 3) for _ in range(stages - 1)]],
        "patch_sizes": [draw.one_of(3, 5, 7) for _ in range(stages)],
        "sr_ratios": [draw.one_of(1, 2) for _ in range(stages)],
        "mlp_ratios": [draw.number(1, 4) for _ in range(stages)],
    }


def convnext(draw: Draw) -> dict[str, Any]:
    """ConvNeXt's stages, each of which but the first halves the image."""
    own = pyramid(draw, "heads")
    del own["heads"]
    stages = len(own["depths"])
    size = 2**stages * draw.number(2, 4) + draw.number(0, 3)
    scale = {"layer_scale_init_value": draw.one_of(0.0, 0.5)}
    scale = scale if "layer_scale_init_value" in draw.defaults else {}
    return own | scale | {"num_stages": stages, "patch_size": 2, "image_size": size}


def resnet(draw: Draw) -> dict[str, Any]:
    """ResNet's stages, of channels that divide into those of a bottleneck."""
    own = pyramid(draw, "heads")
    del own["heads"]
    own["hidden_sizes"] = [4 * width for width in own["hidden_sizes"]]
    flags = ("downsample_in_first_stage", "downsample_in_bottleneck")
    kind = draw.one_of("basic", "bottleneck")
    return own | {name: draw.flag() for name in flags} | {"layer_type": kind}


def swin(draw: Draw) -> dict[str, Any]:
    """Swin's stages, each as wide as two of the one before, with a window or more in the last."""
    stages, heads = draw.number(2, 4), draw.number(1, 3)
    window = draw.number(2, 4)
    smallest = window + draw.number(0, 2)
    return {
        "depths": [draw.number(1, 4) for _ in range(stages)],
        "num_heads": [heads * draw.one_of(1, 2) for _ in range(stages)],
        "embed_dim": 2 * heads * draw.number(4, 8),
        "window_size": window,
        "patch_size": 2,
        "image_size": 2 * 2 ** (stages - 1) * smallest - draw.number(0, 2),
    }


def timm(draw: Draw) -> dict[str, Any]:
    """An architecture of timm, and other arguments than its own."""
    patch, width = draw.number(2, 5), draw.width
    own = {
        "img_size": patch * draw.number(2, 5),
        "patch_size": patch,
        "embed_dim": width,
        "depth": draw.layers,
        "num_heads": draw.heads,
        "mlp_ratio": draw.one_of(1.5, 2.0),
        "init_values": draw.one_of(None, 0.3),
        "reg_tokens": draw.number(0, 3),
    }
    rates = ("attn_drop_rate", "drop_path_rate", "drop_rate", "pos_drop_rate", "proj_drop_rate")
    own |= {name: rate(draw) for name in rates}
    flags = ("qkv_bias", "no_embed_class", "pre_norm", "fc_norm", "class_token")
    own |= {name: draw.flag() for name in flags}
    pools = ("token", "avg", "map") if own["class_token"] else ("avg", "map")
    own |= {"global_pool": draw.one_of(*pools), "pool_include_prefix": draw.flag()}
    gated, tanh = "vit_giant_patch14_dinov2", "vit_base_patch32_siglip_gap_256"
    return {"architecture": draw.one_of("test_vit", gated, tanh), "model_args": own}


# Model type -> fields that are drawn together, one value a stage.
STAGED: dict[str, Callable[[Draw], dict[str, Any]]] = {
    "segformer": segformer,
    "convnext": convnext,
    "convnextv2": convnext,
    "resnet": resnet,
    "swin": swin,
    "timm_wrapper": timm,
}
STAGES = {
    *("architecture", "label_names", "model_args", "num_classes"),
    "depths",
    "downsample_in_bottleneck",
    "downsample_in_first_stage",
    "embed_dim",
    "hidden_sizes",
    "layer_type",
    "layer_scale_init_value",
    "num_stages",
    "mlp_ratios",
    "num_encoder_blocks",
    "num_attention_heads",
    "patch_sizes",
    "sr_ratios",
    "strides",
}
# Two families in one model: name -> its model type, and those of its encoder and its decoder.
PAIRS = {
    "vit+gpt2": ("vision-encoder-decoder", "vit", "gpt2"),
    "clip+gpt2": ("vision-encoder-decoder", "clip_vision_model", "gpt2"),
    "dinov2+bert": ("vision-encoder-decoder", "dinov2", "bert"),
    "vit+trocr": ("vision-encoder-decoder", "vit", "trocr"),
    "deit+trocr": ("vision-encoder-decoder", "deit", "trocr"),
    "deit+gpt2": ("vision-encoder-decoder", "deit", "gpt2"),
    "siglip+bert": ("vision-encoder-decoder", "siglip_vision_model", "bert"),
    "bert+bert": ("encoder-decoder", "bert", "bert"),
    "roberta+bert": ("encoder-decoder", "roberta", "bert"),
    "bert+gpt2": ("encoder-decoder", "bert", "gpt2"),
}
# Fields that follow from others, or from which no output follows.
LEFT = {
    "attention_layers",  # from attention_types
    "_sliding_window_pattern",  # what layer_types was made from
    "dense_act_fn",  # from feed_forward_proj
    "is_gated_act",
    "pooler_hidden_size",  # from hidden_size
    "scale_decoder_outputs",  # from tie_word_embeddings
    "initializer_factor",
    "init_std",
    "num_channels",
    "encoder_stride",
    "out_features",
    "out_indices",
    "stage_names",
    # Weights of a loss.
    "auxiliary_loss",
    "bbox_cost",
    "bbox_loss_coefficient",
    "class_cost",
    "class_loss_coefficient",
    "focal_alpha",
    "giou_cost",
    "giou_loss_coefficient",
}


def random_config(model_type: str, generator: np.random.Generator) -> PretrainedConfig:
    """A small random config of a model type or a pair of two, with a few labels."""
    if model_type in PAIRS:
        return random_pair(*PAIRS[model_type], generator)
    default = AutoConfig.for_model(model_type)
    fields, parts = default.to_dict(), sorted(default.sub_configs)
    if not parts:
        labels = int(generator.integers(2, 6))
        draw = make_draw(generator, fields)
        drawn = draw_fields(default, draw)
        if model_type == "deberta-v2":
            drawn |= of_deberta(draw, drawn["legacy"])
        if model_type in STAGED:
            drawn |= STAGED[model_type](draw)
        return AutoConfig.for_model(model_type, num_labels=labels, **drawn)
    own = make_draw(generator, fields)
    drawn = draw_fields(default, own)
    vision = None
    for part in reversed(parts):  # the vision tower first: its width is asked for by the text's
        one = getattr(default, part)
        if other := OTHER_PARTS.get((model_type, part)):
            name = one.model_type if generator.integers(2) else str(generator.choice(other))
            one = AutoConfig.for_model(name)
        shared = {"projection": own.projection, "vision": vision, "joined": True}
        of_part = make_draw(generator, one.to_dict(), **shared)
        drawn[part] = {"model_type": one.model_type} | draw_fields(one, of_part)
        vision = of_part.width
    if {"image_token_id", "image_token_index"} & set(fields):
        drawn |= of_images(own, drawn)
    if "backbone_config" in parts:
        drawn |= of_detector(own, drawn["backbone_config"])
    return AutoConfig.for_model(model_type, **drawn)


# Model types that a part may have beside the one of its default.
OTHER_PARTS = {
    ("paligemma", "text_config"): ("gemma2",),
    ("llava", "text_config"): ("mistral", "qwen2"),
    ("llava", "vision_config"): ("siglip_vision_model",),
}


def of_images(draw: Draw, parts: dict[str, Any]) -> dict[str, Any]:
    """How patches become words: no more than sixteen of an image, and nine of a tile.

    A short text has room for as many.
    """
    sizes, text = parts["vision_config"], parts["text_config"]
    if "vision_feature_layer" in draw.defaults:
        blocks = sizes["num_hidden_layers"]
        layer = int(draw.one_of(*range(-blocks, 0), *range(1, blocks + 1)))
        if sizes["model_type"] == "siglip_vision_model":
            sizes["vision_use_head"] = False
        word = draw.number(4, text["vocab_size"])
        return {"vision_feature_layer": layer, "image_token_index": word}
    side = sizes["image_size"] // sizes["patch_size"]
    near = draw.one_of(*{2: (1, 2), 3: (1, 3), 4: (2, 4)}[side])
    word = draw.number(4, text["vocab_size"])
    if "scale_factor" in draw.defaults:
        return {"scale_factor": near, "image_token_id": word}
    sizes |= {"vision_use_head": False, "projection_dim": text["hidden_size"]}
    own = {"image_token_index": word, "mm_tokens_per_image": (side // near) ** 2}
    own |= {"projection_dim": text["hidden_size"]}
    return {name: value for name, value in own.items() if name in draw.defaults}


def of_detector(draw: Draw, backbone: dict[str, Any]) -> dict[str, Any]:
    """A grid of whole windows, the outputs that are read of it, and no more queries than pixels."""
    windows, blocks = draw.one_of(1, 2), backbone["num_hidden_layers"]
    side = windows * draw.number(3 - windows, 4)
    outputs = sorted({draw.number(0, blocks + 1) for _ in range(3)})
    backbone |= {
        "num_windows": windows,
        "image_size": side * backbone["patch_size"],
        "out_indices": outputs,
        "use_swiglu_ffn": False,
    }
    heads = draw.one_of(1, 2, 4)
    return {
        "d_model": 16 * draw.number(1, 3),
        "decoder_self_attention_heads": heads,
        "decoder_cross_attention_heads": draw.one_of(2, 4),
        "num_queries": draw.number(2, side**2 + 1),
    }


def random_pair(
    model_type: str, encoder: str, decoder: str, generator: np.random.Generator
) -> PretrainedConfig:
    """A small random config of an encoder and a decoder, alike in width or not."""
    parts = {}
    for part, own in (("encoder", encoder), ("decoder", decoder)):
        default = AutoConfig.for_model(own)
        shared = {}
        if "encoder" in parts and generator.integers(2):
            shared = {"groups": 2, "queries": 1, "head": parts["encoder"]["hidden_size"] // 2}
        draw = make_draw(generator, default.to_dict(), **shared)
        parts[part] = {"model_type": own} | draw_fields(default, draw)
    if "cross_attention_hidden_size" in parts["decoder"] and generator.integers(2):
        parts["decoder"]["cross_attention_hidden_size"] = parts["encoder"]["hidden_size"]
    parts["decoder"] |= {"is_decoder": True, "add_cross_attention": True}
    tokens = {"decoder_start_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return AutoConfig.for_model(model_type, **parts, **tokens)


def draw_fields(default: PretrainedConfig, draw: Draw) -> dict[str, Any]:
    """The fields of a config that are drawn; those computed for one value only are left."""
    standard = {own: name for name, own in default.attribute_map.items()}
    family = registry.families().get(default.model_type)
    fixed = () if family is None else family.config.FIXED
    return {
        field: FIELDS[standard.get(field, field)](draw)
        for field in draw.defaults
        if standard.get(field, field) in FIELDS and field not in fixed
    }


def undrawn_fields(model_type: str) -> list[str]:
    """The fields of a model type's config of which nothing here, and no family, says a word."""
    family = registry.families()[model_type]
    default = AutoConfig.for_model(model_type)
    known = {*FIELDS, *LEFT, *STAGES, *HARMLESS_FIELDS, *family.config.FIXED, *family.config.UNREAD}
    known |= {*default.attribute_map.values(), *default.sub_configs}
    return [field for field in default.to_dict() if field not in known]
