"""Image paths in a table: they stay in its folder, unless its user names another one."""

import os
from pathlib import Path

import pytest
from PIL import Image

from jaxft.cli.main import main
from jaxft.config.load import parse_config
from jaxft.data.profile import row_digests
from jaxft.data.sources.open import given_rows, open_mixture, open_source
from jaxft.errors import UserError
from jaxft.tasks.object_detection.boxes import opened
from jaxft.tasks.parts.images import check_images, open_image
from tests.support.tiny_images import tiny_image_config


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Write `table/rows.csv` that names one image, beside `secret/private.png`."""
    monkeypatch.chdir(tmp_path)
    for name in ("table/own.png", "secret/private.png"):
        Path(name).parent.mkdir()
        Image.new("RGB", (8, 8), (9, 9, 9)).save(name)
    Path("table/link.png").symlink_to(Path("secret/private.png").resolve())
    Path("table/linked").symlink_to(Path("secret").resolve())

    def write(name):
        Path("table/rows.csv").write_text(f"image,label\n{name},a\n")
        return "csv:table/rows.csv"

    return write


OUTSIDE = ("../secret/private.png", "link.png", "linked/private.png", "linked/../secret/no.png")


@pytest.mark.parametrize("name", [*OUTSIDE, "{here}/secret/private.png", "a\0.png", ".."])
def test_a_path_that_leads_out_of_its_table_is_refused(table, tmp_path, name):
    name = name.format(here=tmp_path)
    source = open_source(table(name))
    readers = [lambda: check_images(source, "image"), lambda: open_image(source, 0, name)]
    readers += [lambda: opened(source, 0, "image")]
    for read in readers:
        with pytest.raises(UserError, match=r"rows\.csv: row 1: the path .* leads out of .*folder"):
            read()


def test_a_path_inside_is_read(table, tmp_path):
    for name in ("own.png", "../table/own.png", f"{tmp_path}/table/own.png"):
        check_images(open_source(table(name)), "image")


def test_paths_start_from_the_rows_own_table_where_there_are_several(table):
    for name in ("x", "y"):
        Path(f"shards/{name}").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(f"shards/{name}/a.png")
        Path(f"shards/{name}/rows.csv").write_text("image,label\na.png,a\n")
    Image.new("RGB", (9, 9)).save("shards/a.png")  # in the tables' common folder: another image
    source = open_source("csv:shards/*/rows.csv:ordered")
    paths = [Path(f"shards/{name}/a.png") for name in ("x", "y")]
    assert [source.path_of(number, "a.png") for number in range(2)] == paths
    assert row_digests(source, ["image"])[0] != row_digests(source, ["image"])[1]
    check_images(source, "image")
    with pytest.raises(UserError, match=r"x/rows\.csv: row 1: the path .* leads out"):
        source.path_of(0, "../a.png")
    both = open_mixture(["csv:shards/*/rows.csv:ordered", table("own.png")])
    assert both.path_of(1, "a.png") == paths[1]
    assert both.folder_of(2) == Path("table")


def test_the_config_names_a_folder_that_paths_may_lead_into(table, tmp_path):
    data = {"train": table("link.png"), "eval": table("link.png")}
    plain = tiny_image_config(tmp_path).dump()
    for folder, fits in (("secret", True), (str(tmp_path), True), ("sec", False), (None, False)):
        config = parse_config(plain | {"data": plain["data"] | data | {"image_folder": folder}})
        (source,) = open_mixture([config.data.eval], image_folder=config.data.image_folder).mixed
        if fits:
            check_images(source, "image")
        else:
            with pytest.raises(UserError, match=r"data\.image_folder"):
                check_images(source, "image")


def test_each_table_of_a_mixture_has_its_own_folder(table):
    Path("secret/rows.csv").write_text("image,label\nprivate.png,b\n")
    mixed = open_mixture([table("own.png"), "csv:secret/rows.csv"])
    check_images(mixed, "image")
    mixed = open_mixture([table("secret/private.png"), "csv:secret/rows.csv"])
    with pytest.raises(UserError, match=r"There is no image .table/secret"):
        check_images(mixed, "image")


def test_what_a_person_typed_may_lead_anywhere(table):
    table("own.png")
    rows = given_rows([{"image": "table/../secret/private.png"}])
    assert open_image(rows, 0, rows[0]["image"]).size == (8, 8)


def test_a_data_set_gets_no_image_from_outside(table, capsys):
    assert main(["data", "build", table("link.png"), "--out", "sets/leak"]) == 2
    assert "leads out of the folder of its table" in capsys.readouterr().err
    assert not os.path.exists("sets")
    build = ["data", "build", table("link.png"), "--out", "sets/mine", "--image-folder", "secret"]
    assert main(build) == 0
    assert os.listdir("sets") == ["mine"], "TFDS leaves no folder of downloads beside it"
    assert open_source("tfds:sets/mine/1.0.0:train")[0]["image"]
