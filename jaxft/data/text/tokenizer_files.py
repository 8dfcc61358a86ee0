"""The files of a checkpoint's tokenizer: read by `tokenizers`, or older ones by `transformers`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers

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
MOST_FREE_IDS = 1 << 20  # far more than models reserve; each costs memory


def load_backend(folder: Path) -> tokenizers.Tokenizer:
    """Load tokenizer.json, or older files (vocab.txt, merges) through transformers."""
    file = folder / "tokenizer.json"
    if file.is_file():
        try:
            return tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises plain Exception for a file it cannot read
            raise UserError(f"{file} is not a tokenizer ({error}).") from None
    if not any((folder / name).is_file() for name in VOCABULARIES):
        raise UserError(
            f"'{folder}' holds no tokenizer: neither tokenizer.json nor an older vocabulary file.",
            f"Older files: {', '.join(VOCABULARIES)}.",
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


def count_ids(folder: Path, backend: tokenizers.Tokenizer) -> int:
    """Return the number of ids up to the highest, which is checked.

    The library fills an array up to the highest id, whatever that is.
    """
    vocabulary = backend.get_vocab()
    token, highest = max(vocabulary.items(), key=lambda item: item[1], default=("", -1))
    if highest > len(vocabulary) + MOST_FREE_IDS:
        raise UserError(
            f"The tokenizer in '{folder}' has {len(vocabulary):,} tokens, and gives '{token}' the "
            f"id {highest:,}.",
            f"At most {MOST_FREE_IDS:,} ids may be free.",
        )
    return highest + 1


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
