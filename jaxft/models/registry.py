"""From a checkpoint to a Model and back: the family is found by the config's `model_type`."""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Sharding

import jaxft.models
from jaxft.errors import UserError, did_you_mean
from jaxft.files import write_atomic
from jaxft.models.layers import Leaf
from jaxft.models.source import WEIGHTS, Source, read_config, resolve
from jaxft.models.transformer import PLAIN, Compute, Tower
from jaxft.models.weights import (
    Matching,
    Name,
    fresh_leaf,
    load_leaf,
    match,
    open_tensors,
    resolve_names,
    to_tensors,
    write_safetensors,
)
from jaxft.tree import natural_order

ShardingOf = Callable[[str, tuple[int, ...], tuple[str, ...]], Sharding | None]


@dataclass(frozen=True)
class Report:
    """What loading did: names of parameters loaded and new, of checkpoint tensors unused."""

    loaded: tuple[str, ...]
    new: tuple[str, ...]
    unused: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Model:
    """A checkpoint in hand: parameters as a flat dict, and pure functions of them.

    Args:
        family: the module that computes it.
        config: the family's `Config`.
        head: the task it ends in (a key of the family's `HEADS`).
        labels: class names in order of id, where the head has classes.
        params: name -> array (ShapeDtypeStruct after `describe`).
        towers: its parts.
        source: where it came from.
        fields: the source's config.json.
        matching: which tensor each parameter was read from.
    """

    family: ModuleType
    config: Any
    head: str | None
    labels: tuple[str, ...] | None
    params: dict[str, Any]
    towers: Mapping[str, Tower]
    source: Source
    fields: Mapping[str, Any]
    matching: Matching

    @cached_property
    def leaves(self) -> dict[str, Leaf]:
        """Every parameter's description, in natural order."""
        found = {
            name: leaf for tower in self.towers.values() for name, leaf in tower.leaves.items()
        }
        return {name: found[name] for name in natural_order(found)}

    @property
    def axes(self) -> dict[str, tuple[str, ...]]:
        """name -> a logical axis name per dimension."""
        return {name: leaf.axes for name, leaf in self.leaves.items()}

    @cached_property
    def depths(self) -> dict[str, int]:
        """name -> depth: 0 embeddings, i + 1 block i, n + 1 what is above."""
        found = {name: d for tower in self.towers.values() for name, d in tower.depths.items()}
        return {name: found[name] for name in self.leaves}

    @property
    def num_depths(self) -> int:
        """How many depths there are: n + 2 for n blocks."""
        return max(len(tower.blocks) for tower in self.towers.values()) + 2

    @property
    def no_decay(self) -> frozenset[str]:
        """Parameters that weight decay is not meant for: biases, norms, positions, scalars."""
        return frozenset(n for n, leaf in self.leaves.items() if not leaf.decay)

    @cached_property
    def names(self) -> dict[str, str]:
        """Our name -> the name in a Hugging Face file of this architecture."""
        return {
            ours: self.family.exported(name.hf, self.head) for ours, name in self._table.items()
        }

    @cached_property
    def _table(self) -> dict[str, Name]:
        return resolve_names(self.family.names(self.head), self.leaves)

    @property
    def report(self) -> Report:
        """What loading did."""
        return Report(tuple(self.matching.loaded), self.matching.new, self.matching.unused)

    @property
    def tokenizer_folder(self) -> Path:
        """The folder with the tokenizer's files."""
        return self.source.folder

    @property
    def max_positions(self) -> int:
        """The most tokens an example may have."""
        return self.config.max_positions

    @property
    def vocab_size(self) -> int:
        """The number of rows of the word embeddings."""
        return self.config.vocab_size

    @property
    def num_labels(self) -> int | None:
        """The number of classes, where the head has classes."""
        return None if self.labels is None else len(self.labels)

    def apply(
        self,
        params: Mapping[str, jax.Array],
        batch: Mapping[str, Any],
        key: jax.Array | None = None,
        compute: Compute = PLAIN,
    ) -> dict[str, jax.Array]:
        """The outputs for a batch: pure in (params, batch, key).

        Args:
            params: the flat dict.
            batch: Hugging Face's input names, or packed rows (see the family's `apply`).
            key: turns dropout on.
            compute: how to run.

        Returns:
            Hugging Face's output names -> arrays.
        """
        arrays = {name: jnp.asarray(value) for name, value in batch.items()}
        return self.family.apply(self.towers, params, arrays, key, compute)

    def __call__(self, **batch: Any) -> dict[str, jax.Array]:
        """The outputs for Hugging Face's inputs, with this model's parameters and no dropout."""
        return self._forward(self.params, batch)

    @cached_property
    def _forward(self) -> Callable[..., dict[str, jax.Array]]:
        return jax.jit(lambda params, batch: self.apply(params, batch))

    def with_params(self, params: Mapping[str, Any]) -> Model:
        """The same model with other values for all of its parameters."""
        if params.keys() != self.leaves.keys():
            odd = natural_order(params.keys() ^ self.leaves.keys())
            raise ValueError(f"not this model's parameters: {odd[0]} ({len(odd)} differ)")
        return replace(self, params={name: params[name] for name in self.leaves})

    def save(self, folder: str | Path, params: Mapping[str, Any] | None = None) -> Path:
        """Writes a Hugging Face folder: config, weights, and the source's tokenizer files.

        Args:
            folder: where; made where it is not there. Each file is whole or not there, and
                config.json, which makes the folder a checkpoint, comes last.
            params: the values; None for this model's own. Those that were never changed are
                written byte for byte as the source has them.

        Returns:
            The folder.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = to_tensors(params or self.params, self._table, self.matching.loaded)
        exported = {self.family.exported(n, self.head): value for n, value in tensors.items()}
        write_safetensors(folder / WEIGHTS, exported)
        for file in self.source.tokenizer_files:
            if file.parent.resolve() != folder.resolve():
                write_atomic(folder / file.name, file.read_bytes())
        types = {str(value.dtype) for value in exported.values()}
        text = json.dumps(self._hf_config(types), indent=2, sort_keys=True) + "\n"
        write_atomic(folder / "config.json", text.encode())
        return folder

    def _hf_config(self, types: set[str]) -> dict[str, Any]:
        """The source's config.json, brought up to what this model is."""
        fields = {k: v for k, v in self.fields.items() if k not in ("torch_dtype", "_name_or_path")}
        fields |= self.config.to_hf()
        fields["architectures"] = [self.family.HEADS[self.head]]
        # transformers reads every tensor in this type, so it is the widest that was written.
        fields["dtype"] = str(jnp.result_type(*types))
        if self.labels is not None:
            fields["id2label"] = {str(i): name for i, name in enumerate(self.labels)}
            fields["label2id"] = {name: i for i, name in enumerate(self.labels)}
        return fields


def load(
    checkpoint: str,
    *,
    task: str | None = None,
    num_labels: int | None = None,
    labels: Sequence[str] | None = None,
    dtype: str = "float32",
    seed: int = 0,
    dropout: float | None = None,
    ignore: Sequence[str] = (),
    sharding: ShardingOf | None = None,
    cache: str | None = None,
) -> Model:
    """A model with the parameters of a checkpoint.

    Args:
        checkpoint: a folder, a hub id (`owner/name@revision`) or `package:module/path`.
        task: what the model is to end in; None for the checkpoint's own architecture.
        num_labels: classes of the head; None for as many as `labels`, or as the checkpoint says.
        labels: class names in order of id. The checkpoint's own classifier is kept where number
            and names agree, and is new otherwise.
        dtype: the type to hold parameters in.
        seed: from which new parameters are drawn.
        dropout: one rate throughout; None for the checkpoint's own.
        ignore: fields of config.json, and tensors, that may be passed over.
        sharding: (name, shape, axes) -> where the parameter's shards go.
        cache: the hub's cache folder.

    Raises:
        UserError: the checkpoint is not there, not whole, or not understood.
    """
    model = describe(
        checkpoint,
        task=task,
        num_labels=num_labels,
        labels=labels,
        dtype=dtype,
        dropout=dropout,
        ignore=ignore,
        sharding=sharding,
        cache=cache,
    )
    params = {}
    for name, leaf in model.leaves.items():
        where = model.params[name].sharding
        if name in model.matching.loaded:
            tensor = model.matching.loaded[name]
            params[name] = load_leaf(tensor, model._table[name], leaf, dtype, where)
        else:
            params[name] = fresh_leaf(name, leaf, dtype, seed, where)
    return replace(model, params=params)


def describe(
    checkpoint: str,
    *,
    task: str | None = None,
    num_labels: int | None = None,
    labels: Sequence[str] | None = None,
    dtype: str = "float32",
    dropout: float | None = None,
    ignore: Sequence[str] = (),
    sharding: ShardingOf | None = None,
    cache: str | None = None,
) -> Model:
    """A model as `load` gives it, with shapes for parameters: no weight is read.

    The arguments are those of `load`. What is wrong with a checkpoint is found here.
    """
    source = resolve(checkpoint, cache)
    fields = read_config(source.folder)
    family = _family(fields["model_type"])
    config = family.Config.from_hf(fields, (*ignore, *family.UNREAD))
    if dropout is not None:
        config = config.with_dropout(dropout)
    head = _head(family, fields, task)
    own, labels = _labels(fields, num_labels, labels)
    towers = family.towers(config, head, len(labels))
    leaves = {name: leaf for tower in towers.values() for name, leaf in tower.leaves.items()}
    leaves = {name: leaves[name] for name in natural_order(leaves)}
    classes = head in CLASS_HEADS
    matching = match(
        open_tensors(source.weight_files),
        resolve_names(family.names(head), leaves),
        leaves,
        canonical=family.canonical,
        fresh=family.FRESH,
        refuse=("head/",) if classes and own != labels else (),
        unused=(*family.UNUSED, *ignore),
    )
    params = {
        name: jax.ShapeDtypeStruct(
            leaf.shape,
            jnp.dtype(dtype),
            sharding=sharding(name, leaf.shape, leaf.axes) if sharding else None,
        )
        for name, leaf in leaves.items()
    }
    return Model(
        family, config, head, labels if classes else None, params, towers, source, fields, matching
    )


CLASS_HEADS = ("text_classification",)


def _family(model_type: str) -> ModuleType:
    """The module of a model type; a family is a file with a `HEADS` table."""
    names = [module.name for module in pkgutil.iter_modules(jaxft.models.__path__)]
    name = model_type.replace("-", "_")
    if name in names:
        module = importlib.import_module(f"jaxft.models.{name}")
        if hasattr(module, "HEADS"):
            return module
    families = [
        name
        for name in names
        if name != "registry" and hasattr(importlib.import_module(f"jaxft.models.{name}"), "HEADS")
    ]
    raise UserError(
        f"config.json: the model_type '{model_type}' is not supported.",
        did_you_mean(model_type, families),
    )


def _head(family: ModuleType, fields: Mapping[str, Any], task: str | None) -> str | None:
    """The head that a task asks for, or the checkpoint's own."""
    if task is not None:
        if task not in family.HEADS:
            known = ", ".join(name for name in family.HEADS if name)
            raise UserError(
                f"The task '{task}' has no head on {fields['model_type']}.", f"Known: {known}."
            )
        return task
    own = (fields.get("architectures") or [family.HEADS[None]])[0]
    for head, architecture in family.HEADS.items():
        if architecture == own:
            return head
    raise UserError(
        f"config.json: the architecture {own} is not supported.",
        f"Name a task: {', '.join(name for name in family.HEADS if name)}.",
    )


def _labels(
    fields: Mapping[str, Any], num_labels: int | None, labels: Sequence[str] | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The checkpoint's class names, and those wanted."""
    given = fields.get("id2label") or {str(i): f"LABEL_{i}" for i in range(2)}
    own = tuple(given[key] for key in sorted(given, key=int))
    if labels is None:
        count = len(own) if num_labels is None else num_labels
        return own, own if count == len(own) else tuple(f"LABEL_{i}" for i in range(count))
    if num_labels not in (None, len(labels)):
        raise UserError(f"num_labels is {num_labels}, but {len(labels)} labels are named.")
    if len(set(labels)) != len(labels):
        raise UserError(f"A label is named twice: {', '.join(labels)}.")
    return own, tuple(labels)
