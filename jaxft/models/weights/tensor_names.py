"""Tensor names of a family's checkpoints: in the file of each architecture, and in memory."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from jaxft.models.weights.names import Name
from jaxft.models.weights.tensor import Tensor

HeadLines = Mapping[str | None, Sequence[Name]]  # head -> its own lines of a name table
TIED = "tie_word_embeddings"
# Heads that score words.
WORD_HEADS = ("captioning", "causal_lm", "masked_lm", "seq2seq", "vision_language")


@dataclass(frozen=True)
class TensorNames:
    """Tensor names of a family's checkpoints; here every architecture uses the table's own.

    Args:
        tables: model type -> the lines of the name table that all heads share.
        heads: head -> its own lines; a head without any may be absent.
        unused: patterns of tensors that a checkpoint may hold without a parameter to read them.
        fresh: patterns of name prefixes of parameters that a checkpoint may lack.
        aliases: a tensor of the table -> others with its values, which a file may hold instead.
        unread: head -> patterns of tensors that its architecture leaves out.
        tied: a tensor of the table, and one whose values are the same where config.json ties the
            two and a head scores words: a file may hold both, or either.
        tied_part: the part of config.json that says so; None for config.json itself.
    """

    tables: Mapping[str, Sequence[Name]]
    heads: HeadLines
    unused: Sequence[str]
    fresh: Sequence[str] = ("head/",)
    aliases: Mapping[str, Sequence[str]] = field(default_factory=dict, kw_only=True)
    unread: Mapping[str | None, Sequence[str]] = field(default_factory=dict, kw_only=True)
    tied: Sequence[tuple[str, str]] = field(default=(), kw_only=True)
    tied_part: str | None = field(default=None, kw_only=True)

    def table(self, head: str | None, model_type: str) -> tuple[Name, ...]:
        """Return the name table of a model type under a head."""
        return (*self.tables[model_type], *self.heads.get(head, ()))

    def unused_by(self, head: str | None) -> tuple[str, ...]:
        """Return the patterns of tensors that a checkpoint may hold for nothing under a head."""
        return (*self.unused, *self.unread.get(head, ()))

    def ties(self, head: str | None, config: Any) -> Sequence[tuple[str, str]]:
        """Return those of `tied` that are under a head of the family's config."""
        own = config if self.tied_part is None else getattr(config, self.tied_part)
        return self.tied if head in WORD_HEADS and own.fields.get(TIED, True) else ()

    def canonical(self, name: str) -> str:
        """Return the table's spelling of a tensor's name in a file."""
        return name

    def unpacked(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return a file's tensors as numbers, where it packs some in another way."""
        return tensors

    def exported(self, name: str, head: str | None, model_type: str) -> str:
        """Return the name under which a head's architecture saves a tensor of the table."""
        return name

    def in_memory(self, name: str, model_type: str) -> str:
        """Return the name of a file's tensor in a transformers module, which PEFT uses too."""
        return name

    def module_line(self, line: Name) -> Name:
        """Return a line as transformers' modules have it, where a file stores several as one."""
        return line


@dataclass(frozen=True)
class PrefixedNames(TensorNames):
    """Tensor names of a table spelled with the base model's prefix, which bare models lack.

    Args:
        prefixes: prefix -> regular expression of the first components of the names after it.
    """

    prefixes: Mapping[str, str] = field(default_factory=dict)

    def canonical(self, name: str) -> str:
        for prefix, first in self.prefixes.items():
            if re.match(rf"({first})\.", name):
                return prefix + name
        return name

    def exported(self, name: str, head: str | None, model_type: str) -> str:
        if head is None:
            for prefix in self.prefixes:
                if name.startswith(prefix):
                    return name.removeprefix(prefix)
        return name


@dataclass(frozen=True)
class BareNames(TensorNames):
    """Tensor names of a table spelled as a bare model saves them; heads add a prefix.

    Args:
        prefixes: model type -> the prefix of all tensors but the head's own.
    """

    prefixes: Mapping[str, str] = field(default_factory=dict)

    def canonical(self, name: str) -> str:
        for prefix in self.prefixes.values():
            if name.startswith(prefix):
                return name.removeprefix(prefix)
        return name

    def exported(self, name: str, head: str | None, model_type: str) -> str:
        own = any(line.hf == name for line in self.heads.get(head, ()))
        return name if head is None or own else self.prefixes[model_type] + name


class Member(NamedTuple):
    """Model that is a part of a larger one.

    Attributes:
        names: its family's tensor names.
        model_type, head: its own.
    """

    names: TensorNames
    model_type: str
    head: str | None = None


@dataclass(frozen=True)
class ComposedNames(TensorNames):
    """Tensor names of a model of several: each member's behind a prefix, others as they are.

    Args:
        members: prefix in a file -> member.
    """

    members: Mapping[str, Member] = field(default_factory=dict)

    def canonical(self, name: str) -> str:
        prefix, member = self._member(name)
        return name if member is None else prefix + member.names.canonical(name[len(prefix) :])

    def exported(self, name: str, head: str | None, model_type: str) -> str:
        prefix, member = self._member(name)
        if member is None:
            return name
        own = name[len(prefix) :]
        return prefix + member.names.exported(own, member.head, member.model_type)

    def in_memory(self, name: str, model_type: str) -> str:
        prefix, member = self._member(name)
        if member is None:
            return name
        return prefix + member.names.in_memory(name[len(prefix) :], member.model_type)

    def _member(self, name: str) -> tuple[str, Member | None]:
        matches = (item for item in self.members.items() if name.startswith(item[0]))
        return next(matches, ("", None))


def unused_of(members: Mapping[str, Member]) -> tuple[str, ...]:
    """Collect the patterns of unused tensors of all members, each behind its prefix."""
    return tuple(
        re.escape(prefix) + pattern
        for prefix, member in members.items()
        for pattern in member.names.unused
    )


def within(names: Sequence[Name], hf: str, ours: str) -> tuple[Name, ...]:
    """Put the lines of a member's name table behind its prefixes in files and in memory."""
    return tuple(replace(name, hf=hf + name.hf, ours=ours + name.ours) for name in names)
