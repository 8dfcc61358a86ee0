"""Prompts: what is put in front of a text, by its role, as its checkpoint means it.

Source: https://www.sbert.net, `config_sentence_transformers.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jaxft.errors import UserError
from jaxft.models.weights.source import POOLING_FILE, PROMPTS_FILE
from jaxft.storage.json_files import read_json_object

Role = Literal["query", "document"]
QUERY: Role = "query"
DOCUMENT: Role = "document"
# Role -> the names of its prompt in a checkpoint, first choice first, as sentence-transformers'
# `encode_query` and `encode_document` have them.
NAMES = {QUERY: (QUERY,), DOCUMENT: (DOCUMENT, "passage", "corpus")}
DEFAULT = "default_prompt_name"


@dataclass(frozen=True)
class Prompts:
    """Prompts of a model of vectors.

    Args:
        texts: name -> text; those of the roles among them, where they are not empty.
        default: the name of that for texts without a role; empty for none.
    """

    texts: Mapping[str, str] = field(default_factory=dict)
    default: str = ""

    def of(self, role: str) -> str:
        """Return what is put in front of the texts of a role."""
        return self.texts.get(role, "")

    @property
    def roles(self) -> dict[str, str]:
        """Map each role that has a prompt to it."""
        return {role: self.of(role) for role in NAMES if self.of(role)}

    @property
    def facts(self) -> dict[str, Any]:
        """Return the prompts as JSON holds them; empty without any."""
        return {"texts": dict(self.texts), "default": self.default} if self.texts else {}

    def config(self) -> dict[str, Any]:
        """Return a `config_sentence_transformers.json`."""
        texts = dict.fromkeys(NAMES, "") | dict(self.texts)
        return {"prompts": texts, DEFAULT: self.default or None, "similarity_fn_name": "cosine"}


def prompts_from(facts: object) -> Prompts:
    """Return the prompts of `Prompts.facts`; none of anything else."""
    if not isinstance(facts, dict) or not isinstance(texts := facts.get("texts"), dict):
        return Prompts()
    return Prompts(texts, str(facts.get("default", "")))


def read_prompts(folder: Path) -> Prompts:
    """Read a checkpoint's prompts.

    Args:
        folder: the checkpoint.

    Raises:
        UserError: the file is not of the known form.
    """
    path = folder / PROMPTS_FILE
    fields = read_json_object(path) if path.is_file() else {}
    texts, default = fields.get("prompts") or {}, fields.get(DEFAULT) or ""
    valid = isinstance(texts, dict) and all(isinstance(one, str) for one in texts.values())
    if not valid or not isinstance(default, str):
        raise UserError(f"{path}: prompts must be texts by name, and {DEFAULT} one of the names.")
    if default and default not in texts:
        raise UserError(f"{path}: {DEFAULT} is not among the prompts.")
    for role, names in NAMES.items():
        chosen = next((texts[name] for name in (*names, default) if texts.get(name)), "")
        texts = {**texts, role: chosen} if chosen else texts
    return Prompts({name: text for name, text in texts.items() if text}, default)


def chosen_prompts(folder: Path, asked: Mapping[Role, str] | None) -> Prompts:
    """Return what is put in front of texts.

    Args:
        folder: the checkpoint.
        asked: `task.prompts`: role -> text; None takes the checkpoint's own.

    Raises:
        UserError: the checkpoint leaves the tokens of its prompts out of its pooling.
    """
    prompts = read_prompts(folder) if asked is None else _of_roles(asked)
    path = folder / POOLING_FILE
    excluded = path.is_file() and read_json_object(path).get("include_prompt") is False
    if prompts.roles and excluded:
        raise UserError(
            f"{path}: the pooling leaves out the tokens of prompts (include_prompt), which is not "
            "supported.",
            "Set task.prompts={} to embed texts without prompts.",
        )
    return prompts


def _of_roles(asked: Mapping[Role, str]) -> Prompts:
    return Prompts({role: text for role, text in asked.items() if text})
