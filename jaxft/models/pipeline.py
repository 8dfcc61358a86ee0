"""Pipelines in the layout of `diffusers`: a folder with model_index.json, and a folder per part."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxft.errors import UserError
from jaxft.storage.json_files import read_json_object

PIPELINE_FILE = "model_index.json"
DENOISERS = ("transformer", "unet")  # the part that is trained, by the first of its names
CONFIG_FILES = (PIPELINE_FILE, *(f"{name}/config.json" for name in DENOISERS))
# What a part may have, by name, so that nothing else of a stranger's folder is copied.
PART_FILES = (
    "config.json",
    "scheduler_config.json",
    "preprocessor_config.json",
    "diffusion_pytorch_model*.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "spiece.model",
)
PIPELINE_FILES = (PIPELINE_FILE, *(f"*/{name}" for name in PART_FILES))


@dataclass(frozen=True)
class Pipeline:
    """Pipeline of a denoiser and what is around it.

    Args:
        folder: where its parts are, each in a folder of its name.
        parts: name -> class.
        index: the content of model_index.json.
    """

    folder: Path
    parts: dict[str, str]
    index: dict[str, Any]

    @property
    def denoiser(self) -> str:
        """Return the name of the part that is trained.

        Raises:
            UserError: there is none.
        """
        for name in DENOISERS:
            if name in self.parts:
                return name
        raise UserError(
            f"{self.folder / PIPELINE_FILE} names no part '{DENOISERS[0]}' or '{DENOISERS[1]}', so "
            "there is nothing to train."
        )

    def files(self) -> dict[str, Path]:
        """Return the files of all parts but the denoiser, and the index: path in folder -> file."""
        others = [name for name in self.parts if name != self.denoiser]
        paths = {
            path
            for part in others
            for pattern in PART_FILES
            for path in (self.folder / part).glob(pattern)
            if path.is_file()
        }
        own = {str(path.relative_to(self.folder)): path for path in sorted(paths)}
        return own | {PIPELINE_FILE: self.folder / PIPELINE_FILE}


def denoiser_folder(folder: Path) -> Path:
    """Return the folder of a pipeline's denoiser; a folder that is no pipeline's as it is."""
    if not (folder / PIPELINE_FILE).is_file():
        return folder
    return next((part for name in DENOISERS if (part := folder / name).is_dir()), folder)


def read_pipeline(folder: Path) -> Pipeline | None:
    """Read a pipeline's index; None where the folder has none.

    Raises:
        UserError: it names a part whose folder is not there.
    """
    path = folder / PIPELINE_FILE
    if not path.is_file():
        return None
    index = read_json_object(path)
    parts = {
        name: value[1]
        for name, value in index.items()
        if isinstance(value, list) and len(value) == 2 and all(isinstance(v, str) for v in value)
    }
    for name in parts:
        if Path(name).name != name or not (folder / name).is_dir():
            raise UserError(
                f"{path} names the part '{name}', and {folder} has no such folder.",
                "Fetch the whole pipeline.",
            )
    return Pipeline(folder, parts, index)
