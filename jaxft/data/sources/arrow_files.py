"""Arrow files and streams, mapped; every value is checked before a row is read.

Reading a value whose offset leads out of its column would end the process, or give bytes of
something else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from jaxft.bounds import (
    MOST_ROW_BYTES,
    MOST_ROWS,
    MOST_UNPACKED_BYTES,
    MOST_UNPACKED_TIMES,
)
from jaxft.errors import UserError
from jaxft.numbers import size

FILE_FORMAT = b"ARROW1"  # how an Arrow file begins that is no stream


def read_table(file: Path) -> pa.Table:
    """Return a file's rows, mapped; columns that are compressed in it are read into memory."""
    return _reader(file).read_all()


def _reader(file: Path) -> pa.RecordBatchFileReader | pa.RecordBatchStreamReader:
    mapped = pa.memory_map(str(file))
    if mapped.read(len(FILE_FORMAT)) == FILE_FORMAT:
        return pa.ipc.open_file(mapped)
    mapped.seek(0)
    return pa.ipc.open_stream(mapped)


def batches_of(file: Path) -> Iterator[pa.RecordBatch]:
    """Return a file's batches, one in memory at a time."""
    reader = _reader(file)
    if isinstance(reader, pa.RecordBatchFileReader):
        return (reader.get_batch(i) for i in range(reader.num_record_batches))
    return iter(reader)


def check_file(file: Path) -> None:
    """Check every value of an Arrow file, a batch in memory at a time.

    Raises:
        UserError: a value is damaged, or columns that are compressed in the file unpack to more
            than `most_unpacked` of its size.
    """
    packed, total = file.stat().st_size, 0
    for batch in checked(batches_of(file), file):
        # A dictionary counts in each batch, and is in the file once.
        plain = [one for one in batch.columns if not pa.types.is_dictionary(one.type)]
        total += sum(column.nbytes for column in plain)
        if total > most_unpacked(packed):
            raise too_large(file, packed)


def most_unpacked(packed: int) -> int:
    """Return the most bytes that a file of `packed` bytes may unpack to."""
    return max(MOST_UNPACKED_BYTES, MOST_UNPACKED_TIMES * packed)


def too_large(file: Path, packed: int) -> UserError:
    """Return the error of a file that unpacks to more than that."""
    return UserError(
        f"{file} has {size(packed)} and unpacks to more than {size(most_unpacked(packed))}.",
        f"At most {size(MOST_UNPACKED_BYTES)}, or {MOST_UNPACKED_TIMES} times its size, are "
        "unpacked; split it into several files.",
    )


def is_sound(file: Path) -> bool:
    """Return whether a file of the cache is there, and as it was written."""
    try:
        check_file(file)
    except (UserError, pa.ArrowException, OSError):
        return False
    return True


def checked(batches: Iterable[pa.RecordBatch], file: Path) -> Iterator[pa.RecordBatch]:
    """Yield the same batches, each with all of its values looked at.

    Raises:
        UserError: an offset leads out of its column, a text is not UTF-8, or the like.
    """
    first = 1
    for batch in batches:
        if first + batch.num_rows > MOST_ROWS:
            raise UserError(f"{file} has more than {MOST_ROWS:,} rows, the most that are read.")
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            try:
                column.validate(full=True)
            except pa.ArrowException as error:
                reason, last = first_line(error), first + batch.num_rows - 1
                where = f"rows {first:,} to {last:,}"
                bad = re.search(r"UTF8 sequence at string index (\d+)", reason)
                if bad and not column.type.num_fields:  # the index of a nested one is no row's
                    where, reason = f"row {first + int(bad[1]):,}", "text that is not UTF-8"
                raise UserError(
                    f"{file}: {where}: the column '{name}' is damaged ({reason}).",
                    "Rewrite the file.",
                ) from None
            if (longest := _longest(column)) > MOST_ROW_BYTES:
                raise UserError(
                    f"{file}: rows {first:,} to {first + batch.num_rows - 1:,}: a value of the "
                    f"column '{name}' has {size(longest)}; at most {size(MOST_ROW_BYTES)} are read."
                )
        first += batch.num_rows
        yield batch


def _longest(column: pa.Array) -> int:
    """Return the bytes of the longest text or binary value, or the values of the longest list."""
    kind = column.type
    if pa.types.is_struct(kind):
        return max((_longest(field) for field in column.flatten()), default=0)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        most = pc.max(pc.list_value_length(column)).as_py() or 0
        return max(most, _longest(column.flatten()))
    if pa.types.is_dictionary(kind):
        return _longest(column.dictionary)
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary)
    if not any(is_text(kind) for is_text in (*texts, pa.types.is_large_binary)):
        return 0
    return pc.max(pc.binary_length(column)).as_py() or 0


@contextmanager
def refused(path: Path, form: str) -> Iterator[None]:
    """Turn errors of reading a file into a UserError that names its form."""
    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:  # a name that is not UTF-8
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's own refusal
        raise UserError(f"{path} cannot be read as {form} ({first_line(error)}).") from None


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
