"""Object detection by the true command: two steps, a score, boxes annotated into a photo."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
import yaml
from PIL import Image, ImageDraw

from jaxft.cli.main import main
from jaxft.tasks.object_detection import task
from jaxft.tasks.object_detection.detection_loss import corners
from jaxft.tasks.object_detection.task import best_pairs, lowest_shown
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


@pytest.mark.slow
@pytest.mark.parametrize("match", [pytest.param("box", marks=pytest.mark.full), "place"])
def test_two_steps_of_the_command(match, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(task, "SURE", 1.01)  # no box of the evaluation is sure
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
    assert sum(len(line["objects"]) for line in lines) >= 8, "as many as there are true ones"
    lowest = lines[0]["lowest_score"]
    assert f"detected with a score of {lowest:.3g} or more" in page_of(run)
    capsys.readouterr()
    annotated = tmp_path / "annotated"
    assert main(["predict", str(run), str(tmp_path / "a.png"), "--annotate", str(annotated)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["file"].endswith("a.png")
    with Image.open(annotated / "a.png") as image:
        assert image.size == (40, 40)
    check_predict_spares_what_is_there(run, tmp_path, annotated, capsys)


def tiny_rf_detr(folder):
    """A detector of images of 16 pixels, with two groups of six queries."""
    backbone = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    backbone |= {"model_type": "rf_detr_dinov2", "patch_size": 4, "image_size": 16}
    backbone |= {"num_windows": 2, "out_features": ["stage1", "stage2"]}
    own = {"d_model": 16, "decoder_layers": 1, "decoder_ffn_dim": 16, "num_queries": 6}
    own |= {"group_detr": 2, "decoder_self_attention_heads": 2, "c2f_num_blocks": 1}
    config = transformers.RfDetrConfig(
        backbone_config=backbone, decoder_cross_attention_heads=2, num_labels=2, **own
    )
    transformers.RfDetrForObjectDetection(config).save_pretrained(folder)
    size = {"height": 16, "width": 16}
    fields = {"image_processor_type": "RfDetrImageProcessor", "size": size, "do_pad": False}
    (folder / "preprocessor_config.json").write_text(json.dumps(fields))
    return folder


def test_the_best_pairs_of_box_and_class_are_transformers_own():
    draw = np.random.default_rng(0)
    outputs = {"logits": draw.normal(size=(2, 6, 3)), "pred_boxes": draw.uniform(size=(2, 6, 4))}
    outputs = {name: value.astype(np.float32) for name, value in outputs.items()}
    ours = best_pairs(outputs)
    tensors = SimpleNamespace(**{name: torch.tensor(value) for name, value in outputs.items()})
    read = transformers.RfDetrImageProcessor().post_process_object_detection
    for row, theirs in enumerate(read(tensors, threshold=0.0, target_sizes=[(1, 1)] * 2)):
        np.testing.assert_allclose(ours["scores"][row, 0], theirs["scores"], rtol=1e-5)
        np.testing.assert_array_equal(ours["classes"][row, 0], theirs["labels"])
        np.testing.assert_allclose(corners(ours["boxes"])[row, 0], theirs["boxes"], atol=1e-5)


@pytest.mark.full
def test_a_detector_of_queries_trains_and_is_exported(tmp_path, capsys):
    """The backbone at a lower rate; `transformers` reads the export. It has no places to match."""
    write_photos(tmp_path)
    data = f"boxes:{tmp_path / 'boxes.csv'}"
    config = {
        "run": {"name": "run", "dir": str(tmp_path / "runs")},
        "model": {"checkpoint": str(tiny_rf_detr(tmp_path / "rf_detr"))},
        "task": {"kind": "object_detection", "tile": 20, "overlap": 0.0},
        "data": {"train": data, "eval": data, "batch_size": 8},
        "groups": [
            {"name": "backbone", "depth": [0, 2], "lr_mult": 0.1},
            {"name": "decoder", "depth": [4, 4]},
        ],
        "train": {"length": "2 steps"},
        "checkpoint": {"every": "2 steps"},
        "report": {"tensorboard": False},
    }
    (tmp_path / "detect.yaml").write_text(yaml.safe_dump(config))
    assert main(["train", str(tmp_path / "detect.yaml"), "--quiet"]) == 0
    run, export = tmp_path / "runs" / "run", tmp_path / "export"
    assert {"loss", "map"} <= json.loads((run / "result.json").read_text())["metrics"].keys()
    assert main(["export", str(run), "--out", str(export)]) == 0
    model = transformers.AutoModelForObjectDetection.from_pretrained(export)
    assert model.config.id2label == {0: "square"}
    capsys.readouterr()
    override = "task.match=place"
    assert main(["train", str(tmp_path / "detect.yaml"), override, "run.name=other"]) == 2
    assert "task.match: the detections of a rf_detr have no place" in capsys.readouterr().err


def page_of(run: Path) -> str:
    assert main(["report", str(run), "--out", str(run.parent / "page.html")]) == 0
    return (run.parent / "page.html").read_text()


@pytest.mark.parametrize(
    ("scores", "gold", "lowest"),
    [
        ([[0.9, 0.2, 0.1], [0.4]], [1, 2], 0.2),  # the third best of all
        ([[0.9, 0.8], [0.7]], [1, 1], 0.5),
        ([[0.3], [0.2]], [4, 4], 0.2),
        ([[0.3], []], [0, 0], 0.5),
        ([[], []], [1, 0], 0.5),
    ],
)
def test_as_many_boxes_are_shown_as_there_are_true_ones(scores, gold, lowest):
    detections = [{"scores": np.array(one)} for one in scores]
    truth = [SimpleNamespace(corners=np.zeros((count, 4))) for count in gold]
    assert lowest_shown(detections, truth) == lowest


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
