"""Text of others made safe to show: control characters are written out.

A label, a file name or a model's output may hold terminal escapes (which set the clipboard or the
title), characters that reorder a line, or halves of surrogate pairs, which cannot be encoded.
"""

from __future__ import annotations

from itertools import chain

_BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_RANGES = (range(0x20), range(0x7F, 0xA0), range(0x2028, 0x202A), range(0xD800, 0xE000))
_CODES = chain(*_RANGES, map(ord, _BIDI))
_ESCAPES = {code: f"\\u{code:04x}" for code in _CODES if chr(code) not in "\n\t"}


def visible(text: str) -> str:
    r"""Return `text` with control characters as `\u001b`; line ends and tabs stay.

    In JSON text these are the escapes of the same characters, so its content does not change.
    """
    return text if text.isascii() and text.isprintable() else text.translate(_ESCAPES)
