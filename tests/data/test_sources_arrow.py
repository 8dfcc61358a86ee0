"""Parquet, Arrow, saved `datasets` and several files by a pattern: the same rows from each."""

import json
import pickle
import struct

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from jaxft.data.sources.open import open_source
from jaxft.data.sources.reader import ClassId
from jaxft.errors import UserError
from jaxft.tasks.parts.labels import BadValue, class_flags, class_id

ROWS = [{"text": f"naïve {i}", "label": i % 2, "tags": ["日", str(i)]} for i in range(23)]
CLASSES = {"label": {"names": ["bad", "good"], "_type": "ClassLabel"}}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXFT_CACHE", str(tmp_path / "cache"))


def table(rows=ROWS, features=None):
    made = pa.Table.from_pylist(rows)
    if features is None:
        return made
    return made.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )


def write_stream(path, rows):
    """As `datasets` writes its files: an Arrow stream, here of batches of 4."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows, max_chunksize=4)


def save_dataset(folder, rows, shards=2):
    """The layout of `datasets.Dataset.save_to_disk`."""
    folder.mkdir(parents=True)
    names = [f"data-{i:05d}-of-{shards:05d}.arrow" for i in range(shards)]
    size = -(-rows.num_rows // shards)
    for number, name in enumerate(names):
        write_stream(folder / name, rows.slice(number * size, size))
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "f"}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")


def parquet(folder):
    pq.write_table(table(), folder / "r.parquet", row_group_size=5)
    return f"parquet:{folder}/r.parquet"


def arrow_file(folder):
    feather.write_feather(table(), folder / "r.feather", compression="lz4", chunksize=6)
    return f"arrow:{folder}/r.feather"


def stream(folder):
    write_stream(folder / "r.arrow", table())
    return f"arrow:{folder}/r.arrow"


def saved(folder):
    save_dataset(folder / "saved", table())
    return f"hf:{folder}/saved"


def saved_split(folder):
    save_dataset(folder / "all" / "test", table(), shards=1)
    (folder / "all" / "dataset_dict.json").write_text('{"splits": ["test"]}')
    return f"hf:{folder}/all:test"


def pattern(folder):
    for place, number in enumerate((0, 1, 2, 10, 11)):  # in the order of their numbers
        part = table(ROWS[5 * place : 5 * place + 5])
        pq.write_table(part, folder / f"part-{number}.parquet")
    return f"parquet:{folder}/part-*.parquet"


@pytest.mark.parametrize("make", [parquet, arrow_file, stream, saved, saved_split, pattern])
def test_rows_are_what_was_written(tmp_path, make):
    spec = make(tmp_path)
    source = open_source(f"{spec}:ordered")
    assert source.columns == ("text", "label", "tags")
    assert source.rows(range(23)) == ROWS
    asked = [22, 3, 3, 0, 9, 10]
    assert source.rows(asked, ["text"]) == [{"text": ROWS[i]["text"]} for i in asked]
    assert pickle.loads(pickle.dumps(source)).rows(asked) == [ROWS[i] for i in asked]
    shuffled = open_source(f"{spec}[:50%]", where={"label": 1})
    assert {row["label"] for row in shuffled.rows(range(len(shuffled)))} == {1}
    assert len(shuffled) == 6


def test_rows_are_mapped_and_not_sent(tmp_path):
    rows = [{"text": "x" * 1000, "label": 0}] * 2000
    pq.write_table(table(rows), tmp_path / "r.parquet")
    source = open_source(f"parquet:{tmp_path}/r.parquet")
    before = pa.total_allocated_bytes()
    assert len(source.rows(range(10))) == 10
    assert pa.total_allocated_bytes() - before < 100_000, "2 MB of rows stay in the file"
    source.rows([1])
    assert len(pickle.dumps(source.reader)) < 1000


def test_class_names_and_images_of_datasets(tmp_path):
    features = CLASSES | {"image": {"_type": "Image"}, "many": {"feature": CLASSES["label"]}}
    rows = [
        {"label": 1, "image": {"bytes": b"png", "path": "a.png"}, "many": [0, 1]},
        {"label": 0, "image": {"bytes": None, "path": "b.png"}, "many": []},
        {"label": 0, "image": None, "many": []},
    ]
    pq.write_table(table(rows, features), tmp_path / "r.parquet")
    source = open_source(f"parquet:{tmp_path}/r.parquet:ordered", where={"label": ["good", "bad"]})
    assert source.class_names("label") == source.class_names("many") == ("bad", "good")
    assert source.class_names("image") is None
    assert [row["image"] for row in source.rows(range(3))] == [b"png", "b.png", None]


def test_ids_are_ids_where_another_class_has_such_a_name(tmp_path):
    """Reviews of one star and of two: the id 1 is not the class "1"."""
    stars = {"names": ["1", "2"], "_type": "ClassLabel"}
    many = {"feature": stars, "_type": "List"}
    things = {"bbox": {"_type": "List"}, "category": many}
    rows = [
        {"label": n, "many": [n], "things": {"bbox": [[0, 0, 1, 1]], "category": [n]}, "count": n}
        for n in (0, 1)
    ]
    features = {"label": stars, "many": many, "things": things}
    pq.write_table(table(rows, features), tmp_path / "r.parquet")
    source = open_source(f"parquet:{tmp_path}/r.parquet:ordered")
    for column in ("label", "many", "things"):
        assert source.class_names(column) == ("1", "2")
    rows = source.rows(range(2))
    assert [class_id(row["label"], "label", ("1", "2")) for row in rows] == [0, 1]
    assert class_flags(rows[1]["many"], "many", ("1", "2")).tolist() == [0, 1]
    assert [class_id(one, "", ("1", "2")) for one in rows[1]["things"]["category"]] == [1]
    assert type(rows[1]["count"]) is int
    with pytest.raises(BadValue, match="label '2'"):
        class_id(ClassId(2), "label", ("1", "2"))
    with pytest.raises(BadValue, match="label '0'"):  # of a text file: no id among such names
        class_id("0", "label", ("1", "2"))


def test_the_fingerprint_is_of_the_content(tmp_path):
    same = open_source(parquet(tmp_path)).fingerprint
    (tmp_path / "r.parquet").rename(tmp_path / "moved.parquet")
    assert open_source(f"parquet:{tmp_path}/moved.parquet").fingerprint == same
    pq.write_table(table(ROWS[:-1]), tmp_path / "moved.parquet")
    assert open_source(f"parquet:{tmp_path}/moved.parquet").fingerprint != same
    assert len(open_source(f"parquet:{tmp_path}/moved.parquet")) == 22


def test_a_row_of_a_pattern_is_told_by_its_file(tmp_path):
    for name, first in (("a", 0), ("b", 3)):
        lines = "\n".join(f"{i},x" for i in range(first, first + 3))
        (tmp_path / f"{name}.csv").write_text(f"text,label\n{lines}\n")
    source = open_source(f"csv:{tmp_path}/?.csv:ordered")
    assert [row["text"] for row in source.rows(range(6))] == list("012345")
    assert source.place(4) == f"{tmp_path}/b.csv: row 2"
    assert source.without([4]).place(4) == f"{tmp_path}/b.csv: row 3"
    assert source.folder == source.folder_of(4) == tmp_path
    (tmp_path / "b.csv").write_text("text,label\nleft\n")
    with pytest.raises(UserError, match=r"b\.csv: row 1 \(line 2\) has 1 fields"):
        open_source(f"csv:{tmp_path}/?.csv")


def test_columns_of_a_pattern_are_those_of_all_and_classes_are_of_one_mind(tmp_path):
    pq.write_table(table(features=CLASSES), tmp_path / "1.parquet")
    pq.write_table(pa.table({"label": [0, 1], "text": ["a", "b"]}), tmp_path / "2.parquet")
    source = open_source(f"parquet:{tmp_path}/*.parquet:ordered")
    assert source.columns == ("text", "label")
    assert source[24] == {"text": "b", "label": 1}
    assert source.class_names("label") == ("bad", "good")
    other = {"label": {"names": ["good", "bad"], "_type": "ClassLabel"}}
    pq.write_table(table(features=other), tmp_path / "2.parquet")
    with pytest.raises(UserError, match="name the classes of 'label' differently"):
        open_source(f"parquet:{tmp_path}/*.parquet").class_names("label")


def bad_files(folder):
    parquet(folder)
    (folder / "r.csv").write_text("text,label\na,0\n")
    (folder / "cut.parquet").write_bytes((folder / "r.parquet").read_bytes()[:300])
    (folder / "empty.arrow").write_bytes(b"")
    save_dataset(folder / "saved", table())
    save_dataset(folder / "all" / "test", table())
    (folder / "all" / "dataset_dict.json").write_text('{"splits": ["test"]}')
    save_dataset(folder / "out", table())
    (folder / "out" / "state.json").write_text('{"_data_files": [{"filename": "../r.csv"}]}')
    save_dataset(folder / "chosen", table())
    state = json.loads((folder / "chosen" / "state.json").read_text())
    state["_indices_data_files"] = [{"filename": "indices.arrow"}]
    (folder / "chosen" / "state.json").write_text(json.dumps(state))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("parquet:{}/r.csv", "r.csv cannot be read as Parquet (Parquet magic bytes"),
        ("parquet:{}/cut.parquet", "cut.parquet cannot be read as Parquet"),
        ("parquet:{}/r.parket", "Did you mean 'r.parquet'?"),
        ("arrow:{}/r.csv", "r.csv cannot be read as Arrow"),
        ("arrow:{}/empty.arrow", "empty.arrow cannot be read as Arrow"),
        ("csv:{}/part-*.csv", "no file matches this pattern"),
        ("hf:{}/gone", "gone' is not a data set saved by `datasets`: it has no state.json"),
        ("hf:{}/saved:train", "saved by `datasets` with a split 'train'"),
        ("hf:{}/all", "there is no split named"),
        ("hf:{}/all:tset", "Did you mean 'test'?"),
        ("hf:{}/out", "names the file '../r.csv', which is not in its folder"),
        ("hf:{}/chosen", "flatten_indices()"),
        ("csv:{}/r.csv", None),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, spec, said):
    bad_files(tmp_path)
    if said is None:
        assert len(open_source(spec.format(tmp_path))) == 1
        return
    with pytest.raises(UserError) as caught:
        open_source(spec.format(tmp_path))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").rglob("*.tmp"))


FILMS = pa.table({"text": [f"film {i}" for i in range(40)], "label": ["p", "n"] * 20})


def films_file(folder):
    with pa.ipc.new_file(str(folder / "v.arrow"), FILMS.schema) as file:
        file.write_table(FILMS)
    return f"arrow:{folder}/v.arrow", folder / "v.arrow"


def films_stream(folder):
    with pa.ipc.new_stream(str(folder / "v.arrow"), FILMS.schema) as stream:
        stream.write_table(FILMS)
    return f"arrow:{folder}/v.arrow", folder / "v.arrow"


def films_saved(folder):
    save_dataset(folder / "saved", FILMS, shards=1)
    with pa.ipc.new_stream(str(folder / "saved" / "data-00000-of-00001.arrow"), FILMS.schema) as to:
        to.write_table(FILMS)
    return f"hf:{folder}/saved", folder / "saved" / "data-00000-of-00001.arrow"


def films_parquet(folder):
    to = folder / "v.parquet"
    pq.write_table(FILMS, to, compression="none", use_dictionary=False, write_statistics=False)
    return f"parquet:{to}", to


def replace_bytes(file, old, new):
    content = file.read_bytes()
    assert old in content
    assert len(old) == len(new)
    file.write_bytes(content.replace(old, new))


@pytest.mark.parametrize("offset", [10**8, 2**31 - 1, -(10**8), 600])
@pytest.mark.parametrize("make", [films_file, films_stream, films_saved])
def test_an_offset_that_leads_out_of_its_column_is_refused(tmp_path, make, offset):
    """TextColumns such a row would end the process (SIGSEGV)."""
    spec, file = make(tmp_path)
    assert len(open_source(spec)) == 40
    replace_bytes(file, struct.pack("<4i", 0, 6, 12, 18), struct.pack("<4i", 0, 6, 12, offset))
    with pytest.raises(UserError) as caught:
        open_source(spec)
    said = str(caught.value)
    assert said.startswith(f"{file}: rows 1 to 40: the column 'text' is damaged (Offset invariant")
    assert "\n" not in said


@pytest.mark.parametrize("make", [films_file, films_stream, films_saved, films_parquet])
def test_text_that_is_not_utf8_is_told_by_its_row(tmp_path, make):
    spec, file = make(tmp_path)
    replace_bytes(file, b"film 7", b"fi\xffm 7")
    with pytest.raises(UserError) as caught:
        open_source(spec)
    assert str(caught.value) == (
        f"{file}: row 8: the column 'text' is damaged (text that is not UTF-8). Rewrite the file."
    )
    assert not list((tmp_path / "cache").rglob("*.arrow"))


def test_the_row_is_counted_over_batches_and_in_a_list_it_is_one_of_several(tmp_path):
    write_stream(tmp_path / "r.arrow", table())
    replace_bytes(tmp_path / "r.arrow", "naïve 17".encode(), b"na\xff\xffve 17")
    with pytest.raises(UserError, match=r"r\.arrow: row 18: the column 'text' is damaged"):
        open_source(f"arrow:{tmp_path}/r.arrow")
    write_stream(tmp_path / "r.arrow", table())
    replace_bytes(tmp_path / "r.arrow", "日".encode(), b"\xff\xff\xff")
    with pytest.raises(UserError, match=r"r\.arrow: rows 1 to 4: the column 'tags' is damaged"):
        open_source(f"arrow:{tmp_path}/r.arrow")


def test_a_column_whose_name_is_not_utf8_is_refused(tmp_path):
    spec, file = films_file(tmp_path)
    file.write_bytes(file.read_bytes().replace(b"label", b"la\xffel"))
    with pytest.raises(UserError, match=r"v\.arrow cannot be read as Arrow"):
        open_source(spec)


def test_a_parquet_page_that_is_damaged_is_no_failure_to_write(tmp_path):
    spec, file = films_parquet(tmp_path)
    content = bytearray(file.read_bytes())
    content[4:8] = b"\xff\xff\xff\xff"  # the first page's header
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"v\.parquet cannot be read as Parquet") as caught:
        open_source(spec)
    assert "\n" not in str(caught.value)


def test_unpacked_rows_that_are_damaged_are_unpacked_anew(tmp_path):
    spec, _ = films_parquet(tmp_path)
    rows = open_source(f"{spec}:ordered").rows(range(40))
    (unpacked,) = (tmp_path / "cache").rglob("*.arrow")
    replace_bytes(unpacked, struct.pack("<4i", 0, 6, 12, 18), struct.pack("<4i", 0, 6, 12, 10**8))
    assert open_source(f"{spec}:ordered").rows(range(40)) == rows
    unpacked.write_bytes(unpacked.read_bytes()[:100])
    assert open_source(f"{spec}:ordered").rows(range(40)) == rows


def test_rows_across_batches_at_random(tmp_path):
    spec = saved(tmp_path)
    source = open_source(spec, seed=5)
    order = source.order.tolist()
    asked = np.random.default_rng(0).integers(0, 23, 100).tolist()
    assert source.rows(asked) == [ROWS[order[i]] for i in asked]
