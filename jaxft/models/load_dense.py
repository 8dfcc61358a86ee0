"""Models of vectors with the Dense modules of their sentence-transformers checkpoint."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp

from jaxft.models.model import Model
from jaxft.models.sentence.dense import DenseStack
from jaxft.models.sentence.modules import check_width, read_dense
from jaxft.models.weights.expected import expected_tensors
from jaxft.models.weights.names import match, resolve_names


def with_dense(model: Model, *, weights: bool) -> Model:
    """Describe a model with the Dense modules of its checkpoint, if it has any.

    Args:
        model: without a head.
        weights: whether the checkpoint's weights may be opened.

    Raises:
        UserError: its `modules.json` or a module's folder is not of a supported form.
    """
    source = model.source
    layers = read_dense(source.folder) if source.second is None else ()
    if not layers:
        return model
    check_width(source.folder / layers[0].path, layers[0], stream_width(model))
    dense = DenseStack(layers)
    lines = resolve_names(dense.names, dense.leaves)
    tensors = (
        dense.tensors(source.folder)
        if weights
        else expected_tensors(lines, dense.leaves, source.folder, None)
    )
    matching = match(tensors, lines, dense.leaves, canonical=str, fresh=(), refuse=(), unused=())
    both = replace(model.matching, loaded={**model.matching.loaded, **matching.loaded})
    source = dense.with_weights(source) if weights else source
    return replace(model, dense=dense, matching=both, source=source)


def vector_width(model: Model) -> int:
    """Return the dimensions of a text's vector: those of the last Dense module, or the stream."""
    return stream_width(model) if model.dense is None else model.dense.width


def stream_width(model: Model) -> int:
    """Return D of the model's stream `[B, T, D]`, from shapes alone."""
    params = {n: jax.ShapeDtypeStruct(one.shape, jnp.float32) for n, one in model.leaves.items()}
    batch = {"input_ids": jax.ShapeDtypeStruct((1, 2), jnp.int32)}
    outputs = jax.eval_shape(model.apply, params, batch)
    return outputs["last_hidden_state"].shape[-1]
