"""Text to token ids, with a checkpoint's own tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers.decoders import DecodeStream

from jaxft.data.text.tokenizer_files import (
    check_growth,
    count_ids,
    first_line,
    load_backend,
    special_id,
    unknown_id,
    within_time,
)
from jaxft.errors import UserError

CHUNK = 1000  # texts encoded at a time; keeps the library's own objects few


@dataclass(frozen=True)
class Encoded:
    """Texts as token ids.

    Attributes:
        ids: one `[tokens]` int32 array a text, special tokens included.
        type_ids: likewise: 0 for the first text of a pair, 1 for the second.
        tokens: number of tokens, after truncation.
        unknown: how many of them stand for text that the vocabulary lacks.
        cut: text number -> tokens truncated, for each truncated text.
        spans: start and end of each token in its text, one `[tokens, 2]` int32 array a text; 0
            and 0 for a special token. Empty unless requested.
        words: likewise `[tokens]` int32: the number of the word that a token belongs to; -1 for
            a special token.
    """

    ids: list[np.ndarray]
    type_ids: list[np.ndarray]
    tokens: int
    unknown: int
    cut: dict[int, int]
    spans: list[np.ndarray]
    words: list[np.ndarray]

    @property
    def truncated(self) -> int:
        """Texts that were cut to `max_length`."""
        return len(self.cut)

    @property
    def truncated_tokens(self) -> int:
        """Tokens cut away, of all texts."""
        return sum(self.cut.values())

    @property
    def counts(self) -> dict[str, int]:
        """Return the totals that a person is shown."""
        return {
            "tokens": self.tokens,
            "unknown": self.unknown,
            "truncated": self.truncated,
            "truncated_tokens": self.truncated_tokens,
        }


class Tokenizer:
    """The tokenizer of a checkpoint's folder; pickled by its folder, and built where it is used.

    Attributes:
        fingerprint: sha256 of the tokenizer, and of the ids below.
        vocab_size: ids run below it; where some are free it is more than there are tokens.
        pad_id: the id that fills a row.
        end_id: the id that ends a text; None where the folder names none.
        first_id, last_id: what a text begins and ends with by any name (BERT: class, separator).
        mask_id: the id that stands for a hidden token; None where the folder names none.
        unknown_id: the id of what the vocabulary lacks; -1 where it spells every text.
        special_ids: the ids that stand for no text.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._backend = load_backend(self.folder)
        # Some files carry a length to cut and pad to (sentence-transformers' do).
        self._backend.no_truncation()
        self._backend.no_padding()
        self.vocab_size = count_ids(self.folder, self._backend)
        described = self._backend.to_str()
        content = json.loads(described)
        check_growth(self.folder, self._backend, content)
        self.unknown_id = unknown_id(content["model"], self._backend)
        added = self._backend.get_added_tokens_decoder().items()
        self.special_ids = frozenset(number for number, token in added if token.special)
        self.pad_id = special_id("pad_token", self.folder, self._backend) or 0
        self.end_id = special_id("eos_token", self.folder, self._backend)
        self.mask_id = special_id("mask_token", self.folder, self._backend)
        roles = ("bos_token", "cls_token", "sep_token")
        bos, cls, sep = (special_id(role, self.folder, self._backend) for role in roles)
        self.first_id = cls if bos is None else bos
        self.last_id = sep if self.end_id is None else self.end_id
        # A base and a chat model often have one tokenizer.json, and other ids for these.
        named = (self.pad_id, self.end_id, self.mask_id, self.first_id, self.last_id)
        self.fingerprint = hashlib.sha256(f"{described}\0{named}".encode()).hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"])  # type: ignore[misc]  # the folder is all there is to it

    def encode(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        max_length: int | None = None,
        spelled: bool = False,
        placed: bool = False,
    ) -> Encoded:
        """Return the token ids of each text, or pair of texts, with the model's special tokens.

        Args:
            texts: the texts.
            pairs: the second text of each, or None.
            max_length: the most tokens of one, special tokens included; a pair loses tokens of its
                longer text first. None truncates nothing.
            spelled: the texts spell out their special tokens, as a chat template's do.
            placed: also return the position and the word of each token.

        Raises:
            UserError: a value that is not text, or a `max_length` that leaves no room for text.
        """
        _check_texts(texts)
        _check_texts(pairs or ())
        added = self._backend.num_special_tokens_to_add(is_pair=pairs is not None)
        special = 0 if spelled else added
        if max_length is not None and max_length <= special:
            raise UserError(
                f"data.max_length {max_length} leaves no room for text: "
                f"{special} tokens are special."
            )
        inputs = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
        ids: list[np.ndarray] = []
        type_ids: list[np.ndarray] = []
        spans: list[np.ndarray] = []
        words: list[np.ndarray] = []
        cut: dict[int, int] = {}
        for number, (one, lost) in enumerate(self._encodings(inputs, max_length, spelled)):
            ids.append(np.array(one.ids, np.int32))
            type_ids.append(np.array(one.type_ids, np.int32))
            cut |= {number: lost} if lost else {}
            if placed:
                spans.append(np.array(one.offsets, np.int32).reshape(-1, 2))
                words.append(_word_numbers(one))
        return Encoded(
            ids,
            type_ids,
            tokens=sum(map(len, ids)),
            unknown=sum(int(np.count_nonzero(row == self.unknown_id)) for row in ids),
            cut=cut,
            spans=spans,
            words=words,
        )

    def locate(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return the token ids of each text, and the characters that each token stands for.

        Args:
            texts: they spell out their special tokens.

        Returns:
            For each text ids [tokens] int32, and the start and end of each, [tokens, 2] int32.
        """
        located = []
        for start in range(0, len(texts), CHUNK):
            chunk = list(texts[start : start + CHUNK])
            for one in self._encode(chunk, spelled=True):
                spans = np.array(one.offsets, np.int32).reshape(-1, 2)
                located.append((np.array(one.ids, np.int32), spans))
        return located

    def windows(
        self, texts: Sequence[str], pairs: Sequence[str], max_length: int, shared: int
    ) -> Iterator[list[tokenizers.Encoding]]:
        """Yield the encodings of each pair of texts, of which the second is cut into windows.

        Args:
            texts, pairs: the first and the second text of each.
            max_length: the most tokens of a window, the first text and special tokens included.
            shared: tokens of the second text that a window shares with the one before.
        """
        for start in range(0, len(texts), CHUNK):
            chunk = slice(start, start + CHUNK)
            self._backend.enable_truncation(max_length, stride=shared, strategy="only_second")
            encodings = self._encode(list(zip(texts[chunk], pairs[chunk], strict=True)), False)
            self._backend.no_truncation()
            yield from ([one, *one.overflowing] for one in encodings)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, without special tokens."""
        return self._backend.decode(list(ids), skip_special_tokens=True)

    def piece(self, number: int) -> str:
        """Return the piece of text that a token id stands for, as the vocabulary writes it."""
        return self._backend.id_to_token(number) or ""

    def id_of(self, token: str) -> int | None:
        """Return the id of a token as the vocabulary writes it; None if it has no such token."""
        number: int | None = self._backend.token_to_id(token)
        return number

    def stream(self) -> Callable[[int], str | None]:
        """Return a function that takes one token id after another and returns the finished text."""
        return partial(DecodeStream(skip_special_tokens=True).step, self._backend)

    def _encodings(
        self, inputs: Sequence[Any], max_length: int | None, spelled: bool
    ) -> Iterator[tuple[tokenizers.Encoding, int]]:
        """Yield each input's encoding, cut to `max_length`, and the tokens cut away."""
        for start in range(0, len(inputs), CHUNK):
            chunk = inputs[start : start + CHUNK]
            encodings = self._encode(chunk, spelled)
            long = _longer_than(encodings, max_length)
            if not long or max_length is None:
                yield from ((encoding, 0) for encoding in encodings)
                continue
            shorter = iter(self._encode_cut([chunk[i] for i in sorted(long)], max_length, spelled))
            for number, encoding in enumerate(encodings):
                if number in long:
                    yield next(shorter), len(encoding.ids) - max_length
                else:
                    yield encoding, 0

    def _encode_cut(
        self, inputs: list[Any], max_length: int, spelled: bool
    ) -> list[tokenizers.Encoding]:
        self._backend.enable_truncation(max_length)
        encodings = self._encode(inputs, spelled)
        self._backend.no_truncation()  # not after an error: a thread may still encode
        return encodings

    def _encode(self, inputs: Sequence[Any], spelled: bool) -> list[tokenizers.Encoding]:
        """Encode texts; what the library raises of a damaged tokenizer names its folder."""
        try:
            batch = partial(self._backend.encode_batch, inputs, add_special_tokens=not spelled)
            return within_time(sum(map(_characters, inputs)), batch)
        except BaseException as error:
            # A panic of its Rust code is no Exception.
            if not (isinstance(error, Exception) or type(error).__name__ == "PanicException"):
                raise
            raise UserError(
                f"The tokenizer in '{self.folder}' cannot encode a text ({first_line(error)}).",
                "Its tokenizer.json is damaged; copy it from the original checkpoint.",
            ) from None


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Return the tokenizer of a checkpoint's folder.

    Raises:
        UserError: the folder holds no tokenizer that `tokenizers` or `transformers` reads.
    """
    return Tokenizer(folder)


def _longer_than(encodings: Sequence[tokenizers.Encoding], max_length: int | None) -> set[int]:
    if max_length is None:
        return set()
    return {i for i, encoding in enumerate(encodings) if len(encoding.ids) > max_length}


def _characters(text: str | tuple[str, str]) -> int:
    """Return the number of characters of a text or a pair."""
    return len(text) if isinstance(text, str) else sum(map(len, text))


def _word_numbers(encoding: tokenizers.Encoding) -> np.ndarray:
    return np.array([-1 if word is None else word for word in encoding.word_ids], np.int32)


def _check_texts(texts: Sequence[Any]) -> None:
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"Example {number} is not text but {type(text).__name__} ({text!r}).")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"Example {number} has half of a surrogate pair at character {error.start + 1}.",
                "Replace it, or the whole emoji that it was cut from.",
            ) from None
