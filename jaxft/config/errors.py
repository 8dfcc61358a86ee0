"""Errors of pydantic, as one sentence each."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from jaxft.config.yaml import Origin
from jaxft.durations import Duration
from jaxft.errors import UserError, nearest

_TYPES = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    type(None): "null",
    Duration: "duration",
}
_VALUE = frozenset([str, int, float, bool])
_WITH_ARTICLE = ("duration", "finite", "list", "mapping", "number", "section", "value", "whole")
TAG = "kind"  # the key that selects one of several kinds of section
# Our key -> what other libraries call it, where that resembles ours too little to be suggested, or
# resembles another key more; with a section where that tells names apart.
_NAMES = {
    "optimizer.lr": "learning_rate optimizer.rate",
    "optimizer.weight_decay": "wd",
    "train.length": "num_train_epochs epochs max_steps num_epochs epoch",
    "data.batch_size": "per_device_train_batch_size micro_batch_size per_device_batch_size",
    "train.accumulate": "gradient_accumulation_steps",
    "train.remat": "gradient_checkpointing remat_policy",
    "optimizer.clip": "max_grad_norm clip_grad",
    "schedule.warmup": "warmup_steps warmup_ratio warmup_epochs",
    "schedule.kind": "lr_scheduler_type lr_scheduler schedule.type",
    "checkpoint.patience": "early_stopping_patience",
    "checkpoint.keep": "save_total_limit",
    "checkpoint.every": "save_steps checkpoint_period",
    "train.evaluate_every": "eval_steps eval_strategy",
    "train.log_every": "logging_steps",
    "model.checkpoint": "model_name_or_path base_model load_parameters_path",
    "run.trackers": "report_to wandb",
    "sampling.blocks": "lisa_n_layers",
    "sampling.every": "lisa_step_interval badam_switch_interval",
    "sampling.method": "use_badam",
    "sampling.order": "badam_switch_mode",
    "run.name": "output_dir",
    "optimizer.name": "optim",
    "optimizer.b1": "adam_beta1 betas",
    "optimizer.b2": "adam_beta2",
    "checkpoint.best": "metric_for_best_model",
    "train.precision": "bf16 fp16",
    "data.pack": "group_by_length packing sample_packing",
    "task.label_smoothing": "label_smoothing_factor smoothing",
    "task.label": "label_column",
    "adapter.match": "target_modules",
    "adapter.ranks": "rank_pattern",
    "adapter.rank": "r lora_r",
    "adapter.kind": "use_dora",
    "task.augment": "mixup cutmix aa",
    "train.ema": "model_ema",
    "model.image_size": "img_size",
    "data.train": "datasets",
    "data.max_length": "sequence_len max_target_length",
}
ALIASES = {name: key for key, names in _NAMES.items() for name in names.split()}
_PLURALS = {"value": "values", "section": "sections"}
_LIMITS = {
    "greater_than": ("gt", "more than {:g}"),
    "greater_than_equal": ("ge", "{:g} or more"),
    "less_than": ("lt", "less than {:g}"),
    "less_than_equal": ("le", "{:g} or less"),
    "string_pattern_mismatch": (
        "pattern",
        "letters, digits, '.', '_' and '-', the first a letter or digit",
    ),
    "string_too_short": ("min_length", "text of {} characters or more"),
    "too_short": ("min_length", "list of {} or more"),
    "too_long": ("max_length", "list of {:,} or fewer"),
    "finite_number": ("", "finite number"),
}


def type_name(kind: Any) -> str:
    """Return a key's type in words: `number or null`, `auto, none or full`, `list of text`."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return type_name(args[0])
    if origin is Literal:
        return _either([str(arg) for arg in args])
    if origin in (Union, types.UnionType):
        values = _VALUE if set(args) >= _VALUE else frozenset()
        names = ["value"] if values else []
        return _either(names + [type_name(arg) for arg in args if arg not in values])
    if origin is list:
        items = type_name(args[0])
        if items == "anything":
            return "list"
        return f"list of {_PLURALS.get(items, items)}"
    if origin is tuple:
        return f"list of {len(args)} {type_name(args[0])}s"
    if origin is dict:
        return f"mapping of {type_name(args[0])} to {type_name(args[1])}"
    return "section" if section_in(kind) else _TYPES.get(kind, "anything")


def _either(names: list[str]) -> str:
    """Return `a`, `a or b`, or `a, b or c`."""
    return " or ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def as_user_error(
    error: ValidationError, model: type[BaseModel], written: Mapping[str, Any], origin: Origin
) -> UserError:
    """Return the first mistake as a UserError; unknown keys come first, as they often explain the
    rest.
    """
    mistakes = error.errors(include_url=False)
    item = min(mistakes, key=_precedence)
    path, kind, section = _walk(model, written, item["loc"])
    name = ".".join(path)
    start = origin.of(path)
    if item["type"] in ("union_tag_not_found", "union_tag_invalid"):
        return _wrong_tag(start, name, kind, _value_at(written, path))
    if item["type"] in ("extra_forbidden", "invalid_key"):
        return UserError(f"{start}: unknown key '{name}'.", _suggest(path, section, model))
    if item["type"] == "missing" and item["loc"][-1] == path[-1]:
        meaning = section.model_fields[path[-1]].description
        hint = " ".join([f"It is {meaning}.", *_advice(name, written)])
        return UserError(f"{start}: '{name}' is missing.", hint)
    if item["type"] == "value_error":
        prefix = f"{name}: " if name else ""
        return UserError(f"{start}: {prefix}{item['ctx']['error']}.")
    value, wanted = _value_at(written, path), type_name(kind)
    if item["type"] in _LIMITS:
        limit, words = _LIMITS[item["type"]]
        value, wanted = item["input"], words.format(item.get("ctx", {}).get(limit, ""))
    article = "a " if wanted.startswith(_WITH_ARTICLE) else ""
    hints = [_choice(value, kind)]
    if value is None:
        hints += _advice(name, written)
    elif wanted == "section" and section_in(kind) is not None:
        hints += _keys_for(value, name, section_in(kind))
    return UserError(
        f"{start}: '{name}' must be {article}{wanted}, not {_show(value)}.",
        " ".join(filter(None, hints)),
    )


def _precedence(item: Any) -> tuple[bool, bool]:
    """Rank a mistake: unknown keys first, and last that a section is none of a key's words."""
    no_word = item["type"] == "literal_error" and isinstance(item["input"], Mapping)
    return item["type"] != "extra_forbidden", no_word


def _advice(name: str, written: Mapping[str, Any]) -> list[str]:
    """Return a sentence on where the value of a missing key may come from."""
    train = _value_at(written, ("data", "train"))
    if name != "data.eval" or not isinstance(train, str) or train.endswith("]"):
        return []
    return [f"Take a tenth of the rows: data.train={train}[:90%] and data.eval={train}[90%:]."]


def _keys_for(value: Any, name: str, section: type[BaseModel] | None) -> list[str]:
    """Return a hint with the first key of a section that takes such a value."""
    for key, field in section.model_fields.items() if section else ():
        numeric = isinstance(value, int | float) and not isinstance(value, bool)
        if numeric and float in _options(field.annotation):
            return [f"Did you mean '{name}.{key}'?"]
    return []


def _wrong_tag(start: str, name: str, kind: Any, value: Any) -> UserError:
    """Return the error of a section whose kind is missing or unknown."""
    members = sections_in(kind)
    tag = f"{name}.{TAG}"
    if not isinstance(value, Mapping) or TAG not in value:
        meaning = members[0].model_fields[TAG].description
        return UserError(f"{start}: '{tag}' is missing.", f"It is {meaning}.")
    known = [str(tag_of(member)) for member in members]
    return UserError(
        f"{start}: '{tag}' must be {_either(known)}, not {_show(value[TAG])}.",
        _choice(value[TAG], Literal[tuple(known)]),
    )


def _walk(
    model: type[BaseModel], written: Any, loc: tuple[int | str, ...]
) -> tuple[tuple[str, ...], Any, type[BaseModel]]:
    """Return the key at `loc` without pydantic's own union tags, its type, and its section."""
    path: list[str] = []
    kind: Any = model
    section = model
    for part in loc:
        members = {tag_of(member): member for member in sections_in(kind)}
        if len(members) > 1:
            kind = members.get(str(part), kind)  # pydantic names the kind of section here
            continue
        inner = section_in(kind)
        if str(part).startswith("literal["):
            continue  # pydantic's name for one option of a union
        if inner is not None and f"{part}]".endswith((f"{inner.__name__}]", f"{inner.__name__}]]")):
            kind = inner  # and its name for a section among them
            continue
        if inner is not None:
            section = inner
            field = inner.model_fields.get(str(part))
            kind = field.annotation if field else None
        elif isinstance(written, list) and item_type(kind) is not None and isinstance(part, int):
            kind = item_type(kind)
        elif isinstance(written, dict) and get_origin(kind) is dict and part in written:
            kind = get_args(kind)[1]
        else:
            continue  # pydantic's name for one option of a union, or an index into a pair
        path.append(str(part))
        written = _value_at(written, (str(part),))
    return tuple(path), kind, section


def _options(kind: Any) -> tuple[Any, ...]:
    """Return the options of a union, or the type itself, without their annotations."""
    options = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    return tuple(
        get_args(option)[0] if get_origin(option) is Annotated else option for option in options
    )


def item_type(kind: Any) -> Any:
    """Return the type of a list's items, or None where the type is no list."""
    lists = [option for option in _options(kind) if get_origin(option) is list]
    return get_args(lists[0])[0] if lists else None


def section_in(kind: Any) -> type[BaseModel] | None:
    """Return the section that a type is or may be; None if there is none."""
    return next(iter(sections_in(kind)), None)


def sections_in(kind: Any) -> tuple[type[BaseModel], ...]:
    """Return the sections that a type may be; where there are several, `kind` tells them apart."""
    options = _options(kind)
    return tuple(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))


def tag_of(section: type[BaseModel]) -> str | None:
    """Return the value of a section's `kind`; None if it has none."""
    field = section.model_fields.get(TAG)
    return None if field is None else get_args(field.annotation)[0]


def _value_at(written: Any, path: tuple[str, ...]) -> Any:
    for part in path:
        if isinstance(written, Mapping):
            written = written.get(part)
        elif isinstance(written, list) and part.isdigit() and int(part) < len(written):
            written = written[int(part)]
        else:
            return None
    return written


def _suggest(path: tuple[str, ...], section: type[BaseModel], model: type[BaseModel]) -> str:
    """Return a hint with the key that was probably meant."""
    for name in (".".join(path), path[-1]):
        if name in ALIASES:
            return f"Did you mean '{ALIASES[name]}'?"
    for top, field in model.model_fields.items():
        there = any(path[-1] in inner.model_fields for inner in sections_in(field.annotation))
        if there and path != (top, path[-1]):
            return f"Did you mean '{top}.{path[-1]}'?"
    close = nearest(path[-1], section.model_fields)
    if close:
        return f"Did you mean '{'.'.join([*path[:-1], close[0]])}'?"
    return f"Known: {', '.join(section.model_fields)}."


def _choice(value: Any, kind: Any) -> str:
    """Return a hint with the nearest allowed word, or nothing."""
    literals = [option for option in _options(kind) if get_origin(option) is Literal]
    words = [str(word) for literal in literals for word in get_args(literal)]
    close = nearest(value, words) if isinstance(value, str) else []
    return f"Did you mean '{close[0]}'?" if close else ""


def _show(value: Any) -> str:
    """Format a value as a config would, short, with its type if that may surprise."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"the text '{value if len(value) <= 60 else value[:57] + '...'}'"
    if isinstance(value, list):
        return "a list" if len(str(value)) > 60 else f"the list {value}"
    if isinstance(value, Mapping):
        return "a section"
    return "null" if value is None else str(value)
