"""What tasks share that are scored by the texts that a model writes from sources.

R rows, T positions of the targets, M tokens that a model may write.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.data.batching.packing import round_up
from jaxft.data.sources.open import Source
from jaxft.data.text.tokenizer import Tokenizer
from jaxft.errors import UserError
from jaxft.models.generate.greedy import write_greedily
from jaxft.models.layers.loss import UNSCORED
from jaxft.models.tower.tower import Compute, Tower
from jaxft.tasks.parts.contract import (
    Batch,
    BoundTask,
    ExamplesT,
    Outputs,
    Params,
    Sum,
    Sums,
    TaskT,
)
from jaxft.tasks.parts.tools import Tools

STRIDE = 8  # sources and targets are padded to a multiple of so many tokens: one shape a split
ROOM = 1.25  # what the model may write: that many times the tokens of the longest target


@dataclass(frozen=True)
class Writing:
    """How a model writes.

    Args:
        tokenizer: the checkpoint's.
        start, end: the token that a target is written after, and the one that ends it.
        positions: the most tokens of a target.
    """

    tokenizer: Tokenizer
    start: int
    end: int
    positions: int


def writing_of(tools: Tools) -> Writing:
    """How the model writes that reads the examples.

    Raises:
        UserError: its config does not say what a text begins or ends with.
    """
    config = tools.model.config
    ends = config.start_token_id, config.end_token_id
    return Writing(tools.tokenizer, *ends, tools.model.max_positions)


def encode_targets(
    source: Source, texts: Sequence[str], column: str, writing: Writing, most: int | None = None
) -> tuple[list[np.ndarray], dict[str, int]]:
    """Each target's tokens as they are to be written, and counts of the whole.

    A tokenizer may begin a text with what the model writes it after (BERT's does), which it does
    not write itself, and may leave out what ends one (GPT-2's does).

    Args:
        source: the rows, whose place is told of one that is too long.
        texts: a target a row.
        column: holds them.
        writing: how the model writes.
        most: the most tokens of a target, where a person says so.

    Raises:
        UserError: a target of more tokens than that, or than the decoder's positions.
    """
    encoded = writing.tokenizer.encode(list(texts))
    targets = []
    for index, ids in enumerate(encoded.ids):
        ids = ids[1:] if len(ids) and ids[0] == writing.start != writing.end else ids
        ids = ids if len(ids) and ids[-1] == writing.end else np.append(ids, writing.end)
        said, mend = f"{source.place(index)}: its {column} has {len(ids)} tokens, and the ", ""
        if most is not None and len(ids) > most:
            said += f"decoder is to write {most} at most."
            mend = "Raise task.max_target_length, or leave the row out."
        elif len(ids) > writing.positions:
            said += f"decoder has positions for {writing.positions}."
            mend = "Shorten it, or leave the row out."
        if mend:
            raise UserError(said, mend)
        targets.append(ids.astype(np.int32))
    return targets, {"target_tokens": sum(map(len, targets)), "target_unknown": encoded.unknown}


def target_batch(
    targets: Sequence[np.ndarray | None], longest: int, writing: Writing
) -> dict[str, np.ndarray]:
    """What a decoder and the loss read of a batch of targets, moved on by one.

    Args:
        targets: each row's tokens; None where a row holds no example.
        longest: tokens of the longest of the whole split.
        writing: how the model writes.

    Returns:
        `decoder_input_ids`, `decoder_attention_mask` and `targets`, [R, T] int32 each.
    """
    shape = len(targets), min(round_up(longest, STRIDE), max(longest, writing.positions))
    inputs, seen = np.full(shape, writing.tokenizer.pad_id, np.int32), np.zeros(shape, np.int32)
    wanted = np.full(shape, UNSCORED, np.int32)
    seen[:, 0] = 1  # a row without an example still attends somewhere
    for row, target in enumerate(targets):
        if target is not None:
            inputs[row, 0], inputs[row, 1 : len(target)] = writing.start, target[:-1]
            wanted[row, : len(target)], seen[row, : len(target)] = target, 1
    return {"decoder_input_ids": inputs, "decoder_attention_mask": seen, "targets": wanted}


class BoundWriting(BoundTask[TaskT, ExamplesT]):
    """A task whose examples are scored by the texts that the model writes for them."""

    def loss(self, outputs: Outputs, batch: Batch) -> Sum:
        """The summed loss of the targets' tokens, and how many there are."""
        return jnp.sum(outputs["losses"]), _scored(batch).sum()

    def metrics(self, outputs: Outputs, batch: Batch) -> Sums:
        """`accuracy` of the targets' tokens."""
        return {"accuracy": (jnp.sum(outputs["hits"], dtype=jnp.float32), _scored(batch).sum())}

    def generated(self, params: Params, batch: Batch, compute: Compute) -> Outputs:
        """`written` [R, M]: the tokens that the model writes for each source of a batch."""
        model = self.tools.model
        decoder = model.towers["decoder"]
        assert isinstance(decoder, Tower)
        theirs = ("decoder_", decoder.prefix)
        sources = {n: v for n, v in batch.items() if n != "targets" and not n.startswith(theirs)}
        length = batch["targets"].shape[1]
        tokens = write_greedily(
            decoder,
            params,
            sources,
            compute,
            start=model.config.start_token_id,
            end=model.config.end_token_id,
            most=max(length, min(int(length * ROOM), model.max_positions)),
        )
        return {"written": tokens}

    def outcomes(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
        """Of each row the summed `loss`, the tokens `scored` [R, 1], and `written` [R, 1, M]."""
        return {
            "loss": outputs["losses"].sum(-1, keepdims=True),
            "scored": _scored(batch).sum(-1, keepdims=True),
            "written": outputs["written"][:, None],
        }


def texts_of(tokens: np.ndarray, tokenizer: Tokenizer) -> list[str]:
    """The texts of tokens [examples, M]: the end, which fills them up, is no text."""
    return [tokenizer.decode(row.tolist()) for row in tokens]


def _scored(batch: Batch) -> jax.Array:
    """1 where a token is scored: [R, T]."""
    return (batch["targets"] != UNSCORED).astype(jnp.float32)
