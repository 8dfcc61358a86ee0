"""The files that make an export a model of sentence-transformers: pooling, vectors of length 1.

Source: https://www.sbert.net, `modules.json` and the folders that it names.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jaxft.engine.trained import Trained
from jaxft.models.load_dense import stream_width
from jaxft.models.sentence.modules import DENSE, NORMALIZE, POOLING
from jaxft.models.weights.source import MODULES_FILE, POOLING_FILE, PROMPTS_FILE
from jaxft.storage.files import write_atomic
from jaxft.tasks.embedding.pooling import pooling_config
from jaxft.tasks.embedding.task import Embedding

PACKAGE = "sentence_transformers.models."


def write_sentence_files(trained: Trained, folder: Path) -> None:
    """Write them beside an export's own files; the model has written its Dense modules.

    Args:
        trained: a run of the embedding task.
        folder: the export.
    """
    task, model = trained.task, trained.model
    assert isinstance(task, Embedding)
    dense = () if model.dense is None else tuple(one.path for one in model.dense.layers)
    ends = (*((path, DENSE) for path in dense), (f"{2 + len(dense)}_{NORMALIZE}", NORMALIZE))
    lines = (("", "Transformer"), (POOLING_FILE.partition("/")[0], POOLING), *ends)
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"{PACKAGE}{kind}"}
        for index, (path, kind) in enumerate(lines)
    ]
    length = trained.config.data.max_length or model.max_positions
    _write(folder / POOLING_FILE, pooling_config(task.pooling, stream_width(model)))
    _write(folder / "sentence_bert_config.json", {"max_seq_length": length, "do_lower_case": False})
    cut = task.section.truncate_dim
    config = task.own_prompts.config() | ({} if cut is None else {"truncate_dim": cut})
    _write(folder / PROMPTS_FILE, config)
    _write(folder / MODULES_FILE, modules)


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps(content, indent=2) + "\n").encode())
