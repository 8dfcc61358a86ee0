"""A text written from another: an encoder reads the source, a decoder learns the target.

What is scored beside the loss is what the model writes by itself for every source of a split.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.config_tasks import Seq2Seq as Section
from jaxft.data.cache import Held, Ragged, fingerprint
from jaxft.data.packing import round_up
from jaxft.data.sources import Source
from jaxft.data.text import Tokenizer
from jaxft.errors import UserError
from jaxft.metrics.translation import translation_scores
from jaxft.models.generate_greedy import write_greedily
from jaxft.models.layers_loss import UNSCORED
from jaxft.models.registry_model import Model
from jaxft.models.transformer import Compute, Tower
from jaxft.tasks.contract import Batch, Sums, Tools
from jaxft.tasks.labels import read_rows, text_of

STRIDE = 8  # sources and targets are padded to a multiple of so many tokens: one shape a split
ROOM = 1.25  # what the model may write: that many times the tokens of the longest target


def make(section: Section) -> Seq2Seq:
    """The task as the config's `task` section describes it."""
    return Seq2Seq(section)


@dataclass(frozen=True)
class Pairs:
    """Sources and targets as token ids, a pair a row; see `jaxft.tasks.contract.Examples`.

    Args:
        tokens: of each pair, the source's and then the target's ids, and which are `of_target`.
        tokenizer: the checkpoint's.
        start: the token that a target is written after.
        wanted: `[examples]` the targets' texts.
    """

    tokens: Ragged | Held
    tokenizer: Tokenizer
    start: int
    wanted: Sequence[str]
    labels: None = None
    image_size: None = None
    random: bool = False
    remarks: Mapping[int, dict[str, Any]] = field(default_factory=dict)

    @property
    def lengths(self) -> np.ndarray:
        return np.ones(len(self), np.int64)

    @property
    def counts(self) -> Mapping[str, int]:
        return self.tokens.meta["counts"]

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.tokens)

    def __len__(self) -> int:
        return len(self.tokens)

    def without_images(self) -> Pairs:
        return self

    def collate(self, index: np.ndarray, row_length: int) -> dict[str, np.ndarray]:
        del row_length
        most = self.tokens.meta["longest"]
        shapes = {name: (len(index), round_up(most[name], STRIDE)) for name in most}
        pad = self.tokenizer.pad_id
        ids, inputs = (np.full(shapes[name], pad, np.int32) for name in ("source", "target"))
        read, seen = (np.zeros(shapes[name], np.int32) for name in ("source", "target"))
        targets = np.full(shapes["target"], UNSCORED, np.int32)
        read[:, 0] = seen[:, 0] = 1  # a row without an example still attends somewhere
        for row, number in enumerate(index[:, 0].tolist()):
            if number < 0:
                continue
            both, of_target = (self.tokens[number][name] for name in ("both", "of_target"))
            source, target = both[of_target == 0], both[of_target == 1]
            ids[row, : len(source)], read[row, : len(source)] = source, 1
            inputs[row, 0], inputs[row, 1 : len(target)] = self.start, target[:-1]
            targets[row, : len(target)], seen[row, : len(target)] = target, 1
        return {
            "input_ids": ids,
            "attention_mask": read,
            "decoder_input_ids": inputs,
            "decoder_attention_mask": seen,
            "targets": targets,
            "weights": (index >= 0).astype(np.float32),  # [R, 1]
            "example_ids": index.astype(np.int32),
        }


@dataclass(frozen=True)
class Seq2Seq:
    """See `jaxft.tasks.contract.Task`."""

    section: Section
    kind: str = "seq2seq"
    primary: str = "chrf"
    packs: bool = False
    metric_names: tuple[str, ...] = ("loss", "accuracy", "bleu", "chrf", "exact_match")

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.section.source, self.section.target)

    def label_names(self, source: Source) -> tuple[str, ...]:
        del source
        return ()

    def check_row(
        self, source: Source, index: int, row: Mapping[str, Any], names: Sequence[str]
    ) -> None:
        """Raise what is wrong with a row: one of its two texts."""
        del source, index, names
        self._pair(row)

    def examples(self, source: Source, names: Sequence[str] | None, tools: Tools) -> Pairs:
        del names
        pairs = read_rows(source, self.columns, self._pair)
        texts = dict(zip(self.columns, map(list, zip(*pairs, strict=True)), strict=True))
        tokens = tools.once(
            partial(self._encode, source, texts, tools.tokenizer, tools.max_length),
            kind="pairs of texts",
            source=source.fingerprint,
            tokenizer=tools.tokenizer.fingerprint,
            max_length=tools.max_length,
            task=self.section.model_dump(),
        )
        wanted = texts[self.section.target]
        return Pairs(tokens, tools.tokenizer, tools.model.config.start_token_id, wanted)

    def _pair(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(text_of(row[column], column) for column in self.columns)

    def _encode(
        self,
        source: Source,
        texts: Mapping[str, list[str]],
        tokenizer: Tokenizer,
        max_length: int,
    ) -> tuple[list[dict[str, np.ndarray]], dict[str, Any]]:
        """Every pair's tokens; of the whole, counts and the longest of each side."""
        own = self.section
        sources = tokenizer.encode(
            [own.prefix + one for one in texts[own.source]], None, max_length
        )
        targets = tokenizer.encode(texts[own.target])
        most = own.max_target_length
        for index, ids in enumerate(targets.ids):
            if most is not None and len(ids) > most:
                raise UserError(
                    f"{source.place(index)}: its {own.target} has {len(ids)} tokens, and the "
                    f"decoder is to write {most} at most.",
                    "Raise task.max_target_length, or leave the row out.",
                )
        longest = {
            side: max(map(len, one.ids)) for side, one in (("source", sources), ("target", targets))
        }
        counts = sources.counts | {
            "target_tokens": targets.tokens,
            "target_unknown": targets.unknown,
        }
        pairs = zip(sources.ids, targets.ids, strict=True)
        return [
            {
                "both": np.concatenate([ids, new]),
                "of_target": np.repeat(np.array([0, 1], np.int32), [len(ids), len(new)]),
            }
            for ids, new in pairs
        ], {
            "counts": counts,
            "longest": longest,
        }

    def loss(self, outputs: Mapping[str, jax.Array], batch: Batch) -> tuple[jax.Array, jax.Array]:
        return jnp.sum(outputs["losses"]), _scored(batch).sum()

    def metrics(self, outputs: Mapping[str, jax.Array], batch: Batch) -> Sums:
        return {"accuracy": (jnp.sum(outputs["hits"], dtype=jnp.float32), _scored(batch).sum())}

    def write(
        self, model: Model, params: Mapping[str, jax.Array], batch: Batch, compute: Compute
    ) -> dict[str, jax.Array]:
        """`written` [R, M]: the tokens that the model writes for each source of a batch."""
        decoder = model.towers["decoder"]
        assert isinstance(decoder, Tower)
        theirs = ("decoder_", decoder.prefix)
        sources = {n: v for n, v in batch.items() if n != "targets" and not n.startswith(theirs)}
        written = write_greedily(
            decoder,
            params,
            sources,
            compute,
            start=model.config.start_token_id,
            end=model.config.end_token_id,
            most=int(batch["targets"].shape[1] * ROOM),
        )
        return {"written": written}

    def outcomes(self, outputs: Mapping[str, jax.Array], batch: Batch) -> dict[str, jax.Array]:
        return {
            "loss": outputs["losses"].sum(-1, keepdims=True),  # [R, 1]
            "scored": _scored(batch).sum(-1, keepdims=True),
            "written": outputs["written"][:, None],  # [R, 1, M]
        }

    def summarise(
        self, outcomes: Mapping[str, np.ndarray], examples: Pairs, names: Sequence[str]
    ) -> dict[str, float]:
        del names
        return translation_scores(_texts(outcomes["written"], examples), examples.wanted)

    def describe(
        self,
        source: Source,
        outcomes: Mapping[str, np.ndarray],
        examples: Pairs,
        names: Sequence[str],
    ) -> Iterator[dict[str, Any]]:
        """Each source and target, what the model wrote, and the loss of a token."""
        del names
        written = _texts(outcomes["written"], examples)
        losses = outcomes["loss"] / outcomes["scored"]
        for (_, row), text, loss in zip(source.each(self.columns), written, losses, strict=True):
            own = row[self.section.source], row[self.section.target]
            yield {"source": own[0], "target": own[1], "written": text, "loss": float(loss)}

    def rows_from_input(self, inputs: Iterable[str]) -> Iterator[dict[str, Any]]:
        raise UserError("This run writes texts from sources, and has no class to give one.")


def _texts(written: np.ndarray, examples: Pairs) -> list[str]:
    """The texts of tokens [examples, M]: the end, which fills them up, is no text."""
    return [examples.tokenizer.decode(row.tolist()) for row in written]


def _scored(batch: Batch) -> jax.Array:
    """1 where a token is scored: [R, T]."""
    return (batch["targets"] != UNSCORED).astype(jnp.float32)
