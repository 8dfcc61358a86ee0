"""The notebooks: stored without outputs, and each runs from its first cell to its last.

A notebook runs in a kernel of its own, in a folder with small assets, as the pages of docs/ do:
random models of width 16 and few rows.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
# `make test-slow` runs this one, `make test-all` the others too.
QUICK = "sentiment"
RUN = "from nbclient.cli import main; main()"


def cells(path: Path, kind: str) -> list[dict]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def test_there_are_five():
    names = [path.stem for path in NOTEBOOKS]
    assert names == ["chat_lora", "images", "layers", "sentiment", "tpu"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_stored_without_outputs_and_installs_first(path):
    code = cells(path, "code")
    assert [cell for cell in code if cell["outputs"] or cell["execution_count"]] == []
    assert [cell for cell in code if cell["metadata"]] == []
    assert "%pip install" in "".join(code[0]["source"])
    assert cells(path, "markdown")[0]["source"][0].startswith("# ")


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=() if path.stem == QUICK else pytest.mark.full, id=path.stem)
        for path in NOTEBOOKS
    ],
)
def test_it_runs(path, tmp_path, assets):
    (tmp_path / "assets").symlink_to(assets)
    copy = tmp_path / path.name
    copy.write_bytes(path.read_bytes())
    commands = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    folders = {name: str(tmp_path / name) for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR")}
    environment = {**os.environ, **folders, "PATH": commands, "PYTHONPATH": str(FOLDER.parent)}
    done = subprocess.run(
        [sys.executable, "-c", RUN, "--inplace", "--timeout=600", str(copy)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    failed = [text for text in outputs(copy) if "jaxft:" in text or "Traceback" in text]
    assert failed == []  # a command after `!` does not end the notebook


def outputs(path: Path) -> list[str]:
    """The text that each cell printed."""
    printed = [out.get("text", "") for cell in cells(path, "code") for out in cell["outputs"]]
    return ["".join(text) for text in printed]
