"""Object detection by the true command: two steps, a score, boxes annotated into a photo."""

import csv
import json

import pytest
import yaml
from PIL import Image, ImageDraw

from jaxft.cli.main import main
from tests.support.tiny_images import tiny_vit


def write_photos(folder) -> None:
    """Two photos of 40 x 40 with a red square in each quarter, all of them told."""
    rows = []
    for name in ("a.png", "b.png"):
        image = Image.new("RGB", (40, 40), (40, 160, 60))
        for left, top in ((4, 4), (24, 4), (4, 24), (24, 24)):
            ImageDraw.Draw(image).rectangle([left, top, left + 9, top + 9], (200, 40, 50))
            rows.append((name, left, top, left + 10, top + 10, "square"))
        image.save(folder / name)
    with (folder / "boxes.csv").open("w", newline="") as file:
        head = ("image_path", "xmin", "ymin", "xmax", "ymax", "label")
        csv.writer(file).writerows([head, *rows])


@pytest.mark.parametrize("match", [pytest.param("box", marks=pytest.mark.full), "place"])
def test_two_steps_of_the_command(match, tmp_path, capsys):
    write_photos(tmp_path)
    data = f"boxes:{tmp_path / 'boxes.csv'}"
    config = {
        "run": {"name": "run", "dir": str(tmp_path / "runs")},
        "model": {"checkpoint": str(tiny_vit(tmp_path / "vit")), "detection_tokens": 4},
        "task": {"kind": "object_detection", "tile": 20, "overlap": 0.0, "match": match},
        "data": {"train": data, "eval": data, "test": data, "batch_size": 8},
        "groups": [{"name": "trunk", "depth": [0, 1], "freeze": True}],
        "train": {"length": "2 steps", "evaluate_every": "1 steps", "trunk_cache": "on"},
        "checkpoint": {"every": "2 steps"},
        "report": {"tensorboard": False},
    }
    (tmp_path / "detect.yaml").write_text(yaml.safe_dump(config))
    assert main(["train", str(tmp_path / "detect.yaml"), "--quiet"]) == 0
    run = tmp_path / "runs" / "run"
    result = json.loads((run / "result.json").read_text())
    assert {"loss", "map", "map_50", "map_75"} <= result["metrics"].keys()
    lines = [json.loads(one) for one in (run / "predictions-test.jsonl").read_text().splitlines()]
    assert [len(line["gold"]) for line in lines] == [4, 4]
    capsys.readouterr()
    annotated = tmp_path / "annotated"
    assert main(["predict", str(run), str(tmp_path / "a.png"), "--annotate", str(annotated)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["file"].endswith("a.png")
    with Image.open(annotated / "a.png") as image:
        assert image.size == (40, 40)
    check_predict_spares_what_is_there(run, tmp_path, annotated, capsys)


def check_predict_spares_what_is_there(run, tmp_path, annotated, capsys):
    """Two images of one name, those that are read, and those of somebody else."""
    photo = (tmp_path / "a.png").read_bytes()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.png").write_bytes((tmp_path / "b.png").read_bytes())
    both = [str(tmp_path / "a.png"), str(tmp_path / "other" / "a.png")]
    assert main(["predict", str(run), *both, "--annotate", str(annotated)]) == 0  # over one of ours
    lines = [json.loads(one) for one in capsys.readouterr().out.splitlines()]
    assert [line["file"] for line in lines] == both
    assert [line["annotated"] for line in lines] == [
        str(annotated / n) for n in ("a.png", "a-2.png")
    ]
    assert sorted(path.name for path in annotated.iterdir()) == ["a-2.png", "a.png"]

    assert main(["predict", str(run), *both, "--annotate", str(tmp_path)]) == 2
    assert f"{tmp_path} holds the input '{both[0]}'" in capsys.readouterr().err
    assert main(["predict", str(run), str(tmp_path / "other"), "--annotate", str(tmp_path)]) == 2
    assert "a.png exists and was not written by jaxft" in capsys.readouterr().err
    assert main(["predict", str(run), both[0], "--annotate", str(tmp_path / "detect.yaml")]) == 2
    assert "detect.yaml is a file. Name a folder" in capsys.readouterr().err
    assert (tmp_path / "a.png").read_bytes() == photo
