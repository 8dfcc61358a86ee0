"""The YAML text of a first config, with the reason for each choice above it."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping
from typing import Any

import yaml

from jaxft.numbers import rate

WIDTH = 96
PLAIN = re.compile(r"\w[\w./%-]*( [\w./%-]+)*")


def yaml_text(sections: Mapping[str, Any], why: Mapping[str, str], head: str) -> str:
    """Return a config as YAML, with comments.

    Args:
        sections: the config; each section is a mapping or a list of mappings.
        why: dotted key, or section -> the comment above it.
        head: the comment at the top, of several lines.
    """
    blocks = ["\n".join(f"# {line}".rstrip() for line in head.splitlines())]
    for name, content in sections.items():
        lines = [*_comment(why.get(name), "")]
        if isinstance(content, list):
            lines += [f"{name}:", *(f"  - {inline(item)}" for item in content)]
        elif any(f"{name}.{key}" in why for key in content):
            lines.append(f"{name}:")
            for key, value in content.items():
                lines += _comment(why.get(f"{name}.{key}"), "  ")
                lines.append(f"  {key}: {inline(value)}")
        else:
            lines.append(f"{name}: {inline(content)}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def _comment(text: str | None, indent: str) -> list[str]:
    if not text:
        return []
    return [
        f"{indent}# {line}" for line in textwrap.wrap(" ".join(text.split()), WIDTH - len(indent))
    ]


def inline(value: Any) -> str:
    """Return a value as YAML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {inline(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(inline, value)) + "]"
    if isinstance(value, float) and 0 < abs(value) < 0.01:
        return rate(value)
    if isinstance(value, str) and PLAIN.fullmatch(value) and yaml.safe_load(value) == value:
        return value
    return json.dumps(value, ensure_ascii=False)
