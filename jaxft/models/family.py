"""Contract of a model family."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxft.errors import UserError
from jaxft.models.layers.batch import Batch
from jaxft.models.layers.modules import Leaf
from jaxft.models.tower.run import run_pair, run_tower
from jaxft.models.tower.tower import BLOCKS, Compute, Params, Part, Tower
from jaxft.models.weights.names import Name
from jaxft.models.weights.tensor import Tensor
from jaxft.models.weights.tensor_names import TensorNames
from jaxft.tree import natural_order

Towers = Mapping[str, Tower | Part]  # a part outside the towers joins their outputs
Refit = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class ReadingDecoder:
    """Decoders of a family that attend to an encoder's output in every block.

    Args:
        names: model type -> the name table of such a decoder.
        tower: its config and the source's width -> its tower.
    """

    names: Callable[[str], Sequence[Name]]
    tower: Callable[[Any, int], Tower]


def run_alone(
    towers: Towers,
    params: Params,
    batch: Batch,
    key: jax.Array | None,
    compute: Compute,
) -> dict[str, jax.Array]:
    """Run the one tower of a model on a batch and return the outputs of its top by name.

    Texts `[B, K, T]` are K choices an example, each of which is run by itself: `logits` `[B, K]`.
    """
    (tower,) = towers.values()
    assert isinstance(tower, Tower)  # a part alone is no model
    shape = batch["input_ids"].shape if "input_ids" in batch else ()
    if len(shape) < 3:
        return run_tower(tower, params, batch, key, compute)
    folded = {name: value.reshape(-1, *value.shape[2:]) for name, value in batch.items()}
    outputs = run_tower(tower, params, folded, key, compute)
    return {"logits": outputs["logits"].reshape(shape[:2])}


def run_pair_or_encoder(
    towers: Towers, params: Params, batch: Batch, key: jax.Array | None, compute: Compute
) -> dict[str, jax.Array]:
    """Run encoder and decoder as `run_pair` does, or the encoder where it is alone."""
    run = run_pair if "decoder" in towers else run_alone
    return run(towers, params, batch, key, compute)


def same_fields(fields: Mapping[str, Any], tensors: Iterable[str]) -> dict[str, Any]:
    """Return a config.json as it is: the tensor names add nothing."""
    del tensors
    return dict(fields)


@dataclass(frozen=True)
class Wanted:
    """Task that a checkpoint is loaded for, by which a family may convert it.

    Args:
        task: the head; None for the checkpoint's own.
        labels: class names in order of id; None for the checkpoint's own.
        detection_tokens: the most objects to detect in an image; None where nothing is said.
        folder: the checkpoint's.
    """

    task: str | None
    labels: Sequence[str] | None
    detection_tokens: int | None
    folder: Path


# config.json and tensors of a checkpoint -> those of the one that it becomes for a task.
Content = tuple[dict[str, Any], dict[str, Tensor]]
Convert = Callable[[dict[str, Any], dict[str, Tensor], Wanted], Content]


def unconverted(fields: dict[str, Any], tensors: dict[str, Tensor], wanted: Wanted) -> Content:
    """Return a checkpoint as it is: no task asks for another."""
    del wanted
    return fields, tensors


def no_refits(config: Any, fields: Mapping[str, Any]) -> Mapping[str, Refit]:
    """Return no changes: the tensors fit as they are stored."""
    del config, fields
    return {}


def no_fields(head: str | None) -> Mapping[str, Any]:
    """Return no fields: a head asks nothing of config.json."""
    del head
    return {}


def class_ids(labels: Sequence[str]) -> dict[str, Any]:
    """Return the fields of config.json that name the classes; a name may stand twice."""
    return {
        "id2label": {str(number): name for number, name in enumerate(labels)},
        "label2id": {name: number for number, name in enumerate(labels)},
    }


ModelTypes = Mapping[str, Mapping[str | None, str]]  # model_type -> head -> architecture
# Head -> the end of an architecture's name, as transformers has most of them.
ENDINGS = {
    None: "Model",
    "text_classification": "ForSequenceClassification",
    "token_classification": "ForTokenClassification",
    "question_answering": "ForQuestionAnswering",
    "multiple_choice": "ForMultipleChoice",
    "masked_lm": "ForMaskedLM",
    "causal_lm": "ForCausalLM",
    "image_classification": "ForImageClassification",
    "semantic_segmentation": "ForSemanticSegmentation",
}


def architectures(stem: str, *heads: str) -> dict[str | None, str]:
    """Name a model type's architectures, without a head and with each of `heads`."""
    return {head: stem + ENDINGS[head] for head in (None, *heads)}


@dataclass(frozen=True)
class Family:
    """Contract of a family, all that the rest of jaxft knows of it.

    Args:
        name: its own.
        config: reads a config.json: `HfConfig` or what has its `from_hf`, `FIXED` and `UNREAD`.
        model_types: model_type -> head (None: without one) -> Hugging Face architecture.
        tensors: the tensor names of its checkpoints.
        towers: config, head, number of classes -> the towers.
        text: whether its configs have `max_positions` and `vocab_size`.
        images: whether its configs have `image_size` and `with_image_size(size)`.
        apply: runs a batch through the towers.
        infer_fields: config.json and the tensor names -> config.json with the fields that only
            those names imply.
        refits: config, the checkpoint's config.json -> by parameter, the function that fits a
            stored tensor to a config that differs from it (another image size).
        for_task: converts a checkpoint to that of another model type, or with other words, where a
            task asks for it.
        fields_of: head -> the fields of config.json by which its architecture is chosen.
        class_fields: classes in order of id -> the fields of config.json that name them.
        reading: its decoders that attend to a source; None if it has none.
        blocks, norm, pooler: name prefixes of those parts of a tower.
        head: name prefixes of what is a head's own.
        joins: name prefixes of what joins two towers, which trains beside an adapter.
        unpadded: its model types for which transformers knows no padding token where config.json
            names none.
    """

    name: str
    config: Any
    model_types: ModelTypes
    tensors: TensorNames
    towers: Callable[[Any, str | None, int | None], Towers]
    text: bool = True
    images: bool = False
    apply: Callable[..., dict[str, jax.Array]] = run_alone
    infer_fields: Callable[[Mapping[str, Any], Iterable[str]], dict[str, Any]] = same_fields
    refits: Callable[[Any, Mapping[str, Any]], Mapping[str, Refit]] = no_refits
    for_task: Convert = unconverted
    fields_of: Callable[[str | None], Mapping[str, Any]] = no_fields
    class_fields: Callable[[Sequence[str]], dict[str, Any]] = class_ids
    reading: ReadingDecoder | None = None
    blocks: str = BLOCKS
    norm: str = "norm/"
    pooler: str = "pooler/"
    head: tuple[str, ...] = ("head/",)
    joins: tuple[str, ...] = ()
    unpadded: tuple[str, ...] = ()


@dataclass(frozen=True)
class ComposedFamily:
    """Family whose members differ in more than numbers: config.json names their parts.

    They are made of members of two others, or their blocks differ from each other in kind, so that
    the table of names follows from config.json too.

    Args:
        name, config, model_types, for_task: as `Family` has them.
        compose: config.json, every family by model type, and whether the parts come from two
            checkpoints -> the family.
    """

    name: str
    config: Any
    model_types: ModelTypes
    compose: Callable[[Mapping[str, Any], Mapping[str, Family | ComposedFamily], bool], Family]
    for_task: Convert = unconverted


def leaves_of(towers: Towers) -> dict[str, Leaf]:
    """Collect every parameter's description, in natural order."""
    leaves = {name: leaf for part in towers.values() for name, leaf in part.leaves.items()}
    return {name: leaves[name] for name in natural_order(leaves)}


def depths_of(parts: Towers, last: int) -> dict[str, int]:
    """Map every parameter to its depth in its tower.

    Args:
        parts: towers, and parts outside them.
        last: the depth of a part outside the towers.
    """
    depths: dict[str, int] = {}
    for part in parts.values():
        depths |= part.depths if isinstance(part, Tower) else dict.fromkeys(part.leaves, last)
    return depths


def tops_of(parts: Towers, last: int) -> dict[str, int]:
    """Map every parameter to the depth of its tower's top; arguments as of `depths_of`."""
    tops: dict[str, int] = {}
    for part in parts.values():
        tops |= dict.fromkeys(part.leaves, part.last if isinstance(part, Tower) else last)
    return tops


def head_fields(head: str | None, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config.json without the classes of another head, which this one would count.

    transformers gives the head of question answering an output for each class of config.json.
    """
    if head != "question_answering":
        return dict(fields)
    classes = ("id2label", "label2id", "num_labels")
    return {name: value for name, value in fields.items() if name not in classes}


def class_labels(
    fields: Mapping[str, Any], num_labels: int | None, labels: Sequence[str] | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the class names of the checkpoint, and those that are asked for."""
    count = fields.get("num_labels") or 2
    stored = fields.get("id2label") or {str(i): f"LABEL_{i}" for i in range(count)}
    own = tuple(stored[key] for key in sorted(stored, key=int))
    if (num_labels is not None and num_labels < 1) or (labels is not None and not len(labels)):
        raise UserError("A head of classes needs one or more: num_labels, or the names in labels.")
    if labels is None:
        count = len(own) if num_labels is None else num_labels
        return own, own if count == len(own) else tuple(f"LABEL_{i}" for i in range(count))
    if num_labels not in (None, len(labels)):
        raise UserError(f"num_labels is {num_labels}, but {len(labels)} labels are named.")
    if len(set(labels)) != len(labels):
        raise UserError(f"A label is named twice: {', '.join(map(str, labels))}.")
    return own, tuple(map(str, labels))
