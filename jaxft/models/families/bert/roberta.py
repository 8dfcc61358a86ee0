"""RoBERTa, XLM-R and CamemBERT: BERT's computation with positions after the padding word's id.

Source: Liu et al. (2019), https://arxiv.org/abs/1907.11692; Conneau et al. (2019),
https://arxiv.org/abs/1911.02116; Martin et al. (2019), https://arxiv.org/abs/1911.03894; the
computation follows `transformers`' `modeling_roberta.py`.
"""

from __future__ import annotations

from jaxft.models.families.bert.config import Config
from jaxft.models.families.bert.modules import (
    Classifier,
    Encoder,
    MaskedLm,
    SpanScorer,
    TokenClassifier,
    tower,
)
from jaxft.models.families.bert.names import ALL_HEADS, FIRST, BertNames, encoder_names, tied_names
from jaxft.models.family import Family, architectures
from jaxft.models.tower.tower import Tower
from jaxft.models.weights.names import Name, dense, norm
from jaxft.models.weights.tensor_names import HeadLines

MODEL_TYPES = {
    "xlm-roberta": architectures("XLMRoberta", *ALL_HEADS),
    "camembert": architectures("Camembert", *ALL_HEADS),
    "roberta": architectures("Roberta", *ALL_HEADS),
}
PREFIX = "roberta."
NAMES = encoder_names(PREFIX)
HEAD_NAMES: HeadLines = {
    None: dense("roberta.pooler.dense", "pooler"),
    "text_classification": (
        *dense("classifier.dense", "pooler"),
        *dense("classifier.out_proj", "head"),
    ),
    "token_classification": dense("classifier", "head"),
    "question_answering": dense("qa_outputs", "head"),
    "multiple_choice": (*dense("roberta.pooler.dense", "pooler"), *dense("classifier", "head")),
    "masked_lm": (
        *dense("lm_head.dense", "head/transform"),
        *norm("lm_head.layer_norm", "head/norm"),
        Name("lm_head.bias", "head/bias"),
    ),
}
UNUSED = (
    r"roberta\.embeddings\.position_ids",
    r"roberta\.pooler\..*",
    r"lm_head\..*",
    r"classifier\..*",
    r"qa_outputs\..*",
)
TENSORS = BertNames(
    *(dict.fromkeys(MODEL_TYPES, NAMES), HEAD_NAMES, UNUSED),
    *(("pooler/", "head/"), {PREFIX: FIRST}),
    tied=tied_names(PREFIX, "lm_head."),
)


def towers(config: Config, head: str | None, num_labels: int | None) -> dict[str, Tower]:
    """Build the tower of a RoBERTa under a head."""
    if head == "text_classification":
        return tower(config, Classifier(config, num_labels or 2, "tanh", drops_first=True))
    if head == "token_classification":
        return tower(config, TokenClassifier(config, num_labels or 2))
    if head == "question_answering":
        return tower(config, SpanScorer(config))
    if head == "multiple_choice":
        return tower(config, Classifier(config, 1, "tanh", drops_first=False, rate=config.rate))
    return tower(config, MaskedLm(config, "gelu") if head else Encoder(config))


FAMILY = Family("roberta", Config, MODEL_TYPES, TENSORS, towers)
