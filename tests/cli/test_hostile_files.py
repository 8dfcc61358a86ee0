"""Files of others, damaged or made to harm: one sentence that names the file, and code 2."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pytest

from jaxft.cli.main import main, of_the_system
from jaxft.cli.parts.inputs import decoded
from jaxft.errors import UserError
from tests.cli.test_bad_input import folder, refused  # noqa: F401 fixtures
from tests.support.launch import cache  # noqa: F401 a fixture

pytestmark = pytest.mark.usefixtures("cache")
DEEP = '{"model_type": "bert", "rows": ' + "[" * 100_000 + "]" * 100_000 + "}"
TRAIN = ("train", "c.yaml", "--quiet")
ESCAPE = "\x1b]52;c;ZWNobyBwd24=\x1b\\"  # sets the clipboard of many terminals


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("checkpoint/config.json", DEEP, "nests JSON more than 100 levels deep"),
        ("checkpoint/config.json", "[1]", "holds an array and not a JSON object"),
        ("checkpoint/config.json", '{"model_type": "bert", "architectures": 5}', "list of strings"),
        ("checkpoint/config.json", '{"model_type": "bert", "id2label": {"a": "b"}}', "numbers and"),
        ("checkpoint/tokenizer_config.json", DEEP, "nests JSON more than 100 levels deep"),
        ("checkpoint/tokenizer_config.json", "[1]", "holds an array and not a JSON object"),
        ("checkpoint/tokenizer_config.json", '{"pad_token": 5}', "pad_token is a number"),
        ("checkpoint/tokenizer_config.json", '{"pad_token": ["a"]}', "pad_token is an array"),
        ("checkpoint/special_tokens_map.json", "{", "is not JSON"),
        ("checkpoint/special_tokens_map.json", '{"mask_token": {"content": {}}}', "is an object"),
    ],
)
def test_a_checkpoints_file(refused, file, content, sentence):  # noqa: F811 the fixture above
    if "special" in file:
        Path("checkpoint/tokenizer_config.json").unlink(missing_ok=True)
    Path(file).write_text(content)
    said = refused(*TRAIN)
    assert Path(file).name in said
    assert sentence in said


@pytest.mark.parametrize("number", [2**31 - 1, 2**32 - 1])
def test_a_token_with_an_id_far_above_the_others(refused, number):  # noqa: F811
    file = Path("checkpoint/tokenizer.json")
    fields = json.loads(file.read_text())
    fields["model"]["vocab"]["film"] = number
    file.write_text(json.dumps(fields))
    assert f"gives 'film' the id {number:,}" in refused(*TRAIN)


def test_a_token_whose_id_has_no_embedding(refused):  # noqa: F811 the fixture above
    """The number of tokens is as before: the highest id counts."""
    file = Path("checkpoint/tokenizer.json")
    fields = json.loads(file.read_text())
    fields["model"]["vocab"]["film"] = 5000
    file.write_text(json.dumps(fields))
    assert "the tokenizer has 5,001 tokens" in refused(*TRAIN)


def test_a_tokenizer_that_panics(refused):  # noqa: F811 the fixture above
    """Its post-processor names a token that it does not have."""
    file = Path("checkpoint/tokenizer.json")
    fields = json.loads(file.read_text())
    fields["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "[GONE]", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {},
    }
    file.write_text(json.dumps(fields))
    assert "tokenizer" in refused(*TRAIN)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (r'{"text": "a \ud83d", "label": "p"}', r"row 2 (line 2) has half of a surrogate pair"),
        ('{"text": ' + "9" * 5000 + "}", "row 2 (line 2) is not JSON (Exceeds the limit"),
        (DEEP, "row 2 (line 2) nests JSON more than 100 levels deep"),
    ],
)
def test_a_row_of_json_lines(refused, line, sentence):  # noqa: F811 the fixture above
    Path("rows.jsonl").write_text('{"text": "fine", "label": "p"}\n' + line + "\n")
    assert sentence in refused("data", "describe", "jsonl:rows.jsonl", "--text", "text")


@pytest.mark.parametrize(
    ("metadata", "sentence"),
    [
        (b"{", "is not JSON"),
        (b"[1]", "is not what `datasets` writes"),
        (b'{"info": 5}', "is not what `datasets` writes"),
        (b'{"info": {"features": [1]}}', "is not what `datasets` writes"),
        (b'{"info": {"features": {"label": 5}}}', "is not what `datasets` writes"),
        (DEEP.encode(), "nests JSON more than 100 levels deep"),
    ],
)
def test_the_metadata_of_an_arrow_file(refused, metadata, sentence):  # noqa: F811
    table = pa.table({"text": ["fine"], "label": ["p"]})
    schema = table.schema.with_metadata({b"huggingface": metadata})
    with pa.ipc.new_file("rows.arrow", schema) as file:
        file.write_table(table.cast(schema))
    assert sentence in refused("data", "describe", "arrow:rows.arrow", "--text", "text")


def test_two_columns_of_one_name(refused):  # noqa: F811 the fixture above
    table = pa.Table.from_arrays([pa.array(["fine"])] * 2, ["text", "text"])
    with pa.ipc.new_file("rows.arrow", table.schema) as file:
        file.write_table(table)
    said = refused("data", "describe", "arrow:rows.arrow", "--text", "text")
    assert "two columns are named 'text'" in said


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ("{}", "'saved' holds no rows"),
        ("[]", "holds an array and not a JSON object"),
        ('{"_data_files": 5}', "names no files of rows"),
        ('{"_data_files": [5]}', "names no files of rows"),
        ('{"_data_files": [{"filename": 5}]}', "names no files of rows"),
        ('{"_data_files": [{"filename": "../x"}]}', "which is not in its folder"),
    ],
)
def test_the_state_of_a_saved_data_set(refused, state, sentence):  # noqa: F811
    Path("saved").mkdir()
    Path("saved/state.json").write_text(state)
    assert sentence in refused("data", "describe", "hf:saved", "--text", "text")


@pytest.mark.parametrize(
    "content",
    [
        {"images": [5], "annotations": [], "categories": []},
        {"images": [], "annotations": [5], "categories": []},
        {
            "images": [],
            "annotations": [],
            "categories": [{"id": 1, "name": "a"}, {"id": "b", "name": "c"}],
        },
        {"images": 5, "annotations": 5, "categories": 5},
    ],
)
def test_a_coco_file(refused, content):  # noqa: F811 the fixture above
    Path("boxes.json").write_text(json.dumps(content))
    said = refused("data", "describe", "coco:boxes.json", "--label", "objects")
    assert said.startswith("boxes.json is not a COCO file")


def test_escapes_in_texts_do_not_reach_the_terminal(folder, capsys):  # noqa: F811
    rows = f"text,label\n{ESCAPE},n{ESCAPE}\nb\x9b2J,p\n"
    Path("rows.csv").write_text(rows, encoding="utf-8")
    assert main(["data", "describe", "csv:rows.csv", "--text", "text", "--label", "label"]) == 0
    out = capsys.readouterr().out
    assert r"\u009b2J" in out
    assert main(["data", "describe", f"csv:{ESCAPE}.csv", "--text", "text"]) == 2
    out += capsys.readouterr().err
    assert r"\u001b]52;c;ZWNobyBwd24=" in out
    assert not {"\x1b", "\x9b", "\x07"} & set(out)


def test_endless_files(refused, monkeypatch):  # noqa: F811 the fixture above
    assert "/dev/zero is larger than 262 kB" in refused("config", "/dev/zero")
    monkeypatch.setattr("jaxft.cli.parts.inputs.MOST_LINE_BYTES", 1000)
    with open("/dev/zero", "rb") as zeros, pytest.raises(UserError, match="line 1 is longer than"):
        next(decoded(zeros, "zeros"))


def test_names_that_no_system_takes(refused):  # noqa: F811 the fixture above
    long = "n" * 5000
    assert refused("report", long)
    assert "File name too long" in refused("train", f"{long}.yaml")
    assert refused("train", "c.yaml", "--quiet", f"model.checkpoint={long}")
    assert refused("data", "describe", f"csv:{long}", "--text", "text")
    assert refused("data", "describe", "csv:a\0b.csv", "--text", "text")


def test_errors_of_the_machine_are_sentences():
    assert (
        of_the_system(OSError(24, os.strerror(24), "rows.csv")) == "rows.csv: Too many open files."
    )
    long = of_the_system(OSError(36, os.strerror(36), "x" * 5000))
    assert long.endswith(": File name too long.")
    assert len(long) < 1100
    assert of_the_system(MemoryError()).startswith("Out of host memory. Lower data.batch_size")
    refusal = type("JaxRuntimeError", (RuntimeError,), {})
    full = refusal("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")
    assert of_the_system(full).startswith("Out of device memory.")
    assert of_the_system(refusal("INTERNAL: RET_CHECK failure")) is None
    assert of_the_system(ValueError("a fault of the program")) is None
