"""Description of a checkpoint, in Orbax's file of metadata: its leaves, position and metrics."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from jaxft.runs.errors import attempt
from jaxft.runs.leaves import Leaves
from jaxft.storage.files import write_atomic
from jaxft.storage.json_files import read_json_object

FILE = "_CHECKPOINT_METADATA"
FIELD = "custom_metadata"  # Orbax's name of what `sealed` gave


def read_description(checkpoint: epath.Path) -> dict[str, Any]:
    """Return the description of a checkpoint, as `unsealed` does.

    Args:
        checkpoint: its folder.

    Raises:
        DamagedError: it cannot be read, or is not what was saved.
    """
    return attempt(
        lambda: unsealed(read_json_object(checkpoint / FILE)[FIELD]), "its metadata cannot be read"
    )


def add_metrics(checkpoint: epath.Path, metrics: Mapping[str, float]) -> None:
    """Write the metrics of an evaluation into the description of a checkpoint.

    The file is replaced whole, and the arrays are not touched: Orbax would delete the checkpoint
    before it saves another, and a process killed meanwhile would leave none.

    Args:
        checkpoint: its folder.
        metrics: of an evaluation of its state.

    Raises:
        DamagedError: the description cannot be read.
        UserError: it cannot be written.
    """
    record = read_description(checkpoint)
    whole = read_json_object(checkpoint / FILE)
    whole[FIELD] = sealed(record["leaves"], record["meta"], metrics)
    write_atomic(checkpoint / FILE, json.dumps(whole))


def sealed(
    leaves: Leaves, meta: dict[str, Any], metrics: Mapping[str, float] | None
) -> dict[str, Any]:
    """The description of a checkpoint, with a hash that tells when it was damaged itself."""
    record = {"leaves": leaves, "meta": meta, "metrics": metrics}
    return {**record, "sha256": _digest(*record.values())}


def unsealed(record: dict[str, Any]) -> dict[str, Any]:
    """The description itself, with `leaves`, `meta` and, but for earlier versions, `metrics`.

    Raises:
        ValueError: it is not what `sealed` gave.
    """
    parts = [record[name] for name in ("leaves", "meta", "metrics") if name in record]
    if record["sha256"] != _digest(*parts):
        raise ValueError("the checkpoint's metadata differs from what was saved")
    return record


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
