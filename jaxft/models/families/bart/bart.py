"""BART, mBART, Pegasus, M2M-100 (NLLB) and Marian: an encoder and a decoder of one computation.

BART has learned positions, a norm of the embeddings, and blocks that normalize their output. The
blocks of mBART normalize their input, and a norm ends each tower; Pegasus and M2M-100 are the same
with sinusoids and without the norm of the embeddings. Marian is BART with sinusoids and without
that norm; its encoder and decoder may have vocabularies of their own.

Source: Lewis et al. (2019), https://arxiv.org/abs/1910.13461; Liu et al. (2020),
https://arxiv.org/abs/2001.08210; Zhang et al. (2019), https://arxiv.org/abs/1912.08777; Fan et
al. (2020), https://arxiv.org/abs/2010.11125; NLLB Team (2022), https://arxiv.org/abs/2207.04672;
Junczys-Dowmunt et al. (2018), https://arxiv.org/abs/1804.00344; the computation follows
`transformers`' files of the same names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxft.models.families.bart.config import UNBIASED, Config
from jaxft.models.families.bart.modules import EPS, Block, Stem, WordScores
from jaxft.models.families.bart.names import bart_names, infer_fields
from jaxft.models.family import Family, architectures
from jaxft.models.layers.batch import Batch, decoder_input, repeated_input
from jaxft.models.layers.decoder import Bare, CausalLm, EndClasses, Spans
from jaxft.models.layers.modules import LayerNorm, Linear
from jaxft.models.tower.run import run_pair
from jaxft.models.tower.tower import Part, Tower

CLASSIFIES = ("text_classification", "question_answering")  # heads that read a text twice
MODEL_TYPES = {
    "bart": architectures("Bart", *CLASSIFIES) | {"seq2seq": "BartForConditionalGeneration"},
    "marian": {None: "MarianModel", "seq2seq": "MarianMTModel"},
    "mbart": architectures("MBart", *CLASSIFIES) | {"seq2seq": "MBartForConditionalGeneration"},
    "pegasus": {None: "PegasusModel", "seq2seq": "PegasusForConditionalGeneration"},
    "m2m_100": {None: "M2M100Model", "seq2seq": "M2M100ForConditionalGeneration"},
}
WORDS = "encoder/word/embedding"


def towers(config: Config, head: str | None, num_labels: int | None) -> dict[str, Tower]:
    """Build the encoder, and the decoder that reads its output."""

    def blocks(part: str) -> tuple[Part, ...]:
        block = Part(Block(config, part == "decoder"))
        return (block,) * config.fields[f"{part}_layers"]

    stem, bare = Stem(config, decodes=False), Part(Bare(_norm(config)))
    encoder = Tower(Part(stem), blocks("encoder"), bare, prefix="encoder/", needs=stem.needs)
    scored = "head/words/embedding"  # a path of the top where words are scored by their embeddings
    stem = Stem(config, decodes=True)
    decoder = Tower(
        Part(stem),
        blocks("decoder"),
        Part(_top(config, head, num_labels)),
        ties={} if config.shared else {scored: "own_word/embedding"},
        prefix="decoder/",
        reads=encoder,
        borrowed=dict.fromkeys(("word/embedding", scored), WORDS) if config.shared else {},
        input_of=_repeated(config) if head in CLASSIFIES else decoder_input,
        needs=stem.needs,
    )
    return {"encoder": encoder, "decoder": decoder}


def _norm(config: Config) -> LayerNorm | None:
    """Build the norm that ends a tower, where one does."""
    return LayerNorm(config.fields["d_model"], EPS) if config.pre_norm else None


def _top(config: Config, head: str | None, num_labels: int | None) -> nnx.Module:
    """Build the decoder's top under a head."""
    own, norm = config.fields, _norm(config)
    width, std = own["d_model"], own["init_std"]
    if head == "seq2seq":
        return CausalLm(norm, WordScores(config))
    if head == "text_classification":
        pooler = Linear(width, width, ("embed", "pooled"), std)
        classes = Linear(width, num_labels or 2, ("embed", "labels"), std)
        return EndClasses(norm, pooler, classes, config.end_token_id, own["classifier_dropout"])
    if head == "question_answering":
        return Spans(norm, Linear(width, 2, ("embed", "labels"), std))
    return Bare(norm)


def _repeated(config: Config) -> Callable[[Batch, jax.Array], Batch]:
    """Return the function that gives the decoder the source again."""
    start = None if config.model_type == "mbart" else config.start_token_id
    return partial(repeated_input, start=start)


def refits(
    config: Config, fields: Mapping[str, Any]
) -> Mapping[str, Callable[[np.ndarray], np.ndarray]]:
    """Return the function that adds words to the bias of the scores: zeros, as transformers does.

    Args:
        config: the model's, whose vocabulary may have grown.
        fields: the checkpoint's config.json.
    """
    del fields
    if config.model_type in UNBIASED:
        return {}

    def longer(bias: np.ndarray) -> np.ndarray:
        return np.pad(bias, ((0, 0), (0, max(0, config.decoder_vocab_size - bias.shape[-1]))))

    return {"decoder/head/bias": longer}


FAMILY = Family(
    *("bart", Config, MODEL_TYPES, bart_names(*MODEL_TYPES), towers),
    apply=run_pair,
    infer_fields=infer_fields,
    refits=refits,
    head=("decoder/head/",),
    pooler="decoder/pooler/",
)
