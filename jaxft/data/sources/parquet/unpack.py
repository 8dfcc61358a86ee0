"""Parquet files, unpacked once into the user's cache, in a process of its own with limits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from jaxft.bounds import MOST_UNPACK_MEMORY
from jaxft.data.sources.arrow_files import batches_of, checked, most_unpacked, too_large
from jaxft.errors import UserError
from jaxft.storage.files import written_aside

SANDBOX = Path(__file__).with_name("sandbox.py")


def unpack_parquet(path: Path, unpacked: Path) -> None:
    """Write a Parquet file's rows as an Arrow file, whole or not at all.

    A process of its own does so, with limits on its memory and on what it writes.
    """
    packed = path.stat().st_size
    with written_aside(unpacked) as aside:
        asked = {"source": str(path), "target": str(aside), "most_bytes": most_unpacked(packed)}
        done = subprocess.run(
            [sys.executable, "-P", str(SANDBOX)],
            input=json.dumps(asked | {"memory": MOST_UNPACK_MEMORY}),
            capture_output=True,
            text=True,
            env={**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system"},  # others reserve addresses
        )
        try:
            answer = json.loads(done.stdout)
        except ValueError:
            last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
            answer = {"error": f"the process that unpacked it ended with {last}"}
        if "errno" in answer:
            raise OSError(answer["errno"], os.strerror(answer["errno"]))
        if "bytes" in answer:
            raise too_large(path, packed)
        if "error" in answer:
            raise UserError(f"{path} cannot be read as Parquet ({answer['error']}).")
        for _ in checked(batches_of(aside), path):
            pass
