"""Tables of others that are too large or hold what Python cannot: one sentence each, in seconds."""

import json

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from jaxft.bounds import MOST_COLUMNS
from jaxft.data.sources.open import open_source
from jaxft.errors import UserError


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAXFT_CACHE", str(tmp_path / "cache"))
    return tmp_path


def refused(spec, sentence):
    """Open a source and read its rows, which must end in this sentence."""
    with pytest.raises(UserError, match=sentence):
        list(open_source(spec).each())


def test_a_header_of_many_names(folder):
    names = [f"column {number}" for number in range(100_000)]
    (folder / "r.csv").write_text(",".join(names) + "\n")
    refused("csv:r.csv", r"r\.csv: there are 100,000 columns; at most 10,000 are read")
    (folder / "r.csv").write_text(",".join(names[:9999]) + "\na,b\n")
    with pytest.raises(UserError, match="has 2 fields, and the header has 9999") as error:
        open_source("csv:r.csv")
    assert len(str(error.value)) < 1000, "not all names are listed"


def test_a_row_of_many_keys(folder):
    row = {f"key {number}": number for number in range(MOST_COLUMNS + 1)}
    (folder / "r.jsonl").write_text('{"a": 1}\n' + json.dumps(row) + "\n")
    refused("jsonl:r.jsonl", r"row 2 \(line 2\) has 10,001 keys; at most 10,000")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("r.csv", "text,label\na,b\n" + "c" * 200 + ",d\n"),
        ("r.csv", 'text,label\na,b\n"' + "c\n" * 80 + '",d\n'),  # in quotes, over several lines
        ("r.csv", 'text,label\na,b\n"' + "c\n" * 10_000),
        ("r.jsonl", '{"text": "a"}\n' + json.dumps({"text": "c" * 200}) + "\n"),
        ("r.conll", "a\tO\n\n" + "c\tO\n" * 80),
    ],
)
def test_a_row_that_is_too_long(folder, monkeypatch, name, content):
    monkeypatch.setattr("jaxft.data.sources.files.MOST_ROW_BYTES", 150)
    (folder / name).write_text(content)
    refused(f"{name[2:]}:{name}", r"row 2 \(line .*\) is longer than 150 B|row 2 is not CSV")


@pytest.mark.parametrize("name", ["r.csv", "r.jsonl", "r.conll", "r.arrow"])
def test_rows_that_are_too_many(folder, monkeypatch, name):
    for module in ("files", "arrow_files"):
        monkeypatch.setattr(f"jaxft.data.sources.{module}.MOST_ROWS", 3)
    contents = {"r.csv": "t\n" + "a\n" * 9, "r.jsonl": '{"a": 1}\n' * 9, "r.conll": "a\tO\n\n" * 9}
    if name in contents:
        (folder / name).write_text(contents[name])
    else:
        write_arrow(folder / name, pa.table({"text": ["a"] * 9}))
    refused(f"{name[2:]}:{name}", "at most 3 are read|has more than 3 rows")


def write_arrow(path, table):
    with pa.ipc.new_file(path, table.schema) as file:
        file.write_table(table)


def test_rows_that_take_no_bytes(folder):
    write_arrow(
        folder / "r.arrow", pa.table({"text": pa.Array.from_buffers(pa.null(), 2**30, [None])})
    )
    refused("arrow:r.arrow", "has more than 268,435,456 rows")


@pytest.mark.parametrize(
    "values",
    [
        pa.array([0, 10**11 * 31_556_952], pa.timestamp("s")),  # the year 10^11
        pa.array([0, -(2**62)], pa.timestamp("ms")),
        pa.array([0, 2**31 - 1], pa.date32()),
        pa.array([0, 2**63 - 1], pa.duration("s")),
        pa.array([[0], [2**62]], pa.list_(pa.timestamp("s"))),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["arrow", "parquet"])
def test_a_time_that_python_does_not_have(folder, values, kind):
    table = pa.table({"text": ["a", "b"], "at": values})
    try:
        if kind == "parquet":
            pq.write_table(table, folder / "r.parquet")
        else:
            write_arrow(folder / "r.arrow", table)
    except pa.ArrowException:
        assert kind == "parquet", "Parquet has no seconds"
        return
    refused(f"{kind}:r.{kind}", "rows 1 to 2: a value of the column 'at' cannot be read")
    assert open_source(f"{kind}:r.{kind}").rows([0, 1], ["text"])


def test_a_cell_that_is_too_large(folder, monkeypatch):
    monkeypatch.setattr("jaxft.data.sources.arrow_files.MOST_ROW_BYTES", 100)
    for value in ("a" * 101, b"a" * 101, ["a" * 101], {"x": "a" * 101}, list(range(101))):
        write_arrow(folder / "r.arrow", pa.table({"text": pa.array([value])}))
        refused("arrow:r.arrow", r"r\.arrow: rows 1 to 1: a value of the column 'text' has 101 B")
    write_arrow(folder / "r.arrow", pa.table({"text": pa.array([["a" * 60, "b" * 60]])}))
    assert open_source("arrow:r.arrow")[0]["text"][0] == "a" * 60


@pytest.mark.parametrize("names", [5, "abc", {"a": 1}, [1, 2]])
def test_class_names_that_are_no_list(folder, names):
    features = {"label": {"_type": "ClassLabel", "names": names}}
    table = pa.table({"text": ["a"], "label": [0]}).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    write_arrow(folder / "r.arrow", table)
    source = open_source("arrow:r.arrow")
    with pytest.raises(UserError, match="the classes of 'label' are no list of names"):
        source.class_names("label")


def test_an_image_that_is_text(folder):
    features = {"image": {"_type": "Image"}}
    table = pa.table({"image": ["a.png", "b.png"]}).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    write_arrow(folder / "r.arrow", table)
    assert {row["image"] for _, row in open_source("arrow:r.arrow").each()} == {"a.png", "b.png"}


def write_bomb(path, characters, rows):
    """Write a Parquet file of one long text, repeated: some kilobytes."""
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), ["a" * characters])
    pq.write_table(pa.table({"text": texts}), path, store_schema=False)


def test_parquet_that_unpacks_to_more_than_is_allowed(folder, monkeypatch):
    write_bomb(folder / "r.parquet", 10_000, 4000)
    assert len(open_source("parquet:r.parquet")) == 4000
    monkeypatch.setattr("jaxft.data.sources.arrow_files.MOST_UNPACKED_BYTES", 10_000_000)
    write_bomb(folder / "r.parquet", 10_001, 4000)
    refused("parquet:r.parquet", r"r\.parquet has .* unpacks to more than 10\.0 MB")
    assert not list((folder / "cache").rglob("*.tmp"))


def test_arrow_that_unpacks_to_more_than_is_allowed(folder, monkeypatch):
    monkeypatch.setattr("jaxft.data.sources.arrow_files.MOST_UNPACKED_BYTES", 10_000_000)
    table = pa.table({"text": ["a" * 1000] * 20_000})
    feather.write_feather(table, folder / "r.arrow", compression="zstd", chunksize=1000)
    refused("arrow:r.arrow", r"r\.arrow has .* unpacks to more than 10\.0 MB")
    feather.write_feather(table, folder / "r.arrow", compression="uncompressed")
    assert len(open_source("arrow:r.arrow")) == 20_000


def test_parquet_that_needs_more_memory_than_is_allowed(folder, monkeypatch):
    monkeypatch.setattr("jaxft.data.sources.parquet.unpack.MOST_UNPACK_MEMORY", 1 << 30)
    write_bomb(folder / "r.parquet", 1 << 20, 1500)
    refused("parquet:r.parquet", r"r\.parquet (cannot be read as Parquet|.* unpacks to more)")


def test_parquet_that_ends_the_process_that_reads_it(folder, monkeypatch, tmp_path):
    crash = tmp_path / "crash.py"
    crash.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    write_bomb(folder / "r.parquet", 10, 4)
    monkeypatch.setattr("jaxft.data.sources.parquet.unpack.SANDBOX", crash)
    refused("parquet:r.parquet", r"cannot be read as Parquet \(.* ended with exit code -11\)")
