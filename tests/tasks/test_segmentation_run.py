"""Semantic segmentation by the true command: two steps, scores, masks on the page and as files."""

import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from jaxft.cli.main import main
from jaxft.data.image.images import decode
from jaxft.models.load import load
from tests.support.tiny_images import tiny_vit
from tests.support.tiny_masks import tiny_mask_fields


def train(folder, **sections) -> int:
    fields = tiny_mask_fields(folder, **sections)
    (folder / "segment.yaml").write_text(yaml.safe_dump(fields))
    return main(["train", str(folder / "segment.yaml"), "--quiet"])


@pytest.mark.slow
def test_two_steps_of_the_command(tmp_path, capsys):
    augment = {"crop": [0.5, 1.0], "flip": 0.5, "color": 0.3}
    assert train(tmp_path, task={"kind": "semantic_segmentation", "augment": augment}) == 0
    run = tmp_path / "runs" / "run"
    scores = json.loads((run / "result.json").read_text())["metrics"]
    wanted = {"loss", "miou", "mean_recall", "pixel_accuracy", "iou/background"}
    assert wanted <= scores.keys()
    named = [value for name, value in scores.items() if name.startswith("iou/")]
    assert scores["miou"] == pytest.approx(np.mean(named))
    lines = [json.loads(one) for one in (run / "predictions-test.jsonl").read_text().splitlines()]
    assert len(lines) == 3
    for line in lines:
        assert sum(line["shares"].values()) == pytest.approx(1, abs=1e-3)
        assert all(line[name].startswith("data:image/") for name in ("image", "truth", "drawn"))
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "<h3>Masks <small>test, the first 3 of 3" in page
    check_predict(run, tmp_path, capsys)
    check_export(run, tmp_path)


def check_predict(run, folder, capsys) -> None:
    """Masks as PNGs of ids, and pictures with the masks laid over."""
    image = folder / "scenes" / "images" / "00.png"
    size = decode(image).size
    capsys.readouterr()
    assert main(["predict", str(run), str(image)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["mask"].startswith("data:image/png;base64,")
    drawn = folder / "drawn"
    assert main(["predict", str(run), str(image), "--annotate", str(drawn)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["annotated"] == str(drawn / "00.png")
    assert said["mask"] == str(drawn / "00-mask.png")
    assert decode(drawn / "00.png").size == size
    mask = decode(drawn / "00-mask.png")
    assert (mask.size, mask.mode) == (size, "P")
    shares = np.bincount(np.asarray(mask).ravel(), minlength=3) / (size[0] * size[1])
    names = ("background", "blue", "red")
    assert said["shares"] == pytest.approx(
        {name: share for name, share in zip(names, shares, strict=True) if share}, abs=1e-3
    )


def check_export(run, folder) -> None:
    """The export is a SegFormer of `transformers`, with our outputs on an image."""
    assert main(["export", str(run), "--out", str(folder / "export")]) == 0
    model = AutoModelForSemanticSegmentation.from_pretrained(folder / "export").eval()
    assert type(model).__name__ == "SegformerForSemanticSegmentation"
    assert list(model.config.id2label.values()) == ["background", "blue", "red"]
    processor = AutoImageProcessor.from_pretrained(folder / "export", backend="pil")
    image = decode(folder / "scenes" / "images" / "00.png")
    inputs = processor(image, return_tensors="pt")
    ours = load(str(folder / "export"))(pixel_values=inputs["pixel_values"].numpy())["logits"]
    with torch.no_grad():
        theirs = model(**inputs).logits.numpy()
    np.testing.assert_allclose(ours, theirs, atol=2e-5, rtol=2e-5)


def test_a_checkpoint_without_a_head_for_pixels(tmp_path, capsys):
    tiny_vit(tmp_path / "vit")
    assert train(tmp_path, model={"checkpoint": str(tmp_path / "vit")}) == 2
    assert "'semantic_segmentation' has no head on vit" in capsys.readouterr().err


def test_a_mask_of_another_size_ends_in_a_sentence(tmp_path, capsys):
    tiny_mask_fields(tmp_path)
    Image.new("L", (7, 9)).save(tmp_path / "scenes" / "masks" / "00.png")
    whole = dict.fromkeys(("train", "eval", "test"), f"masks:{tmp_path / 'scenes'}")
    assert train(tmp_path, data=whole) == 2
    said = capsys.readouterr().err
    assert "00.png' is 7 x 9 pixels, and its image" in said
    assert "Traceback" not in said
