"""What stands in for the parts of a checkpoint that a plan does not need: weights, a tokenizer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tokenizers import Tokenizer, models, pre_tokenizers

from jaxft.config.load import Config
from jaxft.data.text.tokenizer import VOCABULARIES
from jaxft.models.weights.source import INDEX, PICKLED, WEIGHTS

TOKENIZERS = ("tokenizer.json", *VOCABULARIES)


def has_weights(checkpoint: object) -> bool:
    """Whether a checkpoint has weights; only of a folder is it known that it has none."""
    folder = _folder(checkpoint)
    return folder is None or any((folder / name).is_file() for name in (WEIGHTS, INDEX, PICKLED))


@contextmanager
def with_tokenizer(config: Config) -> Iterator[tuple[Config, str]]:
    """The config with a checkpoint that has a tokenizer, and a note where that stands in for one.

    A folder with a config.json alone gets one that takes each word for a token: a plan needs how
    long the rows are, and no meaning.

    Args:
        config: the run.
    """
    folder = _folder(config.model.checkpoint)
    fields = _text_fields(folder)
    if folder is None or fields is None or any((folder / name).is_file() for name in TOKENIZERS):
        yield config, ""
        return
    with TemporaryDirectory(prefix="jaxft-plan-") as made:
        copy = Path(made) / folder.name
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
    """Where a checkpoint is, where it is one folder of this machine."""
    path = Path(checkpoint).expanduser() if isinstance(checkpoint, str) else None
    return path.resolve() if path is not None and path.is_dir() else None


def _text_fields(folder: Path | None) -> dict | None:
    """The config.json of a folder whose model reads words; None of any other."""
    try:
        fields = json.loads((folder / "config.json").read_text()) if folder else None
    except (OSError, ValueError):
        return None  # what is wrong with it is found, and told, where it is read
    return fields if isinstance(fields, dict) and "vocab_size" in fields else None
