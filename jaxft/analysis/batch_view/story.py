"""The story of `jaxft data show`: the first rows of a batch, from the input path of the run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image
from rich.console import RenderableType

from jaxft.analysis.batch_view.rows import (
    Batch,
    TokenTargets,
    boxes_of,
    label_of,
    sequences_per_example,
    shares_of,
    texts_of,
)
from jaxft.analysis.batch_view.sheet import check_sheet, pixels_of, write_sheet
from jaxft.config.load import load_config
from jaxft.config.sections import MeshSection
from jaxft.data.batching.eval_plans import EvalPlan
from jaxft.data.batching.plans import TrainPlan
from jaxft.data.image.colors import painted
from jaxft.data.image.overlay import overlaid, palette
from jaxft.engine.evaluate import evaluation_plan
from jaxft.engine.inputs import Split
from jaxft.engine.setup import Setup, build
from jaxft.errors import UserError
from jaxft.report.terminal.batch import batch_rows, label_text
from jaxft.tasks.parts.contract import BoundTask
from jaxft.tasks.parts.examples import Examples

TEXTS = {"input_ids", "decoder_input_ids"}
NUMBERS = ("scores", "loss_weights")  # of a batch, a number per example


@dataclass(frozen=True)
class BatchView:
    """The first rows of a batch.

    Attributes:
        split: the split and its source, the step, epoch and size of the batch.
        rows: of each its `examples`, `texts`, `padding`, `image`, `boxes` and `shares`, where it
            has them.
        sheet: the file with the images; None if none was written.
    """

    split: dict[str, Any]
    rows: list[dict[str, Any]]
    sheet: str | None

    def to_json(self) -> str:
        return json.dumps(vars(self), indent=2, ensure_ascii=False)

    def render(self) -> RenderableType:
        """All of it for a terminal."""
        return batch_rows(self.split, self.rows, self.sheet)


def show_batch(
    config_file: str,
    overrides: Sequence[str] = (),
    *,
    count: int = 5,
    split: str = "train",
    step: int = 1,
    out: Path | None = None,
) -> BatchView:
    """Make a batch as training would, on one device, and describe its first rows.

    No weights are read.

    Args:
        config_file: a config's YAML file.
        overrides: keys of the config to set.
        count: the most rows.
        split: `train`, `eval` or `test`.
        step: the number of the batch, from 1.
        out: a PNG for the images.

    Raises:
        UserError: the config, the data or the checkpoint is invalid, or there is no such batch.
    """
    if out is not None:
        check_sheet(out)
    config = load_config(config_file, overrides)
    # The rows of a batch depend neither on the devices, and those of a pod are not here, nor on
    # what trains, which may be chosen only when the run starts.
    alone = config.model_copy(update={"mesh": MeshSection(data=1), "groups": []})
    setup = build(alone, devices=jax.devices()[:1], weights=False)
    if split not in setup.splits:
        raise UserError(f"The config has no data.{split}.", f"Set data.{split}.")
    chosen = setup.splits[split]
    plan, index, batch = _batch(setup, chosen, split, step - 1, count)
    view = _RowView(setup.bound, chosen, batch)
    rows = [view.row(number) for number in range(len(index))]
    pictures = [view.picture(number) for number in range(len(index))]
    about = {
        "split": split,
        "source": chosen.source.spec,
        "step": step,
        "batch_rows": len(plan.batch(step - 1)),
        "random": chosen.examples.random,
    }
    if out is not None:
        _write(out, rows, pictures)
    return BatchView(about, rows, None if out is None else str(out))


def _batch(
    setup: Setup, split: Split, name: str, step: int, count: int
) -> tuple[TrainPlan | EvalPlan, np.ndarray, Batch]:
    """Return the plan of a split, and the examples and arrays of a batch's first rows."""
    examples = split.examples
    plan: TrainPlan | EvalPlan = setup.plan
    steps = setup.length.total_steps
    if name != "train":
        plan = evaluation_plan(setup.layout, examples)
        steps = len(plan)
    if not 0 <= step < steps:
        raise UserError(f"--step: {name} has batches 1 to {steps:,}, and no {step + 1:,}.")
    index = plan.batch(step)
    index = index[(index >= 0).any(axis=1)][:count]
    random = [plan.epoch_random(step)] if examples.random else []
    return plan, index, examples.collate(index, plan.row_length_at(step), *random)


class _RowView:
    """Descriptions of the rows of a batch."""

    def __init__(self, bound: BoundTask[Any, Any], split: Split, batch: Batch):
        self._bound, self._split, self._batch = bound, split, batch
        self._examples: Examples = split.examples

    def row(self, number: int) -> dict[str, Any]:
        """Describe a row: its examples, texts, padding, image, boxes and classes of pixels."""
        batch, described = self._batch, dict[str, Any]()
        described["examples"] = [
            self._example(number, segment)
            for segment in np.flatnonzero(batch["example_ids"][number] >= 0).tolist()
        ]
        if TEXTS & batch.keys() and self._examples.colors is None:
            tokenizer = self._bound.tools.tokenizer
            tags = self._bound.label_names if self._bound.task.tags_tokens else None
            texts = texts_of(batch, number, TokenTargets(tokenizer.piece, tags))
            described["texts"] = [asdict(text) for text in texts]
            described["sequences"] = sequences_per_example(batch, number)
            computed = sum(batch[name].shape[1] for name in TEXTS & batch.keys())
            described["padding"] = computed - sum(len(text.tokens) for text in texts)
        if (picture := self.picture(number)) is not None:
            height, width, _ = picture.shape
            described["image"] = {"height": height, "width": width}
            if "boxes" in batch:
                size = height, width
                names = self._bound.label_names
                described["boxes"] = boxes_of(batch, number, names, size)
            if "mask_labels" in batch:
                described["shares"] = shares_of(batch, number, self._bound.label_names)
        return described

    def picture(self, number: int) -> np.ndarray | None:
        """Return the image of a row, `[H, W, 3]` uint8; None if it has none."""
        colors = self._examples.colors
        if colors is not None:
            key = "targets" if "targets" in self._batch else "input_ids"
            return painted(self._batch[key][number], colors)
        if "pixel_values" in self._batch:
            pixels = pixels_of(self._batch["pixel_values"][number], self._bound.tools.images)
            return pixels if "mask_labels" not in self._batch else self._masked(pixels, number)
        return None

    def _masked(self, pixels: np.ndarray, number: int) -> np.ndarray:
        """Lay the mask of a row over its image."""
        classes = self._batch["mask_labels"][number].astype(np.uint8)  # -1 is no class's number
        colors = palette(self._bound.label_names)
        return np.asarray(overlaid(Image.fromarray(pixels), classes, colors))

    def _example(self, row: int, segment: int) -> dict[str, Any]:
        """Describe an example: its number, row of the source, label and other numbers."""
        batch, at = self._batch, (row, segment)
        number = int(batch["example_ids"][at])
        label = label_of(batch, self._examples.labels, self._bound.label_names, at)
        about = {"example": number, "row": self._split.source.place(int(self._split.rows[number]))}
        about |= {} if label is None else {"label": label}
        about |= {name: np.asarray(batch[name][at]).tolist() for name in NUMBERS if name in batch}
        return {**about, **self._examples.remarks.get(number, {})}


def _write(
    out: Path, rows: Sequence[Mapping[str, Any]], pictures: Sequence[np.ndarray | None]
) -> None:
    """Write the images of the rows as one sheet.

    Raises:
        UserError: they have none.
    """
    images = [one for one in pictures if one is not None]
    if not images:
        raise UserError("--out draws images, and the model reads none here.", "Remove it.")
    captions = [_caption(row) for row in rows]
    write_sheet(out, images, captions, [row.get("boxes", ()) for row in rows])


def _caption(row: Mapping[str, Any]) -> str:
    """Return the caption of a row's image: its label, or its text."""
    label = row["examples"][0].get("label")
    if label is not None:
        return label_text(label)
    if "boxes" in row:
        return f"{len(row['boxes'])} boxes"
    return " ".join(token["piece"] for text in row.get("texts", ()) for token in text["tokens"])
