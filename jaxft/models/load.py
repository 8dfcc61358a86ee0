"""From a checkpoint to a Model: the family is found by the config's `model_type`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxft.data.text.tokenizer import load_tokenizer
from jaxft.errors import UserError, nearest
from jaxft.models import families as families_package
from jaxft.models.adapters.low_rank import Adapter
from jaxft.models.families.clip import clip
from jaxft.models.families.encoder_decoder import encoder_decoder
from jaxft.models.family import ComposedFamily, Family, Wanted, class_labels, head_fields, leaves_of
from jaxft.models.load_adapters import with_adapter
from jaxft.models.load_dense import with_dense
from jaxft.models.model import Model
from jaxft.models.reinit import reinitialized, with_new
from jaxft.models.ties import with_ties
from jaxft.models.tokenizer_source import with_tokenizer
from jaxft.models.values import ShardingOf, shapes_of, with_values
from jaxft.models.weights.config_fields import with_padding
from jaxft.models.weights.expected import expected_tensors
from jaxft.models.weights.files import open_tensors
from jaxft.models.weights.hf_config import balanced
from jaxft.models.weights.names import match, resolve_names
from jaxft.models.weights.source import Checkpoint, Source, read_config, resolve
from jaxft.models.weights.tensor import Tensor
from jaxft.models.weights.vocab import with_vocabulary

DETECTION = "object_detection"
IMAGE_GENERATION = "image_generation"
# Heads whose width is the number of named classes.
CLASSES = ("text_classification", "image_classification", "token_classification")
CLASS_HEADS = (*CLASSES, "semantic_segmentation", DETECTION)
# The task that reads the stream without a head.
HEADLESS = "embedding"


@dataclass(frozen=True)
class LoadOptions:
    """Options of loading a checkpoint; `load` explains each."""

    task: str | None = None
    num_labels: int | None = None
    labels: Sequence[str] | None = None
    dtype: str = "float32"
    dropout: float | None = None
    ignore: Sequence[str] = ()
    resize_vocab: bool = False
    reinit: int = 0
    image_size: int | None = None
    detection_tokens: int | None = None
    router_aux_loss_coef: float | None = None
    adapter: Adapter | str | Path | None = None
    new: Sequence[str] = ()
    sharding: ShardingOf | None = None
    cache: str | None = None
    tokenizer: str | None = None


PLAIN = LoadOptions()  # the checkpoint as it is


def load(
    checkpoint: Checkpoint,
    *,
    task: str | None = None,
    num_labels: int | None = None,
    labels: Sequence[str] | None = None,
    dtype: str = "float32",
    seed: int = 0,
    dropout: float | None = None,
    ignore: Sequence[str] = (),
    resize_vocab: bool = False,
    reinit: int = 0,
    image_size: int | None = None,
    detection_tokens: int | None = None,
    adapter: Adapter | str | Path | None = None,
    new: Sequence[str] = (),
    sharding: ShardingOf | None = None,
    cache: str | None = None,
    tokenizer: str | None = None,
    router_aux_loss_coef: float | None = None,
) -> Model:
    """Load a checkpoint as a model with parameters.

    Args:
        checkpoint: a folder, a hub id (`owner/name@revision`) or `package:module/path`; or two
            of them: `vision` and `text`, for a dual encoder with a new common space, or `encoder`
            and `decoder`, for a decoder that attends to the encoder's output.
        task: the model's head; None for that of the checkpoint's own architecture.
        num_labels: classes of the head; None for as many as `labels`, or as the checkpoint says.
        labels: class names in order of id; a classifier with the same ones is kept, else new.
        dtype: the type to hold parameters in.
        seed: of the initial values of new parameters.
        dropout: one rate throughout; None for the checkpoint's own.
        ignore: fields of config.json, and tensors, to ignore.
        resize_vocab: grow the embeddings where the tokenizer has more pieces; a new row is the
            mean of the old.
        reinit: how many top blocks to re-initialize, with the pooler; 0 for none.
        image_size: pixels a side of the images to take; None for the checkpoint's own.
        detection_tokens: the most objects to detect in an image, where a ViT becomes a detector.
        adapter: low-rank matrices (LoRA) to put beside kernels; or a PEFT folder of them.
        new: parameters to count as new although the checkpoint has them: a run's own checkpoint
            holds those that were new at its start.
        sharding: (name, shape, axes) -> the parameter's sharding.
        cache: the hub's cache folder.
        tokenizer: where the tokenizer's files are, if not in the checkpoint.
        router_aux_loss_coef: factor of the loss that balances the load of experts; None for the
            checkpoint's own choice.

    Raises:
        UserError: the checkpoint is not there, not whole, or not understood.
    """
    options = LoadOptions(
        task=task,
        num_labels=num_labels,
        labels=labels,
        dtype=dtype,
        dropout=dropout,
        ignore=ignore,
        resize_vocab=resize_vocab,
        reinit=reinit,
        image_size=image_size,
        detection_tokens=detection_tokens,
        adapter=adapter,
        new=new,
        sharding=sharding,
        cache=cache,
        tokenizer=tokenizer,
        router_aux_loss_coef=router_aux_loss_coef,
    )
    return with_values(describe(checkpoint, options), dtype=dtype, seed=seed)


def describe(
    checkpoint: Checkpoint, options: LoadOptions = PLAIN, *, weights: bool = True
) -> Model:
    """Describe the model of a checkpoint, with shapes for parameters: no weight is read.

    Errors of a checkpoint are raised here. Without `weights` its config is enough, and the tensors
    are assumed to match it.
    """
    source = with_tokenizer(resolve(checkpoint, options.cache), options.tokenizer, options.cache)
    fields, tensors = _content(source, options, weights)
    family = _family(fields, source)
    fields = with_padding(fields, source.tokenizer_folder, family.unpadded)
    fields = family.infer_fields(fields, tensors)
    head = _head(family, fields, options.task)
    fields, copies = with_ties(family, head, fields, tensors, options.ignore)
    config = _config(family, fields, options)
    fields = head_fields(head, fields) | dict(family.fields_of(head))
    own, labels = class_labels(fields, options.num_labels, options.labels)
    towers, named = family.towers(config, head, len(labels)), _named(head, labels)
    table = family.tensors.table(head, fields["model_type"])
    lines = resolve_names(table, leaves := leaves_of(towers))
    matching = match(
        family.tensors.unpacked(tensors)
        or expected_tensors(lines, leaves, source.folder, family.head if named else None),
        *(lines, leaves),
        canonical=family.tensors.canonical,
        fresh=family.tensors.fresh,
        refuse=family.head if named and own != labels else (),
        unused=(*family.tensors.unused_by(head), *options.ignore),
        refit=family.refits(config, fields),
        grow=options.resize_vocab,
        aliases={**family.tensors.aliases, **copies},
    )
    matching = with_new(reinitialized(matching, towers, options.reinit, family.pooler), options.new)
    size = options.image_size
    model = Model(family, config, head, named, {}, towers, source, fields, matching, size)
    model = with_dense(model, weights=weights) if options.task == HEADLESS else model
    model = model if options.adapter is None else with_adapter(model, options.adapter)
    return replace(model, params=shapes_of(model.leaves, options.dtype, options.sharding))


def families() -> dict[str, Family | ComposedFamily]:
    """Collect every model type and its family: each module of `families` may declare some."""
    modules = (
        importlib.import_module(part.name)
        for part in pkgutil.walk_packages(
            families_package.__path__, f"{families_package.__name__}."
        )
    )
    declared = [
        family
        for module in modules
        for family in vars(module).values()
        if isinstance(family, Family | ComposedFamily)
    ]
    return {model_type: family for family in declared for model_type in family.model_types}


def _family(fields: Mapping[str, Any], source: Source) -> Family:
    """Find the family of a config's model type; of two towers, both put together."""
    family = _declared(fields)
    if isinstance(family, ComposedFamily):
        return family.compose(fields, families(), source.second is not None)
    return family


def _declared(fields: Mapping[str, Any]) -> Family | ComposedFamily:
    """Find what a model type's module declares."""
    known, model_type = families(), fields["model_type"]
    if model_type not in known:
        close = [f"Did you mean '{name}'? " for name in nearest(model_type, known)]
        raise UserError(
            f"config.json: the model_type '{model_type}' is not supported.",
            "".join([*close, "`jaxft models` lists those that are."]),
        )
    return known[model_type]


def _fields(source: Source, resize_vocab: bool) -> dict[str, Any]:
    """Read the config.json of one or two checkpoints, and what their tokenizer adds."""
    fields, folder = read_config(source.folder), source.tokenizer_folder
    if source.second is not None:
        second = read_config(source.second.folder)
        if source.decodes:
            tokens = load_tokenizer(folder)
            fields = encoder_decoder.join_configs(
                clip.one_config(fields, "vision_config"), second, tokens.first_id, tokens.last_id
            )
        else:
            fields = clip.join_configs(fields, second)
    return with_vocabulary(fields, load_tokenizer(folder).vocab_size) if resize_vocab else fields


def _tensors(source: Source) -> dict[str, Tensor]:
    """Open the tensors of one or two checkpoints."""
    tensors = open_tensors(source.weight_files, source.weight_map)
    if source.second is None:
        return tensors
    second = open_tensors(source.second.weight_files, source.second.weight_map)
    if source.decodes:
        return encoder_decoder.join_tensors(clip.one_tower(tensors, clip.VISION), second)
    return clip.join_tensors(tensors, second)


def _content(
    source: Source, options: LoadOptions, weights: bool
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the config.json and the tensors of a checkpoint as they are converted for a task."""
    fields, tensors = _fields(source, options.resize_vocab), _tensors(source) if weights else {}
    wanted = Wanted(options.task, options.labels, options.detection_tokens, source.folder)
    return _declared(fields).for_task(fields, tensors, wanted)


def _named(head: str | None, labels: tuple[str, ...]) -> tuple[str, ...] | None:
    """Return the classes of a head that has any."""
    return labels if head in CLASS_HEADS else None


def _config(family: Family, fields: Mapping[str, Any], options: LoadOptions) -> Any:
    """Read the config, with another dropout rate, image size or loss of routers if asked for."""
    config = family.config.from_hf(fields, options.ignore)
    if options.dropout is not None:
        config = config.with_dropout(options.dropout)
    if options.router_aux_loss_coef is not None:
        config = balanced(config, fields["model_type"], options.router_aux_loss_coef)
    if options.image_size is None or IMAGE_GENERATION in family.model_types[fields["model_type"]]:
        return config  # a model that reads images as words takes any size
    if not family.images or config.image_size is None:
        raise UserError(
            f"model.image_size is set, and a {fields['model_type']} reads no images.",
            "Leave it out.",
        )
    return config.with_image_size(options.image_size)


def _head(family: Family, fields: Mapping[str, Any], task: str | None) -> str | None:
    """Return the head that a task asks for, or the checkpoint's own."""
    heads = family.model_types[fields["model_type"]]
    if not heads:
        raise UserError(
            f"config.json: a {fields['model_type']} is a part of other models, and none by itself.",
            "Load the model that it is a part of, such as a vision-encoder-decoder.",
        )
    known = ", ".join(name for name in heads if name)
    if task == HEADLESS and None in heads:
        return None
    if task is not None:
        if task in heads:
            return task
        message = f"The task '{task}' has no head on {fields['model_type']}."
        raise UserError(message, f"Known: {known}.")
    own = (fields.get("architectures") or list(heads.values()))[0]
    for head, architecture in heads.items():
        if architecture == own:
            return head
    raise UserError(
        f"config.json: the architecture {own} is not supported.", f"Name a task: {known}."
    )
