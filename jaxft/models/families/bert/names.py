"""Tensor names that BERT, RoBERTa, ELECTRA and ALBERT have in common."""

from __future__ import annotations

import re
from dataclasses import dataclass

from jaxft.models.weights.names import Name, dense, embedding, norm
from jaxft.models.weights.tensor_names import PrefixedNames

# The heads that all of them have.
HEADS = ("text_classification", "token_classification", "masked_lm")
# Those and the heads of two more tasks.
ALL_HEADS = (*HEADS, "question_answering", "multiple_choice")
# The first components of names below a model's own prefix.
FIRST = "embeddings|embeddings_project|encoder|pooler"


def embedding_names(prefix: str) -> tuple[Name, ...]:
    """Return the name table of the embeddings, below a model's own prefix in files."""
    return (
        *embedding(f"{prefix}embeddings.word_embeddings", "embeddings/word"),
        *embedding(f"{prefix}embeddings.position_embeddings", "embeddings/position"),
        *embedding(f"{prefix}embeddings.token_type_embeddings", "embeddings/token_type"),
        *norm(f"{prefix}embeddings.LayerNorm", "embeddings/norm"),
    )


def encoder_names(prefix: str) -> tuple[Name, ...]:
    """Return the name table of embeddings and blocks, below a model's own prefix in files."""
    layer = f"{prefix}encoder.layer.{{i}}"
    return (
        *embedding_names(prefix),
        *dense(f"{layer}.attention.self.query", "blocks/{i}/attention/query"),
        *dense(f"{layer}.attention.self.key", "blocks/{i}/attention/key"),
        *dense(f"{layer}.attention.self.value", "blocks/{i}/attention/value"),
        *dense(f"{layer}.attention.output.dense", "blocks/{i}/attention/output"),
        *norm(f"{layer}.attention.output.LayerNorm", "blocks/{i}/attention/norm"),
        *dense(f"{layer}.intermediate.dense", "blocks/{i}/mlp/up"),
        *dense(f"{layer}.output.dense", "blocks/{i}/mlp/down"),
        *norm(f"{layer}.output.LayerNorm", "blocks/{i}/mlp/norm"),
    )


def tied_names(model: str, head: str) -> tuple[tuple[str, str], ...]:
    """Return both names of the matrix and of the bias of a head.

    Args:
        model: the prefix of the model.
        head: that of the head.
    """
    return (
        (f"{model}embeddings.word_embeddings.weight", f"{head}decoder.weight"),
        (f"{head}bias", f"{head}decoder.bias"),
    )


@dataclass(frozen=True)
class BertNames(PrefixedNames):
    """Tensor names of a BERT or one of its kin: old files say gamma and beta of a norm."""

    def canonical(self, name: str) -> str:
        name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
        name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
        return super().canonical(name)
