"""The import graph of `jaxft/`, read from its source: modules, imports, circles, functions.

`python -m tests.support.import_graph` prints its figures.
"""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "jaxft"


def _name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


# Dotted names below `jaxft`; a package stands for its `__init__`, the top one is "".
FILES = {_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
INITS = [name for name, path in FILES.items() if path.name == "__init__.py"]
MODULES = [name for name in FILES if name not in INITS]


@cache
def syntax_tree(module: str) -> ast.Module:
    """The parsed source of a module."""
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


@cache
def imports(module: str) -> tuple[tuple[str, bool], ...]:
    """Everything that `module` imports: (dotted name, is it inside a function).

    A module of the package is named whole (`jaxft.engine.step`), another library as written.
    """
    names: list[tuple[str, bool]] = []

    def visit(node: ast.AST, inside: bool) -> None:
        if isinstance(node, ast.Import):
            names.extend((alias.name, inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"jaxft.{module}, line {node.lineno}: a relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                is_module = whole.removeprefix("jaxft.") in MODULES
                names.append((whole if is_module else str(node.module), inside))
        inside = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(syntax_tree(module), False)
    return tuple(names)


def edges() -> Iterator[tuple[str, str]]:
    """Each import of one module of the package by another."""
    for module in MODULES:
        for imported in {name for name, _ in imports(module)}:
            below = imported.removeprefix("jaxft.")
            if imported.startswith("jaxft.") and below in MODULES:
                yield module, below


def at_depth(module: str, depth: int) -> str:
    """The folder or file that holds `module`, `depth` names deep."""
    return ".".join(module.split(".")[:depth])


def circles(depth: int) -> list[list[str]]:
    """Groups of files and folders that import each other in a circle, `depth` names deep."""
    graph: dict[str, set[str]] = {}
    for module, below in edges():
        here, there = at_depth(module, depth), at_depth(below, depth)
        if here != there:
            graph.setdefault(here, set()).add(there)
    return _components(graph)


def _components(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one node."""

    def reachable(start: str) -> set[str]:
        reached: set[str] = set()
        waiting = [start]
        while waiting:
            for name in graph.get(waiting.pop(), ()):
                if name not in reached:
                    reached.add(name)
                    waiting.append(name)
        return reached

    everywhere = {name: reachable(name) for name in graph}
    groups = {
        tuple(sorted(other for other in everywhere[name] if name in everywhere.get(other, ())))
        for name in graph
        if name in everywhere[name]
    }
    return [list(group) for group in sorted(groups)]


def functions(module: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method of a module."""
    for node in ast.walk(syntax_tree(module)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function from `def` to its end, but its docstring and the functions inside it."""

    def span(node: ast.stmt) -> int:
        return (node.end_lineno or node.lineno) - node.lineno + 1

    first = function.body[0]
    is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    within = [node for node in function.body if isinstance(node, ast.FunctionDef)]
    return span(function) - sum(map(span, within)) - (span(first) if is_docstring else 0)


def figures() -> dict[str, object]:
    """The size and shape of the package."""
    lengths = sorted(code_lines(node) for module in MODULES for node in functions(module))
    folders = {path.parent for path in FILES.values()}
    return {
        "lines": sum(len(path.read_text().splitlines()) for path in FILES.values()),
        "files": len(FILES),
        "top rooms": len({module.split(".")[0] for module in MODULES}),
        "most files in a folder": max(len(list(folder.glob("*.py"))) for folder in folders),
        **{f"circles at depth {depth}": len(circles(depth)) for depth in (1, 2, 3, 9)},
        "functions": len(lengths),
        "median lines of a function": statistics.median(lengths),
        "90th percentile": lengths[len(lengths) * 9 // 10],
        "functions over 60 lines": sum(length > 60 for length in lengths),
    }


if __name__ == "__main__":
    for label, value in figures().items():
        print(f"{label:30} {value}")
