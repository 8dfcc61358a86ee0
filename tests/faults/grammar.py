"""Random hostile values: JSON trees with a few nodes changed, bytes with a few damaged, texts."""

import copy
import json
import random
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")
DEEP = "@deep@"  # stands for nesting that no JSON writer would write
ESCAPE = "\x1b]52;c;ZWNobyBwd24=\x1b\\"
TEXTS = (
    "",
    " ",
    "x",
    "true",
    "null",
    "5e-5",
    "1e400",
    "-0",
    "2 epochs",
    "10%",
    "auto",
    "cls",
    "[UNK]",
    "[:50%]",
    "..",
    "../../x",
    "/etc/passwd",
    "/dev/zero",
    "pipe",
    "~/x",
    "a\0b",
    "(",
    "(a+)+$",
    "((.*)*)*!",
    "{{7*7}}",
    "{x.__class__}",
    "{:999999999d}",
    "<a href='https://evil.example'>x</a>",
    "\ud83d",
    "\u202egnp.exe",
    "\u0000",
    "é\u0301",
    "\U0001f600",
    ESCAPE,
    "²",
    "9" * 5000,
    "x" * 5000,
    "%s%n",
    "[/bold]",
)
NUMBERS = (0, 1, -1, 2, 3, 7, 100, 65536, 2**31 - 1, 2**31, 2**53 + 1, 2**63, 10**400, -(10**400))
FRACTIONS = (0.0, -0.0, 0.5, 1.5, -1e-9, 1e-320, 1e30, 1e308, float("nan"), float("inf"))


class Draw(random.Random):
    """A generator with draws of hostile values."""

    def text(self) -> str:
        if self.random() < 0.8:
            return self.choice(TEXTS)
        return "".join(
            chr(self.choice((self.randrange(128), self.randrange(0xD7FF))))
            for _ in range(self.randrange(1, 9))
        )

    def scalar(self) -> Any:
        return self.choice(
            (
                lambda: None,
                lambda: self.random() < 0.5,
                lambda: self.choice(NUMBERS),
                lambda: self.choice(FRACTIONS),
                self.text,
                self.text,
            )
        )()

    def value(self, depth: int = 0) -> Any:
        """A scalar, or a list or mapping of a few values."""
        chance = self.random()
        if depth > 3 or chance < 0.65:
            return self.scalar()
        if chance < 0.66:
            return DEEP
        items = [self.value(depth + 1) for _ in range(self.randrange(4))]
        return items if chance < 0.83 else {self.text(): item for item in items}

    def changed(self, tree: Any, values: Sequence[Any] = ()) -> Any:
        """A copy of a JSON tree with one to three nodes replaced, removed, added or moved.

        Args:
            tree: parsed JSON.
            values: also put in as they are.
        """
        tree = copy.deepcopy(tree)
        for _ in range(self.choice((1, 1, 1, 2, 3))):
            nodes = list(_nodes(tree))
            if not nodes or self.random() < 0.02:
                tree = self.value()
                continue
            inside, key = self.choice(nodes)
            act = self.random()
            if act < 0.6:
                inside[key] = self.value() if not values or act < 0.45 else self.choice(values)
            elif act < 0.75:
                del inside[key]
            elif act < 0.85 and isinstance(inside, dict):
                inside[self.choice((self.text(), str(key) + "s"))] = self.value()
            elif act < 0.85:
                inside.insert(self.randrange(len(inside) + 1), self.value())
            else:
                other, other_key = self.choice(nodes)
                if isinstance(other, dict) or other_key < len(other):
                    inside[key] = copy.deepcopy(
                        other.get(other_key) if isinstance(other, dict) else other[other_key]
                    )
        return tree

    def json(self, tree: Any, values: Sequence[Any] = ()) -> bytes:
        """The text of a changed tree, which may itself be damaged."""
        try:
            text = json.dumps(self.changed(tree, values), ensure_ascii=self.random() < 0.5)
        except (ValueError, RecursionError):  # a node moved into itself
            text = "{}"
        text = text.replace(f'"{DEEP}"', "[" * 100_000 + "]" * 100_000)
        data = text.encode("utf-8", "surrogatepass")
        return self.damaged(data) if self.random() < 0.1 else data

    def damaged(self, data: bytes) -> bytes:
        """Bytes with a few flipped, cut away, doubled or put in."""
        damaged = bytearray(data)
        for _ in range(self.choice((1, 1, 2, 4))):
            position = self.randrange(len(damaged) + 1)
            act = self.randrange(6)
            if act == 0 and position < len(damaged):
                damaged[position] ^= 1 << self.randrange(8)
            elif act == 1:
                del damaged[position:]
            elif act == 2:
                del damaged[position : position + self.randrange(1, 9)]
            elif act == 3:
                damaged[position:position] = self.choice(
                    (b"\0", b"\xff", b"\r", b'"', b"\xef\xbb\xbf", b"\xed\xa0\xbd")
                )
            elif act == 4:
                damaged[position:position] = self.text().encode("utf-8", "surrogatepass")
            else:
                damaged[position:position] = damaged[position : position + self.randrange(1, 40)]
        return bytes(damaged)

    def some(self, choices: Sequence[T], most: int) -> list[T]:
        """Up to `most` of the choices, at least one."""
        return self.sample(choices, self.randrange(1, min(most, len(choices)) + 1))


def _nodes(tree: Any) -> Any:
    """Yield (container, key) of every node of a tree but its root."""
    if isinstance(tree, dict):
        for key, inner in tree.items():
            yield tree, key
            yield from _nodes(inner)
    elif isinstance(tree, list):
        for key, inner in enumerate(tree[:50]):
            yield tree, key
            yield from _nodes(inner)


Make = Callable[[Draw], Any]
