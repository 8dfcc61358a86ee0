"""The common part of tasks scored by the texts that a model generates from sources.

R rows, T positions of the targets, M the most tokens generated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.data.batching.packing import round_up
from jaxft.data.sources.source import Source
from jaxft.data.text.tokenizer import Tokenizer
from jaxft.errors import UserError
from jaxft.models.generate.greedy import Limits, write_greedily
from jaxft.models.generate.settings import read_settings
from jaxft.models.layers.loss import UNSCORED
from jaxft.models.tower.tower import Compute, Tower
from jaxft.tasks.parts.contract import (
    Batch,
    BoundTask,
    ExamplesT,
    Outcomes,
    Outputs,
    Params,
    Sum,
    Sums,
    TaskT,
)
from jaxft.tasks.parts.token_examples import is_scored, summed_losses, token_accuracy
from jaxft.tasks.parts.tools import Tools

STRIDE = 8  # tokens: the padded length is a multiple of it, one shape per split
ROOM = 1.25  # the most tokens generated, as a multiple of the longest target's


@dataclass(frozen=True)
class Writing:
    """The decoder's tokenizer, special tokens and positions.

    Args:
        tokenizer: the checkpoint's tokenizer.
        start, end: the tokens before and at the end of a target.
        positions: the most tokens of a target.
        forced: the first token of every target, such as the language to write; None for any.
    """

    tokenizer: Tokenizer
    start: int
    end: int
    positions: int
    forced: int | None = None

    @property
    def key(self) -> list[int]:
        """Return the numbers that encoded targets depend on."""
        return [self.start, self.end, self.positions, *_list(self.forced)]


def writing_of(tools: Tools) -> Writing:
    """Return the `Writing` of a model.

    Raises:
        UserError: its config has no start or end token.
    """
    model = tools.model
    ends = model.config.start_token_id, model.config.end_token_id
    settings, _ = read_settings(model.source.folder, model.fields, {})
    own = model.max_positions, settings.forced_bos_token_id
    return Writing(tools.tokenizer, *ends, *own)


def encode_targets(
    source: Source, texts: Sequence[str], column: str, writing: Writing, most: int | None = None
) -> tuple[list[np.ndarray], dict[str, int]]:
    """Encode targets as the model generates them, without start and with end token, and count.

    Some tokenizers begin a text with the start token (BERT's), which the model does not generate,
    and some do not append the end token (GPT-2's). Those of mBART and NLLB add the language that
    they read, before or behind the text; a target has the one that is forced as its first token.

    Args:
        source: the rows, named in messages.
        texts: a target per row.
        column: the column of the targets.
        writing: the decoder's tokenizer and special tokens.
        most: the config's maximum number of tokens of a target, if set.

    Raises:
        UserError: a target has more tokens than that, or than the decoder has positions.
    """
    encoded = writing.tokenizer.encode(list(texts))
    targets = []
    for index, ids in enumerate(encoded.ids):
        ids = _as_generated(ids, writing)
        length = f"{source.place(index)}: its {column} has {len(ids)} tokens, and"
        if most is not None and len(ids) > most:
            raise UserError(
                f"{length} task.max_target_length is {most}.", "Raise it, or leave the row out."
            )
        if len(ids) > writing.positions:
            raise UserError(
                f"{length} the decoder has positions for {writing.positions}.",
                "Shorten it, or leave the row out.",
            )
        targets.append(ids.astype(np.int32))
    return targets, {"target_tokens": sum(map(len, targets)), "target_unknown": encoded.unknown}


def _as_generated(ids: np.ndarray, writing: Writing) -> np.ndarray:
    """Return a target as the model generates it, of the tokens of its tokenizer."""
    special, forced = writing.tokenizer.special_ids, writing.forced
    ids = ids[1:] if len(ids) and ids[0] == writing.start != writing.end else ids
    if forced is not None and (not len(ids) or ids[0] != forced):
        rest = ids[1:] if len(ids) and ids[0] in special - {writing.end} else ids
        ids = np.concatenate([[forced], rest])
    if len(ids) > 1 and ids[-2] == writing.end and ids[-1] in special:
        ids = ids[:-1]  # the first mBART's language, behind the end
    return ids if len(ids) and ids[-1] == writing.end else np.append(ids, writing.end)


def target_batch(
    targets: Sequence[np.ndarray | None], longest: int, writing: Writing
) -> dict[str, np.ndarray]:
    """Make the decoder's inputs, which are the targets shifted by one, and the targets.

    Args:
        targets: each row's tokens; None if a row has no example.
        longest: tokens of the longest target of the split.
        writing: the decoder's tokenizer and special tokens.

    Returns:
        `decoder_input_ids`, `decoder_attention_mask` and `targets`, [R, T] int32 each.
    """
    shape = len(targets), min(round_up(longest, STRIDE), max(longest, writing.positions))
    inputs, mask = np.full(shape, writing.tokenizer.pad_id, np.int32), np.zeros(shape, np.int32)
    wanted = np.full(shape, UNSCORED, np.int32)
    mask[:, 0] = 1  # softmax needs a position to attend to, even in an empty row
    for row, target in enumerate(targets):
        if target is not None:
            inputs[row, 0], inputs[row, 1 : len(target)] = writing.start, target[:-1]
            wanted[row, : len(target)], mask[row, : len(target)] = target, 1
    return {"decoder_input_ids": inputs, "decoder_attention_mask": mask, "targets": wanted}


class BoundGenerating(BoundTask[TaskT, ExamplesT]):
    """A task of next tokens whose examples are scored by the texts that the model generates."""

    def loss(self, outputs: Outputs, batch: Batch) -> Sum:
        return summed_losses(outputs, batch)

    def metrics(self, outputs: Outputs, batch: Batch) -> Sums:
        return token_accuracy(outputs, batch)

    def outcomes(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
        """Return each row's summed `loss`, `scored` tokens `[R, 1]`, and `written` `[R, 1, M]`."""
        return {
            "loss": outputs["losses"].sum(-1, keepdims=True),
            "scored": is_scored(batch).astype(jnp.float32).sum(-1, keepdims=True),
            "written": outputs["written"][:, None],
        }

    def text_of(self, ids: np.ndarray) -> str:
        """Decode a row of token ids."""
        return self.tools.tokenizer.decode(ids.tolist())  # the end token, also padding, is no text

    def texts(self, outcomes: Outcomes) -> list[str]:
        """Decode the generated texts of an evaluation."""
        return [self.text_of(row) for row in outcomes["written"]]


class BoundWriting(BoundGenerating[TaskT, ExamplesT]):
    """A task whose texts a decoder generates from sources."""

    @cached_property
    def writing(self) -> Writing:
        """The decoder's tokenizer and special tokens: its files are read once, not for each row."""
        return writing_of(self.tools)

    def generated(self, params: Params, batch: Batch, compute: Compute) -> Outputs:
        """Generate greedily from each source of a batch: `written` `[R, M]` token ids."""
        model = self.tools.model
        decoder = model.towers["decoder"]
        assert isinstance(decoder, Tower)
        decoder_keys = ("decoder_", decoder.prefix)
        sources = {
            name: value
            for name, value in batch.items()
            if name != "targets" and not name.startswith(decoder_keys)
        }
        length = batch["targets"].shape[1]
        settings, _ = read_settings(model.source.folder, model.fields, {})
        tokens = write_greedily(
            decoder,
            params,
            sources,
            compute,
            model.config.start_token_id,
            Limits(
                most=max(length, min(int(length * ROOM), model.max_positions)),
                ends=(model.config.end_token_id,),
                first=settings.rule(0, from_source=True),
                later=settings.rule(1, from_source=True),
            ),
        )
        return {"written": tokens}

    def texts_and_losses(self, outcomes: Outcomes) -> list[dict[str, Any]]:
        """Return each example's generated text `written`, and the mean `loss` of its tokens."""
        losses = outcomes["loss"] / outcomes["scored"]
        pairs = zip(self.texts(outcomes), losses, strict=True)
        return [{"written": text, "loss": float(loss)} for text, loss in pairs]


def _list(token: int | None) -> list[int]:
    return [] if token is None else [token]
