"""Mask and tops of decoders: bare stream, next-token scores, a class, tags, an answer's ends."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.models.layers.attention import Mask, make_mask
from jaxft.models.layers.batch import (
    Batch,
    check_length,
    devices_of,
    groups_of,
    read_end,
    read_last,
    segments_of,
    slot_of,
)
from jaxft.models.layers.kernels import Kernel
from jaxft.models.layers.loss import token_losses
from jaxft.models.layers.math import dropout, soft_capped
from jaxft.models.layers.modules import (
    Embedding,
    LayerNorm,
    Linear,
    RMSNorm,
    span_scores,
    split_key,
)

Outputs = dict[str, jax.Array]
Norm = LayerNorm | RMSNorm


class Bare(nnx.Module):
    """Normalized stream: `last_hidden_state` [B, T, D].

    Args:
        norm: of the stream; None where the last block ends in one.
        projection: to the width of the word embeddings, where that is another.
    """

    def __init__(self, norm: Norm | None, projection: Linear | None = None):
        self.norm = norm
        self.projection = projection

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> Outputs:
        return {"last_hidden_state": self.finished(x)}

    def finished(self, x: jax.Array) -> jax.Array:
        """Normalize and project the stream for a head: [..., D] -> [..., E]."""
        x = x if self.norm is None else self.norm(x)
        return x if self.projection is None else self.projection(x)


class CausalLm(Bare):
    """Scores of the next token: `logits` [B, T, V].

    Where the batch has `targets` [B, T] (the next token, -1 where none is scored), each one's
    cross-entropy, `losses` [B, T] float32, and whether its score is the highest, `hits` [B, T],
    in place of the scores.

    Args:
        norm, projection: as `Bare` has them.
        head: a matrix of its own, or the word embeddings (tied); or a module that ends in those.
        soft_cap: bound of the scores; None for none.
        divisor: what the scores are divided by before that.
    """

    def __init__(
        self,
        norm: Norm | None,
        head: Embedding | Callable[[jax.Array], jax.Array],
        projection: Linear | None = None,
        soft_cap: float | None = None,
        divisor: float = 1.0,
    ):
        super().__init__(norm, projection)
        self.head = head
        self.soft_cap = soft_cap
        self.divisor = divisor

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> Outputs:
        if "targets" in batch:
            losses, hits = token_losses(self, x, batch["targets"], devices_of(batch))
            return {"losses": losses, "hits": hits}
        return {"logits": self.scores(x)}

    def scores(self, x: jax.Array) -> jax.Array:
        """Score the next token at each position: [B, T, D] -> [B, T, V] float32."""
        score = self.head.scores if isinstance(self.head, Embedding) else self.head
        scores = score(self.finished(x)).astype(jnp.float32)
        scores = scores if self.divisor == 1.0 else scores / self.divisor
        return scores if self.soft_cap is None else soft_capped(scores, self.soft_cap)


class LastToken(Bare):
    """Class scores, read at the last token: `logits` [B, C], or [R, S, C] when packed.

    Args:
        norm, projection: as `Bare` has them.
        head: from the stream to classes.
        pad_token_id: the token that is never read; None for none.
        rate: of the dropout before the head.
    """

    def __init__(
        self,
        norm: Norm | None,
        head: Linear,
        pad_token_id: int | None,
        projection: Linear | None = None,
        rate: float = 0.0,
    ):
        super().__init__(norm, projection)
        self.head = head
        self.pad_token_id, self.rate = pad_token_id, rate

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> Outputs:
        last = self.finished(read_last(x, batch, self.pad_token_id))
        return {"logits": self.head(dropout(last, self.rate, key)).astype(jnp.float32)}


class EndClasses(Bare):
    """Class scores of a source that was read twice: `logits` [B, C], or [R, S, C] when packed.

    Args:
        norm: as `Bare` has it.
        pooler, head: from the stream at the last end token, behind tanh, to classes.
        end_token_id: that token.
        rate: of the dropout before each of the two.
    """

    def __init__(
        self, norm: Norm | None, pooler: Linear, head: Linear, end_token_id: int, rate: float
    ):
        super().__init__(norm)
        self.pooler, self.head = pooler, head
        self.end_token_id, self.rate = end_token_id, rate

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> Outputs:
        pooler_key, head_key = split_key(key, 2)
        last = self.finished(read_end(x, batch, self.end_token_id))
        pooled = jnp.tanh(self.pooler(dropout(last, self.rate, pooler_key)))
        return {"logits": self.head(dropout(pooled, self.rate, head_key)).astype(jnp.float32)}


class TokenClasses(Bare):
    """Class scores of every token: `logits` [B, T, C].

    Args:
        norm, projection: as `Bare` has them.
        head: from the stream to classes.
        rate: of the dropout before the head.
    """

    def __init__(
        self, norm: Norm | None, head: Linear, rate: float, projection: Linear | None = None
    ):
        super().__init__(norm, projection)
        self.head = head
        self.rate = rate

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> Outputs:
        read = dropout(self.finished(x), self.rate, key)
        return {"logits": self.head(read).astype(jnp.float32)}


class Spans(Bare):
    """Scores of an answer's first and last token: `start_logits` and `end_logits` [B, T].

    Args:
        norm, projection: as `Bare` has them.
        head: from the stream to both scores.
    """

    def __init__(self, norm: Norm | None, head: Linear, projection: Linear | None = None):
        super().__init__(norm, projection)
        self.head = head

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> Outputs:
        return span_scores(self.head(self.finished(x)))


class OnStream(nnx.Module):
    """Outputs of a head that reads the normalized stream behind a dropout.

    Args:
        norm: of the stream.
        head: one that does not normalize it.
        rate: of the dropout.
    """

    def __init__(self, norm: Norm, head: Bare, rate: float):
        self.norm, self.head, self.rate = norm, head, rate

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> Outputs:
        stream_key, head_key = split_key(key, 2)
        return self.head(dropout(self.norm(x), self.rate, stream_key), batch, head_key)


def text_mask(
    batch: Batch,
    max_positions: int,
    window: int | None,
    kernel: Callable[[tuple[int, ...]], Kernel | None],
    causal: bool = True,
) -> Mask:
    """Make the mask under which each position of a text attends to those of its own text.

    Args:
        batch: the texts.
        max_positions: the most tokens that a text may have.
        window: how many positions back each sees, itself included, and as many ahead where the
            mask is not causal; None for all.
        kernel: rows and positions [B, T] -> the attention kernel for them.
        causal: each sees itself and those before it only.

    Raises:
        UserError: the text is longer than that.
    """
    check_length(batch, max_positions)
    segments = segments_of(batch)
    slot, served = slot_of(batch), kernel(segments.shape)
    groups, ahead = groups_of(batch)
    return make_mask(
        segments,
        causal=causal,
        window=window,
        slot=slot,
        kernel=served,
        groups=groups,
        ahead=ahead,
    )


def decoder_top(
    head: str | None,
    norm: Norm | None,
    *,
    vocab_size: int,
    width: int,
    std: float,
    tied: bool,
    num_labels: int | None,
    pad_token_id: int | None,
    projection: Linear | None = None,
    soft_cap: float | None = None,
    divisor: float = 1.0,
    token_rate: float = 0.0,
) -> tuple[nnx.Module, dict[str, str]]:
    """Build the top of a decoder under a head, and return its ties.

    Args:
        head: `text_classification`, `token_classification`, `question_answering`, `causal_lm`, or
            None for the bare stream.
        norm, projection: as `Bare` has them.
        vocab_size: V.
        width: what the head reads, E.
        std: the standard deviation of a fresh head.
        tied: whether words are scored against their own embeddings.
        num_labels: classes; None for two.
        pad_token_id: the token that no class is read from.
        soft_cap, divisor: of the scores of words, as `CausalLm` has them.
        token_rate: the dropout before the classes of tokens.
    """
    if head == "text_classification":
        classes = Linear(width, num_labels or 2, ("embed", "labels"), std, bias=False)
        return LastToken(norm, classes, pad_token_id, projection), {}
    if head == "token_classification":
        classes = Linear(width, num_labels or 2, ("embed", "labels"), std)
        return TokenClasses(norm, classes, token_rate, projection), {}
    if head == "question_answering":
        return Spans(norm, Linear(width, 2, ("embed", "labels"), std), projection), {}
    if head is None:
        return Bare(norm, projection), {}
    if tied:
        words = Embedding(vocab_size, width, "vocab", std)
        ties = {"head/embedding": "embeddings/word/embedding"}
        return CausalLm(norm, words, projection, soft_cap, divisor), ties
    scores = Linear(width, vocab_size, ("embed", "vocab"), std, bias=False)
    return CausalLm(norm, scores, projection, soft_cap, divisor), {}
