"""Names in the library say their content, and docstrings begin with a verb or a noun."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "jaxft"
# Past participles and fillers: as the name of a variable they say nothing of its content.
EMPTY_NAMES = {"told", "said", "found", "seen", "kept", "given", "held", "way", "place"}
QUESTIONS = {"What", "Whether", "How", "Where"}


def bound_names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield each name that a module binds to a value, and its line.

    These are targets of assignments, loops, comprehensions, `with`, `except` and `match`, arguments
    of functions, and attributes that are assigned to. A function or a class may be called `place`.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            yield node.name, node.lineno
        elif isinstance(node, ast.MatchMapping) and node.rest:
            yield node.rest, node.lineno


def first_words(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield the first word of each docstring of a module, and its line."""
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for node in ast.walk(tree):
        if isinstance(node, documented):
            words = (ast.get_docstring(node) or "").split()
            if words:
                yield words[0].strip(",.:;"), getattr(node, "lineno", 1)


def empty_names(source: str) -> list[str]:
    """List `line: name` for each bound name of a module that names nothing."""
    names = bound_names(ast.parse(source))
    return [f"{line}: {name}" for name, line in names if name.strip("_") in EMPTY_NAMES]


def question_docstrings(source: str) -> list[str]:
    """List `line: word` for each docstring of a module that begins with a question word."""
    words = first_words(ast.parse(source))
    return [f"{line}: {word}" for word, line in words if word in QUESTIONS]


@pytest.mark.parametrize("rule", [empty_names, question_docstrings])
def test_words(rule):
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for line in rule(path.read_text("utf-8"))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "line",
    [
        "told = 1",
        "self._held = 1",
        "a, *rest_, seen = b",
        "def f(*, given=None): pass",
        "lambda way: way",
        "[x for place, x in y]",
        "for kept in x: pass",
        "with a as found: pass",
        "if (said := 1): pass",
        "class A:\n    told: int",
        "match a:\n    case [kept, _]: pass",
    ],
)
def test_a_name_that_says_nothing_is_found(line):
    assert len(empty_names(line)) == 1


def test_names_that_are_read_or_defined_elsewhere_are_free():
    assert empty_names("def place(x): return x.found + call(kept_rows=told)") == []


def test_a_docstring_that_asks_is_found():
    assert question_docstrings('def f():\n    """What f is."""\n') == ["1: What"]
    assert question_docstrings('def f():\n    """Return what f is."""\n') == []
    assert question_docstrings('"""Where, and how."""\n') == ["1: Where"]
