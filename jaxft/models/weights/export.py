"""Export of parameters into Hugging Face weight files, by the name table in reverse, in shards."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
from etils import epath
from safetensors import SafetensorError
from safetensors.numpy import save_file

from jaxft.errors import UserError
from jaxft.models.gathered import on_host
from jaxft.models.pipeline import PIPELINE_FILE
from jaxft.models.weights.names import Name
from jaxft.models.weights.shards import DIFFUSERS, OF_DIFFUSERS, TRANSFORMERS, WEIGHTS
from jaxft.models.weights.source import Source
from jaxft.models.weights.tensor import COUNT, EACH, MEAN, Tensor, joined, of_expert
from jaxft.storage.files import (
    create_file,
    is_bucket,
    is_leftover,
    remove_leftovers,
    replace_file,
    resolved,
    settle_file,
    write_atomic,
)

MAX_SHARD = 5 * 10**9  # bytes, as transformers splits
SHARDS = re.compile(rf"({DIFFUSERS}|{TRANSFORMERS})-\d{{5}}-of-\d{{5}}\.safetensors")
ADAPTER_WEIGHTS, LORA_WEIGHTS = "adapter_model.safetensors", "pytorch_lora_weights.safetensors"
ASIDE = ".weights-"  # how the folder begins that weights are written in before they have names
AUTO_MAP = "auto_map"  # of a tokenizer's or a processor's file: classes in a repository's code
# Fields of a source's config.json that its exports do not have.
STALE_FIELDS = (
    *("torch_dtype", "_name_or_path", "text_config_dict", "vision_config_dict", AUTO_MAP),
    "quantization_config",  # weights are written as the numbers that they are
)
METADATA = {"format": "pt", "writer": "jaxft"}
# By it an earlier export is known again; it follows the 8 bytes of the header's length.
MARK = b'{"__metadata__":' + json.dumps(METADATA, separators=(",", ":")).encode()


def to_tensors(
    params: Mapping[str, jax.Array], names: Mapping[str, Name], loaded: Mapping[str, Tensor]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield parameters as Hugging Face tensors, by the name table in reverse.

    A parameter that still has the value it was loaded with is given as the source has it, in
    the source's type, so that it is the same byte for byte.

    Args:
        params: the flat dict.
        names: parameter -> its line of the name table.
        loaded: parameter -> the tensor it was read from, where it was.

    Yields:
        HF name and array.
    """
    together: dict[str, list[str]] = {}
    for parameter, name in sorted(names.items(), key=lambda item: item[1].part or ()):
        together.setdefault(name.hf, []).append(parameter)
    for hf, parts in together.items():
        values = [_stored(params[part], names[part], loaded.get(part)) for part in parts]
        if names[parts[0]].stacked:
            yield hf, np.stack(values)
        elif EACH in hf:
            for number in range(values[0].shape[1]):
                yield of_expert(hf, number), np.ascontiguousarray(values[0][:, number])
        else:
            name = names[parts[0]]
            yield hf, joined(values, name.axis, name.heads)


def with_counts(
    tensors: Iterable[tuple[str, np.ndarray]],
    names: Mapping[str, str],
    loaded: Mapping[str, Tensor],
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield tensors, and behind the mean of each batch norm the count beside it: 0 of a new one.

    Args:
        tensors: HF name and array.
        names: parameter -> HF name.
        loaded: parameter -> the tensor it was read from, where it was.
    """
    means = {hf: loaded.get(name) for name, hf in names.items() if hf.endswith(MEAN)}
    for hf, value in tensors:
        yield hf, value
        if hf in means:
            mean, none = means[hf], np.zeros((), np.int64)
            count = none if mean is None or mean.count is None else mean.count.whole()
            yield hf.removesuffix(MEAN) + COUNT, np.array(count)


def _stored(param: jax.Array, name: Name, source: Tensor | None) -> np.ndarray:
    """Return a parameter as a file stores it, with the source's own bits if it is unchanged."""
    value = on_host(param)
    value = np.asarray(np.moveaxis(value, -1, 0) if name.transpose else value, order="C")
    if source is None:
        return value
    original = np.asarray(source.whole(), order="C")
    same = _bits(original.astype(value.dtype, copy=False)) == _bits(value)
    return original if same.all() else value


def _bits(value: np.ndarray) -> np.ndarray:
    """Return the bytes of an array: 0.0 and -0.0 differ in them, equal NaNs do not."""
    return value.reshape(-1).view(np.uint8)


def write_weights(
    folder: Path,
    tensors: Iterable[tuple[str, np.ndarray]],
    limit: int = MAX_SHARD,
    stem: str = TRANSFORMERS,
) -> set[str]:
    """Write weights in Hugging Face's layout: one file, or shards and their index.

    What an earlier export left is replaced when all of the new files are whole. No more than one
    shard is held at a time.

    Args:
        folder: where; made where it is not there.
        tensors: names and arrays, in the order in which they are written.
        limit: bytes of a file; a tensor that is larger has a file of its own.
        stem: how the names of the files begin.

    Returns:
        The types that were written, but for that of counts.

    Raises:
        UserError: the disk is full, or may not be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        with tempfile.TemporaryDirectory(prefix=ASIDE, dir=folder) as aside:
            shards: list[tuple[Path, list[str]]] = []
            types, total = set(), 0
            for part in _parts(tensors, limit):
                shards.append((Path(aside) / str(len(shards)), list(part)))
                _write(shards[-1][0], part)
                types |= {str(one.dtype) for one in part.values() if one.dtype != np.int64}
                total += sum(value.nbytes for value in part.values())
                part.clear()  # before the next is gathered
            _put_in_place(folder, shards, total, stem)
    except (SafetensorError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{folder / stem}.safetensors could not be written: {reason}.") from None
    return types


def _remove_leftovers(folder: Path) -> None:
    """Delete what a process that was killed in `write_weights` or beside it left half-written."""
    remove_leftovers(folder)
    for path in folder.iterdir():
        if re.fullmatch(re.escape(ASIDE) + "[a-z0-9_]{8}", path.name) and not path.is_symlink():
            shutil.rmtree(path)


def _parts(
    tensors: Iterable[tuple[str, np.ndarray]], limit: int
) -> Iterator[dict[str, np.ndarray]]:
    """Yield the tensors of each file: as many of them, in order, as fit the limit."""
    part: dict[str, np.ndarray] = {}
    size = 0
    for name, value in tensors:
        if part and size + value.nbytes > limit:
            yield part
            part, size = {}, 0
        part[name] = value
        size += value.nbytes
    yield part


def _write(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    mode = create_file(path)
    save_marked(path, tensors)
    settle_file(path, mode)


def save_marked(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write a safetensors file whose metadata says that jaxft wrote it.

    The library writes the metadata in an order that differs from one process to the next; here it
    has one order, so that the same weights are the same bytes.
    """
    save_file(dict(tensors), path, metadata=METADATA)
    with path.open("r+b") as file:
        file.seek(8)
        if sorted(file.read(len(MARK))) == sorted(MARK):
            file.seek(8)
            file.write(MARK)


def _is_ours(path: epath.Path) -> bool:
    """Return whether jaxft wrote a file of weights."""
    if not is_bucket(path) and (Path(path).is_symlink() or not Path(path).is_file()):
        return False
    with path.open("rb") as file:
        return file.read(8 + len(MARK))[8:] == MARK


def check_folder(folder: str | Path, source: Source) -> None:
    """Raise a UserError if an export into `folder` would overwrite anything but an export.

    A new folder will do, an empty one, and one whose weights are all of an earlier export of
    jaxft's. What a process that was killed left half-written counts for nothing.

    Args:
        folder: where the model is to be written.
        source: the checkpoint that it was loaded from, which is not to be written into.
    """
    path = epath.Path(resolved(folder))
    parts = [source] if source.second is None else [source, source.second]
    for part in parts:
        own = epath.Path(part.asked if is_bucket(part.asked) else part.folder.resolve())
        if path == own or own in path.parents:
            raise UserError(
                f"{folder} is inside {part.asked}, the checkpoint that the model was loaded from.",
                "Name a folder outside it with --out.",
            )
    if path.exists() and not path.is_dir():
        raise UserError(f"{folder} is a file.", "Name a new or an empty folder with --out.")
    names = [p.name for p in path.iterdir()] if path.exists() else []
    names = [name for name in names if not is_leftover(name) and not name.startswith(ASIDE)]
    whole = (WEIGHTS, ADAPTER_WEIGHTS, LORA_WEIGHTS, OF_DIFFUSERS[0])
    weights = [n for n in names if n in whole or SHARDS.fullmatch(n)]
    if source.pipeline is not None and PIPELINE_FILE in names:
        weights = [p for w in whole if (path / (p := f"{source.part}/{w}")).is_file()]
    foreign = [name for name in weights if not _is_ours(path / name)] if weights else names
    if foreign:
        raise UserError(
            f"{folder} holds '{min(foreign)}', and is not an earlier export of jaxft.",
            "Name a new or an empty folder with --out, or delete what is in it.",
        )


def _put_in_place(
    folder: Path, shards: list[tuple[Path, list[str]]], total: int, stem: str
) -> None:
    """Give finished files their names, and remove jaxft's stale shards.

    A single file outranks an index, so that it is the last to come and the first to go.
    """
    count, whole = len(shards), f"{stem}.safetensors"
    files = [f"{stem}-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    files = files if count > 1 else [whole]
    for (path, _), file in zip(shards, files, strict=True):
        replace_file(path, folder / file)
    if count > 1:
        weight_map = {
            n: file for (_, names), file in zip(shards, files, strict=True) for n in names
        }
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_atomic(
            folder / f"{whole}.index.json", json.dumps(index, indent=2, sort_keys=True) + "\n"
        )
        (folder / whole).unlink(missing_ok=True)
    else:
        (folder / f"{whole}.index.json").unlink(missing_ok=True)
    for path in folder.iterdir():
        if SHARDS.fullmatch(path.name) and path.name not in files and _is_ours(epath.Path(path)):
            path.unlink()
