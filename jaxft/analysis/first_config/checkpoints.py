"""The checkpoint of a first config: a usual one of the task, and what of it decides the rest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxft.analysis.first_config.questions import Answers, Question
from jaxft.analysis.model_catalog import task_heads
from jaxft.data.text.tokenizer import load_tokenizer
from jaxft.errors import UserError
from jaxft.models.load import HEADLESS, LoadOptions, Model, describe
from jaxft.models.weights.source import COMPANIONS, config_folder

# Task -> a small checkpoint that `jaxft assets` downloads, and a usual one on the hub.
USUAL = {
    "text_classification": ("minilm", "sentence-transformers/all-MiniLM-L6-v2"),
    "token_classification": ("minilm", "sentence-transformers/all-MiniLM-L6-v2"),
    "embedding": ("minilm", "sentence-transformers/all-MiniLM-L6-v2"),
    "reranking": ("minilm", "sentence-transformers/all-MiniLM-L6-v2"),
    "question_answering": ("minilm", "sentence-transformers/all-MiniLM-L6-v2"),
    "multiple_choice": ("minilm", "sentence-transformers/all-MiniLM-L6-v2"),
    "masked_lm": ("tiny_mlm", "distilbert/distilroberta-base"),
    "causal_lm": ("smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct"),
    "dpo": ("smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct"),
    "seq2seq": ("flan_t5", "google/flan-t5-small"),
    "image_classification": ("vits", "facebook/dinov2-small"),
    "object_detection": ("vits", "hustvl/yolos-tiny"),
    "semantic_segmentation": ("dinov2", "nvidia/segformer-b0-finetuned-ade-512-512"),
    "contrastive": ("", "openai/clip-vit-base-patch32"),
}
ASSETS = Path("assets")  # the folder that `jaxft assets` links
PERCENTILE = 95  # of the texts that a row should hold whole
LONGEST = 256  # tokens of a text by default: a step's time grows with them
STEP = 16  # tokens that lengths are rounded up to
SMALLEST = 7  # patches a side of an image, at least


@dataclass(frozen=True)
class Described:
    """A checkpoint as its config.json describes it.

    Attributes:
        name: as the config names it.
        model: with shapes for parameters; no weights were read.
    """

    name: str
    model: Model

    @property
    def blocks(self) -> int:
        """Return the number of blocks of its deepest tower."""
        return self.model.num_depths - 2

    @property
    def parameters(self) -> int:
        """Return the number of its parameters."""
        return sum(math.prod(leaf.shape) for leaf in self.model.leaves.values())


def choose_checkpoint(task: str, answers: Answers) -> tuple[str, str]:
    """Return the checkpoint to start from, and the reason for it."""
    asset, on_hub = USUAL[task]
    if asset and (ASSETS / asset / "config.json").is_file():
        default, why = str(ASSETS / asset), "a small one, which is here already"
    else:
        default, why = on_hub, "a small one that is usual for this task"
    return answers.to(Question("--checkpoint", "Checkpoint", (), default, why, certain=True))


def describe_checkpoint(name: str, task: str, labels: int | None) -> Described:
    """Describe a checkpoint with the head of a task; of the hub, no weights are fetched.

    Args:
        name: a folder, a hub id, or `package:module/path`.
        task: `task.kind`.
        labels: the number of classes, where it is known.

    Raises:
        UserError: it is not there, or has no head for the task.
    """
    asset, on_hub = USUAL[task]
    try:
        folder = config_folder(name, files=("config.json", *COMPANIONS))
    except UserError as error:
        if name != on_hub or not asset:
            raise
        hint = f"Check the network, or add --checkpoint {ASSETS / asset}, which needs no hub."
        raise UserError(error.message, hint) from None
    head = task_heads()[task] or HEADLESS
    options = LoadOptions(task=head, num_labels=labels if labels and labels > 1 else None)
    return Described(name, describe(str(folder), options, weights=False))


def text_length(checkpoint: Described, texts: Sequence[str]) -> tuple[int, str]:
    """Return `data.max_length` for texts like these, and the reason.

    Args:
        checkpoint: whose tokenizer counts.
        texts: a sample.
    """
    encoded = load_tokenizer(checkpoint.model.tokenizer_folder).encode(list(texts))
    lengths = np.array([len(ids) for ids in encoded.ids])
    wanted = int(np.percentile(lengths, PERCENTILE))
    most = checkpoint.model.max_positions
    length = min(STEP * math.ceil(max(wanted, STEP) / STEP), LONGEST, most)
    cut = int((lengths > length).sum())
    why = f"of {len(lengths):,} texts the median has {int(np.median(lengths)):,} tokens"
    why += f" and the longest {int(lengths.max()):,}"
    if cut:
        why += f"; {100 * cut / len(lengths):.0f}% are cut (the model takes {most:,})"
    return length, why


def image_size(checkpoint: Described, sides: Sequence[int]) -> tuple[int, str] | None:
    """Return `model.image_size` for images of these sizes; None for the checkpoint's own.

    Args:
        checkpoint: a model that reads images in patches.
        sides: the longer side of some images, in pixels.
    """
    own, fields = checkpoint.model.image_size, checkpoint.model.fields
    patch = fields.get("patch_size")
    if own is None or not isinstance(patch, int):
        return None
    median = int(np.median(np.array(sides)))
    size = max(SMALLEST, math.ceil(median / patch)) * patch
    if size >= own[0]:
        return None
    why = f"the images have {median} pixels a side, the checkpoint {own[0]}; a multiple of "
    return size, f"{why}its patches of {patch}, and quicker"
