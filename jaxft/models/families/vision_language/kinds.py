"""Kinds of vision-language models: what each puts together, how it connects, names and masks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxft.models.families.vision_language.config import VisionLanguageConfig, blocks_read
from jaxft.models.families.vision_language.connectors import Connect, Mlp, Pool, Shuffle, projection
from jaxft.models.layers.batch import GROUPS, GROUPS_AHEAD, Batch, with_soft_tokens
from jaxft.models.weights.field_kinds import is_whole
from jaxft.models.weights.names import Name, dense
from jaxft.models.weights.tensor_names import ComposedNames

# transformers leaves out of a part of config.json what its model type has by default: files of
# Gemma 3, PaliGemma, SmolVLM and LLaVA lack some of these sizes of their decoders.
SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "max_position_embeddings"),
)
TEXT_SIZES: dict[str, dict[str, int]] = {
    model_type: dict(zip(SIZES, sizes, strict=True))
    for model_type, sizes in {
        "llama": (32_000, 4096, 11_008, 32, 32, 2048),
        "gemma": (256_000, 3072, 24_576, 28, 16, 8192),
        "gemma2": (256_000, 2304, 9216, 26, 8, 8192),
        "gemma3_text": (262_208, 2304, 9216, 26, 8, 131_072),
        "mistral": (32_000, 4096, 14_336, 32, 32, 131_072),
        "qwen2": (151_936, 4096, 22_016, 32, 32, 32_768),
    }.items()
}
Join = Callable[..., Batch]  # a text's batch, vectors, `word`


@dataclass(frozen=True)
class Kind:
    """One kind of vision-language model.

    Args:
        visions: the model types that its image tower may have.
        texts: those that its decoder may have.
        files: what the tensors' names of the two begin with in a file.
        text_head: the head under which the decoder's names are stored.
        lines: the names of the connector's tensors, and of a head of the whole model.
        word: the field of config.json that has the word of an image's vectors.
        defaults: what a config.json without the field means.
        side: its own fields and the grid of a tile -> patches a side of one vector.
        by: the field that says so.
        connector: builds the connector.
        join: the batch of a text, vectors and their word -> the decoder's batch.
        names: the class of its tensor names.
        unread: fields of config.json that change nothing.
        unused: fields of the decoder that are read of it alone, and not in the whole model.
        read: its own fields and the image tower's config -> the blocks whose output is read as it
            is, and `extra`; None where the normalized end is read.
        text_ties: whether files may say in the decoder's part that its words are tied.
    """

    visions: tuple[str, ...]
    texts: tuple[str, ...]
    files: tuple[str, str]
    text_head: str | None
    lines: Sequence[Name]
    word: str
    defaults: Mapping[str, Any]
    side: Callable[[Mapping[str, Any], tuple[int, int]], Any]
    by: str
    connector: Callable[[VisionLanguageConfig], Connect]
    join: Join
    names: type[ComposedNames] = ComposedNames
    unread: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    read: Callable[[Mapping[str, Any], Any], tuple[int, int]] | None = None
    text_ties: bool = False


class FileNames(ComposedNames):
    """Tensor names of models whose modules have other names than their files."""

    def in_memory(self, name: str, model_type: str) -> str:
        text = "language_model."
        if name.startswith(f"{text}model."):
            return f"model.{text}{name.removeprefix(f'{text}model.')}"
        return name.removeprefix(text) if name.startswith(text) else f"model.{name}"


def see_both_ways(batch: Batch, vectors: jax.Array, word: int) -> Batch:
    """Join as `with_soft_tokens` does; the words of an image see each other, later ones too.

    The n-th run of such words is group n. In a window it sees those ahead of itself, and no more of
    those behind than the window has.
    """
    marked = batch["input_ids"] == word
    before = jnp.pad(marked, ((0, 0), (1, 0)))[:, :-1]
    runs = jnp.cumsum(marked & ~before, axis=1, dtype=jnp.int32) - 1
    joined = with_soft_tokens(batch, vectors, word)
    return {**joined, GROUPS_AHEAD: jnp.where(marked, runs, -1)}


def see_prefix(batch: Batch, vectors: jax.Array, word: int) -> Batch:
    """Join as `with_soft_tokens` does; the words of a prefix see each other, later ones too.

    The prefix, image and prompt, has `token_type_ids` 0; a text without them is plainly causal.
    transformers counts positions from 1, of which rotary embeddings see the differences alone.
    """
    joined = with_soft_tokens(batch, vectors, word)
    if "token_type_ids" not in batch:
        return joined
    return {**joined, GROUPS: jnp.where(batch["token_type_ids"] == 0, 0, -1)}


def _pooled(own: Mapping[str, Any], grid: tuple[int, int]) -> Any:
    """Return the patches a side of the squares that leave so many words of an image."""
    count = own["mm_tokens_per_image"]
    words = math.isqrt(count) if is_whole(count) and count > 0 else 0
    return grid[0] // words if words and words**2 == count and grid[0] % words == 0 else None


CONNECTOR = "vision/connector"
IDEFICS3 = Kind(
    visions=("idefics3_vision",),
    texts=("llama",),
    files=("model.vision_model.", "model.text_model."),
    text_head=None,
    lines=(
        Name("model.connector.modality_projection.proj.weight", f"{CONNECTOR}/kernel", True),
        Name("lm_head.weight", "text/head/kernel", transpose=True),
    ),
    word="image_token_id",
    defaults={"scale_factor": 2, "image_token_id": 128_257, "tie_word_embeddings": False},
    side=lambda own, grid: own["scale_factor"],
    by="scale_factor",
    connector=Shuffle,
    join=with_soft_tokens,
    unread=("_pad_token_id", "image_seq_len", "use_reentrant_checkpointing", "vocab_size"),
)
GEMMA3 = Kind(
    visions=("siglip_vision_model",),
    texts=("gemma3_text",),
    files=("vision_tower.", "language_model."),
    text_head="causal_lm",
    lines=(
        Name("multi_modal_projector.mm_input_projection_weight", f"{CONNECTOR}/kernel"),
        Name("multi_modal_projector.mm_soft_emb_norm.weight", f"{CONNECTOR}/norm/scale"),
    ),
    word="image_token_index",
    defaults={
        "mm_tokens_per_image": 256,
        "boi_token_index": 255_999,
        "eoi_token_index": 256_000,
        "image_token_index": 262_144,
        "tie_word_embeddings": True,
    },
    side=_pooled,
    by="mm_tokens_per_image",
    connector=Pool,
    join=see_both_ways,
    names=FileNames,
    unused=("final_logit_softcapping",),
)
PALIGEMMA = replace(
    GEMMA3,
    texts=("gemma", "gemma2"),
    lines=dense("multi_modal_projector.linear", CONNECTOR),
    defaults={"image_token_index": 256_000, "tie_word_embeddings": True},
    side=lambda own, grid: 1,
    by="image_size",
    connector=projection,
    join=see_prefix,
    unread=(
        *("_vocab_size", "hidden_size", "ignore_index", "num_hidden_layers"),
        *("projection_dim", "vocab_size"),
    ),
    unused=(),
)
LLAVA = Kind(
    visions=("clip_vision_model", "siglip_vision_model"),
    texts=("llama", "mistral", "qwen2"),
    files=("vision_tower.", "language_model."),
    text_head="causal_lm",
    lines=(
        *dense("multi_modal_projector.linear_1", f"{CONNECTOR}/up"),
        *dense("multi_modal_projector.linear_2", f"{CONNECTOR}/down"),
    ),
    word="image_token_index",
    defaults={
        "image_token_index": 32_000,
        "multimodal_projector_bias": True,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": False,
    },
    side=lambda own, grid: 1,
    by="image_size",
    connector=Mlp,
    join=with_soft_tokens,
    names=FileNames,
    unread=("ignore_index", "image_seq_length", "vocab_size"),
    read=blocks_read,
    text_ties=True,
)
KINDS: dict[str, Kind] = {
    "idefics3": IDEFICS3,
    "smolvlm": replace(IDEFICS3, visions=("smolvlm_vision",)),
    "paligemma": PALIGEMMA,
    "gemma3": GEMMA3,
    "llava": LLAVA,
}
