"""ImageGPT: a GPT-2 whose words are colors, which generates an image pixel by pixel.

Its norms are RMS norms, and it scores colours alone, with a matrix of its own: the last word, that
every image begins with, comes nowhere else. To tell classes it takes the mean of the stream.

Source: Chen et al. (2020), "Generative Pretraining from Pixels"; the computation follows
`transformers`' `modeling_imagegpt.py`.
"""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.models.families.gpt2 import gpt2
from jaxft.models.families.gpt2.config import ImageConfig
from jaxft.models.families.gpt2.imagegpt_classes import with_classes
from jaxft.models.family import Family
from jaxft.models.layers.batch import Batch
from jaxft.models.layers.decoder import Bare, CausalLm
from jaxft.models.layers.modules import Linear
from jaxft.models.tower.tower import Tower
from jaxft.models.weights.names import Name
from jaxft.models.weights.tensor_names import HeadLines

MODEL_TYPES = {
    "imagegpt": {
        None: "ImageGPTModel",
        "image_generation": "ImageGPTForCausalImageModeling",
        "image_classification": "ImageGPTForImageClassification",
    }
}
HEAD_NAMES: HeadLines = {
    "image_generation": (Name("lm_head.weight", "head/kernel", transpose=True),),
    "image_classification": (Name("score.weight", "head/kernel", transpose=True),),
}
# The names are GPT-2's, of which no leaf asks for the biases of norms.
TENSORS = replace(gpt2.TENSORS, tables={"imagegpt": gpt2.NAMES["gpt2"]}, heads=HEAD_NAMES)


class MeanClassifier(nnx.Module):
    """Class scores from the mean of the normalized stream: `logits` [B, C]."""

    def __init__(self, config: ImageConfig, num_labels: int):
        self.norm = gpt2.make_norm(config)
        self.head = Linear(config.width, num_labels, ("embed", "labels"), config.std, bias=False)

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> dict[str, jax.Array]:
        return {"logits": self.head(self.norm(x).mean(axis=1)).astype(jnp.float32)}


def towers(config: ImageConfig, head: str | None, num_labels: int | None) -> dict[str, Tower]:
    """Build the tower of an ImageGPT under a head."""
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
    *("imagegpt", ImageConfig, MODEL_TYPES, TENSORS, towers),
    for_task=with_classes,
    unpadded=tuple(MODEL_TYPES),
)
