"""The lock: what `make` installs is pinned, hashed, and within the bounds of pyproject.toml."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.markers import Marker, default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCKS = {  # and the extras that each is for
    "run": set(),
    "test": {"test"},
    "demos": {"demos"},
    "dev": {"demos", "dev", "gcs", "plan", "test"},
}
UNLOCKED = {"torch", "torchvision"}
PIN = re.compile(r"([\w.-]+)==(\S+)(?: ; (.*?))?((?: +--hash=sha256:[0-9a-f]{64})+)")


def environment(python: str) -> dict[str, str]:
    """Return what markers are evaluated with on Linux, x86-64."""
    return {
        **{name: str(value) for name, value in default_environment().items()},
        "python_version": python,
        "python_full_version": f"{python}.0",
        "platform_machine": "x86_64",
        "sys_platform": "linux",
    }


def locked(name: str, python: str) -> dict[str, str]:
    """Return package -> version that a lock has for a Python."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    lines = re.sub(r" \\\n", "", text).splitlines()
    pins = [PIN.fullmatch(line) for line in lines if not line.startswith("#")]
    assert all(pins), "every line is a version and its hashes"
    chosen = {
        canonicalize_name(pin[1]): pin[2]
        for pin in pins
        if pin[3] is None or Marker(pin[3]).evaluate(environment(python))
    }
    assert chosen
    return chosen


def required(extras: set[str], python: str) -> list[Requirement]:
    """Return what pyproject.toml requires with these extras on a Python."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = [*project["dependencies"]]
    for extra in extras:
        texts += project["optional-dependencies"][extra]
    needs = [Requirement(text) for text in texts]
    return [
        need
        for need in needs
        if need.name != "jaxft" and (not need.marker or need.marker.evaluate(environment(python)))
    ]


@pytest.mark.parametrize("python", ["3.11", "3.13"])
@pytest.mark.parametrize("name", LOCKS)
def test_every_requirement_is_locked_within_its_bounds(name, python):
    pins = locked(name, python)
    for need in required(LOCKS[name], python):
        package = canonicalize_name(need.name)
        if package in UNLOCKED:
            continue
        assert package in pins, f"{package} is not in requirements/{name}.txt: make lock"
        assert need.specifier.contains(pins[package]), f"{need} is not {pins[package]}: make lock"


@pytest.mark.parametrize("python", ["3.11", "3.13"])
def test_the_locks_agree_and_leave_only_pytorch_out(python):
    every = locked("dev", python)
    for name in ("build", "run", "test", "demos"):
        assert locked(name, python).items() <= every.items()
    assert "setuptools" in locked("build", python)
    left_out = (ROOT / "requirements" / "unlocked.in").read_text().splitlines()
    assert {line for line in left_out if not line.startswith("#")} == UNLOCKED
    assert not UNLOCKED & every.keys()
    assert not [package for package in every if package.startswith("nvidia")]
