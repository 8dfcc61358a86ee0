"""The story of looking at the machine: what would go wrong in a run, found before there is one."""

from __future__ import annotations

import json
import os
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import requires
from pathlib import Path

import jax
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from jaxft.device.libtpu import installed_version, libtpu_mismatch
from jaxft.numbers import size
from jaxft.report.browser import find_browser
from jaxft.storage.buckets import refusal
from jaxft.storage.files import cache_dir, is_bucket

HUB = "https://huggingface.co"
HUB_SECONDS = 5.0
FULL_DISK = 5e9  # bytes; a run of a small model keeps a gigabyte of checkpoints
LITTLE_MEMORY = 4e9
MEMORY_FILE = "/proc/meminfo"
COLOURS = {"ok": "green", "warning": "yellow", "wrong": "bold red"}
# Versions that fail together: (package, its versions, other, its versions, what fails).
KNOWN_BAD = (
    ("jax", "<0.10", "flax", ">=0.12", "flax 0.12 uses functions that older jax does not have"),
    ("jax", ">=0.10", "flax", "<0.12", "older flax uses functions that jax has removed"),
    (
        "jinja2",
        "<3.1.6",
        "jinja2",
        "<3.1.6",
        "its sandbox, in which chat templates run, is insecure",
    ),
    ("protobuf", "<4", "tensorflow-datasets", ">=4.9", "features.json cannot be parsed"),
)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what it is.
        state: `ok`, `warning` (a run may go on without it) or `wrong`.
        message: the finding in a sentence.
        mend: what to do, where it is not ok.
    """

    name: str
    state: str
    message: str
    mend: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """All that was looked at."""

    findings: tuple[Finding, ...]

    @property
    def sound(self) -> bool:
        """Return whether nothing is wrong."""
        return all(one.state != "wrong" for one in self.findings)

    def to_json(self) -> str:
        return json.dumps({"sound": self.sound, "findings": [vars(one) for one in self.findings]})

    def render(self) -> RenderableType:
        """As a table for a terminal."""
        table = Table(box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
        for one in self.findings:
            message = f"{one.message} {one.mend}".strip()
            table.add_row(one.name, Text(one.state, COLOURS[one.state]), Text(message))
        return table


def diagnose(folder: str = "runs") -> Diagnosis:
    """Look at devices, versions, memory, disks, the hub and the browser; nothing is left behind.

    Args:
        folder: where runs go: a local folder, or one in a bucket.
    """
    cache = str(cache_dir())
    findings = [
        *_guarded("devices", devices),
        *_guarded("versions", versions),
        *_guarded("memory", memory),
        *_guarded("disk of the cache", lambda: disk(cache)),
        *_guarded(f"folder {folder}", lambda: storage(folder)),
        *_guarded("hub", hub),
        *_guarded("browser", browser),
    ]
    return Diagnosis(tuple(findings))


def _guarded(name: str, look: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """Run a check; its failure is a finding too, and does not stop the others."""
    try:
        return list(look())
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        return [Finding(name, "wrong", f"{type(error).__name__}: {reason}")]


def devices() -> Iterator[Finding]:
    """Check the devices that jax runs on."""
    present = jax.devices()
    first, count = present[0], len(present)
    memories = (device.memory_stats() or {} for device in present)
    limit = min(stats.get("bytes_limit", 0) for stats in memories)
    each = f", {size(limit)} each" if limit else ""
    message = f"{count} x {first.device_kind} ({first.platform}{each})"
    there = [
        name
        for name in ("jax-cuda13-plugin", "jax-cuda12-plugin", "libtpu")
        if installed_version(name)
    ]
    if first.platform == "cpu" and there and os.environ.get("JAX_PLATFORMS") != "cpu":
        mend = f"{there[0]} is installed, but jax does not find its device: check the driver."
        yield Finding("devices", "warning", f"{message}.", mend)
    else:
        yield Finding("devices", "ok", f"{message}.")


def versions(
    needed: Sequence[str] | None = None, installed: Callable[[str], str | None] | None = None
) -> Iterator[Finding]:
    """Check the installed versions against what jaxft requires and what works together.

    Args:
        needed: requirements, as a package states them; jaxft's own by default.
        installed: a package -> its version, or None.
    """
    look = installed or installed_version
    faults = []
    for text in requires("jaxft") or () if needed is None else needed:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = look(requirement.name)
        if version is None:
            faults.append(f"{requirement.name} is not installed.")
        elif not requirement.specifier.contains(version, prereleases=True):
            faults.append(f"{requirement.name} {version} is not {requirement.specifier}.")
    pair = look("jax"), look("jaxlib")
    if None not in pair and pair[0] != pair[1]:
        faults.append(f"jax {pair[0]} and jaxlib {pair[1]} are not from the same release.")
    for one, bad, other, worse, why in KNOWN_BAD:
        version, beside = look(one), look(other)
        if version and beside and version in SpecifierSet(bad) and beside in SpecifierSet(worse):
            faults.append(f"{one} {version} with {other} {beside}: {why}.")
    for fault in faults:
        yield Finding(
            "versions", "wrong", fault, "pip install -U jaxft installs compatible versions."
        )
    mismatch = libtpu_mismatch(look)
    if mismatch is not None:
        yield Finding("versions", "wrong", *mismatch)
    if not faults and mismatch is None:
        names = ("jax", "flax", "optax", "orbax-checkpoint", "grain")
        yield Finding("versions", "ok", ", ".join(f"{name} {look(name)}" for name in names) + ".")
    if look("tensorflow") and _takes_devices():
        mend = "Set CUDA_VISIBLE_DEVICES= for TensorFlow's own programs."
        yield Finding("versions", "warning", "TensorFlow takes all of a GPU's memory.", mend)


def memory() -> Iterator[Finding]:
    """Check the free memory for this machine's own part: data, and models on CPU."""
    if not Path(MEMORY_FILE).exists():
        yield Finding("memory", "warning", "This system does not report free memory.")
        return
    lines = (line.split() for line in Path(MEMORY_FILE).read_text().splitlines())
    free = next(int(words[1]) * 1024 for words in lines if words[0] == "MemAvailable:")
    if free < LITTLE_MEMORY:
        yield Finding("memory", "warning", f"{size(free)} are free.", "Close other programs.")
    else:
        yield Finding("memory", "ok", f"{size(free)} are free.")


def disk(folder: str) -> Iterator[Finding]:
    """Check the free space on the disk of a folder."""
    free = shutil.disk_usage(_existing(folder)).free
    name = f"disk of {folder}"
    if free < FULL_DISK:
        yield Finding(name, "warning", f"{size(free)} are free.", "Checkpoints need more.")
    else:
        yield Finding(name, "ok", f"{size(free)} are free.")


def storage(folder: str) -> Iterator[Finding]:
    """Check that a folder, or a bucket, can be written to, listed and deleted from."""
    if not is_bucket(folder):
        yield from disk(folder)
    refused = refusal(folder if is_bucket(folder) else _existing(folder))
    if refused is not None:
        mend = "Check its permissions" + (" and at your login." if is_bucket(folder) else ".")
        message = f"It cannot be {refused[0]}: {refused[1]}."
        yield Finding(f"folder {folder}", "wrong", message, mend)
        return
    yield Finding(f"folder {folder}", "ok", "It can be written to, listed and deleted from.")


def hub(environment: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """Check that checkpoints can come from the Hugging Face hub."""
    offline = environment.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    address = environment.get("HF_ENDPOINT", HUB)
    shown = re.sub(r"//[^/@]*@", "//", address)  # without a password
    if offline:
        yield Finding("hub", "ok", "HF_HUB_OFFLINE is set: only local checkpoints are used.")
        return
    try:
        urllib.request.urlopen(address, timeout=HUB_SECONDS).close()
    except urllib.error.HTTPError as error:  # it answers
        yield Finding("hub", "warning", f"{shown} answers {error.code}.")
    except OSError as error:
        mend = "Checkpoints must be local folders; HF_HUB_OFFLINE=1 skips the attempt."
        reason = getattr(error, "reason", error)
        yield Finding("hub", "warning", f"{shown} cannot be reached ({reason}).", mend)
    else:
        yield Finding("hub", "ok", f"{shown} answers.")


def browser() -> Iterator[Finding]:
    """Check for a browser that renders a report's figures into files."""
    path = find_browser()
    if path is None:
        mend = "Debian: apt-get install chromium."
        yield Finding(
            "browser", "warning", "Chromium is not installed: report --png is not available.", mend
        )
    else:
        yield Finding("browser", "ok", f"{path}.")


def _existing(folder: str) -> Path:
    """A local folder, or the nearest above it that is there."""
    path = Path(folder).expanduser().absolute()
    return next(one for one in (path, *path.parents) if one.exists())


def _takes_devices() -> bool:
    return jax.default_backend() == "gpu"
