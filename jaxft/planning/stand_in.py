"""Stand-ins for the parts of a checkpoint that a plan does not need: weights, tokenizer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tokenizers import Tokenizer, models, pre_tokenizers

from jaxft.config.load import Config
from jaxft.data.text.tokenizer_files import VOCABULARIES
from jaxft.models.pipeline import denoiser_folder
from jaxft.models.weights.shards import WEIGHT_FILES

TOKENIZERS = ("tokenizer.json", *VOCABULARIES)


def has_weights(checkpoint: object) -> bool:
    """Return whether a checkpoint has weights; True where it is not a local folder."""
    folder = _folder(checkpoint)
    folder = None if folder is None else denoiser_folder(folder)
    return folder is None or any((folder / name).is_file() for name in WEIGHT_FILES)


@contextmanager
def with_tokenizer(config: Config) -> Iterator[tuple[Config, str]]:
    """Give the config a checkpoint with a tokenizer, and a note if that is a stand-in.

    A folder with only a config.json gets a tokenizer that makes each word a token, since a plan
    needs nothing but the lengths of rows.

    Args:
        config: the run.
    """
    folder = _folder(config.model.checkpoint)
    fields = _text_fields(folder)
    has_files = folder is not None and any((folder / name).is_file() for name in TOKENIZERS)
    if folder is None or fields is None or has_files or config.model.tokenizer is not None:
        yield config, ""
        return
    with TemporaryDirectory(prefix="jaxft-plan-") as temporary:
        copy = Path(temporary) / folder.name
        copy.mkdir()
        shutil.copy(folder / "config.json", copy)
        tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer.save(str(copy / "tokenizer.json"))
        model = config.model.model_copy(update={"checkpoint": str(copy)})
        yield (
            config.model_copy(update={"model": model}),
            f"{config.model.checkpoint} has no tokenizer: each word counts as a token",
        )


def _folder(checkpoint: object) -> Path | None:
    """Return a checkpoint's folder on this machine; None if it is not one."""
    path = Path(checkpoint).expanduser() if isinstance(checkpoint, str) else None
    return path.resolve() if path is not None and path.is_dir() else None


def _text_fields(folder: Path | None) -> dict | None:
    """Read the config.json of a folder's text model; None for any other model."""
    try:
        fields = json.loads((folder / "config.json").read_text()) if folder else None
    except (OSError, ValueError):
        return None  # the error is reported where the model is described
    return fields if isinstance(fields, dict) and "vocab_size" in fields else None
