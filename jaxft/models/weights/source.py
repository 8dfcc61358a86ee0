"""Source of a checkpoint: a hub id at a revision, a folder, or a folder inside a package.

Nothing of a checkpoint is ever run: a package is found, not imported, and of a repository only
config, tokenizer and weight files are fetched.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from jaxft.bounds import MOST_COMPANION_BYTES
from jaxft.errors import UserError
from jaxft.models import pipeline as pipelines
from jaxft.models.weights.field_kinds import check_kind
from jaxft.models.weights.hf_config import model_type_of
from jaxft.models.weights.hub import download, package_folder
from jaxft.models.weights.shards import (
    FLAX_FILES,
    INDEX,
    OF_DIFFUSERS,
    PICKLED_FILES,
    WEIGHT_FILES,
    read_weight_map,
    weight_files,
)
from jaxft.storage.buckets import fetched
from jaxft.storage.json_files import read_json_object

WEIGHT_SUFFIXES = (".safetensors", ".bin")  # of files that may be of any size
GENERATION_FILE = "generation_config.json"
# What a checkpoint has beside its config and weights: tokenizer, image processor, generation. Each
# file is named, so that nothing else of a stranger's folder goes into what is published.
COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "bpe.codes",
    "spiece.model",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",  # any name, as transformers reads them
    "preprocessor_config.json",
    "processor_config.json",
    GENERATION_FILE,
)
IMAGE_FILES = ("preprocessor_config.json", "processor_config.json")
NO_TOKENIZER = (*IMAGE_FILES, GENERATION_FILE)  # the companions of other kinds
# How a checkpoint of sentence-transformers pools its tokens, and what it puts before a text.
MODULES_FILE, POOLING_FILE = "modules.json", "1_Pooling/config.json"
PROMPTS_FILE = "config_sentence_transformers.json"
HUB_FILES = (
    *("config.json", "model*.safetensors", INDEX, pipelines.PIPELINE_FILE),
    *("diffusion_pytorch_model*.safetensors", OF_DIFFUSERS[1]),
    *COMPANIONS,
    *(MODULES_FILE, POOLING_FILE, PROMPTS_FILE, "*_Dense/*"),
)
# The names of two checkpoints that become one model: two towers, or one that reads the other.
Part = Literal["vision", "text", "encoder", "decoder"]
TOWERS: tuple[Part, Part] = ("vision", "text")
PAIR: tuple[Part, Part] = ("encoder", "decoder")
# Where one is, or where two are.
Checkpoint = str | Path | Mapping[Part, str]


@dataclass(frozen=True)
class Source:
    """A checkpoint on this machine.

    Args:
        asked: what the person wrote.
        folder: where its files are.
        revision: the resolved commit where it came from the hub, else None.
        second: where the other one is, where this is the first of two checkpoints.
        decodes: whether that one is a decoder, which is to read this one's output.
        tokenizer: the folder with the tokenizer's files, where it is another's.
        dense_files: the weights of Dense modules behind the encoder, where a task reads them.
        pipeline: the pipeline that it is a part of, where the whole of one was asked for.
    """

    asked: str
    folder: Path
    revision: str | None = None
    second: Source | None = None
    decodes: bool = False
    tokenizer: Source | None = None
    dense_files: tuple[Path, ...] = ()
    pipeline: pipelines.Pipeline | None = None

    @cached_property
    def weight_files(self) -> tuple[Path, ...]:
        """Return the files that hold the weights, as `weight_files` finds them."""
        return weight_files(self.folder, self.weight_map)

    @cached_property
    def weight_map(self) -> dict[str, Path]:
        """Map each tensor to its shard; empty if the weights are not sharded."""
        return read_weight_map(self.folder)

    @cached_property
    def sha256(self) -> str:
        """Return one hash over the bytes of the weight files, in order, and of Dense modules."""
        digest = hashlib.sha256()
        others = [path for path in self.companions.values() if path.suffix in WEIGHT_SUFFIXES]
        for path in (*self.weight_files, *self.dense_files, *others):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        if self.second is not None:
            digest.update(self.second.sha256.encode())
        return digest.hexdigest()

    @property
    def top(self) -> Path:
        """Return the folder that holds all of it: of a pipeline, the one above its parts."""
        return self.folder if self.pipeline is None else self.pipeline.folder

    @property
    def part(self) -> str:
        """Return the name of its folder in its pipeline; empty where it is no part of one."""
        return "" if self.pipeline is None else self.folder.name

    @property
    def tokenizer_folder(self) -> Path:
        """Return the folder with the tokenizer's files."""
        if self.tokenizer is not None:
            return self.tokenizer.folder
        return self.folder if self.second is None else self.second.folder

    @cached_property
    def companions(self) -> dict[str, Path]:
        """Return the files of tokenizer, image processor and generation: path in folder -> file.

        Raises:
            UserError: one is a link to what is outside the checkpoint, or is of no credible size.
        """
        if self.tokenizer is not None:
            others = replace(self, tokenizer=None).companions
            own = {name: file for name, file in others.items() if name in NO_TOKENIZER}
            named = self.tokenizer.companions
            return own | {name: file for name, file in named.items() if name not in NO_TOKENIZER}
        paths = {path for pattern in COMPANIONS for path in self.folder.glob(pattern)}
        own = {str(p.relative_to(self.folder)): p for p in sorted(paths) if p.is_file()}
        own = own if self.pipeline is None else self.pipeline.files()
        for path in own.values():
            check_own_file(path, self.top)
            small = path.suffix not in WEIGHT_SUFFIXES
            if small and (size := path.stat().st_size) > MOST_COMPANION_BYTES:
                raise UserError(
                    f"{path} has {size:,} bytes; at most {MOST_COMPANION_BYTES:,} are copied.",
                    "Remove it: no tokenizer or processor is that large.",
                )
        if self.second is None:
            return own
        images = {name: path for name, path in own.items() if name in IMAGE_FILES}
        # How the second one alone goes on with a text is not how both write one.
        second = self.second.companions
        return {n: p for n, p in second.items() if n not in NO_TOKENIZER} | images


def resolve(checkpoint: Checkpoint, cache: str | None = None) -> Source:
    """Return the checkpoint's place on this machine, fetched from the hub where need be.

    Args:
        checkpoint: a folder, here or in a bucket, `package:module/path`, or a hub id with an
            optional `@revision`; or two of them: `vision` and `text`, whose towers are put side
            by side, or `encoder` and `decoder`.
        cache: the hub's cache folder; None for the usual one. HF_HUB_OFFLINE is honored.

    Raises:
        UserError: there is no such folder, package or repository, or no way to reach it; or a
            file of its tokenizer or processor is a link out of it.
    """
    if isinstance(checkpoint, Path):
        checkpoint = str(checkpoint)
    if not isinstance(checkpoint, str):
        names = next((known for known in (TOWERS, PAIR) if set(known) == set(checkpoint)), None)
        if names is None:
            raise UserError(
                f"model.checkpoint: two checkpoints are 'vision' and 'text', or 'encoder' and "
                f"'decoder', not {list(checkpoint)}."
            )
        first, second = (resolve(checkpoint[name], cache) for name in names)
        asked = f"{first.asked} and {second.asked}"
        return replace(first, asked=asked, second=second, decodes=names == PAIR)
    source = _one_source(checkpoint, cache)
    _ = source.companions  # refused before anything is made of them
    return source


def config_folder(
    checkpoint: str, cache: str | None = None, files: Sequence[str] = ("config.json",)
) -> Path:
    """Return a folder with the config.json of a checkpoint; of the hub, no weights are fetched.

    Args:
        checkpoint, cache: as in `resolve`, of one checkpoint.
        files: what is fetched of the hub.

    Raises:
        UserError: as in `resolve`.
    """
    folder = _local_folder(checkpoint)
    if folder is not None:
        return pipelines.denoiser_folder(folder)
    repo, _, revision = checkpoint.partition("@")
    files = (*files, *pipelines.CONFIG_FILES)
    return pipelines.denoiser_folder(Path(download(repo, revision or None, files, cache)))


def _one_source(checkpoint: str, cache: str | None) -> Source:
    """Resolve one checkpoint, as `resolve` does."""
    folder = _local_folder(checkpoint)
    if folder is not None:
        return _part(Source(checkpoint, folder))
    repo, _, revision = checkpoint.partition("@")
    snapshot = Path(download(repo, revision or None, HUB_FILES, cache))
    if (snapshot / pipelines.PIPELINE_FILE).is_file():
        snapshot = Path(download(repo, revision or None, pipelines.PIPELINE_FILES, cache))
        return _part(Source(checkpoint, snapshot, revision=snapshot.name))
    for names in (PICKLED_FILES, FLAX_FILES):
        if not any((snapshot / name).is_file() for name in WEIGHT_FILES):
            snapshot = Path(download(repo, revision or None, ("config.json", *names), cache))
    return Source(checkpoint, snapshot, revision=snapshot.name)


def _part(source: Source) -> Source:
    """Return the denoiser of a pipeline; any other source as it is."""
    pipeline = pipelines.read_pipeline(source.folder)
    if pipeline is None:
        return source
    return replace(source, folder=source.folder / pipeline.denoiser, pipeline=pipeline)


def _local_folder(checkpoint: str) -> Path | None:
    """Return the folder of a checkpoint on this machine or in a bucket; None for a hub id.

    Raises:
        UserError: it is neither, or there is no such package.
    """
    if checkpoint.startswith("package:"):
        return package_folder(checkpoint)
    folder = fetched(checkpoint).expanduser()
    if folder.is_dir():
        return folder.resolve()
    repo = checkpoint.partition("@")[0]
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", repo) or folder.is_file():
        raise UserError(
            f"model.checkpoint: there is no folder '{checkpoint}'.",
            "Give a folder, a hub id (owner/name@revision) or package:module/path.",
        )
    return None


def check_own_file(path: Path, folder: Path) -> None:
    """Raise a UserError where a file to be copied is not its checkpoint's own.

    A link out of it, to a private key, would be published along with the weights. The links of the
    hub's cache, from `models--*/snapshots/COMMIT` to the files in `models--*/blobs`, are its own.
    """
    target, top = path.resolve(), folder.resolve()
    tops = [top]
    if top.parent.name == "snapshots" and top.parent.parent.name.startswith("models--"):
        tops.append(top.parent.parent / "blobs")  # not resolved: it may be no link itself
    if not any(target.is_relative_to(one) for one in tops):
        raise UserError(
            f"{path} is a link to {target}, which is outside the checkpoint.",
            "Put the file itself there, or remove the link.",
        )


def read_config(folder: Path) -> dict[str, Any]:
    """Return the folder's config.json.

    Raises:
        UserError: it is missing, is not a JSON object, or names no `model_type`.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(
            f"{folder} has no config.json, so it is not a Hugging Face checkpoint.",
            "Point model.checkpoint at the folder that holds config.json and the weights.",
        )
    fields = read_json_object(path)
    fields["model_type"] = model_type_of(fields)
    if not isinstance(fields.get("model_type"), str):
        raise UserError(f"{path} has no model_type.")
    for name in ("architectures", "id2label", "num_labels"):
        check_kind(name, fields.get(name), None)
    return fields
