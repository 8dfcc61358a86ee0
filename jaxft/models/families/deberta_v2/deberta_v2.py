"""DeBERTa v2, v3 and mDeBERTa: post-norm blocks whose attention scores content and distance apart.

Scores are of words with words, of words with distances and of distances with words; the vectors
of distances are one table, which all blocks read.

Source: He et al. (2020), https://arxiv.org/abs/2006.03654; He et al. (2021),
https://arxiv.org/abs/2111.09543; the computation follows `transformers`' `modeling_deberta_v2.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flax import nnx

from jaxft.errors import UserError
from jaxft.models.families.bert.modules import Plain, SpanScorer, TokenClassifier
from jaxft.models.families.bert.names import ALL_HEADS, BertNames, tied_names
from jaxft.models.families.deberta_v2.config import Config
from jaxft.models.families.deberta_v2.modules import Block, Classifier, MaskedLm, Stem
from jaxft.models.family import Family, architectures
from jaxft.models.tower.tower import Part, Tower
from jaxft.models.weights.names import Name, dense, embedding, norm
from jaxft.models.weights.tensor_names import HeadLines

MODEL_TYPES = {"deberta-v2": architectures("DebertaV2", *ALL_HEADS)}

LAYER, BLOCK = "deberta.encoder.layer.{i}", "blocks/{i}"
CONVOLUTION = "deberta.encoder.conv"
NAMES = (
    *embedding("deberta.embeddings.word_embeddings", "embeddings/word"),
    *embedding("deberta.embeddings.position_embeddings", "embeddings/position"),
    *embedding("deberta.embeddings.token_type_embeddings", "embeddings/token_type"),
    *dense("deberta.embeddings.embed_proj", "embeddings/projection"),
    *norm("deberta.embeddings.LayerNorm", "embeddings/norm"),
    *embedding("deberta.encoder.rel_embeddings", "distances"),
    *norm("deberta.encoder.LayerNorm", "norm"),
    *dense(f"{LAYER}.attention.self.query_proj", f"{BLOCK}/attention/query"),
    *dense(f"{LAYER}.attention.self.key_proj", f"{BLOCK}/attention/key"),
    *dense(f"{LAYER}.attention.self.value_proj", f"{BLOCK}/attention/value"),
    *dense(f"{LAYER}.attention.self.pos_key_proj", f"{BLOCK}/attention/distance_key"),
    *dense(f"{LAYER}.attention.self.pos_query_proj", f"{BLOCK}/attention/distance_query"),
    *dense(f"{LAYER}.attention.output.dense", f"{BLOCK}/attention/output"),
    *norm(f"{LAYER}.attention.output.LayerNorm", f"{BLOCK}/attention/norm"),
    *dense(f"{LAYER}.intermediate.dense", f"{BLOCK}/mlp/up"),
    *dense(f"{LAYER}.output.dense", f"{BLOCK}/mlp/down"),
    *norm(f"{LAYER}.output.LayerNorm", f"{BLOCK}/mlp/norm"),
    *dense(f"{CONVOLUTION}.conv", "blocks/0/convolution"),
    *norm(f"{CONVOLUTION}.LayerNorm", "blocks/0/convolution/norm"),
)
LEGACY, PRETRAINED = "cls.predictions", "lm_predictions.lm_head"
CLASSES = (*dense("pooler.dense", "pooler"), *dense("classifier", "head"))
HEAD_NAMES: HeadLines = {
    "text_classification": CLASSES,
    "token_classification": dense("classifier", "head"),
    "question_answering": dense("qa_outputs", "head"),
    "multiple_choice": CLASSES,
    "masked_lm": (
        *dense(f"{LEGACY}.transform.dense", "head/transform"),
        *norm(f"{LEGACY}.transform.LayerNorm", "head/norm"),
        Name(f"{LEGACY}.bias", "head/bias"),
        *dense(f"{PRETRAINED}.dense", "head/pretrained/transform"),
        *norm(f"{PRETRAINED}.LayerNorm", "head/pretrained/norm"),
        Name(f"{PRETRAINED}.bias", "head/pretrained/bias"),
    ),
}
UNUSED = (
    r"deberta\.embeddings\.position_(ids|embeddings\.weight)",
    r"cls\..*",
    r"lm_predictions\..*",
    r"mask_predictions\..*",  # of v3's pretraining: which words were replaced
    r"pooler\..*",
    r"classifier\..*",
    r"qa_outputs\..*",
)


class DebertaNames(BertNames):
    """Tensor names of a DeBERTa, whose own head of masked words has no matrix."""

    def ties(self, head: str | None, config: Any) -> Sequence[tuple[str, str]]:
        return super().ties(head, config) if config.fields["legacy"] else ()


TENSORS = DebertaNames(
    {"deberta-v2": NAMES},
    HEAD_NAMES,
    UNUSED,
    ("pooler/", "head/"),
    {"deberta.": "embeddings|encoder"},
    tied=tied_names("deberta.", f"{LEGACY}."),
)


def infer_fields(fields: Mapping[str, Any], tensors: Iterable[str]) -> dict[str, Any]:
    """Choose the head of masked words that the checkpoint holds where config.json does not.

    The published checkpoints hold the one that transformers reads with `legacy: false` alone, and
    do not say so.

    Args:
        fields: config.json.
        tensors: the names of the checkpoint's tensors.
    """
    names = list(tensors)
    pretrained, legacy = (
        any(name.startswith(f"{head}.") for name in names) for head in (PRETRAINED, LEGACY)
    )
    inferred = {"legacy": False} if pretrained and not legacy else {}
    return {**inferred, **fields}


def towers(config: Config, head: str | None, num_labels: int | None) -> dict[str, Tower]:
    """Build the tower of a DeBERTa under a head."""
    count, convolves = config.fields["num_hidden_layers"], config.fields["conv_kernel_size"] > 0
    block = Part(Block(config, convolves=False))
    first = Part(Block(config, convolves=True)) if convolves else block
    top, ties = _top(config, head, num_labels or 2)
    stem, blocks = Stem(config), (first, *[block] * (count - 1))
    return {"text": Tower(Part(stem), blocks, Part(top), ties, needs=stem.needs)}


def _top(config: Config, head: str | None, num_labels: int) -> tuple[nnx.Module, dict[str, str]]:
    """Build the top under a head, and name what it has of the embeddings."""
    if head in ("text_classification", "multiple_choice"):
        return Classifier(config, 1 if head == "multiple_choice" else num_labels), {}
    if head == "question_answering":
        return SpanScorer(config.bert), {}
    if head == "token_classification":
        return TokenClassifier(config.bert, num_labels), {}
    if head is None:
        return Plain(), {}
    legacy, width = config.fields["legacy"], config.fields["hidden_size"]
    if not legacy and config.word_width != width:
        raise UserError(
            f"config.json: embedding_size is {config.word_width} and legacy is false, which "
            f"scores words only with embeddings as wide as the model, {width}."
        )
    decoder = "head/decoder" if legacy else "head/pretrained/decoder"
    return MaskedLm(config), {f"{decoder}/embedding": "embeddings/word/embedding"}


FAMILY = Family("deberta_v2", Config, MODEL_TYPES, TENSORS, towers, infer_fields=infer_fields)
