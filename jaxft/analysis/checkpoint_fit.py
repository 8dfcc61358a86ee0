"""Texts held against a checkpoint: whether it has seen their like, and what to do where not.

Of a sample: how the tokenizer cuts it, how the checkpoint's own pretraining head does on it, how
far its frozen features lie from those of other texts, and what a linear probe reads out of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxft.analysis.forgetting import OBJECTIVES, loss_of, text_batches
from jaxft.bounds import MOST_SAMPLE_CHARACTERS
from jaxft.errors import UserError
from jaxft.metrics.frechet import frechet
from jaxft.models.load import LoadOptions, describe, load
from jaxft.models.model import Model
from jaxft.models.tower.tower import Compute
from jaxft.tasks.parts.tools import Tools

NO_HEAD = "embedding"  # the task that reads the stream as it is
ROWS = 32  # a batch of features
STEP = 32  # of the lengths that batches are padded to
FOLDS = 5
LM_TEXTS = 256
# Where advice begins. English prose costs an English WordPiece 1.1 to 1.3 pieces a word.
MANY_PIECES = 1.4
MANY_UNKNOWN = 0.01
MANY_CUT = 0.05
FAR = 1.5  # times the distance between two halves of the reference
HARD = 0.35  # probe's gain over guessing, of what there is to gain


def hold_against(
    checkpoint: str,
    texts: Sequence[str],
    labels: Sequence[str] | None = None,
    reference: Sequence[str] | None = None,
    max_length: int | None = None,
) -> dict[str, Any]:
    """Measures of texts against a checkpoint, and the advice that follows.

    Args:
        checkpoint: as `model.checkpoint` names one.
        texts: a sample.
        labels: the class of each, for the linear probe; or None.
        reference: other texts, such as what the checkpoint is known to do well on; or None.
        max_length: the most tokens of a text; None for what the checkpoint's positions allow.

    Returns:
        `tokens`, and where they can be had `pretraining`, `distance`, `probe`; and `advice`.

    Raises:
        UserError: the checkpoint reads no text, or is not understood.
    """
    model = load(checkpoint, task=NO_HEAD)
    if not model.vocab_size:
        raise UserError(f"--against: {checkpoint} is not a text model.")
    tools = Tools(model, max_length, None)
    long = sum(len(text) > MOST_SAMPLE_CHARACTERS for text in texts)
    texts = [text[:MOST_SAMPLE_CHARACTERS] for text in texts]
    results: dict[str, Any] = {"checkpoint": checkpoint, "texts": len(texts), "shortened": long}
    results["tokens"] = token_facts(tools, texts)
    results["pretraining"] = _pretraining(checkpoint, tools, texts)
    features = token_means(model, tools, texts)
    if reference is not None:
        results["distance"] = distance_facts(features, token_means(model, tools, reference))
    if labels is not None:
        results["probe"] = probe(features, labels)
    return {**results, "advice": advice(results)}


def token_facts(tools: Tools, texts: Sequence[str]) -> dict[str, float]:
    """Count pieces a word, unknown pieces and lengths beside the context."""
    whole = tools.tokenizer.encode(texts, placed=True)
    lengths = np.array([len(ids) for ids in whole.ids])
    words = sum(len(text.split()) for text in texts)
    pieces = sum(int((numbers >= 0).sum()) for numbers in whole.words)
    return {
        "pieces_per_word": pieces / max(words, 1),
        "unknown": whole.unknown / max(pieces, 1),
        "mean": float(lengths.mean()),
        "p95": float(np.percentile(lengths, 95)),
        "longest": int(lengths.max()),
        "context": tools.max_length,
        "cut": float((lengths > tools.max_length).mean()),
    }


def _pretraining(checkpoint: str, tools: Tools, texts: Sequence[str]) -> dict[str, Any] | None:
    """The loss of the checkpoint's own head; None where it has none."""
    heads = tools.model.family.model_types[tools.model.model_type]
    for objective in (name for name in OBJECTIVES if name in heads):
        if describe(checkpoint, LoadOptions(task=objective)).matching.new:
            continue
        if objective == "masked_lm" and tools.tokenizer.mask_id is None:
            continue  # nothing to hide a word with; the other figures stand
        model = load(checkpoint, task=objective)
        loss = loss_of(model, Compute())
        batches = text_batches(texts[:LM_TEXTS], tools.tokenizer, tools.max_length, objective)
        sums = [jax.device_get(loss(model.params, batch)) for batch in batches]
        total, weight = np.sum(np.asarray(sums, np.float64), axis=0)
        mean = float(total / weight)
        return {"objective": objective, "loss": mean, "perplexity": float(np.exp(mean))}
    return None


def token_means(model: Model, tools: Tools, texts: Sequence[str]) -> np.ndarray:
    """The mean of the last hidden state over each text's tokens: `[texts, D]`."""

    @jax.jit
    def compute(params: Mapping[str, jax.Array], ids: jax.Array, mask: jax.Array) -> jax.Array:
        out = model.apply(params, {"input_ids": ids, "attention_mask": mask})
        weights = mask[..., None]  # [B, T, 1]
        return (out["last_hidden_state"] * weights).sum(1) / weights.sum(1)

    encoded = tools.tokenizer.encode(texts, max_length=tools.max_length).ids
    order = np.argsort([len(ids) for ids in encoded], kind="stable")
    results = np.zeros((len(texts), 0))
    for first in range(0, len(order), ROWS):
        chosen = order[first : first + ROWS]
        most = min(-(-max(len(encoded[one]) for one in chosen) // STEP) * STEP, model.max_positions)
        ids = np.full((ROWS, most), tools.tokenizer.pad_id, np.int32)
        mask = np.zeros((ROWS, most), np.int32)
        mask[:, 0] = 1  # a row without a text has a mean too
        for row, one in enumerate(chosen):
            own = encoded[one]
            ids[row, : len(own)], mask[row, : len(own)] = own, 1
        means = np.asarray(compute(model.params, ids, mask), np.float64)[: len(chosen)]
        if not results.size:
            results = np.zeros((len(texts), means.shape[1]))
        results[chosen] = means
    return results


def distance_facts(features: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Measure the distance of features from the reference, beside that of its own halves.

    Small samples lie apart by chance, and by more the smaller: both distances are of samples of
    one size.

    Args:
        features, reference: `[texts, D]`.
    """
    half = min(len(features), len(reference) // 2)
    if half < 2:
        raise UserError("--reference: the comparison needs at least four texts.")
    own = frechet(reference[:half], reference[half : 2 * half])
    other = frechet(features[:half], reference[:half])
    return {"frechet": other, "within": own, "times": other / max(own, 1e-12), "texts": half}


def probe(features: np.ndarray, labels: Sequence[str]) -> dict[str, Any] | None:
    """Logistic regression on frozen features, cross-validated; None with too few of a class.

    Args:
        features: `[texts, D]`.
        labels: the class of each.
    """
    from scipy.stats import norm
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classes, ids = np.unique(np.asarray(labels), return_inverse=True)
    counts = np.bincount(ids)
    if len(classes) < 2 or counts.min() < FOLDS:
        return None
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    scores = cross_val_score(model, features, ids, cv=folds)
    mean = float(scores.mean())
    margin = norm.ppf(0.95) * float(np.sqrt(mean * (1 - mean) / len(ids)))
    return {"accuracy": mean, "guessing": float(counts.max() / counts.sum()), "margin": margin}


def advice(fit: Mapping[str, Any]) -> list[str]:
    """Return advice in sentences, or that there is nothing to mend."""
    tokens, sentences = fit["tokens"], []
    if count := fit.get("shortened"):
        sentences.append(
            f"Of {count} long text(s) only the first {MOST_SAMPLE_CHARACTERS:,} characters were "
            "read."
        )
    result = fit.get("probe")
    readable = result is not None and _gain(result) >= HARD
    if tokens["unknown"] > MANY_UNKNOWN or (
        tokens["pieces_per_word"] > MANY_PIECES and not readable
    ):
        sentences.append(
            "The tokenizer splits these words into many tokens: use a checkpoint for their "
            "language or domain, or adapt this one first (language modeling on unlabeled "
            "texts of the domain), and train the embeddings too."
        )
    if tokens["cut"] > MANY_CUT:
        sentences.append(
            "Many texts are longer than the context and are truncated: use a checkpoint with a "
            "longer context, or shorten the texts to the relevant part."
        )
    distance = fit.get("distance")
    if distance and distance["times"] > FAR:
        sentences.append(
            "The features are far from the reference's: adapt to the domain first, and train more "
            "layers (fewer frozen blocks, layer_decay.rate closer to 1)."
        )
    if result and not readable:
        sentences.append(
            "A linear probe predicts the labels poorly from the frozen features "
            f"({_gain(result):.0%} of the way from guessing to perfect): train more layers, and "
            "label more."
        )
    elif result:
        sentences.append(
            "The labels can be predicted from the frozen features: freezing costs little."
        )
    return sentences or ["No sign of a domain mismatch."]


def _gain(result: Mapping[str, float]) -> float:
    """Return how far a probe is between chance (0) and perfect (1)."""
    return (result["accuracy"] - result["guessing"]) / max(1 - result["guessing"], 1e-9)
