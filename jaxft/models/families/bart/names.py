"""Tensor names of BART and its kin, and what a checkpoint's tensors say beside config.json."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from jaxft.models.families.bart.config import LEARNED
from jaxft.models.weights.names import Name, dense, embedding, norm
from jaxft.models.weights.tensor import Tensor
from jaxft.models.weights.tensor_names import BareNames, HeadLines

BIAS = "final_logits_bias"
HEAD_FILE_NAME = "lm_head.weight"
CLASSES = "classification_head.out_proj.bias"
PREFIX = "model."
SHARED = "shared.weight"
# Each tower's own word embeddings; names of the shared ones in files that lack the first, and in
# old ones beside it.
COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


def _attention(hf: str, ours: str) -> tuple[Name, ...]:
    """Return the lines of an attention and its norm."""
    maps = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "output"}
    lines = [dense(f"{hf}.{theirs}", f"{ours}/{own}") for theirs, own in maps.items()]
    return (*(line for pair in lines for line in pair), *norm(f"{hf}_layer_norm", f"{ours}/norm"))


def _tower_names(tower: str, prefix: str) -> tuple[Name, ...]:
    """Return the lines of the encoder or the decoder behind our prefix, but for their words."""
    hf, ours = f"{tower}.layers.{{i}}", f"{prefix}blocks/{{i}}"
    return (
        *embedding(f"{tower}.embed_positions", f"{prefix}position"),
        *norm(f"{tower}.layernorm_embedding", f"{prefix}word_norm"),
        *_attention(f"{hf}.self_attn", f"{ours}/attention"),
        *_attention(f"{hf}.encoder_attn", f"{ours}/cross"),
        *dense(f"{hf}.fc1", f"{ours}/mlp/up"),
        *dense(f"{hf}.fc2", f"{ours}/mlp/down"),
        *norm(f"{hf}.final_layer_norm", f"{ours}/mlp/norm"),
        *norm(f"{tower}.layer_norm", f"{prefix}norm"),
    )


HEAD_NAMES: HeadLines = {
    "seq2seq": (
        Name(HEAD_FILE_NAME, "decoder/head/words/kernel", transpose=True),
        Name(BIAS, "decoder/head/bias"),
    ),
    "text_classification": (
        *dense("classification_head.dense", "decoder/pooler"),
        *dense("classification_head.out_proj", "decoder/head"),
    ),
    "question_answering": dense("qa_outputs", "decoder/head"),
}
UNUSED = (
    r"(encoder|decoder)\.embed_tokens\.weight",  # the shared ones again, in old files
    r"(encoder|decoder)\.embed_positions\.weights?",  # sinusoids, which are computed
    r"(encoder|decoder)\.version",
    r"lm_head\.weight",
    r"final_logits_bias",
    r"(classification_head|qa_outputs)\..*",
)
NAMES = (
    *embedding("shared", "encoder/word"),
    *embedding("encoder.embed_tokens", "encoder/own_word"),
    *embedding("decoder.embed_tokens", "decoder/own_word"),
    *_tower_names("encoder", "encoder/"),
    *_tower_names("decoder", "decoder/"),
)
# Of TrOCR's decoder, a part of another model's file.
TROCR_NAMES = (
    *embedding("model.decoder.embed_tokens", "word"),
    *_tower_names("model.decoder", ""),
    Name("output_projection.weight", "head/kernel", transpose=True),
)
TROCR_UNUSED = (
    r"model\.decoder\.embed_positions\.(_float_tensor|weights)",  # of sinusoids, in old files
    r"model\.decoder\.version",
    r"output_projection\.weight",
)
# A checkpoint without the head of a task, such as a bare model's, lacks these.
FRESH = ("decoder/head/", "decoder/pooler/")


# Where a file lacks a tensor, it is read from the first of these that the file has.
ALIASES = {SHARED: (*COPIES, HEAD_FILE_NAME), COPIES[1]: (HEAD_FILE_NAME,)}


def bart_names(*model_types: str) -> BareNames:
    """Return the tensor names of model types of the family."""
    tables, prefixes = dict.fromkeys(model_types, NAMES), dict.fromkeys(model_types, PREFIX)
    return BareNames(tables, HEAD_NAMES, UNUSED, FRESH, prefixes, aliases=ALIASES)


def infer_fields(
    fields: Mapping[str, Any], tensors: Mapping[str, Tensor] | Iterable[str]
) -> dict[str, Any]:
    """Add to a config.json what the tensors of its checkpoint say.

    As transformers does, words are scored by a matrix of their own where the file has one that
    differs from the embeddings, and sinusoids are read where the file has them.

    Args:
        fields: config.json.
        tensors: the checkpoint's.
    """
    by_name = {}
    if isinstance(tensors, Mapping):
        by_name = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    apart = not fields.get("share_encoder_decoder_embeddings", True)
    words = [COPIES[1]] if apart else [SHARED, *COPIES]
    own: dict[str, Any] = {}
    if HEAD_FILE_NAME in by_name:
        first = next((by_name[name] for name in words if name in by_name), None)
        own["own_lm_head"] = first is not None and not first.equals(by_name[HEAD_FILE_NAME])
    stored = "decoder.embed_positions.weight" in by_name
    own["stored_positions"] = stored and fields["model_type"] not in LEARNED
    separate = all(name in by_name for name in COPIES)
    if apart or (own.get("own_lm_head") and not separate):
        # False is then said of the scores alone, as transformers 4 means it.
        own["tie_word_embeddings"] = True
    if CLASSES in by_name and "id2label" not in fields:
        # transformers writes no names of three classes, which it has for a BART.
        own["id2label"] = {str(i): f"LABEL_{i}" for i in range(*by_name[CLASSES].shape)}
    return {**fields, **{name: value for name, value in own.items() if value}}
