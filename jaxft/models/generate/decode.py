"""Text generation: a decoder with a key-value cache, greedy, sampled, or by beam search.

B prompts, T positions (a bucket: the longest prompt rounded up), M new tokens at most, and
S = T + M slots in the cache. One program a shape: the prompts are padded on the left, where
nothing attends to them. For a model that writes from a source, the prompts are the sources, padded
on the right, and every text begins with one token. For one that reads images among its words, the
images of all prompts are given beside these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.errors import UserError
from jaxft.models.gathered import on_host
from jaxft.models.generate import beams as generate_beams
from jaxft.models.generate.choose import Rule, choose
from jaxft.models.generate.prompts import Images, Prompts, bucket, fill_sources
from jaxft.models.generate.settings import Settings, check_cache
from jaxft.models.tower.cache import Cache, Read, decode, prefill, prefill_from
from jaxft.models.tower.tower import PLAIN, Compute

FROM_SOURCES = ("seq2seq", "captioning")  # the heads that text is written under from sources
WRITES = ("causal_lm", "vision_language", *FROM_SOURCES)  # and all that it is written under
Stopped = Callable[[int, Sequence[int]], bool]  # which prompt, its new tokens so far


class WritingModel(Protocol):
    """Attributes of a `model.Model` that are read here."""

    @property
    def config(self) -> Any:
        """Return its family's config, with a `start_token_id` if it writes from a source."""

    @property
    def head(self) -> str | None:
        """Return its head."""

    @property
    def params(self) -> Mapping[str, Any]:
        """Return the flat dict."""

    @property
    def towers(self) -> Mapping[str, Any]:
        """Return one tower, or two of which the last one writes."""

    @property
    def max_positions(self) -> int:
        """Return the most tokens that prompt and new tokens may have together."""


class Generator:
    """Text generator of a model, which holds the programs that it has compiled.

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
                f"A model with the head {model.head} cannot generate text.",
                f"Load it as {' or '.join(WRITES)}.",
            )
        *_, tower = model.towers.values()  # of two, the decoder comes last
        self._start = model.config.start_token_id if model.head in FROM_SOURCES else None
        self._positions = model.max_positions
        self._params = model.params
        self.prefill = jax.jit(
            lambda params, ids, mask, room, images=None: prefill(
                tower, params, ids, mask, room, compute, images
            ),
            static_argnums=3,
        )
        self.prefill_from = jax.jit(
            lambda params, sources, ids, room: prefill_from(
                tower, params, sources, ids, room, compute
            ),
            static_argnums=3,
        )
        self.decode = jax.jit(
            lambda params, cache, ids, mask, slot, read=None: decode(
                tower, params, ids, mask, slot, cache, compute, read
            ),
            donate_argnums=1,
        )

    def generate(
        self,
        prompts: Prompts,
        settings: Settings,
        stopped: Stopped | None = None,
        images: Images | None = None,
    ) -> list[list[int]]:
        """Generate the new tokens of each prompt, with the one that ended it.

        Args:
            prompts: token ids, none empty; of a model that writes from a source, the sources',
                or images, [3, H, W] float32 each.
            settings: how to go on.
            stopped: asked after each token but one that ends a text whether it ends here.
            images: what stands among the prompts' words: `pixel_values` [B, N, 3, H, W].

        Raises:
            UserError: a prompt is empty, or longer than the model's positions.
        """
        if settings.num_beams > 1:
            return self._search(prompts, settings, images)
        texts: list[list[int]] = [[] for _ in prompts]
        for tokens in self.stream(prompts, settings, stopped, images):
            for text, token in zip(texts, tokens, strict=True):
                text += [] if token is None else [token]
        return texts

    def stream(
        self,
        prompts: Prompts,
        settings: Settings,
        stopped: Stopped | None = None,
        images: Images | None = None,
    ) -> Iterator[list[int | None]]:
        """Yield the next token of each prompt as it is generated, None for a text that has ended.

        The arguments and errors are those of `generate`, without beam search.
        """
        ids, mask, limits = self._fill(prompts, settings)
        length, room, ends_at = ids.shape[1], max(limits), np.array(limits)
        key = jax.random.key(settings.seed) if settings.do_sample else None
        scores, cache, read = self._begin(prompts, ids, mask, room, images)
        used = _used(ids, mask, scores.shape[-1], settings)
        numbers = numbers_of(settings)
        texts: list[list[int]] = [[] for _ in prompts]
        running = [True] * len(prompts)
        for step in range(room):
            rule, last = settings.rule(step, self._start is not None), step + 1 >= ends_at
            state = scores, used, key, np.int32(step), numbers, last
            tokens, used = _next(*state, settings.top_k, rule)
            if step + 1 < room:  # the device goes on while the host reads
                slot = np.int32(length + step)
                scores, cache = self.decode(self._params, cache, tokens, mask, slot, read)
            own = on_host(tokens).tolist()
            new = [token if on else None for token, on in zip(own, running, strict=True)]
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

    def _search(
        self, prompts: Prompts, settings: Settings, images: Images | None
    ) -> list[list[int]]:
        """Return the best finished text of each prompt, by beam search."""
        ids, mask, limits = self._fill(prompts, settings)
        length, room, count = ids.shape[1], max(limits), settings.num_beams
        beams = generate_beams.start(len(prompts), count, room)
        scores, cache, read = self._begin(prompts, ids, mask, room, images)
        used = _used(ids, mask, scores.shape[-1], settings)
        first = np.repeat(np.arange(len(prompts)), count)
        all_beams = scores, used, cache, read
        scores, used, cache, read = _rows(all_beams, first, len(prompts))
        mask = mask[first]
        for step in range(room):
            beams, rows, tokens, more = _advance(
                beams,
                scores,
                used,
                np.int32(step),
                np.array(limits, np.int32),
                ends=settings.eos_token_id,
                penalty=settings.repetition_penalty,
                length_penalty=settings.length_penalty,
                early_stopping=settings.early_stopping,
                rule=settings.rule(step, self._start is not None),
            )
            if step + 1 == room or not on_host(more):
                break
            used, cache = _rows((used, cache), rows, len(rows))
            if used is not None:
                used = used.at[np.arange(len(rows)), tokens].set(True)
            slot = np.int32(length + step)
            scores, cache = self.decode(self._params, cache, tokens, mask, slot, read)
        best, lengths = on_host(beams.whole[:, 0]), on_host(beams.lengths[:, 0])
        return [text[:end].tolist() for text, end in zip(best, lengths, strict=True)]

    def _begin(
        self,
        prompts: Prompts,
        ids: np.ndarray,
        mask: np.ndarray,
        room: int,
        images: Images | None,
    ) -> tuple[jax.Array, Cache, Read | None]:
        """Return the scores of the first new token, and the caches of prompts and sources."""
        length = ids.shape[1]
        if self._start is None:
            return *self.prefill(self._params, ids, mask[:, :length], room, images), None
        return self.prefill_from(self._params, fill_sources(prompts, self._positions), ids, room)

    def _fill(
        self, prompts: Prompts, settings: Settings
    ) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """Pad prompts on the left [B, T]; return their slot mask [B, S] and token limits too."""
        if not min(map(len, prompts)):
            raise UserError("The prompt is empty.", "Give at least one token to continue.")
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
        # The last token is output and never input, so it needs no position.
        limits = [min(most, self._positions - len(prompt) + 1) for prompt in prompts]
        check_cache(len(prompts) * (longest + max(limits)), settings)
        length = bucket(longest) if self._start is None else 1
        ids = np.zeros((len(prompts), length), np.int32)
        mask = np.ones((len(prompts), length + max(limits)), np.int32)
        for row, prompt in enumerate(prompts):
            ids[row, length - len(prompt) :] = prompt
            mask[row, : length - len(prompt)] = 0
        return ids, mask, limits


def _used(ids: np.ndarray, mask: np.ndarray, words: int, settings: Settings) -> jax.Array | None:
    """Mark the tokens of each prompt: [B, V] bool; None where no penalty needs them."""
    if settings.repetition_penalty == 1.0:
        return None
    used = np.zeros((len(ids), words), bool)
    row, column = np.nonzero(mask[:, : ids.shape[1]])
    used[row, ids[row, column]] = True
    return jnp.asarray(used)


def numbers_of(settings: Settings) -> dict[str, np.float32 | None]:
    """Return the numeric settings as arrays, so that another value compiles nothing."""
    neutral = {"temperature": 1.0, "top_p": 1.0, "min_p": None, "repetition_penalty": 1.0}
    return {
        name: None if getattr(settings, name) == nothing else np.float32(getattr(settings, name))
        for name, nothing in neutral.items()
    }


@partial(jax.jit, static_argnames=("top_k", "rule"))
def _next(
    scores: Any, used: Any, key: Any, step: Any, numbers: Any, last: Any, top_k: int, rule: Rule
) -> Any:
    own = None if key is None else jax.random.fold_in(key, step)
    return choose(scores, used, own, numbers, top_k, rule, last)


_advance = jax.jit(
    generate_beams.advance,
    static_argnames=("ends", "penalty", "length_penalty", "early_stopping", "rule"),
)


@partial(jax.jit, static_argnames="count")
def _rows(values: Any, rows: jax.Array, count: int) -> Any:
    """Select these of the `count` row groups in every array of `values`."""

    def chosen(value: jax.Array) -> jax.Array:
        grouped = value.reshape(count, -1, *value.shape[1:])
        return grouped[rows].reshape(-1, *value.shape[1:])

    return jax.tree.map(chosen, values)
