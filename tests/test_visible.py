"""What others wrote reaches a terminal without what a terminal would obey."""

import json

import pytest

from jaxft.visible import visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]52;c;ZWNobyBwd24=\x1b\\", r"\u001b]52;c;ZWNobyBwd24=\u001b" + "\\"),
        ("a\u009b2Jb\x07", r"a\u009b2Jb\u0007"),
        ("safe\u202egnp.exe", r"safe\u202egnp.exe"),
        ("half \ud83d", r"half \ud83d"),
        ("Zürich \N{GRINNING FACE}\n\tfine", "Zürich \N{GRINNING FACE}\n\tfine"),
        ("a\rb\x7f", r"a\u000db\u007f"),
    ],
)
def test_control_characters_are_written_out(text, shown):
    assert visible(text) == shown


def test_json_keeps_its_content():
    row = {"label": "\x1b[2J\u009b\u202e", "text": "line\nend"}
    assert json.loads(visible(json.dumps(row, ensure_ascii=False))) == row
