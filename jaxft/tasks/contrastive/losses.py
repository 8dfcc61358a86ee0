"""Losses of pairs of images and texts, each compared with all others of a batch of R pairs.

Scores of images with texts exist for some pairs at a time: `jaxft.models.layers.ring.pairs`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxft.models.layers.ring.pairs import Sides, Terms, pair_sums
from jaxft.tasks.contrastive.section import ContrastiveSection as Section
from jaxft.tasks.parts.contract import Outputs, Params

SCALE, BIAS = "head/logit_scale", "head/logit_bias"
HIDDEN = -1e9  # added to the score of padding


def pair_losses(
    section: Section, params: Params, outputs: Outputs, weights: jax.Array, mesh: Mesh | None
) -> jax.Array:
    """Compute the loss of each pair: `[R]`.

    Source: softmax: Radford et al. (2021), https://arxiv.org/abs/2103.00020, figure 3;
    sigmoid: Zhai et al. (2023), https://arxiv.org/abs/2303.15343, equation 2; hard negatives:
    Radenovic et al. (2023), https://arxiv.org/abs/2301.02280, section 3.3, with alpha 1.

    Args:
        section: the config's `task` section.
        params: with the logarithm of the scale of scores, and with their bias if they have one.
        outputs: `image_embeds` and `text_embeds` [R, D].
        weights: `[R]`, 0 for padding.
        mesh: the devices that rows are cut over; None for one.
    """
    images, texts = (outputs[f"{name}_embeds"].astype(jnp.float32) for name in ("image", "text"))
    scale, bias = params[SCALE].reshape(()), params.get(BIAS, jnp.zeros(())).reshape(())
    shared = jnp.exp(scale.astype(jnp.float32)), bias.astype(jnp.float32)
    marks = jnp.arange(len(weights)), weights
    sums = partial(pair_sums, sides=Sides(images, texts, shared, marks), mesh=mesh)
    if section.loss == "sigmoid":
        return sums(_sigmoid).plain[0]
    if not section.hard_negatives:
        of_images, of_texts, own = jax.tree.leaves(sums(_softmax))
        return (of_images + of_texts) / 2 - own
    terms = sums(partial(_hard, section.hard_negatives))
    count = jnp.log(jnp.maximum(weights.sum() - 1.0, 1.0))
    (own,) = terms.plain
    # The negatives of a row have weights exp(hardness x score), 1 on average.
    wrong = [heavy - heaviness + count for heavy, heaviness in (terms.by_left, terms.by_right)]
    return sum(jnp.logaddexp(own, one) for one in wrong) / 2 - own


def _scores(images: jax.Array, texts: jax.Array, shared: Any) -> jax.Array:
    scale, bias = shared
    return jnp.matmul(images, texts.T, precision="highest") * scale + bias


def _own(own: Any, theirs: Any) -> jax.Array:
    """Return which pairs belong together."""
    return own[0][:, None] == theirs[0][None, :]


def _hidden(weights: jax.Array) -> jax.Array:
    """Return what is added to the scores of padding."""
    return jnp.where(weights > 0, 0.0, HIDDEN)


def _softmax(images: Any, texts: Any, shared: Any, own: Any, theirs: Any, known: Any) -> Terms:
    del known
    scores = _scores(images, texts, shared)
    by_image, by_text = scores + _hidden(theirs[1])[None, :], scores + _hidden(own[1])[:, None]
    return Terms((by_image,), (by_text,), (jnp.where(_own(own, theirs), scores, 0.0),))


def _hard(
    hardness: float, images: Any, texts: Any, shared: Any, own: Any, theirs: Any, known: Any
) -> Terms:
    """Score negatives times 1 + hardness, and times hardness; and each pair that belongs."""
    (by_image,), (by_text,), plain = _softmax(images, texts, shared, own, theirs, known)
    wrong = [jnp.where(_own(own, theirs), HIDDEN, scores) for scores in (by_image, by_text)]
    of_images, of_texts = (((1 + hardness) * scores, hardness * scores) for scores in wrong)
    return Terms(of_images, of_texts, plain)


def _sigmoid(images: Any, texts: Any, shared: Any, own: Any, theirs: Any, known: Any) -> Terms:
    del known
    scores = _scores(images, texts, shared)
    signs = jnp.where(_own(own, theirs), 1.0, -1.0)
    return Terms(plain=(-jax.nn.log_sigmoid(signs * scores) * theirs[1][None, :],))
