"""Every command and every line of Python in README and docs runs, in order, page by page.

A page runs in a folder that looks like the repository: the true `configs/`, and in `assets/` a
random 6-block BERT of width 16 and 150 of the reviews, so that `jaxft train` takes seconds.
`make` commands are looked up in the Makefile; `make demo` itself is `tests/test_make_demo.py`.
"""

import csv
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from jaxft.cli import main

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(sh|python)\n(.*?)^```", re.DOTALL | re.MULTILINE)
EVERY = {"train.csv": 51, "test.csv": 20}  # keep one row in so many
HIDDEN = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def small_assets(tmp_path_factory, minilm, reviews) -> Path:
    """What `assets/` holds, of the same form and much smaller."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("assets")
    config = AutoConfig.from_pretrained(minilm, **HIDDEN)
    AutoModel.from_config(config).save_pretrained(folder / "minilm")
    AutoTokenizer.from_pretrained(minilm).save_pretrained(folder / "minilm")
    (folder / "reviews").mkdir()
    for name, every in EVERY.items():
        with (reviews / name).open(newline="", encoding="utf-8") as file:
            head, *rows = csv.reader(file)
        with (folder / "reviews" / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([head, *rows[::every]])
    return folder


@pytest.fixture
def workspace(tmp_path, monkeypatch, small_assets) -> Path:
    """The working directory of one page."""
    (tmp_path / "assets").symlink_to(small_assets)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def blocks(page: Path) -> list[tuple[str, str]]:
    """The fenced `sh` and `python` blocks of a page, in order."""
    return FENCE.findall(page.read_text())


def run_command(line: str) -> None:
    """Run one line of an `sh` block."""
    words = shlex.split(line, comments=True)
    if words[0] == "make":
        done = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    else:
        assert words[0] == "jaxft", f"no test runs '{line}'"
        assert main(words[1:]) == 0, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_run(page, workspace):
    for language, text in blocks(page):
        if language == "python":
            exec(compile(text, str(page), "exec"), {})
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
    tests = [ROOT / name for name in re.findall(r"`(tests/\w+\.py)`", text)]
    modules = re.findall(r"python -m (benchmarks|jaxft)\.(\w+)", text)
    scripts = [ROOT / package / f"{module}.py" for package, module in modules]
    missing = [str(path) for path in [*links, *tests, *scripts] if not path.exists()]
    assert not missing
