"""JSON of others: read whole, or refused in a sentence that names the file and the fault."""

import os

import pytest

from jaxft.bounds import MOST_JSON_LEVELS
from jaxft.errors import UserError
from jaxft.storage import json_files
from jaxft.storage.json_files import read_json, read_json_object


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"{", "is not JSON (Expecting property name"),
        (b"\xff{}", "is not JSON ('utf-8' codec can't decode"),
        (b"9" * 5000, "is not JSON (Exceeds the limit"),
        (nested(100_000).encode(), "nests JSON more than 100 levels deep"),
        (f'{{"a": {nested(MOST_JSON_LEVELS)}}}'.encode(), "nests JSON more than 100 levels deep"),
        (rb'{"a": "half \ud83d"}', r"has half of a surrogate pair (\ud83d)"),
        (b"[1]", "holds an array and not a JSON object"),
        (b"null", "holds null and not a JSON object"),
        (b"true", "holds a boolean and not a JSON object"),
        (b"1.5", "holds a number and not a JSON object"),
    ],
)
def test_a_fault_is_named_with_the_file(tmp_path, content, fault):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_json_object(path)
    assert str(caught.value).startswith(f"{path} ")
    assert fault in str(caught.value)


def test_what_is_whole_is_read(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(f'{{"a": {nested(MOST_JSON_LEVELS - 1)}, "face": "\\ud83d\\ude00"}}')
    assert read_json_object(path)["face"] == "\N{GRINNING FACE}"


def test_a_file_that_is_too_large_is_not_parsed(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    path.write_text("[1, 2]")
    assert read_json(path, most_bytes=6) == [1, 2]
    monkeypatch.setattr(json_files, "parse_json", None)
    with pytest.raises(UserError, match=r"config\.json is larger than 5 B, the most that is read"):
        read_json(path, most_bytes=5)


def test_a_fifo_is_refused_and_not_waited_for(tmp_path):
    path = tmp_path / "config.json"
    os.mkfifo(path)
    with pytest.raises(UserError, match=r"config\.json is not a regular file"):
        read_json(path)


def test_a_file_that_is_not_there_is_the_callers_to_tell(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "config.json")
