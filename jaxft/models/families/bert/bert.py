"""BERT: an encoder of post-norm blocks over word, position and token-type embeddings.

Source: Devlin et al. (2018), https://arxiv.org/abs/1810.04805; the computation follows
`transformers`' `modeling_bert.py`.
"""

from __future__ import annotations

from jaxft.models.families.bert.config import Config
from jaxft.models.families.bert.modules import (
    Classifier,
    Encoder,
    MaskedLm,
    SpanScorer,
    TokenClassifier,
    reading_tower,
    tower,
)
from jaxft.models.families.bert.names import ALL_HEADS, FIRST, BertNames, encoder_names, tied_names
from jaxft.models.family import Family, ReadingDecoder, architectures
from jaxft.models.tower.tower import Tower
from jaxft.models.weights.names import Name, dense, norm
from jaxft.models.weights.tensor_names import HeadLines

MODEL_TYPES = {"bert": architectures("Bert", *ALL_HEADS)}

NAMES = (
    *encoder_names("bert."),
    *dense("bert.pooler.dense", "pooler"),
)
HEAD_NAMES: HeadLines = {
    "text_classification": dense("classifier", "head"),
    "token_classification": dense("classifier", "head"),
    "question_answering": dense("qa_outputs", "head"),
    "multiple_choice": dense("classifier", "head"),
    "masked_lm": (
        *dense("cls.predictions.transform.dense", "head/transform"),
        *norm("cls.predictions.transform.LayerNorm", "head/norm"),
        Name("cls.predictions.bias", "head/bias"),
    ),
}
# Of the attention of a decoder over what an encoder made of a source.
CROSS_NAMES = (
    *dense("bert.encoder.layer.{i}.crossattention.self.query", "blocks/{i}/cross/query"),
    *dense("bert.encoder.layer.{i}.crossattention.self.key", "blocks/{i}/cross/key"),
    *dense("bert.encoder.layer.{i}.crossattention.self.value", "blocks/{i}/cross/value"),
    *dense("bert.encoder.layer.{i}.crossattention.output.dense", "blocks/{i}/cross/output"),
    *norm("bert.encoder.layer.{i}.crossattention.output.LayerNorm", "blocks/{i}/cross/norm"),
)
UNUSED = (
    r"bert\.embeddings\.position_ids",
    r"bert\.pooler\..*",
    r"cls\..*",
    r"classifier\..*",
    r"qa_outputs\..*",
)
TENSORS = BertNames(
    *({"bert": NAMES}, HEAD_NAMES, UNUSED, ("pooler/", "head/"), {"bert.": FIRST}),
    tied=tied_names("bert.", "cls.predictions."),
)


def reading_names(model_type: str) -> tuple[Name, ...]:
    """Return the name table of a BERT that reads a source."""
    return (*TENSORS.table("masked_lm", model_type), *CROSS_NAMES)


def towers(config: Config, head: str | None, num_labels: int | None) -> dict[str, Tower]:
    """Build the tower of a BERT under a head."""
    if head in ("text_classification", "multiple_choice"):
        outputs = 1 if head == "multiple_choice" else num_labels or 2
        return tower(config, Classifier(config, outputs, "tanh", drops_first=False))
    if head == "token_classification":
        return tower(config, TokenClassifier(config, num_labels or 2))
    if head == "question_answering":
        return tower(config, SpanScorer(config))
    return tower(config, MaskedLm(config, config.activation) if head else Encoder(config))


READING = ReadingDecoder(reading_names, reading_tower)
FAMILY = Family("bert", Config, MODEL_TYPES, TENSORS, towers, reading=READING)
