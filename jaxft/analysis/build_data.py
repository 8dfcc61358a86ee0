"""The story of writing data down: any source as a TFDS data set, or an official one prepared."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from jaxft.data.sources.open import open_source
from jaxft.data.sources.write_tfds import write_tfds
from jaxft.errors import UserError

OFFICIAL = re.compile(r"tfds:[\w/]+(:\d+\.\d+\.\d+)?")
NAMED = re.compile(r"(?P<split>\w+)=(?P<spec>\w+:.+)", re.DOTALL)
HOME = "~/tensorflow_datasets"


def build_data(
    what: Sequence[str], out: Path | None = None, image_folder: Path | None = None
) -> str:
    """Write sources as one TFDS data set, or prepare an official one.

    Args:
        what: `SOURCE`, which becomes the split train, or `SPLIT=SOURCE`, several of them; or
            `tfds:NAME` of TFDS's own catalogue, which TensorFlow prepares.
        out: the data set's folder; of an official one the folder of all, by default TFDS's own.
        image_folder: a folder that image paths may lead into, besides their table's own.

    Returns:
        What reads it: `tfds:FOLDER`, to which `:SPLIT` is added.

    Raises:
        UserError: the rows are not there, or cannot be written as such a set.
    """
    if len(what) == 1 and OFFICIAL.fullmatch(what[0]):
        return _prepare(what[0].removeprefix("tfds:"), out)
    if out is None:
        raise UserError(
            "--out is missing: name a folder to write the data set to.", "Such as --out my_set."
        )
    splits = {}
    for one in what:
        named = NAMED.fullmatch(one)
        name, spec = (named["split"], named["spec"]) if named else ("train", one)
        if name in splits:
            raise UserError(
                f"Two sources have the same split name '{name}'.", "Write SPLIT=SOURCE."
            )
        splits[name] = open_source(spec, image_folder=image_folder)
    return f"tfds:{write_tfds(splits, out.expanduser())}"


def _prepare(name: str, out: Path | None) -> str:
    """Prepare an official data set by TFDS's own program, beside this process."""
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            f"tfds:{name}: TFDS prepares its official data sets with TensorFlow, which is not "
            "installed.",
            "pip install 'jaxft[tfds]'; only preparing needs it, once.",
        )
    home = out or Path(os.environ.get("TFDS_DATA_DIR") or HOME).expanduser()
    program = [sys.executable, "-m", "tensorflow_datasets.scripts.cli.main", "build", name]
    options = ["--file_format=array_record", f"--data_dir={home}"]
    done = subprocess.run([*program, *options], stdout=sys.stderr, check=False)
    if done.returncode:
        raise UserError(f"tfds:{name} could not be prepared.", "TFDS's error message is above.")
    return f"tfds:{name}" if out is None else f"tfds:{home / name.partition(':')[0]}"
