"""The files that make an export a model of sentence-transformers: mean pooling, length 1.

Source: https://www.sbert.net, `modules.json` and the folders that it names.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxft.engine.trained import Trained
from jaxft.models.load import Model
from jaxft.storage.files import write_atomic

MODULES = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))


def write_sentence_files(trained: Trained, folder: Path) -> None:
    """Write them beside an export's own files.

    Args:
        trained: a run of the embedding task.
        folder: the export.
    """
    modules = [
        {
            "idx": index,
            "name": str(index),
            "path": path,
            "type": f"sentence_transformers.models.{name}",
        }
        for index, (path, name) in enumerate(MODULES)
    ]
    pooling = {"word_embedding_dimension": _width(trained.model), "pooling_mode_mean_tokens": True}
    other = ("cls_token", "max_tokens", "mean_sqrt_len_tokens")
    length = trained.config.data.max_length or trained.model.max_positions
    _write(
        folder / "1_Pooling" / "config.json", pooling | {f"pooling_mode_{n}": False for n in other}
    )
    _write(folder / "sentence_bert_config.json", {"max_seq_length": length, "do_lower_case": False})
    _write(folder / "modules.json", modules)


def _width(model: Model) -> int:
    """D of the stream `[B, T, D]`."""
    batch = {"input_ids": jnp.zeros((1, 2), jnp.int32)}
    return jax.eval_shape(model.apply, model.params, batch)["last_hidden_state"].shape[-1]


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps(content, indent=2) + "\n").encode())
