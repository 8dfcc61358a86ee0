"""Checkpoints that a demo trains on the spot, by the command line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from jaxft.errors import UserError


def pretrain(config: Mapping[str, Any], scratch: Path, to: Path) -> Path:
    """Train a run, write its export into a folder, and return the run's.

    Args:
        config: without its section `run`.
        scratch: a folder for the run, which is thrown away.
        to: of the checkpoint, empty.

    Raises:
        UserError: the training failed.
    """
    file, run = scratch / "config.yaml", scratch / "pretrained"
    file.write_text(yaml.safe_dump({**config, "run": {"name": run.name, "dir": str(scratch)}}))
    jaxft("train", str(file), "--quiet")
    jaxft("export", str(run), "--out", str(to / "made"))
    for path in (to / "made").iterdir():
        path.rename(to / path.name)
    (to / "made").rmdir()
    return run


def jaxft(*words: str) -> None:
    """Run the command in a process of its own.

    Raises:
        UserError: it failed.
    """
    done = subprocess.run(
        [sys.executable, "-m", "jaxft", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    if done.returncode:
        output = done.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"]
        raise UserError(f"jaxft {' '.join(words)} failed: {output[-1].removeprefix('jaxft: ')}")
