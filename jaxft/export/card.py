"""The model card of an export: what it is, how it scores, what it was trained on and how.

A card is for others to read: it holds no text of the data, and of a path only the last name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from jaxft.config.recipe import DECAY_PRESETS
from jaxft.data.image.files import has_processor
from jaxft.engine.trained import Trained
from jaxft.numbers import count, rate, score, share
from jaxft.report.events import each_event
from jaxft.runs.folder import RUN_FILE, RunFolder
from jaxft.runs.history import Piece, affects_parameters, group_pieces, pieces_text, setting_pieces
from jaxft.storage.files import place

CARD_MARK = b"\ntags:\n- jaxft\n"  # of the front matter


def model_card(trained: Trained) -> str:
    """The text of an export's README.md.

    Args:
        trained: the run and the checkpoint that is exported.
    """
    about = trained.run.read_json(RUN_FILE)
    scored = _scores(trained.run, about, trained.step)
    front = _front_matter(trained, about, scored).to_yaml()
    sections = [
        f"# {about['name']}",
        _summary(trained, about),
        _score_section(scored, about),
        _data_section(about),
        _layer_section(trained),
        _training_section(trained, about),
        _use_section(trained),
    ]
    return f"---\n{front}\n---\n\n" + "\n\n".join(section for section in sections if section) + "\n"


def _scores(run: RunFolder, about: Mapping[str, Any], step: int) -> dict[str, Any] | None:
    """Return the scores of this checkpoint: on the last rows scored, else on the eval rows.

    Raises:
        UserError: the result of a finished run is not there.
    """
    if about.get("state") == "finished" or (run.path / "result.json").exists():
        result = run.read_json("result.json")
        if result["step"] == step:
            return result
    # Other splits are no rows of the task: the pretraining texts of `report.forgetting`.
    wanted = {"kind": "eval", "split": "eval", "step": step}
    evals = [e for e in each_event(place(run.path)) if wanted.items() <= e.items()]
    if not evals:
        return None
    no_metrics = ("kind", "step", "split", "time")
    metrics = {name: value for name, value in evals[-1].items() if name not in no_metrics}
    return {"split": "eval", "metrics": metrics}


def _front_matter(
    trained: Trained, about: Mapping[str, Any], scored: Mapping[str, Any] | None
) -> ModelCardData:
    """Return the card's metadata for the hub."""
    pipeline, base = trained.task.card.pipeline, about["checkpoint"]
    on_hub = base["revision"] and " and " not in base["asked"]  # only what is there has a name
    results = None
    if scored is not None:
        data = next(split for split in about["data"] if split["split"] == scored["split"])
        name = source_name(data["source"])
        results = [
            EvalResult(pipeline, name, name, metric, round(value, 6), dataset_split=scored["split"])
            for metric, value in scored["metrics"].items()
        ]
    return ModelCardData(
        library_name=trained.task.card.library,
        pipeline_tag=pipeline,
        base_model=base["asked"].partition("@")[0] if on_hub else None,
        tags=["jaxft"],
        model_name=about["name"] if results else None,
        eval_results=results,
    )


def _summary(trained: Trained, about: Mapping[str, Any]) -> str:
    model = trained.model
    architecture = model.family.model_types[model.model_type][model.head]
    return (
        f"`{architecture}`, fine-tuned from `{checkpoint_name(about['checkpoint'])}` with jaxft "
        f"{about['versions']['jaxft']}: {trained.task.kind.replace('_', ' ')}, the checkpoint of "
        f"step {trained.step:,}."
    )


def checkpoint_name(checkpoint: Mapping[str, Any]) -> str:
    """A base model as others may know it: a hub id at its commit, or the last name of a path.

    Two towers of two checkpoints are `VISION and TEXT`.
    """
    both = str(checkpoint["asked"]).split(" and ")
    if checkpoint["revision"] and len(both) == 1:
        return f"{both[0].partition('@')[0]}@{checkpoint['revision']}"
    return " and ".join(one if one.startswith("package:") else Path(one).name for one in both)


def source_name(spec: str) -> str:
    """A source string without its path: `csv:/home/me/rows.csv[:90%]` -> `csv:rows.csv[:90%]`."""
    kind, _, path = spec.partition(":")
    return f"{kind}:{path.replace(chr(92), '/').rstrip('/').rpartition('/')[2]}"


def _score_section(scored: Mapping[str, Any] | None, about: Mapping[str, Any]) -> str:
    if scored is None:
        return ""
    chosen = " (the rows that also chose the checkpoint)" if scored["split"] == "eval" else ""
    rows = [(name, score(value)) for name, value in scored["metrics"].items()]
    table = _table(("metric", f"{scored['split']} rows{chosen}"), rows)
    return f"## Scores\n\n{table}\n\nThe best checkpoint is chosen by {about['best_metric']}."


def _data_section(about: Mapping[str, Any]) -> str:
    rows = []
    for split in about["data"]:
        labels = ", ".join(f"{name}: {many:,}" for name, many in split["labels"].items())
        tokens = f"{split['tokens']:,}" if "tokens" in split else ""
        named = f"`{source_name(split['source'])}`"
        rows.append((split["split"], named, f"{split['examples']:,}", tokens, labels))
    return "## Data\n\n" + _table(("split", "source", "examples", "tokens", "labels"), rows)


def _layer_section(trained: Trained) -> str:
    """The LayerTable by group."""
    table = trained.run.read_json("table.json")
    groups = table["groups"]
    rows = [
        (
            group["name"],
            "-".join(str(depth) for depth in sorted(set(group["depths"]))),
            count(group["parameters"]),
            "trained" if group["trainable"] else "frozen",
            pieces_text(group_pieces(table, group, _rates, trained.step)),
            "" if group["weight_decay"] is None else f"{group['weight_decay']:g}",
        )
        for group in groups
    ]
    columns = ("group", "depth", "parameters", "", "peak rate", "weight decay")
    trains = sum(group["parameters"] for group in groups if group["trainable"])
    whole = sum(group["parameters"] for group in groups)
    return (
        f"## Layers\n\n{_table(columns, rows)}\n\n{count(trains)} of {count(whole)} parameters "
        f"trained ({share(trains / whole)}). Depth 0 is the embeddings, i + 1 is block i."
    )


def _rates(group: Mapping[str, Any]) -> str:
    """The rates of a group's parameters at their peak, from the lowest to the highest."""
    if not group.get("trainable", True):
        return ""
    low, high = rate(group["lowest_peak_rate"]), rate(group["peak_rate"])
    return high if low == high else f"{low} to {high}"


def _decay_fact(decay: Mapping[str, Any], past: _Past) -> str:
    """Describe what multiplies the rates: a decay by depth, or a preset that has no rate."""
    rate, preset = past.text("layer_decay.rate"), past.text("layer_decay.preset")
    if decay["rate"] != 1 or past.changed("layer_decay.rate"):
        return f"{rate} ({preset})"
    by_depth = decay["preset"] in DECAY_PRESETS and not past.changed("layer_decay.preset")
    return "none" if by_depth else preset


def _training_section(trained: Trained, about: Mapping[str, Any]) -> str:
    """Describe the training, one fact a line."""
    config, past = trained.config.dump(), _Past(trained, about)
    optimizer, layout, seeds = config["optimizer"], about["layout"], config["run"]["seed"]
    used = {
        "adamw": ("lr", "b1", "b2", "eps", "weight_decay", "clip"),
        "sgd": ("lr", "momentum", "weight_decay", "clip"),
    }.get(optimizer["name"], ("lr", "weight_decay", "clip"))
    compute, devices = about["compute"], about["devices"]
    facts = {
        "steps": f"{trained.step:,} of {about['resolved']['total_steps']:,}",
        "batch": f"{layout['examples_per_step']:.1f} examples on average, {layout['rows']} rows",
        "optimizer": f"{optimizer['name']} ({past.settings('optimizer', used)})",
        "schedule": f"{past.text('schedule.kind')}, warm-up {past.text('schedule.warmup')}",
        "layer decay": _decay_fact(config["layer_decay"], past),
        "seeds": past.settings("run.seed", seeds),
        "length of a text": _length(trained),
        "computed in": compute["dtype"],
        "devices": f"{devices['count']} x {devices['kind']}",
        "versions": ", ".join(f"{name} {one}" for name, one in about["versions"].items()),
    }
    if past.rest():
        facts["changed on resume"] = "; ".join(past.rest())
    facts = {name: fact for name, fact in facts.items() if fact}
    phases = [
        f"steps {phase['start']:,} to {phase['stop']:,}: {count(phase['parameters'])} parameters"
        for phase in about.get("phases", ())
    ]
    if len(phases) > 1:
        facts["phases"] = "; ".join(phases)
    return "## Training\n\n" + _table(("", ""), facts.items())


def _length(trained: Trained) -> str:
    """Describe the truncation of texts in training; empty where the model reads none."""
    length = trained.model.text_length
    if length is None:
        return ""
    return f"at most {length:,} tokens; the tokenizer truncates to it with `truncation=True`"


class _Past:
    """Config keys with all the values that steps were trained with."""

    def __init__(self, trained: Trained, about: Mapping[str, Any]):
        self._config, self._step = trained.config.dump(), trained.step
        self._resumed = about.get("resumed", [])
        self._shown: set[str] = set()

    def text(self, key: str) -> str:
        """Describe a key's values: `5e-05 to step 38, 0.001 after`."""
        self._shown.add(key)
        return pieces_text(self._pieces(key))

    def settings(self, section: str, names: Iterable[str]) -> str:
        """Describe keys of a section, without those that are null."""
        keys = {name: f"{section}.{name}" for name in names}
        set_keys = {name: key for name, key in keys.items() if self._pieces(key) != [(None, None)]}
        return ", ".join(f"{name} {self.text(key)}" for name, key in set_keys.items())

    def changed(self, key: str) -> bool:
        """Return whether steps were trained with different values of a key."""
        return len(self._pieces(key)) > 1

    def rest(self) -> list[str]:
        """Describe the changed keys that were not described before and affect the parameters."""
        keys = dict.fromkeys(key for entry in self._resumed for key in entry.get("changed", {}))
        return [
            f"{key} {self.text(key)}"
            for key in keys
            if key not in self._shown and affects_parameters(key) and self.changed(key)
        ]

    def _pieces(self, key: str) -> list[Piece]:
        value: Any = self._config
        for part in key.split("."):
            parts = dict(enumerate(value)) if isinstance(value, list) else value
            index = int(part) if isinstance(value, list) and part.isdigit() else part
            value = parts.get(index) if isinstance(parts, dict) else None
        return setting_pieces(self._resumed, key, value, self._step)


def _use_section(trained: Trained) -> str:
    auto, files = trained.task.card.auto_class, trained.model.source.companions
    readers = {
        "tokenizer": ("AutoTokenizer", any("token" in name or "vocab" in name for name in files)),
        "processor": ("AutoImageProcessor", has_processor(trained.model.source.folder)),
    }
    loads = {"model": auto} | {name: reader for name, (reader, there) in readers.items() if there}
    library = trained.task.card.library
    loads = loads if library == "transformers" else {"model": auto}
    example = "\n".join(trained.task.card.lines)
    if any(f"{name}." in example or f"{name}(" in example for name in readers.keys() - loads):
        example = ""
    lines = [
        *(["from PIL import Image"] if "Image." in example else []),
        f"from {library} import {', '.join(loads.values())}",
        "",
        'folder = "."  # where this file lies, or its name on the hub',
        *(f"{name} = {loader}.from_pretrained(folder)" for name, loader in loads.items()),
        *filter(None, [example]),
    ]
    code = "\n".join(lines)
    return f"## Use\n\n```python\n{code}\n```\n\nor, in JAX, `jaxft.load(folder)`."


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; columns that are empty throughout are left out."""
    rows = [[_cell(cell) for cell in row] for row in rows]
    filled = [i for i in range(len(columns)) if any(row[i] for row in rows)]
    lines = [list(columns), ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line[i] for i in filled) + " |" for line in lines)


def _cell(text: str) -> str:
    """Text as one cell: a label may hold what Markdown would read as its own."""
    return " ".join(text.split()).replace("|", "\\|")
