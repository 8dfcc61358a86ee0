"""YAML 1.2 with the core schema; duplicate keys are errors, and every key's line is known.

PyYAML reads YAML 1.1, in which `5e-5` is text, `no` is false and `1:30` is ninety. The loader here
is `yaml.SafeLoader` with the scalars of YAML 1.2. `ruamel.yaml` reads YAML 1.2 too, but knows lines
only with its round-trip loader, whose values are types of its own; dates, `1_000`, unknown tags and
keys that are numbers would still have to be refused here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from jaxft.errors import UserError

KeyPath = tuple[str, ...]

_SCALARS = [
    ("tag:yaml.org,2002:null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("tag:yaml.org,2002:int", r"^[-+]?[0-9]+$", list("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        list("-+0123456789."),
    ),
]


class _Loader(yaml.SafeLoader):
    """`yaml.SafeLoader` with the scalars of YAML 1.2."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  PyYAML's own attribute

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        return int(self.construct_scalar(node))  # 010 is ten, not eight


class _Dumper(yaml.SafeDumper):
    """`yaml.SafeDumper` that quotes what `_Loader` would not read back as text."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  PyYAML's own attribute

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


_PLAIN = [f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "float", "str", "seq", "map")]
# Dates, sets and binary are not config values; None is the constructor that rejects a tag.
_Loader.yaml_constructors = {tag: yaml.SafeLoader.yaml_constructors[tag] for tag in [None, *_PLAIN]}
for _tag, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(_tag, re.compile(_pattern), _first)
# Text is quoted if either version of YAML would read it as something else.
_Dumper.yaml_implicit_resolvers = {
    first: list(resolvers) for first, resolvers in yaml.SafeDumper.yaml_implicit_resolvers.items()
}
for _tag, _pattern, _first in _SCALARS:
    _Dumper.add_implicit_resolver(_tag, re.compile(_pattern), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


class Origin:
    """The file and line, or override, that each key of a config came from, for errors."""

    def __init__(self, file: str, lines: Mapping[KeyPath, int]):
        self.file = file
        self._lines = dict(lines)
        self._overrides: dict[KeyPath, str] = {}

    def override(self, path: KeyPath, source: str) -> None:
        """Record that `source` set the key at `path` and everything below it."""
        for key in [key for key in self._lines if key[: len(path)] == path]:
            del self._lines[key]
        self._overrides[path] = source

    def of(self, path: KeyPath) -> str:
        """Return the override, or the file and line, that set the key at `path` or its section.

        For a section the overrides inside it are named too, since they may be the mistake.
        """
        inside = [source for key, source in self._overrides.items() if key[: len(path)] == path]
        overridden = f", with {' and '.join(inside)}" if inside else ""
        for length in range(len(path), 0, -1):
            if path[:length] in self._overrides:
                return self._overrides[path[:length]]
            if path[:length] in self._lines:
                return f"{self.file}, line {self._lines[path[:length]]}{overridden}"
        return " and ".join(inside) if path and inside else self.file + overridden


def read_yaml(text: str, file: str, whole: bool = True) -> tuple[Any, dict[KeyPath, int]]:
    """Return the value of a YAML text, and the line of each of its keys.

    Args:
        text: one YAML document.
        file: its name in errors.
        whole: require a mapping, as a whole config is.

    Raises:
        UserError: not YAML, a duplicate key, or not a mapping.
    """
    lines: dict[KeyPath, int] = {}
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        _note_lines(node, (), lines, file, set())
        value = None if node is None else loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark and whole else ""
        raise UserError(f"{file}{line} is not YAML: {error.problem or error.context}.") from None
    except (yaml.YAMLError, ValueError, KeyError, RecursionError) as error:
        raise UserError(f"{file} is not YAML: {str(error).splitlines()[0]}.") from None
    if whole and not isinstance(value, dict):
        problem = "is empty" if value is None else f"holds a {type(value).__name__}, not keys"
        raise UserError(
            f"{file} {problem}.", "A config has sections such as run, model, task, data."
        )
    return value, lines


def _note_lines(
    node: Any, path: KeyPath, lines: dict[KeyPath, int], file: str, visited: set[int]
) -> None:
    """Record the line of every key below `node` in `lines`; a duplicate key is an error.

    A key that is a number becomes its text. A node that several aliases share is visited once.
    """
    if id(node) in visited:
        return
    visited.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*path, str(index))] = item.start_mark.line + 1
            _note_lines(item, (*path, str(index)), lines, file, visited)
    if isinstance(node, yaml.MappingNode):
        first: dict[str, int] = {}
        for name, value in node.value:
            line = name.start_mark.line + 1
            if name.tag == "tag:yaml.org,2002:int":  # a class that the data names by a number
                name.tag = "tag:yaml.org,2002:str"
            if name.tag != "tag:yaml.org,2002:str":
                shown = f"'{name.value}'" if isinstance(name, yaml.ScalarNode) else "a list or map"
                raise UserError(
                    f"{file}, line {line}: {shown} cannot name a key.", "Put it in quotes."
                )
            here = (*path, name.value)
            if name.value in first:
                raise UserError(
                    f"{file}, line {line}: '{'.'.join(here)}' appears a second time.",
                    f"The first is on line {first[name.value]}.",
                )
            first[name.value] = lines[here] = line
            _note_lines(value, here, lines, file, visited)


def to_yaml(values: Mapping[str, Any]) -> str:
    """Return nested plain values as YAML text that `read_yaml` reads back equal."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
