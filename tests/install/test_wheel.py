"""The wheel and the source archive, as a release builds them, in environments without a clone."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from jaxft.config.load import to_yaml
from tests.support.tiny import tiny_config

ROOT = Path(__file__).parents[2]
BUILD = """
import sys
from setuptools import build_meta
print(build_meta.build_sdist(sys.argv[1]))
"""
# The clone and its variables are not there, so what runs is what was installed.
BARE = {
    name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")
}


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command outside of the clone; return its output."""
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=BARE, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def archives(tmp_path_factory) -> tuple[Path, Path]:
    """The source archive, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("archives")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("jaxft", "configs"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignore)
    run(sys.executable, "-c", BUILD, folder, cwd=source)
    (sdist,) = folder.glob("*.tar.gz")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    run(*pip, "--no-build-isolation", sdist, "--wheel-dir", folder, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


@pytest.mark.slow
def test_the_wheel_has_the_package_and_nothing_else(archives):
    sdist, wheel = archives
    names = set(zipfile.ZipFile(wheel).namelist())
    tops = {name.split("/")[0] for name in names}
    (about,) = (top for top in tops if top.endswith(".dist-info"))
    assert tops == {"jaxft", about}
    in_clone = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "jaxft").rglob("*.py")
        if "__pycache__" not in path.parts
    }
    assert in_clone <= names
    assert {"jaxft/py.typed", f"{about}/licenses/LICENSE"} <= names
    configs = {path.name for path in (ROOT / "configs").glob("*.yaml")}
    assert {f"jaxft/configs/{name}" for name in configs} <= names
    assets = [path.name for path in (ROOT / "jaxft/report/page/assets").iterdir() if path.is_file()]
    assert {f"jaxft/report/page/assets/{name}" for name in assets} <= names
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert in_clone | {"pyproject.toml", "README.md", "LICENSE"} <= packed


@pytest.mark.slow
def test_the_installed_command_runs_without_a_clone(archives, tmp_path):
    """The packages that jaxft needs are those of this environment; jaxft itself is the wheel's."""
    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=tmp_path)
    pip = [sys.executable, "-m", "pip", "--python", venv, "install", "--quiet", "--no-deps"]
    run(*pip, "--no-index", archives[1], cwd=tmp_path)
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "needed.pth").write_text(sysconfig.get_path("purelib"))
    jaxft = venv / "bin" / "jaxft"
    assert run(jaxft, "--version", cwd=tmp_path).startswith("jaxft 0.")
    where = run(venv / "bin" / "python", "-c", "import jaxft; print(jaxft.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(site)
    shown = run(jaxft, "config", "--schema", cwd=tmp_path)
    assert shown == (ROOT / "docs" / "schema.json").read_text()


@pytest.mark.full  # installs every package that jaxft needs, by pip from its index
def test_a_bare_environment_trains_and_exports(archives, tmp_path):
    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", venv, cwd=tmp_path)
    python, jaxft = venv / "bin" / "python", venv / "bin" / "jaxft"
    pip = [python, "-m", "pip", "install", "--quiet"]
    locked = [*pip, "--require-hashes", "--no-deps", "--requirement"]
    run(*locked, ROOT / "requirements" / "build.txt", cwd=tmp_path)
    locked.insert(-1, "--no-build-isolation")
    run(*locked, ROOT / "requirements" / "run.txt", cwd=tmp_path)
    run(*pip, "--no-index", archives[1], cwd=tmp_path)  # fails if the lock lacks a requirement
    run(python, "-m", "pip", "check", cwd=tmp_path)
    config = tmp_path / "tiny.yaml"
    config.write_text(to_yaml(tiny_config(tmp_path).dump()))
    folder = run(jaxft, "train", config, "run.name=bare", cwd=tmp_path).splitlines()[-1]
    assert json.loads((Path(folder) / "result.json").read_text())["metrics"]
    exported = Path(run(jaxft, "export", folder, cwd=tmp_path).strip().splitlines()[-1])
    assert (exported / "model.safetensors").is_file()
    run(jaxft, "report", folder, cwd=tmp_path)
