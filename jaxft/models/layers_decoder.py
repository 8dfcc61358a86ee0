"""The tops that decoders share: the bare stream, next-token scores, and a class per text."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.models.layers import Embedding, Linear
from jaxft.models.layers_batch import Batch, read_last
from jaxft.models.layers_loss import token_losses

Outputs = dict[str, jax.Array]


class Bare(nnx.Module):
    """The normalised stream: `last_hidden_state` [B, T, D]."""

    def __init__(self, norm: nnx.Module):
        self.norm = norm

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> Outputs:
        return {"last_hidden_state": self.norm(x)}


class CausalLm(nnx.Module):
    """Scores of the next token: `logits` [B, T, V].

    Where the batch has `targets` [B, T] (the next token, -1 where none is scored), each one's
    cross-entropy, `losses` [B, T] float32, and whether its score is the highest, `hits` [B, T],
    in place of the scores.

    Args:
        norm: of the stream.
        head: a matrix of its own, or the word embeddings (tied).
    """

    def __init__(self, norm: nnx.Module, head: Linear | Embedding):
        self.norm = norm
        self.head = head

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> Outputs:
        if "targets" in batch:
            losses, hits = token_losses(self, x, batch["targets"])
            return {"losses": losses, "hits": hits}
        return {"logits": self.scores(x)}

    def scores(self, x: jax.Array) -> jax.Array:
        """The scores at each position: [B, T, D] -> [B, T, V] float32."""
        score = self.head.scores if isinstance(self.head, Embedding) else self.head
        return score(self.norm(x)).astype(jnp.float32)


class LastToken(nnx.Module):
    """Scores of classes, read at the last token: `logits` [B, C], or [R, S, C] when packed.

    Args:
        norm: of the stream.
        head: from the stream to classes.
        pad_token_id: the token that is never read; None for none.
    """

    def __init__(self, norm: nnx.Module, head: Linear, pad_token_id: int | None):
        self.norm = norm
        self.head = head
        self.pad_token_id = pad_token_id

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> Outputs:
        last = read_last(x, batch, self.pad_token_id)
        return {"logits": self.head(self.norm(last)).astype(jnp.float32)}
