"""The losses of preference pairs, from log-probabilities: R rows, S pairs a row."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxft.tasks.dpo.section import DpoSection as Section
from jaxft.tasks.parts.token_examples import is_scored, of_segments

REFERENCE = "reference_log_probs"  # of a batch: [R, S, 2] float32, under the initial model


def answer_log_probs(
    outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Sum log-probabilities over each answer's tokens, and count these: `[R, S, 2]` float32.

    Args:
        outputs: `losses` `[R, T]`, each scored token's cross-entropy.
        batch: `targets` and `segment_ids` `[R, T]`, where the two sequences of a pair are
            segments one after the other; `weights` `[R, S]`.
    """
    rows, pairs = batch["weights"].shape
    own = of_segments(batch["segment_ids"], 2 * pairs)  # [R, 2 S, T]
    scored = is_scored(batch)
    sums = jnp.where(own, -outputs["losses"][:, None, :], 0.0).sum(-1)
    counts = (own & scored[:, None, :]).sum(-1, dtype=jnp.float32)
    return sums.reshape(rows, pairs, 2), counts.reshape(rows, pairs, 2)


def rewards(
    section: Section, log_probs: jax.Array, reference: jax.Array, counts: jax.Array
) -> jax.Array:
    """Compute the implicit rewards, beta times the log-ratio to the reference: `[..., 2]`.

    Args:
        section: the task's.
        log_probs, reference: sums over the chosen and the rejected answer, `[..., 2]`.
        counts: tokens of each answer; IPO's log-ratios are averages over them.
    """
    ratios = log_probs - reference
    if section.loss == "ipo":
        ratios = ratios / jnp.maximum(counts, 1.0)
    return section.beta * ratios


def preference_losses(section: Section, rewards: jax.Array) -> jax.Array:
    """Compute each pair's loss from the rewards `[..., 2]` of its chosen and rejected answer.

    Source: Rafailov et al. (2023), https://arxiv.org/abs/2305.18290, equation 7; smoothing as in
    https://ericmitchell.ai/cdpo.pdf; IPO from Azar et al. (2023),
    https://arxiv.org/abs/2310.12036, equation 17, on averages over tokens, as TRL has it.
    """
    margins = rewards[..., 0] - rewards[..., 1]
    if section.loss == "ipo":
        return (margins / section.beta - 1 / (2 * section.beta)) ** 2
    smoothing = section.label_smoothing
    right, wrong = jax.nn.log_sigmoid(margins), jax.nn.log_sigmoid(-margins)
    return -(1 - smoothing) * right - smoothing * wrong
