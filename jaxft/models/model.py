"""Model: the parameters of a checkpoint, their descriptions, and the computation."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxft.models.adapters.low_rank import Adapted, is_adapter
from jaxft.models.adapters.merge import merge
from jaxft.models.companions import write_companions
from jaxft.models.family import Family, Towers, depths_of, leaves_of, tops_of
from jaxft.models.layers.modules import Leaf
from jaxft.models.sentence.dense import DenseStack
from jaxft.models.tower.run import TRUNK, run_trunk
from jaxft.models.tower.tower import PLAIN, Compute, Tower
from jaxft.models.weights import export as exports
from jaxft.models.weights.hf_config import stem_of, updated_fields
from jaxft.models.weights.names import Matching, Name, resolve_names
from jaxft.models.weights.source import Source
from jaxft.storage.buckets import published
from jaxft.storage.files import place, write_atomic
from jaxft.tree import natural_order


@dataclass(frozen=True)
class Report:
    """Report of loading: parameters that were loaded or are new, tensors left unused, and notes."""

    loaded: tuple[str, ...]
    new: tuple[str, ...]
    unused: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Model:
    """Model of a checkpoint: parameters as a flat dict, and pure functions of them.

    Args:
        family: the family that computes it.
        config: the family's `Config`.
        head: its head (a key of the family's `model_types[...]`).
        labels: class names in order of id, where the head has classes.
        params: name -> array (ShapeDtypeStruct after `describe`).
        towers: its parts.
        source: its checkpoint.
        fields: the source's config.json.
        matching: which tensor each parameter was read from.
        asked_size: pixels a side of its images, if not the checkpoint's own.
        adapted: its adapters, if any.
        problem_type: Hugging Face's name of the loss, if not the source's own.
        text_length: the tokens that an export's tokenizer truncates to, if not the source's own.
        dense: the Dense modules after the pooling of its vectors, if any.
    """

    family: Family
    config: Any
    head: str | None
    labels: tuple[str, ...] | None
    params: dict[str, Any]
    towers: Towers
    source: Source
    fields: Mapping[str, Any]
    matching: Matching
    asked_size: int | None = None
    adapted: Adapted | None = None
    problem_type: str | None = None
    text_length: int | None = None
    dense: DenseStack | None = None

    @property
    def parts(self) -> Towers:
        """Return the towers, and the Dense modules behind them."""
        return self.towers if self.dense is None else {**self.towers, "dense": self.dense.part}

    @cached_property
    def leaves(self) -> dict[str, Leaf]:
        """Return every parameter's description, in natural order."""
        return leaves_of(self.parts)

    @property
    def axes(self) -> dict[str, tuple[str, ...]]:
        """Map each parameter to its logical axes, one name a dimension."""
        return {name: leaf.axes for name, leaf in self.leaves.items()}

    @cached_property
    def depths(self) -> dict[str, int]:
        """Map each parameter to its depth in its tower: 0 embeddings, i + 1 block i, n + 1 the top.

        A part outside the towers is as deep as the deepest of them.
        """
        depths = depths_of(self.parts, self.num_depths - 1)
        return {name: depths[name] for name in self.leaves}

    @cached_property
    def tops(self) -> dict[str, int]:
        """Map each parameter to the depth of its tower's top: n + 1 for n blocks."""
        tops = tops_of(self.parts, self.num_depths - 1)
        return {name: tops[name] for name in self.leaves}

    @property
    def final_norms(self) -> tuple[str, ...]:
        """Return the name prefixes of the towers' final norms."""
        towers = [part for part in self.towers.values() if isinstance(part, Tower)]
        return tuple(tower.prefix + self.family.norm for tower in towers)

    @property
    def num_depths(self) -> int:
        """Return the number of depths: n + 2 for n blocks, of the deepest tower."""
        return max(part.last for part in self.towers.values() if isinstance(part, Tower)) + 1

    @property
    def no_decay(self) -> frozenset[str]:
        """Return the parameters without weight decay: biases, norms, positions, scalars."""
        return frozenset(n for n, leaf in self.leaves.items() if not leaf.decay)

    @property
    def model_type(self) -> str:
        """Return the `model_type` of its config.json."""
        return self.fields["model_type"]

    @cached_property
    def names(self) -> dict[str, str]:
        """Map each parameter to its name in a Hugging Face file of this architecture."""
        return {
            ours: self.family.tensors.exported(name.hf, self.head, self.model_type)
            for ours, name in self.hf_names.items()
        }

    @cached_property
    def hf_names(self) -> dict[str, Name]:
        """Map each parameter to its line of the family's name table; adapters have none."""
        own = {name: leaf for name, leaf in self.leaves.items() if not is_adapter(name)}
        table = self.family.tensors.table(self.head, self.model_type)
        return resolve_names(table if self.dense is None else (*table, *self.dense.names), own)

    @property
    def report(self) -> Report:
        """Return the report of loading."""
        matching = self.matching
        return Report(tuple(matching.loaded), matching.new, matching.unused, matching.notes)

    @property
    def tokenizer_folder(self) -> Path:
        """Return the folder with the tokenizer's files."""
        return self.source.tokenizer_folder

    @property
    def max_positions(self) -> int:
        """Return the most positions of an example in a row; 1 where it reads no text."""
        return self.config.max_positions if self.family.text else 1

    @property
    def vocab_size(self) -> int:
        """Return the number of rows of the word embeddings; 0 where it reads no text."""
        return self.config.vocab_size if self.family.text else 0

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Return height and width of its images, as asked for or its own; None if it reads none."""
        if self.asked_size is not None:
            return self.asked_size, self.asked_size
        return self.config.image_size if self.family.images else None

    @property
    def num_labels(self) -> int | None:
        """Return the number of classes, where the head has classes."""
        return None if self.labels is None else len(self.labels)

    def apply(
        self,
        params: Mapping[str, jax.Array],
        batch: Mapping[str, Any],
        key: jax.Array | None = None,
        compute: Compute = PLAIN,
    ) -> dict[str, jax.Array]:
        """Compute the outputs for a batch: pure in (params, batch, key).

        Args:
            params: the flat dict.
            batch: Hugging Face's input names (`input_ids` [B, T], `pixel_values` [B, C, H, W]); of
                packed rows `segment_ids`, `position_ids` [R, T], `read_positions` [R, S] too.
            key: turns dropout on.
            compute: how to run.

        Returns:
            Hugging Face's output names -> arrays.

        Raises:
            UserError: a text is too long for the model, or an image not of its size.
        """
        arrays = {name: jnp.asarray(value) for name, value in batch.items()}
        return self.family.apply(self.towers, params, arrays, key, compute)

    def trunk(
        self, params: Mapping[str, jax.Array], batch: Mapping[str, Any], compute: Compute
    ) -> dict[str, jax.Array]:
        """Compute the stream at the end of each tower's trunk: `trunk` -> [B, T, D].

        `apply` starts from them if they are in the batch, under the same `compute`.
        """
        return {
            tower.prefix + TRUNK: run_trunk(tower, params, batch, compute)
            for tower in self.towers.values()
            if isinstance(tower, Tower) and tower.frozen_blocks(compute) is not None
        }

    def __call__(self, **batch: Any) -> dict[str, jax.Array]:
        """Compute the outputs for Hugging Face's inputs, with own parameters and no dropout."""
        return self._forward(self.params, batch)

    @cached_property
    def _forward(self) -> Callable[..., dict[str, jax.Array]]:
        return jax.jit(lambda params, batch: self.apply(params, batch))

    def with_params(self, params: Mapping[str, Any]) -> Model:
        """Return the same model with other values for all of its parameters."""
        if params.keys() != self.leaves.keys():
            odd = natural_order(params.keys() ^ self.leaves.keys())
            raise ValueError(f"not this model's parameters: {odd[0]} ({len(odd)} differ)")
        return replace(self, params={name: params[name] for name in self.leaves})

    def plain(self) -> Model:
        """Return the model without its adapters."""
        if self.adapted is None:
            return self
        params = {name: leaf for name, leaf in self.params.items() if not is_adapter(name)}
        new = tuple(name for name in self.matching.new if not is_adapter(name))
        own = replace(self.matching, new=new)
        return replace(self, params=params, towers=self.adapted.plain, matching=own, adapted=None)

    def merged(self) -> Model:
        """Return the model with its adapters merged into their kernels."""
        if self.adapted is None:
            return self
        return self.plain().with_params(merge(self.params, self.adapted))

    def save(
        self,
        folder: str | Path,
        params: Mapping[str, Any] | None = None,
        max_shard: int = exports.MAX_SHARD,
        overwrite: bool = False,
    ) -> Path:
        """Write a Hugging Face folder: config, weights, and the source's files beside them.

        Adapters are merged into their kernels first.

        Args:
            folder: new, empty, or with an earlier export; config.json is written last.
            params: the values; None for this model's own. Those that were never changed are
                written byte for byte as the source has them.
            max_shard: bytes of a file of weights at most; more are split, with an index.
            overwrite: write into the folder whatever it holds, were it the source itself.

        Returns:
            The folder.

        Raises:
            UserError: the folder holds anything else, or cannot be written to.
        """
        if not overwrite:
            exports.check_folder(folder, self.source)
        if self.adapted is not None:
            chosen = self if params is None else self.with_params(params)
            return chosen.merged().save(folder, max_shard=max_shard, overwrite=overwrite)
        with published(folder) as here:
            self._write(here, params, max_shard)
        return place(folder)

    def _write(self, folder: Path, params: Mapping[str, Any] | None, max_shard: int) -> None:
        params, loaded, part = params or self.params, self.matching.loaded, self.source.part
        own = self.hf_names if self.dense is None else self.dense.without(self.hf_names)
        tensors, rename = exports.to_tensors(params, own, loaded), self.family.tensors.exported
        named = ((rename(name, self.head, self.model_type), value) for name, value in tensors)
        exported = exports.with_counts(named, self.names, loaded)
        types = exports.write_weights(folder / part, exported, max_shard, stem_of(self.fields))
        write_companions(folder, self.source, self.asked_size, self.text_length)
        if self.dense is not None:
            self.dense.write(folder, self.source.folder, params, loaded)
        text = json.dumps(self._hf_config(types), indent=2, sort_keys=True) + "\n"
        write_atomic(folder / part / "config.json", text.encode())

    def _hf_config(self, types: set[str]) -> dict[str, Any]:
        """Return the source's config.json, updated for this model."""
        own = self.config.to_hf()
        own["architectures"] = [self.family.model_types[self.model_type][self.head]]
        if self.problem_type is not None:
            own["problem_type"] = self.problem_type
        new_head = any(name.startswith(self.family.head) for name in self.matching.new)
        stale = (*exports.STALE_FIELDS, *(["problem_type"] if new_head else ()))  # of the old head
        classes = None if self.labels is None else self.family.class_fields(self.labels)
        return updated_fields(self.fields, own, types, classes, stale)
