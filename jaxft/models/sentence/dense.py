"""Dense modules of sentence-transformers: linear maps and activations after the pooling."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxft.errors import UserError
from jaxft.models.layers.math import ACTIVATIONS
from jaxft.models.layers.modules import Leaf, Linear
from jaxft.models.sentence.modules import DenseLayer, dense_config
from jaxft.models.tower.run import run_joint
from jaxft.models.tower.tower import Compute, Part
from jaxft.models.weights.export import save_marked, to_tensors
from jaxft.models.weights.files import open_tensors
from jaxft.models.weights.names import Name, dense, resolve_names
from jaxft.models.weights.shards import PICKLED, WEIGHTS
from jaxft.models.weights.source import MODULES_FILE, POOLING_FILE, Source
from jaxft.models.weights.tensor import Tensor
from jaxft.storage.files import write_atomic, written_aside

STD = 0.02  # of a fresh kernel


class Layers(nnx.Module):
    """Dense modules one after the other; module i is `dense_i`."""

    def __init__(self, layers: tuple[DenseLayer, ...]):
        for index, one in enumerate(layers):
            axes = ("embed", "projected")
            linear = Linear(one.inside, one.outside, axes, STD, bias=one.bias)
            setattr(self, f"dense_{index}", linear)


class Stack(nnx.Module):
    """Dense modules as the head of a model of vectors.

    Args:
        layers: the modules, in order.
    """

    def __init__(self, layers: tuple[DenseLayer, ...]):
        self.head = Layers(layers)
        self.activations = tuple(one.activation for one in layers)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map pooled vectors `[..., I]` to `[..., O]`."""
        for index, name in enumerate(self.activations):
            linear = getattr(self.head, f"dense_{index}")
            x = ACTIVATIONS[name](linear(x))
        return x


@dataclass(frozen=True, eq=False)
class DenseStack:
    """Dense modules of a model.

    Args:
        layers: the modules, in order.
    """

    layers: tuple[DenseLayer, ...]

    @cached_property
    def part(self) -> Part:
        """Return the modules as a part of the model outside its towers."""
        return Part(Stack(self.layers))

    @property
    def leaves(self) -> dict[str, Leaf]:
        """Map each parameter, such as `head/dense_0/kernel`, to its description."""
        return self.part.leaves

    @property
    def names(self) -> tuple[Name, ...]:
        """Return the lines of the name table: a tensor's name follows its folder's."""
        lines = [
            line
            for index, one in enumerate(self.layers)
            for line in dense(f"{one.path}/linear", f"head/dense_{index}")
        ]
        return tuple(line for line in lines if line.ours in self.leaves)

    @property
    def width(self) -> int:
        """Return the width of the vectors after the last module."""
        return self.layers[-1].outside

    def run(
        self, params: Mapping[str, jax.Array], vectors: jax.Array, compute: Compute
    ) -> jax.Array:
        """Map pooled vectors in float32: `[..., I] -> [..., O]`.

        Args:
            params: the flat dict.
            vectors: float32.
            compute: how the model runs.
        """
        exact = replace(compute, dtype="float32", precision="highest")
        return run_joint(self.part, params, exact, vectors)

    def with_weights(self, source: Source) -> Source:
        """Return a checkpoint whose weights include those of its Dense modules."""
        files = [_weight_file(source.folder / one.path) for one in self.layers]
        return replace(source, dense_files=tuple(files))

    def tensors(self, folder: Path) -> dict[str, Tensor]:
        """Open the tensors of the modules: the folder's name and the tensor's -> tensor."""
        return {
            f"{one.path}/{name}": tensor
            for one in self.layers
            for name, tensor in open_tensors((_weight_file(folder / one.path),)).items()
        }

    def without(self, names: Mapping[str, Name]) -> dict[str, Name]:
        """Return the lines of a name table without the modules' own."""
        return {name: line for name, line in names.items() if name not in self.leaves}

    def stored(
        self, params: Mapping[str, Any], loaded: Mapping[str, Tensor]
    ) -> dict[str, np.ndarray]:
        """Return all modules' tensors for their files, by path; arguments as of `write`."""
        return dict(to_tensors(params, resolve_names(self.names, self.leaves), loaded))

    def write(
        self,
        folder: Path,
        source: Path,
        params: Mapping[str, Any],
        loaded: Mapping[str, Tensor],
    ) -> None:
        """Write each module's config.json and weights, and what says how the modules are ordered.

        Args:
            folder: where to.
            source: the checkpoint.
            params: the values of at least the modules' parameters.
            loaded: parameter -> the tensor that it was read from, where it was.
        """
        tensors = self.stored(params, loaded)
        for one in self.layers:
            start = f"{one.path}/"
            own = {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}
            with written_aside(folder / one.path / WEIGHTS) as aside:
                save_marked(aside, own)
            config = json.dumps(dense_config(one), indent=2) + "\n"
            write_atomic(folder / one.path / "config.json", config.encode())
        for name in (MODULES_FILE, POOLING_FILE):
            if (file := source / name).is_file():
                write_atomic(folder / name, file.read_bytes())


def _weight_file(folder: Path) -> Path:
    """Return the file of a module's weights."""
    for name in (WEIGHTS, PICKLED[0]):
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder} holds no {WEIGHTS}, and {MODULES_FILE} names it.")
