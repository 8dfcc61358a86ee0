"""Forgetting: the loss of the checkpoint's own pretraining objective while another is learned.

The head that the checkpoint was pretrained with reads what the run has made of the layers below
it, on texts that the run does not train on: how much that loss rises is what was forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.config.load import Config
from jaxft.data.random import EpochRandom
from jaxft.data.sources.open import open_source
from jaxft.data.text.masking import SHARE, UNSCORED, choose_tokens, mask_all
from jaxft.data.text.tokenizer import Tokenizer
from jaxft.device.mesh import replicated
from jaxft.engine.inputs import check_columns
from jaxft.engine.setup import Setup, model_options
from jaxft.errors import UserError
from jaxft.models.adapters.merge import merge
from jaxft.models.layers.loss import scored_losses
from jaxft.models.load import describe
from jaxft.models.model import Model
from jaxft.models.tower.tower import Compute
from jaxft.models.values import read_value
from jaxft.tasks.parts.tools import Tools

OBJECTIVES = ("masked_lm", "causal_lm")
SPLIT = "pretraining"  # of its evaluations in the event log
ROWS = 8

Batch = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Forgetting:
    """Pretraining loss of a run on held-out texts, followed during training.

    Attributes:
        objective: `masked_lm` or `causal_lm`.
        own: the pretraining head's parameters, as the checkpoint has them.
        shared: the names that the run's model and the pretrained one have in common.
        batches: the texts.
        loss: `(params, batch) -> (sum, weight)`, jitted.
        setup: the run.
    """

    objective: str
    own: dict[str, jax.Array]
    shared: tuple[str, ...]
    batches: list[Batch]
    loss: Callable
    setup: Setup

    def score(self, params: Mapping[str, jax.Array]) -> dict[str, float]:
        """The mean loss of a scored token.

        Args:
            params: every parameter of the run's model.
        """
        if self.setup.model.adapted is not None:
            params = merge(params, self.setup.model.adapted)
        whole = self.own | {name: params[name] for name in self.shared}
        sums = [jax.device_get(self.loss(whole, batch)) for batch in self.batches]
        total, weight = np.sum(np.asarray(sums, np.float64), axis=0)
        return {"loss": float(total / weight)}


def open_forgetting(config: Config, setup: Setup) -> Forgetting | None:
    """Open the tracking of the pretraining loss; None where `report.forgetting` names no texts.

    Args:
        config: the run's, whose checkpoint still has its own head.
        setup: the run.

    Raises:
        UserError: the checkpoint has no head of pretraining, or the texts are not there.
    """
    if config.report.forgetting is None:
        return None
    objective, model = _pretrained(config, setup)
    alike = setup.model.head == objective
    shared = tuple(
        name
        for name in model.leaves
        if name in setup.model.leaves and (alike or not name.startswith(model.family.head))
    )
    own = {
        n: read_value(model, n, setup.shardings.get(n, replicated(setup.mesh)))
        for n in model.leaves
        if n not in shared
    }
    tools = Tools(model, config.data.max_length, None)
    source = open_source(config.report.forgetting, where={}, seed=config.run.seed.data)
    column = setup.task.plain_text_column
    check_columns(source, [column])
    texts = [str(row[column]) for row in source.rows(range(len(source)), (column,))]
    batches = text_batches(texts, tools.tokenizer, tools.max_length, objective)
    compute = replace(setup.compute, trainable=frozenset(), attention="xla")
    return Forgetting(objective, own, shared, batches, loss_of(model, compute), setup)


def _pretrained(config: Config, setup: Setup) -> tuple[str, Model]:
    """The checkpoint under the head that it was pretrained with, described."""
    heads = setup.model.family.model_types[setup.model.model_type]
    options = replace(model_options(config, ()), adapter=None, labels=None)
    for objective in (name for name in OBJECTIVES if name in heads):
        model = describe(config.model.checkpoint, replace(options, task=objective))
        if not model.matching.new:
            return objective, model
    raise UserError(
        f"report.forgetting: {setup.model.source.folder} has no pretraining head "
        "(masked or causal language modeling).",
        "Start from a checkpoint with its pretraining head, or set report.forgetting to null.",
    )


def text_batches(
    texts: Sequence[str], tokenizer: Tokenizer, max_length: int, objective: str
) -> list[Batch]:
    """The texts in batches of one shape; which tokens are masked is the same in every run.

    Args:
        texts: the texts.
        tokenizer: of the checkpoint.
        max_length: the most tokens kept of one.
        objective: `masked_lm` or `causal_lm`.

    Returns:
        `input_ids`, `attention_mask` and `targets` (-1 where nothing is scored), each
        [rows, length] int32; a row without a text is all padding.

    Raises:
        UserError: no token would be scored, or the tokenizer has no mask token.
    """
    mask = tokenizer.mask_id if objective == "masked_lm" else UNSCORED
    if mask is None:
        raise UserError(
            f"report.forgetting: the tokenizer in {tokenizer.folder} has no mask token."
        )
    encoded = tokenizer.encode(texts, max_length=max_length, placed=True)
    ids = encoded.ids
    length = max(map(len, ids))
    count = -(-len(ids) // ROWS) * ROWS
    tokens = np.full((count, length), tokenizer.pad_id, np.int32)
    attended, targets = np.zeros_like(tokens), np.full_like(tokens, UNSCORED)
    for row, own in enumerate(ids):
        tokens[row, : len(own)], attended[row, : len(own)] = own, 1
        if objective == "causal_lm":
            targets[row, : len(own) - 1] = own[1:]
            continue
        places = choose_tokens(encoded.words[row], SHARE, False, EpochRandom(0, 0).of(row))
        masked = mask_all(own, places, mask)
        tokens[row, places], targets[row, places] = masked.ids, masked.targets
    if not (targets != UNSCORED).any():
        raise UserError("report.forgetting: these texts are too short to score.")
    arrays = {"input_ids": tokens, "attention_mask": attended, "targets": targets}
    return [
        {name: array[first : first + ROWS] for name, array in arrays.items()}
        for first in range(0, count, ROWS)
    ]


def loss_of(model: Model, compute: Compute) -> Callable:
    """Return the jitted loss of `text_batches`: `(params, batch) -> (sum, weight)`."""

    def loss(params: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
        outputs = model.apply(params, batch, None, compute)
        scored = batch["targets"] != UNSCORED  # [B, T]
        if "losses" in outputs:
            losses = outputs["losses"]
        else:
            losses, _ = scored_losses(outputs["logits"].astype(jnp.float32), batch["targets"])
        return losses.sum(), scored.sum()

    return jax.jit(loss)
