"""A package of npm with a few files, and images of one color."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

from PIL import Image


def png(color: tuple[int, int, int], side: int = 64) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (side, side), color).save(content, "png")
    return content.getvalue()


def write_tarball(path: Path, files: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path
