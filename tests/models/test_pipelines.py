"""Pipelines in the layout of `diffusers`: the denoiser is what is loaded and written back."""

import json
import shutil

import diffusers
import numpy as np
import pytest
import torch

from jaxft.errors import UserError
from jaxft.models import load as registry
from jaxft.models.companions import is_written, small_files
from jaxft.models.weights.source import resolve
from tests.support.diffusers_parts import save_dit_pipeline

PART = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    save_dit_pipeline(folder)
    return folder


def files_of(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_an_export_has_every_part_as_it_was(pipeline, tmp_path):
    model = registry.load(str(pipeline))
    assert model.model_type == "DiTTransformer2DModel"
    model.save(tmp_path / "export")
    before, after = files_of(pipeline), files_of(tmp_path / "export")
    assert before.keys() == after.keys()
    assert {n for n, content in before.items() if after[n] != content} <= {
        "transformer/config.json",  # the same fields in another order
        PART,  # the same tensors; whose header says who wrote it
    }
    assert is_written(tmp_path / "export")
    loaded = diffusers.DiTPipeline.from_pretrained(tmp_path / "export")
    sample, steps, labels = torch.zeros(1, 3, 8, 8), torch.tensor([5]), torch.tensor([1])
    ours = model(sample=np.zeros((1, 3, 8, 8)), timestep=np.array([5]), class_labels=np.array([1]))
    with torch.no_grad():
        theirs = loaded.transformer(sample, steps, labels).sample
    np.testing.assert_allclose(ours["sample"], theirs, atol=2e-5)


def test_a_dit_of_the_class_that_its_published_files_have(pipeline, tmp_path):
    """facebook/DiT-XL-2-256 is older than the class, and `diffusers` loads it as that."""
    folder = shutil.copytree(pipeline, tmp_path / "old")
    for file, old in (("model_index.json", ["diffusers", "Transformer2DModel"]), (None, None)):
        path = folder / (file or "transformer/config.json")
        fields = json.loads(path.read_text())
        change = {"transformer": old} if file else {"_class_name": "Transformer2DModel"}
        path.write_text(json.dumps(fields | change))
    model = registry.load(str(folder))
    assert model.model_type == "DiTTransformer2DModel"
    for name, value in registry.load(str(pipeline)).params.items():
        np.testing.assert_array_equal(value, model.params[name])
    model.save(tmp_path / "export")
    loaded = diffusers.DiTPipeline.from_pretrained(tmp_path / "export")
    assert type(loaded.transformer).__name__ == "DiTTransformer2DModel"
    path = folder / "transformer" / "config.json"
    path.write_text(path.read_text().replace("ada_norm_zero", "ada_norm_single"))
    with pytest.raises(UserError, match="the model_type 'Transformer2DModel' is not supported"):
        registry.load(str(folder))


def test_an_export_replaces_an_earlier_one_and_nothing_else(pipeline, tmp_path):
    model = registry.load(str(pipeline))
    model.save(tmp_path / "export")
    model.save(tmp_path / "export")
    other = tmp_path / "other"
    shutil.copytree(pipeline, other)  # diffusers wrote it
    with pytest.raises(UserError, match="is not an earlier export"):
        model.save(other)
    with pytest.raises(UserError, match="is inside"):
        model.save(pipeline / "transformer" / "new")


def test_the_hash_of_a_pipeline_is_of_all_its_weights(pipeline, tmp_path):
    whole = resolve(str(pipeline))
    shutil.copytree(pipeline, tmp_path / "copy")
    assert resolve(str(tmp_path / "copy")).sha256 == whole.sha256
    small = small_files(whole, "base")
    assert "base/scheduler/scheduler_config.json" in small
    assert not [name for name in small if name.endswith(".safetensors")]
    vae = tmp_path / "copy" / "vae" / "diffusion_pytorch_model.safetensors"
    vae.write_bytes(vae.read_bytes()[:-1] + b"\1")
    assert resolve(str(tmp_path / "copy")).sha256 != whole.sha256


def test_a_part_of_a_pipeline_by_itself(pipeline, tmp_path):
    vae = registry.load(str(pipeline / "vae"))
    assert vae.model_type == "AutoencoderKL"
    vae.save(tmp_path / "vae")
    assert sorted(files_of(tmp_path / "vae")) == sorted(files_of(pipeline / "vae"))


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ({"transformer": ["diffusers", "X"], "vae": ["diffusers", "Y"]}, "names the part 'vae'"),
        ({"transformer": ["diffusers", "X"], "../up": ["a", "b"]}, "names the part '../up'"),
        ({"scheduler": ["diffusers", "DDIMScheduler"]}, "names no part 'transformer' or 'unet'"),
        ({"transformer": ["diffusers", "X"]}, "no config.json"),
    ],
)
def test_pipelines_that_are_not_whole(index, words, tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    for part in ("transformer", "scheduler"):
        (tmp_path / part).mkdir()
    with pytest.raises(UserError, match=words):
        registry.load(str(tmp_path))


def test_a_link_out_of_a_pipeline_is_refused(pipeline, tmp_path):
    shutil.copytree(pipeline, tmp_path / "copy")
    (tmp_path / "secret").write_text("{}")
    (tmp_path / "copy" / "vae" / "config.json").unlink()
    (tmp_path / "copy" / "vae" / "config.json").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match="outside the checkpoint"):
        resolve(str(tmp_path / "copy"))
