"""The models that jaxft loads, and what can be done with one checkpoint, without its weights."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from functools import cache
from importlib import import_module
from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from jaxft.config.tasks import task_sections
from jaxft.errors import UserError, nearest
from jaxft.models.families.clip.clip import POOLED, TOWERS
from jaxft.models.families.encoder_decoder.config import DECODERS, ENCODERS
from jaxft.models.family import Family
from jaxft.models.generate.decode import WRITES
from jaxft.models.load import HEADLESS, IMAGE_GENERATION, LoadOptions, Model, describe, families
from jaxft.models.weights.source import config_folder, read_config
from jaxft.numbers import count

# What two checkpoints together can be trained for: the model types of each, as a config names them.
IN_PAIRS: Mapping[str, Mapping[str, Collection[str]]] = {
    "contrastive": {"vision": POOLED["vision_config"], "text": POOLED["text_config"]},
    "captioning": {"encoder": ENCODERS["vision-encoder-decoder"], "decoder": DECODERS},
    "seq2seq": {"encoder": ENCODERS["encoder-decoder"], "decoder": DECODERS},
}


@dataclass(frozen=True)
class Entry:
    """One architecture of a model type.

    Attributes:
        model_type: as in config.json.
        architecture: the class of `transformers` that an export loads as.
        head: the head's name; None for the model without one.
        trains: the values of `task.kind` that train it.
        generates: whether `jaxft predict` generates texts or images with it.
    """

    model_type: str
    architecture: str
    head: str | None
    trains: tuple[str, ...]
    generates: bool


@cache
def task_heads() -> dict[str, str | None]:
    """Return the head of each kind of task; None for the bare stream."""
    heads = {}
    for kind, section in task_sections().items():
        make = import_module(f"jaxft.tasks.{kind}.task").make
        heads[kind] = make(section.model_construct(kind=kind)).head
    return heads


def entries() -> Iterator[Entry]:
    """Yield every architecture that is loaded, trained and exported, by model type."""
    for model_type, family in families().items():
        for head, architecture in family.model_types[model_type].items():
            kinds = [kind for kind, needed in task_heads().items() if needed == head]
            trains = tuple(kinds) if head is not None or encodes_texts(model_type) else ()
            yield Entry(model_type, architecture, head, trains, generates(head))


def encodes_texts(model_type: str) -> bool:
    """Return whether a model of this type without a head gives states of a text alone."""
    family = families()[model_type]
    heads = family.model_types[model_type]
    others = {"seq2seq", "image_classification", IMAGE_GENERATION}.intersection(heads)
    return isinstance(family, Family) and family.text and not others


def generates(head: str | None) -> bool:
    """Return whether a model with this head generates texts or images."""
    return head in (*WRITES, IMAGE_GENERATION)


def find_entries(pattern: str | None) -> list[Entry]:
    """Return the entries whose model type, architecture or task matches; all for None.

    Args:
        pattern: a part of the name, in any case, or a pattern with `*`.
    """
    if pattern is None:
        return list(entries())
    wanted = pattern.lower() if "*" in pattern else f"*{pattern.lower()}*"
    return [one for one in entries() if any(fnmatch(n.lower(), wanted) for n in _names(one))]


def _names(entry: Entry) -> tuple[str, ...]:
    return (entry.model_type, entry.architecture, *entry.trains, entry.head or "")


@dataclass(frozen=True)
class Abilities:
    """Possible uses of a checkpoint, by its config.json alone.

    Attributes:
        checkpoint: what was asked for.
        model_type: its model type.
        reason: why it cannot be loaded; empty where it can.
        size: blocks, width, positions, image size and parameters, as far as it has them.
        trains: `task.kind` -> the architecture that is trained and exported.
        not_trained: `task.kind` -> why it is not trained for that.
        generates: whether it generates as it is, and after training for which tasks.
    """

    checkpoint: str
    model_type: str
    reason: str
    size: dict[str, int]
    trains: dict[str, str]
    not_trained: dict[str, str]
    generates: list[str]

    @property
    def loads(self) -> bool:
        return not self.reason

    def to_json(self) -> str:
        return json.dumps({"loads": self.loads} | asdict(self), indent=2, ensure_ascii=False)

    def render(self) -> RenderableType:
        """Return all of it as rich prints it."""
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        table.add_row("checkpoint", Text(f"{self.checkpoint} ({self.model_type})"))
        table.add_row("loads", "yes" if self.loads else Text(f"no: {self.reason}"))
        if not self.loads:
            return table
        sizes = ", ".join(f"{name} {_number(name, value)}" for name, value in self.size.items())
        table.add_row("size", sizes)
        # A part of a pipeline has the name of its class for a model type.
        library = "diffusers" if self.model_type in self.trains.values() else "transformers"
        table.add_row("exports", f"yes, as a folder that {library} loads")
        table.add_row("generates", ", ".join(self.generates) or "no")
        table.add_row("trains", ", ".join(self.trains) or "no task")
        if self.not_trained:
            table.add_row("not for", Text(", ".join(self.not_trained)))
        exports = Table("task.kind", "exported as", box=box.SIMPLE_HEAD)
        for kind, architecture in self.trains.items():
            exports.add_row(kind, architecture)
        pairs = [
            f"{kind} (model.checkpoint: {{{', '.join(IN_PAIRS[kind])}}}, as {' or '.join(parts)})"
            for kind in IN_PAIRS
            if kind in self.not_trained and (parts := parts_of_pair(kind, self.model_type))
        ]
        note = f"With a second checkpoint: {'; '.join(pairs)}." if pairs else ""
        return Group(table, exports, Text(note, style="dim"))


def parts_of_pair(kind: str, model_type: str) -> list[str]:
    """List the parts that a checkpoint of this type can be in a pair for a kind of task."""
    image, *_, text = TOWERS.get(model_type, (model_type, model_type))
    own = {"vision": image, "text": text, "encoder": image, "decoder": model_type}
    return [part for part, known in IN_PAIRS[kind].items() if own[part] in known]


def _number(name: str, value: int) -> str:
    return count(value) if name == "parameters" else str(value)


def inspect_checkpoint(checkpoint: str, cache: str | None = None) -> Abilities:
    """Return what can be done with a checkpoint; of the hub only its config.json is fetched.

    Args:
        checkpoint: a folder, `package:module/path`, or a hub id with an optional `@revision`.
        cache: the hub's cache folder; None for the usual one.

    Raises:
        UserError: there is no such checkpoint, or no way to reach it, or its config.json is none.
    """
    folder = config_folder(checkpoint, cache)
    model_type = read_config(folder)["model_type"]
    models: dict[str, Model] = {}
    refused: dict[str, str] = {}
    for kind, head in task_heads().items():
        try:
            model = describe(str(folder), LoadOptions(task=head or HEADLESS), weights=False)
        except UserError as error:
            refused[kind] = str(error)
        else:
            if head is None and not encodes_texts(model_type):
                refused[kind] = "It gives no states of a text alone."
            else:
                models[kind] = model
    if not models:
        own, reason = _as_it_is(folder)
        sizes = _size(own) if own else {}
        return Abilities(checkpoint, model_type, reason, sizes, {}, refused, [])
    writing = [kind for kind, model in models.items() if generates(model.head)]
    trains = {kind: _architecture(model) for kind, model in models.items()}
    first = next(iter(models.values()))
    return Abilities(checkpoint, model_type, "", _size(first), trains, refused, writing)


def _as_it_is(folder: Path) -> tuple[Model | None, str]:
    """Return the model of the checkpoint's own architecture, or why it cannot be loaded."""
    try:
        return describe(str(folder), weights=False), ""
    except UserError as error:
        return None, str(error)


def _architecture(model: Model) -> str:
    return model.family.model_types[model.model_type][model.head]


def _size(model: Model) -> dict[str, int]:
    """Return the numbers of a model that a person asks for first."""
    positions = model.max_positions if model.family.text else 0
    height = model.image_size[0] if model.image_size else 0
    sizes = {"blocks": model.num_depths - 2, "positions": positions, "image size": height}
    parameters = sum(math.prod(leaf.shape) for leaf in model.leaves.values())
    return {name: value for name, value in sizes.items() if value} | {"parameters": parameters}


def suggestion(word: str) -> str:
    """Return the model type most like a word, as a question; empty if none is close."""
    close = nearest(word, families())
    return f"Did you mean '{close[0]}'?" if close else ""
