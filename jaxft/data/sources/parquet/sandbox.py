"""A separate process that unpacks a Parquet file: it comes from outside, and is not trusted.

A page of a few bytes may unpack to gigabytes, and a damaged one may end the process that reads it.
It imports nothing from jaxft, reads one JSON object from standard input, and writes one to standard
output.
"""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

MOST_BATCH_ROWS = 4096
BATCH_BYTES = 32 << 20


def unpack(source: str, target: str, most_bytes: int) -> dict[str, Any]:
    """Write the rows of a Parquet file as an Arrow file.

    Args:
        source: the Parquet file.
        target: the Arrow file.
        most_bytes: of the rows, unpacked.

    Returns:
        Nothing; or `bytes`, those unpacked when there were too many; or `error`, the reason why the
        file cannot be read; or `errno`, that of the system while the target was written.
    """
    total = 0
    try:
        with (
            pq.ParquetFile(source) as packed,
            pa.OSFile(target, "wb") as sink,
            pa.ipc.new_file(sink, packed.schema_arrow) as writer,
        ):
            for batch in packed.iter_batches(_rows_of_batch(packed), use_threads=False):
                total += batch.nbytes
                if total > most_bytes:
                    return {"bytes": total}
                writer.write_batch(batch)
    except MemoryError:
        return {"error": "a part of it unpacks to more memory than is allowed"}
    except OSError as error:
        if error.errno is not None:
            return {"errno": error.errno}
        return {"error": _first_line(error)}
    except Exception as error:  # Arrow's, a name that is not UTF-8
        return {"error": _first_line(error)}
    return {}


def _rows_of_batch(packed: pq.ParquetFile) -> int:
    """Return the number of rows that take about `BATCH_BYTES`, by the sizes in the footer."""
    about = packed.metadata
    groups = [about.row_group(number).total_byte_size for number in range(about.num_row_groups)]
    each = sum(groups) / max(about.num_rows, 1)
    return max(1, min(MOST_BATCH_ROWS, int(BATCH_BYTES / max(each, 1))))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def main() -> None:
    """Answer the request on standard input."""
    asked = json.load(sys.stdin)
    if resource is not None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with contextlib.suppress(ValueError, OSError):  # macOS does not limit a process's memory
            resource.setrlimit(resource.RLIMIT_AS, (asked["memory"], asked["memory"]))
    json.dump(unpack(asked["source"], asked["target"], asked["most_bytes"]), sys.stdout)


if __name__ == "__main__":
    main()
