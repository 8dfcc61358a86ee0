"""The names that BERT, RoBERTa and ELECTRA have in common."""

from __future__ import annotations

import re
from collections.abc import Mapping

from jaxft.models.weights.names import Name, dense, embedding, norm


def encoder_names(prefix: str) -> tuple[Name, ...]:
    """The name table of embeddings and blocks, below a model's own prefix in files."""
    layer = f"{prefix}encoder.layer.{{i}}"
    return (
        *embedding(f"{prefix}embeddings.word_embeddings", "embeddings/word"),
        *embedding(f"{prefix}embeddings.position_embeddings", "embeddings/position"),
        *embedding(f"{prefix}embeddings.token_type_embeddings", "embeddings/token_type"),
        *norm(f"{prefix}embeddings.LayerNorm", "embeddings/norm"),
        *dense(f"{layer}.attention.self.query", "blocks/{i}/attention/query"),
        *dense(f"{layer}.attention.self.key", "blocks/{i}/attention/key"),
        *dense(f"{layer}.attention.self.value", "blocks/{i}/attention/value"),
        *dense(f"{layer}.attention.output.dense", "blocks/{i}/attention/output"),
        *norm(f"{layer}.attention.output.LayerNorm", "blocks/{i}/attention/norm"),
        *dense(f"{layer}.intermediate.dense", "blocks/{i}/mlp/up"),
        *dense(f"{layer}.output.dense", "blocks/{i}/mlp/down"),
        *norm(f"{layer}.output.LayerNorm", "blocks/{i}/mlp/norm"),
    )


def whole_name(prefix: str, name: str) -> str:
    """A tensor's name as a model with a head has it, and its norms' leaves as they are called now.

    Files of a model without a head have no prefix, and old files say gamma and beta.
    """
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
    name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
    bare = re.match(r"(embeddings|embeddings_project|encoder|pooler)\.", name)
    return prefix + name if bare else name


def names_under(
    common: tuple[Name, ...],
    heads: Mapping[str | None, tuple[Name, ...]],
    head: str | None,
    model_type: str,
) -> tuple[Name, ...]:
    """The name table under a head: the names that all heads have in common, and its own."""
    del model_type
    return common + heads[head]


def saved_name(prefix: str, name: str, head: str | None, model_type: str) -> str:
    """A tensor's name with its prefix -> as the head's architecture saves it: bare without one."""
    del model_type
    return name.removeprefix(prefix) if head is None else name
