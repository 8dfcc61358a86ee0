"""Outputs of a pipeline's text towers for prompts, of each distinct one once.

A denoiser of Stable Diffusion 1 and 2 reads the last states of one CLIP tower. Those of SDXL and
Stable Diffusion 3 read the states before the last block of two of them, side by side, and their
projected vectors of the whole text; Stable Diffusion 3 reads those of T5 behind them.

Source: `encode_prompt` of the pipelines of diffusers 0.42.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxft.data.cache import ExampleArrays, InMemory
from jaxft.data.random import FIRST_EPOCH, EpochRandom
from jaxft.models.model import Model
from jaxft.models.pipeline import Pipeline
from jaxft.models.tower.tower import Part, Tower
from jaxft.tasks.diffusion.text_towers import T5_LENGTH, TextTower, vector_name
from jaxft.tasks.parts.contract import Batch, Outputs
from jaxft.tasks.parts.examples import Examples, row_marks
from jaxft.tasks.parts.frozen_outputs import frozen_outputs
from jaxft.tasks.parts.tools import Tools

STATES, SIZES = "encoder_hidden_states", "time_ids"
CONDITIONS = ("class_labels", STATES, "text_embeds", "pooled_projections", SIZES)
NOTHING = "nothing_"  # before the batch keys of the empty prompt


@dataclass(frozen=True)
class Prompts(Examples):
    """Prompts as a text tower reads them: padded `input_ids`.

    Args:
        ids: `[prompts, T]` int32.
    """

    ids: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> np.ndarray:
        return np.full(len(self.ids), self.ids.shape[1], np.int64)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.ids.tobytes()).hexdigest()

    def collate(
        self, index: np.ndarray, row_length: int, epoch_random: EpochRandom = FIRST_EPOCH
    ) -> dict[str, np.ndarray]:
        del row_length, epoch_random
        return {"input_ids": self.ids[np.maximum(index[:, 0], 0)], **row_marks(index)}


@dataclass(frozen=True)
class TextStates:
    """Arrays that a denoiser reads of prompts, each of which is stored once.

    Args:
        beside: `states` `[1, T, D]` of each prompt by the towers whose states are side by side.
        behind: those of T5, behind the others, zeros where the pipeline leaves T5 out; None where
            the denoiser reads no T5.
        vectors: `vector` `[1, V]` of each prompt by the towers that give one.
        vector_name: the batch key of these; None of none.
        sizes: `[1, 6]` the sizes that SDXL reads, or None.
        prompts: `[examples]` the number of each example's prompt; 0 is the empty one.
        texts: the prompts.
        zeros: whether the empty prompt is zeros and not what the towers make of it.
    """

    beside: Sequence[ExampleArrays]
    behind: ExampleArrays | None
    vectors: Sequence[ExampleArrays]
    vector_name: str | None
    sizes: np.ndarray | None
    prompts: np.ndarray
    texts: tuple[str, ...]
    zeros: bool

    def of(self, prompt: int) -> dict[str, np.ndarray]:
        """Return a prompt's arrays for a batch, `[1, ...]` each."""
        states = np.concatenate([one[prompt]["states"] for one in self.beside], axis=-1)
        if self.behind is not None:
            behind = self.behind[prompt]["states"]
            room = behind.shape[-1] - states.shape[-1]
            states = np.concatenate([np.pad(states, ((0, 0), (0, 0), (0, room))), behind], axis=1)
        arrays = {STATES: states}
        if self.vector_name is not None:
            vectors = [one[prompt]["vector"] for one in self.vectors]
            arrays[self.vector_name] = np.concatenate(vectors, axis=-1)
        if prompt == 0 and self.zeros:
            arrays = {name: np.zeros_like(value) for name, value in arrays.items()}
        return arrays if self.sizes is None else {**arrays, SIZES: self.sizes}


def of_nothing(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays of the empty prompt under the batch keys that guidance reads."""
    return {f"{NOTHING}{name}": value for name, value in arrays.items()}


def states_of(
    tools: Tools,
    denoiser: Model,
    pipeline: Pipeline,
    towers: Sequence[TextTower],
    prompts: Sequence[str],
    side: int,
) -> TextStates:
    """Run the text towers over prompts, over each distinct one once, and over the empty one.

    Args:
        tools: the cache.
        denoiser: of the pipeline.
        pipeline: see there.
        towers: its text towers.
        prompts: one a row, none too long.
        side: height and width of the images, in pixels.
    """
    texts = tuple(dict.fromkeys(["", *prompts]))
    numbers = {text: number for number, text in enumerate(texts)}
    name, fields = vector_name(denoiser), denoiser.config.fields

    def run(tower: TextTower, model: Model, arrays: Any, kind: str) -> ExampleArrays:
        return frozen_outputs(tools, model, Prompts(tower.ids(texts)), arrays, kind=kind)

    beside, vectors, behind = [], [], None
    for tower in towers:
        if tower.is_t5 or name is None:
            states = run(tower, tower.model, _last_states, "prompts")
        else:
            states = run(tower, _without_last_block(tower.model), _stream, "prompts before last")
        if tower.is_t5:
            behind = states
        else:
            beside.append(states)
        if tower.has_vector:
            vectors.append(run(tower, tower.model, _vector, "vectors of prompts"))
    if behind is None and "joint_attention_dim" in fields:
        nothing = np.zeros((1, T5_LENGTH, fields["joint_attention_dim"]), np.float32)
        behind = InMemory([{"states": nothing}] * len(texts), {})
    sizes = np.array([[side, side, 0, 0, side, side]], np.float32)
    return TextStates(
        beside,
        behind,
        vectors,
        name,
        sizes if name == "text_embeds" else None,
        np.array([numbers[text] for text in prompts]),
        texts,
        zeros=bool(pipeline.index.get("force_zeros_for_empty_prompt")),
    )


class _Stream(nnx.Module):
    """Top that returns the stream as it is."""

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> dict[str, jax.Array]:
        del batch, key
        return {"stream": x}


def _without_last_block(model: Model) -> Model:
    """Return a text tower that ends before its last block."""
    ((name, tower),) = model.towers.items()
    assert isinstance(tower, Tower)
    shorter = replace(tower, blocks=tower.blocks[:-1], top=Part(_Stream()))
    return replace(model, towers={name: shorter})


def _last_states(outputs: Outputs, batch: Batch) -> Mapping[str, Any]:
    del batch
    return {"states": outputs["last_hidden_state"]}


def _stream(outputs: Outputs, batch: Batch) -> Mapping[str, Any]:
    del batch
    return {"states": outputs["stream"]}


def _vector(outputs: Outputs, batch: Batch) -> Mapping[str, Any]:
    del batch
    return {"vector": outputs["text_embeds"]}
