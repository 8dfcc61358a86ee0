"""Pooling: from the states of a text's tokens to its vector, as its checkpoint means it.

Source: https://www.sbert.net, `modules.json` and `1_Pooling/config.json`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxft.errors import UserError
from jaxft.models.model import Model
from jaxft.models.sentence.modules import POOLING, read_modules
from jaxft.models.weights.source import MODULES_FILE, POOLING_FILE
from jaxft.storage.json_files import read_json_object
from jaxft.tasks.parts.token_examples import of_segments

MEAN = "mean"
# Pooling -> its key in 1_Pooling/config.json, as every version of sentence-transformers reads it.
KEYS = {
    MEAN: "pooling_mode_mean_tokens",
    "cls": "pooling_mode_cls_token",
    "last": "pooling_mode_lasttoken",
    "max": "pooling_mode_max_tokens",
    "weighted_mean": "pooling_mode_weightedmean_tokens",
}
# Pooling of the states of one text, `[T, D]`, in PyTorch.
IN_PYTORCH = {
    "mean": "states.mean(0)",
    "cls": "states[0]",
    "last": "states[-1]",
    "max": "states.max(0).values",
    "weighted_mean": "states.flip(0).cumsum(0).sum(0)  # the sum of number times state",
}
# Its length differs from the mean's only, and vectors have length 1.
ROOT_MEAN = "pooling_mode_mean_sqrt_len_tokens"
# Names of versions from 5.2 on, which write one key.
NAMES = {
    "mean": MEAN,
    "mean_sqrt_len_tokens": MEAN,
    "cls": "cls",
    "lasttoken": "last",
    "max": "max",
    "weightedmean": "weighted_mean",
}


def read_pooling(folder: Path) -> str | None:
    """Read how a checkpoint of sentence-transformers pools; None where it does not say.

    Args:
        folder: the checkpoint.

    Raises:
        UserError: its files are not JSON of the known form, or it has a module or a pooling that
            is not supported.
    """
    paths = [module.path for module in read_modules(folder) if module.kind == POOLING]
    if not paths:
        return None
    if paths != [POOLING_FILE.partition("/")[0]]:
        raise UserError(f"{folder / MODULES_FILE}: the pooling is in {paths}, not in 1_Pooling.")
    return _pooling_of(folder / POOLING_FILE)


def _pooling_of(path: Path) -> str:
    """Read the pooling of a `1_Pooling/config.json`."""
    if not path.is_file():
        raise UserError(f"{path} is missing, and modules.json names it.")
    fields = read_json_object(path)
    modes = _modes(fields)
    if len(modes) != 1 or modes[0] is None:
        written = {name: value for name, value in fields.items() if name.startswith("pooling")}
        raise UserError(
            f"{path}: the pooling {written} is not supported.", f"Supported: {', '.join(KEYS)}."
        )
    return modes[0]


def _modes(fields: dict[str, Any]) -> list[str | None]:
    """Return the poolings that a config asks for, None for an unknown one."""
    if (named := fields.get("pooling_mode")) is not None:
        names = named if isinstance(named, list) else [named]
        return [NAMES.get(name) if isinstance(name, str) else None for name in names]
    own = {key: pooling for pooling, key in KEYS.items()} | {ROOT_MEAN: MEAN}
    flags = {key for key, value in fields.items() if key.startswith("pooling_mode_") and value}
    return [own.get(key) for key in sorted(flags)] or [MEAN]


def pooling_config(pooling: str, width: int) -> dict[str, Any]:
    """Return a `1_Pooling/config.json`.

    Args:
        pooling: a key of `KEYS`.
        width: of the vectors.
    """
    modes = {key: name == pooling for name, key in KEYS.items()} | {ROOT_MEAN: False}
    return {"word_embedding_dimension": width, **modes}


def pool(stream: jax.Array, owners: jax.Array, count: int, pooling: str) -> jax.Array:
    """Pool the states of each text, special tokens included: `[R, S, D]` float32.

    A segment without tokens becomes a vector of ones, whose norm has a gradient.

    Args:
        stream: `[R, T, D]` float32, the states.
        owners: `[R, T]` the text of each token in its row, from 1 on; 0 for none.
        count: S.
        pooling: a key of `KEYS`.
    """
    own = of_segments(owners, count)  # [R, S, T]
    if pooling == "max":
        most = jax.vmap(partial(jax.ops.segment_max, num_segments=count + 1))(stream, owners)
        pooled = most[:, 1:]
    else:
        weights = _weights(own, pooling)
        total = jnp.maximum(weights.sum(-1, keepdims=True), 1.0)
        pooled = jnp.einsum("rst,rtd->rsd", weights, stream, precision="highest") / total
    return jnp.where(own.any(-1, keepdims=True), pooled, 1.0)


def _weights(own: jax.Array, pooling: str) -> jax.Array:
    """Return the weight of each token in its text's vector, `[R, S, T]` float32."""
    number = jnp.cumsum(own, axis=-1)  # of a token in its text, from 1 on
    if pooling == "cls":
        return (own & (number == 1)).astype(jnp.float32)
    if pooling == "last":
        return (own & (number == own.sum(-1, keepdims=True))).astype(jnp.float32)
    weights = own.astype(jnp.float32)
    return weights * number if pooling == "weighted_mean" else weights


def check_states(model: Model) -> None:
    """Raise a UserError if a model has no states of a text alone."""
    if "decoder" in model.towers:
        raise UserError(
            f"model.checkpoint is a {model.model_type}, whose states are of a text and of a "
            "target: it has no vector of a text alone.",
            "Use a checkpoint that `jaxft models embedding` names.",
        )


def chosen_pooling(folder: Path, asked: str | None) -> str | None:
    """Return how vectors are pooled; None where neither the checkpoint nor the config says.

    Args:
        folder: the checkpoint.
        asked: `task.pooling`.

    Raises:
        UserError: the config contradicts the checkpoint, or as `read_pooling`.
    """
    own = read_pooling(folder)
    if None not in (own, asked) and own != asked:
        raise UserError(
            f"task.pooling is {asked}, and the checkpoint's modules.json says {own}.",
            "Remove task.pooling; vectors of another pooling are not those it was trained for.",
        )
    return own or asked
