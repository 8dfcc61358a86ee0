"""Files beside the weights of an export: tokenizer, image processor, generation, other parts."""

from __future__ import annotations

import json
from pathlib import Path

from etils import epath

from jaxft.data.image.files import save_processor
from jaxft.models.pipeline import DENOISERS
from jaxft.models.weights.export import AUTO_MAP
from jaxft.models.weights.source import Source
from jaxft.storage.files import write_atomic
from jaxft.storage.json_files import read_json, read_json_object

TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZER_FILES = ("tokenizer", "vocab", "spiece", "sentencepiece")  # how their names begin


def write_companions(
    folder: Path, source: Source, size: int | None, length: int | None = None
) -> None:
    """Write the files beside the weights: tokenizer, image processor, generation.

    Args:
        folder: where to.
        source: the checkpoint that has them.
        size: pixels a side of the images, where they are others than the source's.
        length: the most tokens of a text in training, where inference is to truncate to it too.
    """
    for name, file in source.companions.items():
        target = folder / name
        if file.resolve() != target.resolve():
            write_atomic(target, _without_code(file))
    if length and any(name.startswith(TOKENIZER_FILES) for name in source.companions):
        write_atomic(folder / TOKENIZER_CONFIG, _with_length(source, length))
    if size:
        save_processor(source.folder, folder, size)


def is_written(folder: epath.Path) -> bool:
    """Return whether `Model.save` has written a folder: config.json is the last that it writes.

    In a pipeline it is in the folder of the part that trains.
    """
    return any((folder / part / "config.json").exists() for part in ("", *DENOISERS))


def small_files(source: Source, name: str) -> dict[str, bytes]:
    """Return the content of a checkpoint's files but for those whose hash is `Source.sha256`.

    Args:
        source: a checkpoint that `Model.save` has written.
        name: what the names of the files begin with, a folder's.
    """
    top, whole = source.top, source.pipeline is not None
    paths = sorted(path for path in top.rglob("*") if path.is_file())
    weights = {p for p in paths if p.suffix == ".safetensors" and (whole or p.parent == top)}
    return {
        f"{name}/{path.relative_to(top).as_posix()}": path.read_bytes()
        for path in paths
        if path not in weights
    }


def _with_length(source: Source, length: int) -> str:
    """Return the content of tokenizer_config.json with the length that inputs are truncated to."""
    file = source.companions.get(TOKENIZER_CONFIG)
    fields = {} if file is None else read_json_object(file)
    fields = {name: value for name, value in fields.items() if name != AUTO_MAP}
    return json.dumps({**fields, "model_max_length": length}, indent=2, ensure_ascii=False) + "\n"


def _without_code(file: Path) -> bytes:
    """Return a file's content, a JSON object without `auto_map`.

    It names Python code that the export does not have, and `transformers` would run it from the
    hub for whoever loads the export with `trust_remote_code`.
    """
    content = file.read_bytes()
    if file.suffix != ".json" or AUTO_MAP.encode() not in content:
        return content
    fields = read_json(file)
    if not isinstance(fields, dict) or AUTO_MAP not in fields:
        return content
    del fields[AUTO_MAP]
    return (json.dumps(fields, indent=2, ensure_ascii=False) + "\n").encode()
