"""What is wrong with images is one sentence and code 2: no traceback, and nothing is written."""

import json
import re
import shutil
from pathlib import Path

import pytest

from jaxft.cli.main import main
from jaxft.config.load import to_yaml
from tests.data.test_image import png
from tests.support.launch import cache, content  # noqa: F401 a fixture
from tests.support.tiny_images import tiny_image_config

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with `c.yaml`, `checkpoint/` and `pictures/`."""
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(to_yaml(tiny_image_config(Path()).dump()))
    return tmp_path


@pytest.fixture
def refused(folder, capsys):
    """The one sentence that a command ends with; what lay in the folder is as it was."""

    def sentence(*words: str) -> str:
        before = content(folder)
        assert main(words or ("train", "c.yaml", "--quiet")) == 2
        said = capsys.readouterr()
        assert said.err.startswith("jaxft: ")
        assert said.err.count("\n") == 1, said.err
        assert "Traceback" not in said.err
        assert content(folder) == before
        return said.err.removeprefix("jaxft: ").rstrip("\n")

    return sentence


def csv_of(*images: str) -> list[str]:
    """The arguments of a run on a CSV beside the pictures, with these images added to it."""
    known = [f"{name}/{number:02d}.png,{name}" for name in ("blue", "red") for number in range(8)]
    rows = [*known, *(f"{image},red" for image in images)]
    Path("pictures/rows.csv").write_text("\n".join(["image,label", *rows]))
    source = "csv:pictures/rows.csv:ordered"
    return ["train", "c.yaml", f"data.train={source}", f"data.eval={source}", "data.test=null"]


UNREADABLE = "cannot be decoded as an image"
LARGE = "is refused: its header declares more than 67,108,864 pixels"
IMAGES = {
    "no image": (b"not an image", f"{UNREADABLE} (not one of PNG, JPEG"),
    "empty": (b"", f"{UNREADABLE} (not one of PNG, JPEG"),
    "bomb": (png(100_000, 100_000), LARGE),
    "large": (png(9_000, 9_000), LARGE),
    "cut": (None, f"{UNREADABLE} (image file is truncated"),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_an_image_that_does_not_decode_is_named(kind, refused):
    bytes_of, refusal = IMAGES[kind]
    file = Path("pictures/red/05.png")
    file.write_bytes(bytes_of if bytes_of is not None else file.read_bytes()[:200])
    assert f"'pictures/red/05.png' {refusal}" in refused()


def test_a_file_that_is_not_there_is_named(refused):
    assert "There is no image 'pictures/red/gone.png'" in refused(*csv_of("red/gone.png"))


def test_a_row_without_a_path_is_named(refused):
    assert re.search(r"rows\.csv:ordered: row 17 has no image", refused(*csv_of("")))


def test_a_folder_without_images_is_named(refused):
    Path("pictures/yellow").mkdir()
    assert "The class folder 'pictures/yellow' holds no images." in refused()
    shutil.rmtree("pictures")
    assert "There is no folder 'pictures'." in refused()
    Path("pictures").mkdir()
    assert "'pictures' has no subfolders" in refused()


def test_a_column_that_is_not_there(refused):
    assert "no column 'photo'. Its columns: image, label" in refused(
        "train", "c.yaml", "task.image=photo"
    )


def test_a_checkpoint_that_reads_no_images(refused):
    file = Path("checkpoint/preprocessor_config.json")
    fields = json.loads(file.read_text())
    file.write_text(json.dumps(fields | {"image_processor_type": "OwlViTImageProcessor"}))
    assert "does not know the image processor OwlViTImageProcessor" in refused()
    file.write_text("{")
    assert "preprocessor_config.json is not JSON" in refused()
    file.unlink()
    assert "holds no image processor: there is no preprocessor_config.json" in refused()
