"""DistilBERT: half the blocks of a BERT, without token types and without a pooler.

Source: Sanh et al. (2019), https://arxiv.org/abs/1910.01108; the computation follows
`transformers`' `modeling_distilbert.py`.
"""

from __future__ import annotations

from jaxft.models.families.bert.config import Config
from jaxft.models.families.bert.modules import (
    Classifier,
    MaskedLm,
    Plain,
    SpanScorer,
    TokenClassifier,
    tower,
)
from jaxft.models.families.bert.names import ALL_HEADS
from jaxft.models.family import Family, architectures
from jaxft.models.tower.tower import Tower
from jaxft.models.weights.names import Name, dense, embedding, norm
from jaxft.models.weights.tensor_names import HeadLines, PrefixedNames

MODEL_TYPES = {"distilbert": architectures("DistilBert", *ALL_HEADS)}
NAMES = (
    *embedding("distilbert.embeddings.word_embeddings", "embeddings/word"),
    *embedding("distilbert.embeddings.position_embeddings", "embeddings/position"),
    *norm("distilbert.embeddings.LayerNorm", "embeddings/norm"),
    *dense("distilbert.transformer.layer.{i}.attention.q_lin", "blocks/{i}/attention/query"),
    *dense("distilbert.transformer.layer.{i}.attention.k_lin", "blocks/{i}/attention/key"),
    *dense("distilbert.transformer.layer.{i}.attention.v_lin", "blocks/{i}/attention/value"),
    *dense("distilbert.transformer.layer.{i}.attention.out_lin", "blocks/{i}/attention/output"),
    *norm("distilbert.transformer.layer.{i}.sa_layer_norm", "blocks/{i}/attention/norm"),
    *dense("distilbert.transformer.layer.{i}.ffn.lin1", "blocks/{i}/mlp/up"),
    *dense("distilbert.transformer.layer.{i}.ffn.lin2", "blocks/{i}/mlp/down"),
    *norm("distilbert.transformer.layer.{i}.output_layer_norm", "blocks/{i}/mlp/norm"),
)
CLASSES = (*dense("pre_classifier", "pooler"), *dense("classifier", "head"))
HEAD_NAMES: HeadLines = {
    "text_classification": CLASSES,
    "token_classification": dense("classifier", "head"),
    "question_answering": dense("qa_outputs", "head"),
    "multiple_choice": CLASSES,
    "masked_lm": (
        *dense("vocab_transform", "head/transform"),
        *norm("vocab_layer_norm", "head/norm"),
        Name("vocab_projector.bias", "head/bias"),
    ),
}
UNUSED = (
    r"distilbert\.embeddings\.position_ids",
    r"vocab_(transform|layer_norm|projector)\..*",
    r"(pre_)?classifier\..*",
    r"qa_outputs\..*",
)
TENSORS = PrefixedNames(
    {"distilbert": NAMES},
    HEAD_NAMES,
    UNUSED,
    fresh=("pooler/", "head/"),
    prefixes={"distilbert.": "embeddings|transformer"},
    tied=(("distilbert.embeddings.word_embeddings.weight", "vocab_projector.weight"),),
)


def towers(config: Config, head: str | None, num_labels: int | None) -> dict[str, Tower]:
    """Build the tower of a DistilBERT under a head."""
    if head in ("text_classification", "multiple_choice"):
        outputs = 1 if head == "multiple_choice" else num_labels or 2
        return tower(config, Classifier(config, outputs, "relu", drops_first=False))
    if head == "token_classification":
        return tower(config, TokenClassifier(config, num_labels or 2))
    if head == "question_answering":
        return tower(config, SpanScorer(config, config.fields["qa_dropout"]))
    return tower(config, MaskedLm(config, config.activation) if head else Plain())


FAMILY = Family("distilbert", Config, MODEL_TYPES, TENSORS, towers)
