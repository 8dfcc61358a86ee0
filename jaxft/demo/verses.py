"""Sentences in two languages as an asset: short verses in Spanish and English, out of Debian."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxft.demo.assets import Deb, once, unpack_deb
from jaxft.demo.rows import digest
from jaxft.errors import UserError

if TYPE_CHECKING:
    from pysword.bible import SwordBible

ENGLISH = Deb(
    "sword-text-web",
    "522.0-1",
    "s/sword-text-web/sword-text-web_522.0-1_all.deb",
    "b2029a802c44f1d6103de45e9ef5c64a9bd66466776e593e386b5ea84bfc110f",
)
SPANISH = Deb(
    "sword-text-sparv",
    "2.87-1",
    "s/sword-text-sparv/sword-text-sparv_2.87-1_all.deb",
    "c39b44396b6898a05b3753ac6c55c88f1a5a41f1fd6a0bc5dac7fe96aca5141b",
)
INSIDE = "usr/share/sword"
MODULES = ("spaRV1909eb", "engWEB2015eb")
MOST = 100  # characters of a verse, in either language
HELD_OUT = 20  # one pair in so many

Pair = dict[str, str]


def verses() -> Path:
    """Return the folder with train.jsonl and test.jsonl: `es`, `en` and `ref`, a verse each.

    They are the verses of the Reina-Valera of 1909 and of the World English Bible, both in the
    public domain, that have at most 100 characters in either. Chapters whose verses are cut
    otherwise are left out.

    Source: Debian `sword-text-sparv` and `sword-text-web`.

    Raises:
        UserError: the library `pysword`, which reads such files, is not installed.
    """
    return once("verses", (SPANISH, ENGLISH), _write)


def _write(spanish: Path, english: Path, to: Path) -> None:
    """Write train.jsonl and test.jsonl, in the order of the books."""
    try:
        from pysword.modules import SwordModules
    except ImportError as error:
        raise UserError(
            "The verses come as SWORD modules, and the library pysword is not installed.",
            "pip install 'jaxft[demos]', or pip install pysword",
        ) from error
    rows: dict[str, list[Pair]] = {"train.jsonl": [], "test.jsonl": []}
    with tempfile.TemporaryDirectory() as scratch:
        for deb in (spanish, english):
            unpack_deb(deb, INSIDE, Path(scratch))
        modules = SwordModules(scratch)
        modules.parse_modules()
        books = [modules.get_bible_from_module(name) for name in MODULES]
        for pair in _pairs(*books):
            if max(len(pair["es"]), len(pair["en"])) <= MOST:
                for_training = digest(pair["ref"]) % HELD_OUT
                rows["train.jsonl" if for_training else "test.jsonl"].append(pair)
    for name, lines in rows.items():
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (to / name).write_text(text, encoding="utf-8")


def _pairs(spanish: SwordBible, english: SwordBible) -> Iterator[Pair]:
    """Yield every verse that is in both, and what names it."""
    theirs = {book.osis_name: book for book in _books(english)}
    for book in _books(spanish):
        if (other := theirs.get(book.osis_name)) is None:
            continue
        for chapter in range(1, min(book.num_chapters, other.num_chapters) + 1):
            lengths = [one.chapter_lengths[chapter - 1] for one in (book, other)]
            if lengths[0] != lengths[1]:
                continue  # verses are cut otherwise there
            for verse in range(1, lengths[0] + 1):
                where = {"chapters": [chapter], "verses": [verse], "clean": False}
                es, en = (
                    _plain(bible.get(books=[one.name], **where))
                    for bible, one in ((spanish, book), (english, other))
                )
                if es and en:
                    yield {"ref": f"{book.osis_name} {chapter}:{verse}", "es": es, "en": en}


def _books(bible: SwordBible) -> list[Any]:
    return [book for part in bible.get_structure().get_books().values() for book in part]


def _plain(text: str | None) -> str:
    """Return a verse without notes, titles and markup."""
    text = re.sub(r"<note\b.*?</note>", " ", text or "", flags=re.DOTALL)
    text = re.sub(r"<title\b.*?</title>", "", text, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", "", text).split())
