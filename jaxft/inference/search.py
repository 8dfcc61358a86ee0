"""Image search: the images of a folder most similar to words or to an image.

Each image is embedded once. A folder's embeddings are stored in the user's cache folder, under a
hash of the model and its processor; an image whose file size or modification time has changed is
embedded again.
"""

from __future__ import annotations

import hashlib
import sys
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import jax
import numpy as np
from rich.progress import Progress

from jaxft.data.batching.packing import round_up
from jaxft.data.image.images import decode
from jaxft.data.sources.images import ENDINGS, images_below
from jaxft.device.distributed import from_first, is_first, processes
from jaxft.device.mesh import batch_sharding, my_rows, place_batch, row_divisor
from jaxft.engine.step import make_eval_step
from jaxft.engine.trained import Trained, open_trained
from jaxft.errors import UserError
from jaxft.inference.contact_sheet import check_sheet, write_sheet
from jaxft.inference.placed import place_trained
from jaxft.models.gathered import on_host
from jaxft.report.terminal.console import EscapingConsole
from jaxft.storage.files import cache_dir, written_aside
from jaxft.tasks.parts.padded_texts import text_batch
from jaxft.tasks.parts.tools import Tools

ROWS = 32  # images per batch
PATIENCE = 5.0  # seconds before the progress bar appears


@dataclass(frozen=True)
class SearchResult:
    """The result of a search.

    Attributes:
        matches: the best first: `rank`, `similarity` (the cosine) and `file`.
        searched: the number of images compared.
        embedded: the number of those that were new or had changed.
        skipped: an error message for each image that does not decode.
        sheet: the path of the contact sheet, if one was requested.
    """

    matches: list[dict[str, Any]]
    searched: int
    embedded: int
    skipped: list[str]
    sheet: Path | None


def search(
    run: Path,
    words: str | None,
    images: Path,
    *,
    image: Path | None = None,
    best: int = 10,
    out: Path | None = None,
) -> SearchResult:
    """Find the images most similar to some words, or to an image.

    Of several processes, which hold the model together, the first one has the matches.

    Args:
        run: the folder of a run of the contrastive task.
        words: the query; None if it is an image.
        images: the folder to search, with its subfolders.
        image: the query in place of words.
        best: the most matches returned.
        out: a contact sheet to write, PNG or HTML by its extension.

    Raises:
        UserError: there is no such run, it is of another task, or no image decodes.
    """
    # --------------------------------------------------------------------------- query and folder
    if (words is None) == (image is None):
        raise UserError(
            "A search needs one query, words or an image.", "Give either WORDS or --image."
        )
    if out is not None:
        check_sheet(out)
    files = [Path(file) for file in from_first(lambda: list(map(str, _files_of(images))))]
    trained = open_trained(run, spread=processes() > 1)
    if trained.task.searches != "images":
        raise UserError(
            f"'{run}' is a run of {trained.task.kind}, which does not compare texts and images.",
            "Search images with a run of contrastive.",
        )
    embed = Embedder(trained)
    query = embed.text(words) if words is not None else embed.picture(decode(_query_image(image)))

    # ----------------------------------------------------- embeddings of the images, most cached
    index = _Index(images, embed.fingerprint)
    known = index.read()
    stats = {file: _stat(file) for file in files}
    # Each host has a cache of its own, and all embed what the first one lacks.
    changed = [str(file) for file in files if known.get(str(file), (None,))[0] != stats[file]]
    new = [Path(file) for file in from_first(lambda: changed)]
    skipped = []
    for file, vector in _with_bar(embed.files(new), len(new)):
        if isinstance(vector, UserError):
            skipped.append(str(vector))
            known.pop(str(file), None)
        else:
            known[str(file)] = (stats[file], vector)
    if not is_first():
        return SearchResult([], len(files), len(new) - len(skipped), skipped, out)
    readable = [str(file) for file in files if str(file) in known]
    if not readable:
        raise UserError(f"None of the {len(files)} images in '{images}' decodes. {skipped[0]}")
    if new or len(known) > len(readable):
        index.write({file: known[file] for file in readable})

    # ------------------------------------------------------------------------------ best matches
    scores = np.stack([known[file][1] for file in readable]) @ query  # [images]
    order = np.argsort(-scores, kind="stable")[:best]
    matches = [
        {"rank": rank, "similarity": round(float(scores[number]), 6), "file": readable[number]}
        for rank, number in enumerate(order, 1)
    ]
    if out is not None:
        write_sheet(out, words or str(image), matches)
    return SearchResult(matches, len(readable), len(new) - len(skipped), skipped, out)


class Embedder:
    """The towers of a dual encoder, which map a text or an image to a unit vector.

    Args:
        trained: a run of the contrastive task.
    """

    def __init__(self, trained: Trained):
        placed = place_trained(trained, ROWS)
        self.model, self._runtime = placed.model, placed.runtime
        self.tools = Tools(self.model, trained.config.data.max_length, None)
        compute, mesh = self._runtime.compute, self._runtime.mesh
        self._step = make_eval_step(
            lambda params, batch: ({}, self.model.apply(params, batch, None, compute)),
            param_shardings=dict(self._runtime.shardings),
            mesh=mesh,
        )
        self._divisor = row_divisor(mesh, 1)  # a batch's rows are a multiple of it

    @property
    def fingerprint(self) -> str:
        """The sha256 of everything an image's embedding depends on: parameters and processor."""
        digest = hashlib.sha256(self.tools.images.fingerprint.encode())
        compute = self._runtime.compute
        digest.update(f"{compute.platform} {compute.dtype} {compute.precision}".encode())
        for name, value in self.model.params.items():
            if name.startswith(("vision/", "head/vision/")):
                digest.update(name.encode())
                digest.update(on_host(value).tobytes())
        return digest.hexdigest()

    def text(self, words: str) -> np.ndarray:
        """Embed a text: `[D]`."""
        batch = text_batch([words] * self._divisor, self.tools)
        return np.asarray(self._outputs(batch)["text_embeds"])[0]

    def picture(self, image: Any) -> np.ndarray:
        """Embed an image: `[D]`."""
        return self._pixels([self.tools.images(image)])[0]

    def files(self, files: Sequence[Path]) -> Iterator[tuple[Path, np.ndarray | UserError]]:
        """Yield each file and the embedding `[D]` of its image, or its error, batch by batch."""
        for start in range(0, len(files), ROWS):
            read: dict[Path, np.ndarray] = {}
            for file in files[start : start + ROWS]:
                try:
                    read[file] = self.tools.images(decode(file))
                except UserError as error:
                    yield file, error
            if read:
                yield from zip(read, self._pixels(list(read.values())), strict=True)

    def _pixels(self, pixels: list[np.ndarray]) -> np.ndarray:
        """Embed at most `ROWS` images `[3, H, W]`, padded to one shape: `[images, D]`."""
        rows = round_up(ROWS, self._divisor)
        values = np.zeros((rows, *pixels[0].shape), np.float32)
        values[: len(pixels)] = pixels
        return np.asarray(self._outputs({"pixel_values": values})["image_embeds"])[: len(pixels)]

    def _outputs(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Run the model on a batch that every process has; each places its own rows."""
        mesh = self._runtime.mesh
        mine, blocks = my_rows(mesh)
        own = {name: np.split(array, blocks)[mine] for name, array in batch.items()}
        return self._step(self.model.params, place_batch(own, batch_sharding(mesh)))[1]


class _Index:
    """The stored embeddings of a folder's images: file -> (stat, `[D]`).

    Args:
        folder: the folder of the images.
        fingerprint: the embedder's.
    """

    def __init__(self, folder: Path, fingerprint: str):
        name = hashlib.sha256(f"{folder.resolve()}\0{fingerprint}".encode()).hexdigest()
        self.path = cache_dir() / "search" / f"{name}.npz"

    def read(self) -> dict[str, tuple[tuple[int, int] | None, np.ndarray]]:
        """Read the stored embeddings; empty if there are none that can be read."""
        try:
            with self.path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                files, stats, vectors = archive["files"], archive["stats"], archive["vectors"]
            rows = list(zip(files, stats.tolist(), vectors, strict=True))
            return {str(file): ((size, when), vector) for file, (size, when), vector in rows}
        except (OSError, ValueError, KeyError, EOFError, TypeError, BadZipFile, zlib.error):
            return {}  # damaged: the images are embedded again

    def write(self, known: dict[str, tuple[tuple[int, int] | None, np.ndarray]]) -> None:
        """Store these embeddings in place of the previous ones."""
        with written_aside(self.path) as aside, aside.open("wb") as file:
            np.savez(
                file,
                files=np.array(list(known)),
                stats=np.array([stat for stat, _ in known.values()], np.int64),
                vectors=np.stack([vector for _, vector in known.values()]),
            )


def _files_of(folder: Path) -> list[Path]:
    """List the image files of a folder."""
    if not folder.is_dir():
        raise UserError(f"There is no folder '{folder}'.", "Check --images.")
    files = images_below(folder)
    if not files:
        raise UserError(f"'{folder}' holds no images.", f"Image files end in {', '.join(ENDINGS)}.")
    return files


def _query_image(file: Path | None) -> Path:
    assert file is not None  # `search` has checked that there is one query
    return file


def _stat(file: Path) -> tuple[int, int]:
    """Return a file's size in bytes and its modification time in nanoseconds."""
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


def _with_bar(items: Iterable[Any], total: int) -> Iterator[Any]:
    """Yield the items, with a progress bar on a terminal once they take a while."""
    started = time.monotonic()
    console = EscapingConsole(stderr=True)
    with Progress(console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("embedding images", total=total, visible=False)
        for item in items:
            yield item
            bar.update(task, advance=1, visible=time.monotonic() - started > PATIENCE)
