"""The files of a checkpoint's tokenizer: read by `tokenizers`, or older ones by `transformers`."""

from __future__ import annotations

import base64
import math
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import tokenizers
from tokenizers import normalizers

from jaxft.bounds import (
    MOST_ENCODE_SECONDS,
    MOST_FREE_IDS,
    MOST_SPECIAL_TOKENS,
    MOST_TEXT_GROWTH,
    MOST_TOKEN_CHARACTERS,
)
from jaxft.errors import UserError
from jaxft.storage.json_files import json_type, read_json_object

# The files of a tokenizer without a tokenizer.json. Without any of them transformers would build
# one with an empty vocabulary.
VOCABULARIES = (
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
)
PER_SECOND = 20_000  # characters, a fiftieth of what encoding takes on one slow core
LOWERED = "siglip2"  # model type whose tokenizer lowers a text first, as its file does not say
LOWERING = "Siglip2Tokenizer"  # that tokenizer's class in transformers
PARTS = ("normalizers", "pretokenizers", "decoders")  # of a Sequence
Result = TypeVar("Result")


def load_backend(folder: Path) -> tokenizers.Tokenizer:
    """Load tokenizer.json, or older files (vocab.txt, merges) through transformers."""
    file = folder / "tokenizer.json"
    if file.is_file():
        try:
            stored = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises plain Exception for a file it cannot read
            raise UserError(f"{file} is not a tokenizer ({error}).") from None
        return _lowering(stored) if _lowers(folder) else stored
    if not any((folder / name).is_file() for name in VOCABULARIES):
        raise UserError(
            f"'{folder}' holds no tokenizer: neither tokenizer.json nor an older vocabulary file.",
            f"Older files: {', '.join(VOCABULARIES)}. model.tokenizer names another folder or hub "
            "id that has them.",
        )
    # Importing it takes seconds where torch is installed, and few folders need it.
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(
            str(folder), trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # of each of the libraries that read the older files
        raise UserError(
            f"The tokenizer in '{folder}' cannot be read: {first_line(error)}"
        ) from None
    backend = getattr(loaded, "backend_tokenizer", None)
    if backend is None:
        raise UserError(
            f"The tokenizer in '{folder}' exists in Python only ({type(loaded).__name__}).",
            "Save it with a tokenizer.json.",
        )
    return backend


def _lowers(folder: Path) -> bool:
    """Return whether a folder's tokenizer is SigLIP 2's, by its class or by the model's type."""
    named = (("config.json", "model_type"), ("tokenizer_config.json", "tokenizer_class"))
    for name, field in named:
        file = folder / name
        if file.is_file() and read_json_object(file).get(field) in (LOWERED, LOWERING):
            return True
    return False


def _lowering(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Return a tokenizer that writes a text in lower case first, as it was pretrained.

    Source: `tokenization_siglip2.py` of `transformers`.
    """
    own = [] if backend.normalizer is None else [backend.normalizer]
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])
    return backend


def count_ids(folder: Path, backend: tokenizers.Tokenizer) -> int:
    """Return the number of ids up to the highest, which is checked, as are the longest tokens.

    The library fills an array up to the highest id, whatever that is.
    """
    vocabulary = backend.get_vocab()
    longest = max(vocabulary, key=len, default="")
    if len(longest) > MOST_TOKEN_CHARACTERS:
        raise UserError(
            f"The tokenizer in '{folder}' has a token of {len(longest):,} characters, "
            f"'{longest[:20]}...'; at most {MOST_TOKEN_CHARACTERS:,} are allowed."
        )
    token, highest = max(vocabulary.items(), key=lambda item: item[1], default=("", -1))
    if highest > len(vocabulary) + MOST_FREE_IDS:
        raise UserError(
            f"The tokenizer in '{folder}' has {len(vocabulary):,} tokens, and gives '{token}' the "
            f"id {highest:,}.",
            f"At most {MOST_FREE_IDS:,} ids may be free.",
        )
    return highest + 1


def check_growth(folder: Path, backend: tokenizers.Tokenizer, described: dict[str, Any]) -> None:
    """Raise a UserError if a tokenizer could make a text so much longer that memory runs out.

    Args:
        folder: the tokenizer's.
        backend: the tokenizer.
        described: the content of its tokenizer.json.
    """
    for role in ("normalizer", "decoder"):
        growth = math.prod(map(_growth, _parts_of(described.get(role))))
        if growth > MOST_TEXT_GROWTH:
            raise UserError(
                f"The {role} of the tokenizer in '{folder}' may make a text {growth:,} times as "
                f"long; at most {MOST_TEXT_GROWTH} times are allowed.",
                "Copy its tokenizer.json from the original checkpoint.",
            )
    added = max(backend.num_special_tokens_to_add(is_pair=pair) for pair in (False, True))
    if added > MOST_SPECIAL_TOKENS:
        raise UserError(
            f"The tokenizer in '{folder}' adds {added:,} special tokens to each text; at most "
            f"{MOST_SPECIAL_TOKENS} are allowed."
        )


def _parts_of(part: Any) -> Iterator[dict[str, Any]]:
    """Yield the steps of a normalizer or a decoder, sequences taken apart."""
    if isinstance(part, dict):
        inner = [one for name in PARTS for one in part.get(name) or ()]
        if not inner:
            yield part
        for one in inner:
            yield from _parts_of(one)


def _growth(part: dict[str, Any]) -> int:
    """Return the most characters that a step makes of one."""
    if part.get("type") == "Replace":
        literal = part["pattern"].get("String")
        # A regular expression may match between any two characters.
        made = len(part["content"])
        return max(1, math.ceil(made / len(literal)) if literal else made + 1)
    if part.get("type") == "Prepend":
        return 1 + len(part["prepend"])
    if part.get("type") == "Precompiled":  # sentencepiece's table: a trie, then its replacements
        table = base64.b64decode(part["precompiled_charsmap"] or "")
        replacements = table[4 + int.from_bytes(table[:4], "little") :].split(b"\0")
        return max(1, max(len(one.decode("utf-8", "replace")) for one in replacements))
    return 1


def within_time(characters: int, encode: Callable[[], Result]) -> Result:
    """Return what `encode` returns, unless it takes far longer than texts of that length take.

    The regular expressions of a tokenizer may take exponential time. Nothing can interrupt the
    library: its thread is left behind, and ends with the process.

    Raises:
        TimeoutError: it takes more than `MOST_ENCODE_SECONDS`, and a second for each
            `PER_SECOND` characters.
    """
    answers: queue.SimpleQueue[tuple[Result | None, BaseException | None]] = queue.SimpleQueue()

    def answer() -> None:
        try:
            answers.put((encode(), None))
        except BaseException as error:  # a panic of Rust code is no Exception
            answers.put((None, error))

    threading.Thread(target=answer, daemon=True, name="tokenizer").start()
    seconds = MOST_ENCODE_SECONDS + characters / PER_SECOND
    try:
        result, error = answers.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"it did not finish in {seconds:.0f} seconds") from None
    if error is not None:
        raise error
    return result  # type: ignore[return-value]  # the result is None only where there is an error


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def unknown_id(model: dict[str, Any], backend: tokenizers.Tokenizer) -> int:
    """Return the id of the unknown token; -1 where the vocabulary spells every text."""
    if model.get("unk_id") is not None:
        return int(model["unk_id"])
    token = model.get("unk_token")
    number = backend.token_to_id(token) if token else None
    return -1 if number is None else number


def special_id(role: str, folder: Path, backend: tokenizers.Tokenizer) -> int | None:
    """Return the id of the token that the folder names as `role`; None where it names none."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            token = read_json_object(folder / name).get(role)
            token = token.get("content") if isinstance(token, dict) else token
            if not isinstance(token, str | None):
                raise UserError(
                    f"{folder / name}: {role} is {json_type(token)}, and a token is a string or an "
                    "object whose content is one."
                )
            number = backend.token_to_id(token) if token else None
            if number is not None:
                return number
    return None
