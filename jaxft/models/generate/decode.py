"""Text goes on: a decoder with a key-value cache, its tokens greedy, drawn, or by beam search.

B prompts, T positions (a bucket: the longest prompt rounded up), M new tokens at most, and
S = T + M slots in the cache. One program a shape: the prompts are filled up on the left, where
nothing sees them. Of a model that writes from a source, the prompts are the sources, filled up on
the right, and every text begins with one token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.errors import UserError
from jaxft.models.generate import beams as generate_beams
from jaxft.models.generate.choose import choose
from jaxft.models.generate.settings import Settings
from jaxft.models.tower.cache import Cache, Read, decode, prefill, prefill_from
from jaxft.models.tower.tower import PLAIN, Compute

FROM_SOURCES = ("seq2seq", "captioning")  # the heads that text is written under from sources
WRITES = ("causal_lm", *FROM_SOURCES)  # and all that it is written under
Prompts = Sequence[Sequence[int] | np.ndarray]  # token ids; or images, [3, H, W] each
Stopped = Callable[[int, Sequence[int]], bool]  # which prompt, its new tokens so far


class WritingModel(Protocol):
    """What of a `registry.Model` is read here."""

    @property
    def config(self) -> Any:
        """The family's; of a model that writes from a source it has the `start_token_id`."""

    @property
    def head(self) -> str | None:
        """What it ends in."""

    @property
    def params(self) -> Mapping[str, Any]:
        """The flat dict."""

    @property
    def towers(self) -> Mapping[str, Any]:
        """One tower, or `encoder` and `decoder`."""

    @property
    def max_positions(self) -> int:
        """The most tokens that prompt and new tokens may have together."""


class Generator:
    """A model ready to go on with prompts; it keeps the programs that it has compiled.

    Args:
        model: a decoder under its `causal_lm` head, or an encoder-decoder.
        compute: how to run it.

    Attributes:
        prefill, prefill_from, decode: `tower.cache`'s functions, compiled once a shape.

    Raises:
        UserError: the model ends in something else.
    """

    def __init__(self, model: WritingModel, compute: Compute = PLAIN):
        if model.head not in WRITES:
            raise UserError(
                f"A model that ends in {model.head} writes no text.",
                f"Load it as {' or '.join(WRITES)}.",
            )
        *_, tower = model.towers.values()  # of two, the decoder comes last
        self._start = model.config.start_token_id if model.head in FROM_SOURCES else None
        self._positions = model.max_positions
        self._params = model.params
        self.prefill = jax.jit(
            lambda params, ids, seen, room: prefill(tower, params, ids, seen, room, compute),
            static_argnums=3,
        )
        self.prefill_from = jax.jit(
            lambda params, sources, ids, room: prefill_from(
                tower, params, sources, ids, room, compute
            ),
            static_argnums=3,
        )
        self.decode = jax.jit(
            lambda params, cache, ids, seen, slot, read=None: decode(
                tower, params, ids, seen, slot, cache, compute, read
            ),
            donate_argnums=1,
        )

    def generate(
        self,
        prompts: Prompts,
        settings: Settings,
        stopped: Stopped | None = None,
    ) -> list[list[int]]:
        """The new tokens of each prompt, that which ended it included.

        Args:
            prompts: token ids, none empty; of a model that writes from a source, the sources',
                or images, [3, H, W] float32 each.
            settings: how to go on.
            stopped: asked after each token but one that ends a text whether it ends here.

        Raises:
            UserError: a prompt is empty, or longer than the model's positions.
        """
        if settings.num_beams > 1:
            return self._search(prompts, settings)
        texts: list[list[int]] = [[] for _ in prompts]
        for tokens in self.stream(prompts, settings, stopped):
            for text, token in zip(texts, tokens, strict=True):
                text += [] if token is None else [token]
        return texts

    def stream(
        self,
        prompts: Prompts,
        settings: Settings,
        stopped: Stopped | None = None,
    ) -> Iterator[list[int | None]]:
        """The next token of each prompt, None where it has ended, as soon as it is there.

        The arguments and errors are those of `generate`, without beam search.
        """
        ids, seen, limits = self._fill(prompts, settings)
        length, room = ids.shape[1], max(limits)
        key = jax.random.key(settings.seed) if settings.do_sample else None
        scores, cache, read = self._begin(prompts, ids, seen, room)
        used = _used(ids, seen, scores.shape[-1], settings)
        numbers = numbers_of(settings)
        texts: list[list[int]] = [[] for _ in prompts]
        running = [True] * len(prompts)
        for step in range(room):
            tokens, used = _next(scores, used, key, np.int32(step), numbers, settings.top_k)
            if step + 1 < room:  # the device goes on while the host reads
                slot = np.int32(length + step)
                scores, cache = self.decode(self._params, cache, tokens, seen, slot, read)
            new = [
                token if on else None for token, on in zip(tokens.tolist(), running, strict=True)
            ]
            for row, token in enumerate(new):
                if token is not None:
                    texts[row].append(token)
                    running[row] = not (
                        token in settings.eos_token_id
                        or (stopped is not None and stopped(row, texts[row]))
                        or len(texts[row]) >= limits[row]
                    )
            yield new
            if not any(running):
                return

    def _search(self, prompts: Prompts, settings: Settings) -> list[list[int]]:
        """The best whole text of each prompt, by beam search."""
        ids, seen, limits = self._fill(prompts, settings)
        length, room, count = ids.shape[1], min(limits), settings.num_beams
        beams = generate_beams.start(len(prompts), count, room)
        scores, cache, read = self._begin(prompts, ids, seen, room)
        used = _used(ids, seen, scores.shape[-1], settings)
        first = np.repeat(np.arange(len(prompts)), count)
        all_beams = scores, used, cache, read
        scores, used, cache, read = _rows(all_beams, first, len(prompts))
        seen = seen[first, : length + room]
        for step in range(room):
            beams, rows, tokens, more = _advance(
                beams,
                scores,
                used,
                np.int32(step),
                ends=settings.eos_token_id,
                penalty=settings.repetition_penalty,
                length_penalty=settings.length_penalty,
                early_stopping=settings.early_stopping,
            )
            if step + 1 == room or not more:
                break
            used, cache = _rows((used, cache), rows, len(rows))
            if used is not None:
                used = used.at[np.arange(len(rows)), tokens].set(True)
            slot = np.int32(length + step)
            scores, cache = self.decode(self._params, cache, tokens, seen, slot, read)
        best, lengths = np.asarray(beams.whole[:, 0]), np.asarray(beams.lengths[:, 0])
        return [text[:end].tolist() for text, end in zip(best, lengths, strict=True)]

    def _begin(
        self, prompts: Prompts, ids: np.ndarray, seen: np.ndarray, room: int
    ) -> tuple[jax.Array, Cache, Read | None]:
        """The scores of the first new token, and what is kept of prompts and sources."""
        length = ids.shape[1]
        if self._start is None:
            return *self.prefill(self._params, ids, seen[:, :length], room), None
        return self.prefill_from(self._params, fill_sources(prompts, self._positions), ids, room)

    def _fill(
        self, prompts: Prompts, settings: Settings
    ) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """Prompts filled up on the left [B, T], the slots seen [B, S], and each's limit."""
        if not min(map(len, prompts)):
            raise UserError("The prompt is empty.", "Give at least one token to go on from.")
        if self._start is not None:
            prompts = [[self._start]] * len(prompts)
        longest = max(map(len, prompts))
        if longest > self._positions:
            raise UserError(
                f"The prompt has {longest} tokens; the model takes {self._positions}.",
                "Shorten it.",
            )
        most = settings.max_new_tokens or (settings.max_length or 0) - longest
        if most < 1:
            raise UserError(
                f"The prompt has {longest} tokens, and max_length is {settings.max_length}.",
                "Give max_new_tokens.",
            )
        # The last token is put out and never put in, so it needs no position.
        limits = [min(most, self._positions - len(prompt) + 1) for prompt in prompts]
        length = bucket(longest) if self._start is None else 1
        ids = np.zeros((len(prompts), length), np.int32)
        seen = np.ones((len(prompts), length + max(limits)), np.int32)
        for row, prompt in enumerate(prompts):
            ids[row, length - len(prompt) :] = prompt
            seen[row, : length - len(prompt)] = 0
        return ids, seen, limits


def fill_sources(sources: Prompts, most: int) -> dict[str, np.ndarray]:
    """Sources filled up on the right: `input_ids` and `attention_mask`, [B, R] int32 each.

    They are filled up to `most` tokens at most, as many as the model takes. Of images, which are
    all of one size, it is `pixel_values` [B, 3, H, W].
    """
    if np.ndim(sources[0]) == 3:
        return {"pixel_values": np.asarray(sources, np.float32)}
    longest = max(map(len, sources))
    shape = len(sources), min(bucket(longest), max(longest, most))
    ids, seen = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for row, source in enumerate(sources):
        ids[row, : len(source)], seen[row, : len(source)] = source, 1
    return {"input_ids": ids, "attention_mask": seen}


def bucket(length: int) -> int:
    """The length that a prompt is filled up to: few shapes to compile, little to compute."""
    stride = 32 if length <= 256 else 256
    return -(-length // stride) * stride


def _used(ids: np.ndarray, seen: np.ndarray, words: int, settings: Settings) -> jax.Array | None:
    """The tokens of each prompt: [B, V] bool; None where nothing asks for them."""
    if settings.repetition_penalty == 1.0:
        return None
    used = np.zeros((len(ids), words), bool)
    row, place = np.nonzero(seen[:, : ids.shape[1]])
    used[row, ids[row, place]] = True
    return jnp.asarray(used)


def numbers_of(settings: Settings) -> dict[str, np.float32 | None]:
    """The numbers of a choice as arrays, so that another value compiles nothing."""
    neutral = {"temperature": 1.0, "top_p": 1.0, "min_p": None, "repetition_penalty": 1.0}
    return {
        name: None if getattr(settings, name) == nothing else np.float32(getattr(settings, name))
        for name, nothing in neutral.items()
    }


@partial(jax.jit, static_argnames="top_k")
def _next(scores: Any, used: Any, key: Any, step: Any, numbers: Any, top_k: int) -> Any:
    own = None if key is None else jax.random.fold_in(key, step)
    return choose(scores, used, own, numbers, top_k)


_advance = jax.jit(
    generate_beams.advance,
    static_argnames=("ends", "penalty", "length_penalty", "early_stopping"),
)


@partial(jax.jit, static_argnames="count")
def _rows(values: Any, rows: jax.Array, count: int) -> Any:
    """Every array of `values` at these of its `count` rows, each of which may be several."""

    def chosen(value: jax.Array) -> jax.Array:
        grouped = value.reshape(count, -1, *value.shape[1:])
        return grouped[rows].reshape(-1, *value.shape[1:])

    return jax.tree.map(chosen, values)
