"""Every command and every line of Python in README and docs runs, in order.

A YAML block with a title is the file of that name, which the commands after it read.

A page, or each part of it that uses no run of the parts before, runs in a folder that looks like
the repository: the true `configs/`, and in `assets/` random models of width 16 and few rows
(`tests/support/small_assets.py`), so that `jaxft train` takes seconds.
`make` commands are looked up in the Makefile, `python -m` modules are imported (they run for
minutes and more); `make demo` itself is `tests/demo/test_make_demo.py`.
"""

import re
import shlex
import subprocess
import sys
import urllib.request
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from jaxft.cli.main import main
from jaxft.demo.main import ASSETS

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY")),
    *sorted((ROOT / "docs").glob("**/*.md")),
]
README, GUIDE, TASKS = (
    ROOT / "README.md",
    ROOT / "docs/from/flax-auto-model.md",
    ROOT / "docs/tasks.md",
)
FENCE = re.compile(
    r'^```(?:(sh|python)|yaml title="([\w-]+\.yaml)")\n(.*?)^```', re.DOTALL | re.MULTILINE
)


@pytest.fixture
def workspace(tmp_path, monkeypatch, assets, one_device) -> Path:
    """The working directory of one page."""
    (tmp_path / "assets").symlink_to(assets)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def blocks(text: str) -> list[tuple[str, str]]:
    """The blocks of a page, in order: `sh`, `python` or the name of a YAML file, and the text."""
    return [(language or file, block) for language, file, block in FENCE.findall(text)]


def parts(page: Path) -> list[str]:
    """A page cut at its sections; one that needs a run is in one part with what has made it."""
    first, *sections = re.split(r"^(?=## )", page.read_text(), flags=re.MULTILINE)
    done = [first]
    for section in sections:
        done.append(section)
        while len(done) > 1 and needs_more(done[-1]):
            done[-2:] = [done[-2] + done[-1]]
    return done


def needs_more(part: str) -> bool:
    """Whether a part has no command, or uses a run or a file that it has not made itself."""
    commands = "\n".join(text for kind, text in blocks(part) if kind in ("sh", "python"))
    made = re.findall(r"^jaxft train (?:configs/)?([\w-]+)\.yaml", commands, flags=re.MULTILINE)
    used = re.findall(r"\bruns/([\w-]+?)(?:-study)?\b(?!-)", commands)
    read = re.findall(r"(?<![\w/-])([\w-]+\.yaml)", commands)
    copied = re.findall(r"^jaxft configs copy \w+ ([\w-]+\.yaml)", commands, flags=re.MULTILINE)
    written = {*dict(blocks(part)), *copied}
    lacking = (set(used) - set(made)) | (set(read) - written)
    return not commands or "python" in dict(blocks(part)) or bool(lacking)


def marks(page: Path, number: int) -> tuple[pytest.MarkDecorator, ...]:
    """Which target runs a part: README in `make test`, other pages in `make test-slow`.

    Guides train a model each: `make test-slow` runs one of them, `make test-all` the others. So do
    the parts of the page of tasks, each of which `tests/tasks` trains too.
    """
    guide = page.parent.name == "from" and page != GUIDE
    if guide or (page == TASKS and number > 1):
        return (pytest.mark.full,)
    return () if page == README else (pytest.mark.slow,)


PARTS = [
    pytest.param(part, id=f"{page.relative_to(ROOT)}-{number}", marks=marks(page, number))
    for page in PAGES
    for number, part in enumerate(parts(page))
]


def run_command(line: str) -> None:
    """Run one line of an `sh` block."""
    words = shlex.split(line, comments=True)
    if words[:2] == ["python", "-m"]:  # what takes minutes or more is only asked for
        started = import_module(words[2])
        # Of a package its `__main__` is run, which does not wait to be asked.
        assert hasattr(started, "main") or find_spec(f"{words[2]}.__main__"), line
    elif words[:2] in (["jaxft", "assets"], ["jaxft", "demo"]):  # downloads
        assert set(words[2:]) <= {"--list", *ASSETS}, line
    elif words[0] == "make":
        done = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    elif words[:2] == ["jaxft", "board"]:
        serve_once(words)
    else:
        assert words[0] == "jaxft", f"no test runs '{line}'"
        assert main(words[1:]) == 0, line


def serve_once(words: list[str]) -> None:
    """Run `jaxft board` on a free port, open its page, and end it."""
    command = [sys.executable, "-m", *words, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as board:
        try:
            address = board.stdout.readline().strip()
            with urllib.request.urlopen(address, timeout=60) as answer:
                assert b"jaxft board" in answer.read()
        finally:
            board.terminate()


@pytest.mark.parametrize("part", PARTS)
def test_the_commands_of_a_page_run(part, workspace):
    for language, text in blocks(part):
        if language == "python":
            exec(compile(text, "python of a page", "exec"), {})
        elif language != "sh":
            (workspace / language).write_text(text, encoding="utf-8")
        else:
            for line in text.splitlines():
                run_command(line)


def test_a_command_that_fails_is_seen(workspace):
    with pytest.raises(AssertionError):
        run_command("jaxft config configs/sentiment.yaml optimizer.rate=1")
    with pytest.raises(AssertionError):
        run_command("make dinner")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_points_to_is_there(page):
    text = page.read_text()
    links = re.findall(r"\]\(([^)#]+)\)", text)
    links = [page.parent / link for link in links if "://" not in link]
    tests = [ROOT / name for name in re.findall(r"`(tests/[\w/]+\.py)(?:::\w+)?`", text)]
    modules = re.findall(r"python -m ((?:benchmarks|jaxft)[.\w]+)", text)
    missing = [str(path) for path in [*links, *tests] if not path.exists()]
    functions = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    missing += [
        f"{file}::{name}"
        for file, name in functions
        if f"def {name}(" not in (ROOT / file).read_text()
    ]
    assert not missing + [name for name in modules if not _is_run_by_name(ROOT, name)]


def _is_run_by_name(root: Path, module: str) -> bool:
    """Whether `python -m MODULE` finds a file below `root`: a module, or a package's `__main__`."""
    path = root / module.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()
