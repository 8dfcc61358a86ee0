"""ELECTRA: a BERT with narrower embeddings, trained to tell which words were replaced.

The generator is its masked LM, the discriminator its head for replaced tokens.

Source: Clark et al. (2020), https://arxiv.org/abs/2003.10555; the computation follows
`transformers`' `modeling_electra.py`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.errors import UserError
from jaxft.models.families.bert.config import Config
from jaxft.models.families.bert.modules import (
    Classifier,
    MaskedLm,
    Plain,
    SpanScorer,
    TokenClassifier,
    tower,
)
from jaxft.models.families.bert.names import ALL_HEADS, FIRST, BertNames, encoder_names
from jaxft.models.family import Family, architectures
from jaxft.models.layers.batch import Batch
from jaxft.models.layers.math import ACTIVATIONS
from jaxft.models.layers.modules import Linear
from jaxft.models.tower.tower import Tower
from jaxft.models.weights.config_fields import check_activation
from jaxft.models.weights.names import Name, dense, norm
from jaxft.models.weights.tensor_names import HeadLines

MODEL_TYPES = {
    "electra": architectures("Electra", *ALL_HEADS) | {"replaced_tokens": "ElectraForPreTraining"}
}
PREFIX = "electra."
NAMES = (
    *encoder_names(PREFIX),
    *dense("electra.embeddings_project", "embeddings/projection"),
)
HEAD_NAMES: HeadLines = {
    "text_classification": (
        *dense("classifier.dense", "pooler"),
        *dense("classifier.out_proj", "head"),
    ),
    "token_classification": dense("classifier", "head"),
    "question_answering": dense("qa_outputs", "head"),
    "multiple_choice": (
        *dense("sequence_summary.summary", "pooler"),
        *dense("classifier", "head"),
    ),
    "masked_lm": (
        *dense("generator_predictions.dense", "head/transform"),
        *norm("generator_predictions.LayerNorm", "head/norm"),
        Name("generator_lm_head.bias", "head/bias"),
    ),
    "replaced_tokens": (
        *dense("discriminator_predictions.dense", "head/transform"),
        *dense("discriminator_predictions.dense_prediction", "head/score"),
    ),
}
UNUSED = (
    r"electra\.embeddings\.position_ids",
    r"(generator|discriminator)_predictions\..*",
    r"generator_lm_head\..*",
    r"classifier\..*",
    r"qa_outputs\..*",
    r"sequence_summary\..*",
)
TENSORS = BertNames(
    *({"electra": NAMES}, HEAD_NAMES, UNUSED, ("pooler/", "head/"), {PREFIX: FIRST}),
    tied=((f"{PREFIX}embeddings.word_embeddings.weight", "generator_lm_head.weight"),),
)


class Scorer(nnx.Module):
    """Score of each token: a transform of the stream, and one number a token."""

    def __init__(self, config: Config):
        width, std = config.width, config.std
        self.transform = Linear(width, width, ("embed", "pooled"), std)
        self.score = Linear(width, 1, ("embed", "labels"), std)
        self.activation = config.activation

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.score(ACTIVATIONS[self.activation](self.transform(x)))[..., 0]  # [B, T]


class Discriminator(nnx.Module):
    """Top of an ElectraForPreTraining: `logits` [B, T], positive where a token was replaced."""

    def __init__(self, config: Config):
        self.head = Scorer(config)

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> dict[str, jax.Array]:
        return {"logits": self.head(x).astype(jnp.float32)}


def _choice_scorer(config: Config) -> Classifier:
    """Build the top that scores choices, whose pooler transformers calls a sequence summary.

    Raises:
        UserError: it summarizes in a way that is not supported.
    """
    own = config.fields
    if (own["summary_type"], own["summary_use_proj"]) != ("first", True):
        raise UserError(
            f"config.json: summary_type is {own['summary_type']!r} and summary_use_proj "
            f"{own['summary_use_proj']}; the choices of an ELECTRA are scored by the first "
            "position and a projection.",
            "Set them to 'first' and true.",
        )
    activation, rate = own["summary_activation"], own["summary_last_dropout"]
    check_activation("summary_activation", activation, ACTIVATIONS)
    return Classifier(config, 1, activation, drops_first=False, rate=rate)


def towers(config: Config, head: str | None, num_labels: int | None) -> dict[str, Tower]:
    """Build the tower of an ELECTRA under a head."""
    if head == "text_classification":
        return tower(config, Classifier(config, num_labels or 2, "gelu", drops_first=True))
    if head == "token_classification":
        return tower(config, TokenClassifier(config, num_labels or 2))
    if head == "question_answering":
        return tower(config, SpanScorer(config))
    if head == "multiple_choice":
        return tower(config, _choice_scorer(config))
    if head == "replaced_tokens":
        return tower(config, Discriminator(config))
    return tower(config, MaskedLm(config, "gelu") if head else Plain())


FAMILY = Family("electra", Config, MODEL_TYPES, TENSORS, towers)
