"""Pipelines with several text towers, SDXL and Stable Diffusion 3: prompts, training, LoRA."""

import json
import shutil
from functools import partial

import diffusers
import numpy as np
import pytest
import torch

import jaxft
from jaxft.cli.main import main
from jaxft.engine.setup import build
from jaxft.errors import UserError
from jaxft.export.export import export
from tests.support.diffusers_parts import save_sd3_pipeline, save_xl_pipeline
from tests.support.launch import cache  # noqa: F401 a fixture
from tests.support.tiny_images import tiny_pictures
from tests.tasks.test_diffusion import config_of

PIPELINES = {
    "xl": (save_xl_pipeline, diffusers.StableDiffusionXLPipeline.from_pretrained),
    "sd3": (save_sd3_pipeline, diffusers.StableDiffusion3Pipeline.from_pretrained),
    "sd3 without T5": (
        partial(save_sd3_pipeline, t5=False),
        partial(
            diffusers.StableDiffusion3Pipeline.from_pretrained,
            text_encoder_3=None,
            tokenizer_3=None,
        ),
    ),
}
TEXT = {"text": "text", "samples": 2, "sampling_steps": 2}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """A table of images and what they are."""
    folder = tmp_path_factory.mktemp("rows")
    files = sorted(tiny_pictures(folder / "pictures", each=4).rglob("*.png"))
    rows = [{"image": str(f), "text": f"a {f.parent.name} square"} for f in files]
    table = folder / "prompts.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return table


@pytest.fixture(scope="module", params=PIPELINES)
def pipeline(request, tmp_path_factory):
    """The folder of a random pipeline, and what reads such a folder by diffusers."""
    save, read = PIPELINES[request.param]
    folder = tmp_path_factory.mktemp("pipeline")
    save(folder)
    return folder, read


def encoded(theirs, text):
    """What diffusers makes of a prompt: states and vector, and those of none."""
    arguments = {"prompt": text, "device": "cpu", "num_images_per_prompt": 1}
    if isinstance(theirs, diffusers.StableDiffusion3Pipeline):
        arguments |= {"prompt_2": None, "prompt_3": None}
    with torch.no_grad():
        states, no_states, vector, no_vector = theirs.encode_prompt(**arguments)
    return [one.numpy() for one in (states, vector, no_states, no_vector)]


def test_prompts_are_read_as_diffusers_reads_them(pipeline, prompts, tmp_path):
    folder, read = pipeline
    theirs = read(folder)
    examples = build(config_of(tmp_path, folder, f"jsonl:{prompts}", task=TEXT)).splits["eval"]
    texts = examples.examples.texts
    vector = texts.vector_name
    assert texts.texts[0] == ""
    for number, text in list(enumerate(texts.texts))[1:]:
        states, pooled, no_states, no_pooled = encoded(theirs, text)
        ours, nothing = texts.of(number), texts.of(0)
        np.testing.assert_allclose(ours["encoder_hidden_states"], states, atol=2e-5)
        np.testing.assert_allclose(ours[vector], pooled, atol=2e-5)
        np.testing.assert_allclose(nothing["encoder_hidden_states"], no_states, atol=2e-5)
        np.testing.assert_allclose(nothing[vector], no_pooled, atol=2e-5)
    batch = examples.examples.collate(np.arange(3)[:, None], 1)
    assert batch[f"nothing_{vector}"].shape == batch[vector].shape
    if vector == "text_embeds":
        assert batch["time_ids"].tolist() == [[16, 16, 0, 0, 16, 16]] * 3


@pytest.mark.slow
def test_a_lora_gives_diffusers_the_same_image(pipeline, prompts, tmp_path, capsys):
    folder, read = pipeline
    theirs = read(folder)
    config = config_of(
        tmp_path,
        folder,
        f"jsonl:{prompts}",
        task=TEXT,
        adapter={"kind": "lora", "rank": 2, "alpha": 6, "match": [".*attention/.*/kernel"]},
        train={"length": "3 steps"},
        optimizer={"lr": 0.1},
        report={"tensorboard": False, "before": False},
    )
    run = jaxft.train(config, quiet=True)
    assert run.metrics["loss"] > 0
    lora = export(run.folder, tmp_path / "lora", adapter=True)
    merged = export(run.folder, tmp_path / "merged")
    whole = read(merged)

    def draw(pipe):
        pipe.set_progress_bar_config(disable=True)
        noise = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        asked = {"num_inference_steps": 2, "output_type": "np", "height": 16, "width": 16}
        return pipe("a red square", latents=noise, **asked).images

    plain = draw(theirs)
    theirs.load_lora_weights(lora)
    np.testing.assert_allclose(draw(theirs), draw(whole), atol=1e-3)
    assert np.abs(draw(whole) - plain).max() > 1e-3
    words = ["predict", str(run.folder), "a red square", "--samples", "2"]
    assert main([*words, "--out", str(tmp_path / "drawn")]) == 0
    assert len(list((tmp_path / "drawn").glob("*.png"))) == 2
    capsys.readouterr()


@pytest.mark.parametrize(
    ("change", "task", "words"),
    [
        ({}, {}, "reads vectors of whole prompts. Set task.text"),
        ({"text_encoder_2": None}, {"text": "text"}, "does not read the text towers"),
        ({"tokenizer": None}, {"text": "text"}, "has no text tower with a tokenizer"),
        (
            {"text_encoder": ["transformers", "LlamaModel"]},
            {"text": "text"},
            "the part 'text_encoder' is a LlamaModel, which is not supported. Supported: CLIPText",
        ),
    ],
)
def test_a_pipeline_that_lacks_something_is_one_sentence(change, task, words, prompts, tmp_path):
    folder = tmp_path / "pipeline"
    save_xl_pipeline(folder)
    index = json.loads((folder / "model_index.json").read_text()) | change
    index = {name: value for name, value in index.items() if value is not None}
    (folder / "model_index.json").write_text(json.dumps(index))
    shutil.rmtree(tmp_path / "runs", ignore_errors=True)
    with pytest.raises(UserError, match=words):
        build(config_of(tmp_path, folder, f"jsonl:{prompts}", task=task))
