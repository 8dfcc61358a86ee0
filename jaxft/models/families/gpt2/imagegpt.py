"""ImageGPT: a GPT-2 whose words are colours, which writes an image pixel by pixel.

Its norms are RMS norms, and it scores colours alone, with a matrix of its own: the last word, that
every image begins with, comes nowhere else. To tell classes it takes the mean of the stream.

Source: Chen et al. (2020), "Generative Pretraining from Pixels"; the computation follows
`transformers`' `modeling_imagegpt.py`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.models.families.gpt2 import gpt2
from jaxft.models.families.gpt2.config import FIXED_IMAGE as FIXED
from jaxft.models.families.gpt2.config import UNREAD, Config
from jaxft.models.family import Family
from jaxft.models.layers.batch import Batch
from jaxft.models.layers.decoder import Bare, CausalLm
from jaxft.models.layers.modules import Linear
from jaxft.models.tower.tower import Tower
from jaxft.models.weights.names import Name

__all__ = ["FIXED", "UNREAD", "Config"]

MODEL_TYPES = {
    "imagegpt": {
        None: "ImageGPTModel",
        "image_generation": "ImageGPTForCausalImageModeling",
        "image_classification": "ImageGPTForImageClassification",
    }
}
HEAD_NAMES = {
    None: (),
    "image_generation": (Name("lm_head.weight", "head/kernel", transpose=True),),
    "image_classification": (Name("score.weight", "head/kernel", transpose=True),),
}
FRESH = gpt2.FRESH
UNUSED = gpt2.UNUSED


def names(head: str | None, model_type: str) -> tuple[Name, ...]:
    """The name table under a head: GPT-2's, whose biases of norms are not there."""
    return gpt2.NAMES["gpt2"] + HEAD_NAMES[head]


def canonical(name: str) -> str:
    """A tensor's name as files have it (with or without prefix) -> as `names` spells it."""
    return gpt2.canonical(name)


def exported(name: str, head: str | None, model_type: str) -> str:
    """A tensor's name as `names` spells it -> as the head's architecture saves it."""
    return gpt2.exported(name, head, model_type)


class MeanClassifier(nnx.Module):
    """Scores of classes from the mean of the normalised stream: `logits` [B, C]."""

    def __init__(self, config: Config, num_labels: int):
        self.norm = gpt2.make_norm(config)
        self.head = Linear(config.width, num_labels, ("embed", "labels"), config.std, bias=False)

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> dict[str, jax.Array]:
        return {"logits": self.head(self.norm(x).mean(axis=1)).astype(jnp.float32)}


def towers(config: Config, head: str | None, num_labels: int | None) -> dict[str, Tower]:
    """The one tower of an ImageGPT under a head (a key of `MODEL_TYPES["imagegpt"]`)."""
    if head == "image_classification":
        top: nnx.Module = MeanClassifier(config, num_labels or 2)
    elif head == "image_generation":
        colours = config.vocab_size - 1
        scores = Linear(config.width, colours, ("embed", "vocab"), config.std, bias=False)
        top = CausalLm(gpt2.make_norm(config), scores)
    else:
        top = Bare(gpt2.make_norm(config))
    return {"image": gpt2.tower(config, top, {})}


FAMILY = Family(
    name="imagegpt",
    config=Config,
    model_types=MODEL_TYPES,
    fixed=FIXED,
    unread=UNREAD,
    fresh=FRESH,
    unused=UNUSED,
    names=names,
    canonical=canonical,
    exported=exported,
    towers=towers,
)
