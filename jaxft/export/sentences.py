"""The files that make an export a model of sentence-transformers: pooling, vectors of length 1.

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
from jaxft.models.weights.source import MODULES_FILE, POOLING_FILE
from jaxft.storage.files import write_atomic
from jaxft.tasks.embedding.pooling import pooling_config

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
    length = trained.config.data.max_length or trained.model.max_positions
    pooling = pooling_config(trained.task.facts["pooling"], _width(trained.model))
    _write(folder / POOLING_FILE, pooling)
    _write(folder / "sentence_bert_config.json", {"max_seq_length": length, "do_lower_case": False})
    _write(folder / MODULES_FILE, modules)


def _width(model: Model) -> int:
    """D of the stream `[B, T, D]`."""
    batch = {"input_ids": jnp.zeros((1, 2), jnp.int32)}
    return jax.eval_shape(model.apply, model.params, batch)["last_hidden_state"].shape[-1]


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps(content, indent=2) + "\n").encode())
