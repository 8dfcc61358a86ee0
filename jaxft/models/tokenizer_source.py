"""The tokenizer of another folder than the checkpoint's."""

from __future__ import annotations

from dataclasses import replace

from jaxft.errors import UserError
from jaxft.models.weights.source import COMPANIONS, NO_TOKENIZER, Source, config_folder


def with_tokenizer(source: Source, tokenizer: str | None, cache: str | None = None) -> Source:
    """Return a checkpoint with the tokenizer of another folder.

    Args:
        source: the checkpoint.
        tokenizer: a folder, `package:module/path` or a hub id; None for the checkpoint's own.
        cache: the hub's cache folder.

    Raises:
        UserError: there is no such folder, or one of its files is a link out of it.
    """
    if tokenizer is None:
        return source
    files = [name for name in COMPANIONS if name not in NO_TOKENIZER]
    try:
        other = Source(tokenizer, config_folder(tokenizer, cache, files))
    except UserError as error:  # of whichever key, the folder is what is missing
        message = error.message.replace("model.checkpoint", "model.tokenizer")
        raise UserError(message, error.hint) from None
    _ = other.companions  # refused before anything is made of them
    return replace(source, tokenizer=other)
