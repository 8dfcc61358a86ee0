"""configs/medical.yaml on a set with the schema of TFDS' patch_camelyon."""

import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

import jaxft
from jaxft.cli.main import main
from tests.support.launch import cache  # noqa: F401 a fixture
from tests.support.tiny_images import tiny_vit

pytestmark = pytest.mark.usefixtures("cache")
CONFIG = Path(__file__).parents[2] / "configs" / "medical.yaml"
SIDE = 96


class PatchCamelyon(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """`id`, `image` of 96 x 96 and `label`, in three splits; a tumour is darker in the middle."""

    def __init__(self, home):
        self.name = "patch_camelyon"
        self.VERSION = tfds.core.Version("2.0.0")
        super().__init__(data_dir=home, file_format="array_record")

    def _info(self):
        features = tfds.features.FeaturesDict(
            {
                "id": tfds.features.Text(),
                "image": tfds.features.Image(shape=(SIDE, SIDE, 3)),
                "label": tfds.features.ClassLabel(num_classes=2),
            }
        )
        return tfds.core.DatasetInfo(
            builder=self, features=features, supervised_keys=("image", "label")
        )

    def _split_generators(self, manager):
        counts = {"train": 32, "validation": 80, "test": 8}
        return {name: self._generate_examples(name, count) for name, count in counts.items()}

    def _generate_examples(self, name, count):
        draw = np.random.default_rng(len(name))
        for number in range(count):
            image = draw.normal((200, 150, 190), 20, (SIDE, SIDE, 3))
            image[32:64, 32:64] -= 90 * (number % 2)
            file = io.BytesIO()  # of an array TensorFlow would make the file
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(file, "PNG")
            file.seek(0)
            yield (
                f"{name}_{number}",
                {"id": f"{name}_{number}", "image": file, "label": number % 2},
            )


@pytest.mark.slow
def test_the_recipe_runs_and_scores_auroc(tmp_path, monkeypatch, capsys):
    tfds.disable_progress_bar()
    with redirect_stdout(io.StringIO()):
        PatchCamelyon(str(tmp_path)).download_and_prepare()
    tiny_vit(tmp_path / "vit")
    set_ = f"tfds:{tmp_path}/patch_camelyon/2.0.0"
    changed = [
        f"run.dir={tmp_path}/runs",
        f"model.checkpoint={tmp_path}/vit",
        "model.image_size=16",
        f"data.train={set_}:train",
        f"data.eval={set_}:validation[:10%]",
        f"data.test={set_}:test",
        "data.batch_size=8",
        "data.workers=0",
        "groups.1.depth=[0, 1]",
        "report.tensorboard=false",
    ]
    assert main(["train", str(CONFIG), *changed]) == 0
    result = json.loads((tmp_path / "runs" / "medical" / "result.json").read_text())
    assert {"accuracy", "auroc", "average_precision"} < set(result["metrics"])
    assert result["examples"] == 8
    capsys.readouterr()
    assert main(["report", str(tmp_path / "runs" / "medical")]) == 0
    page = (tmp_path / "runs" / "medical" / "report.html").read_text()
    assert "Missing data" not in page
    plain = jaxft.load_config(str(CONFIG), [f"model.checkpoint={tmp_path}/vit"])
    assert plain.data.train == "tfds:patch_camelyon:train"
