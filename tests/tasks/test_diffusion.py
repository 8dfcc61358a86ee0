"""Denoisers trained on images: by class, by prompt, on pixels; sampled, exported, shown."""

import json
from dataclasses import replace
from pathlib import Path

import diffusers
import jax
import numpy as np
import pytest
import torch
import yaml

import jaxft
from jaxft.cli.main import main
from jaxft.config.load import parse_config
from jaxft.data.random import EpochRandom
from jaxft.engine.setup import build
from jaxft.errors import UserError
from jaxft.export.export import export
from jaxft.report.page.page import write_page
from jaxft.tasks.diffusion.examples import normal
from tests.support.diffusers_parts import (
    save_dit_pipeline,
    save_pixel_pipeline,
    save_text_pipeline,
)
from tests.support.launch import cache  # noqa: F401 a fixture
from tests.support.tiny_images import tiny_pictures, tiny_vit

FLOW = diffusers.FlowMatchEulerDiscreteScheduler


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return tiny_pictures(tmp_path_factory.mktemp("rows") / "pictures", each=8)


@pytest.fixture(scope="module")
def prompts(pictures):
    """A table of the images and what they are."""
    table = pictures.parent / "prompts.jsonl"
    files = sorted(pictures.rglob("*.png"))
    rows = [{"image": str(f), "text": f"a {f.parent.name} square"} for f in files]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return table


@pytest.fixture(scope="module")
def pixels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pixels")
    save_pixel_pipeline(folder, FLOW(shift=2.0))
    return folder


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    folder = tmp_path_factory.mktemp("latents")
    save_dit_pipeline(folder)
    return folder


@pytest.fixture(scope="module")
def stable(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stable")
    save_text_pipeline(folder)
    return folder


def config_of(folder, checkpoint, rows, **sections):
    given = {
        "run": {"name": "tiny", "dir": str(folder / "runs")},
        "model": {"checkpoint": str(checkpoint)},
        "task": {"kind": "diffusion", "samples": 3, "sampling_steps": 3},
        "data": {
            "train": f"{rows}[:50%]",
            "eval": f"{rows}[50%:75%]",
            "test": f"{rows}[75%:]",
            "batch_size": 8,
            "cache": str(folder / "cache"),
        },
        "optimizer": {"lr": 3e-3},
        "train": {"length": "4 steps", "evaluate_every": "2 steps"},
        "report": {"tensorboard": False, "before": True},
    }
    for name, keys in sections.items():
        given[name] = keys if isinstance(keys, list) else given.get(name, {}) | keys
    return parse_config(given)


@pytest.fixture(scope="module")
def by_class(tmp_path_factory, latents, pictures, cache):  # noqa: F811 the fixture above
    """A run over latents by class, on eight devices, frozen below the last blocks, with an EMA."""
    folder = tmp_path_factory.mktemp("run")
    vit = str(tiny_vit(folder / "vit"))
    task = {"label": "label", "min_snr": 5.0, "features": vit}
    config = config_of(
        folder,
        latents,
        f"images:{pictures}",
        task=task,
        groups=[{"name": "lower", "depth": [0, 2], "freeze": True}],
        layer_decay={"rate": 0.8},
        train={"length": "4 steps", "evaluate_every": "2 steps", "ema": 0.9},
    )
    return jaxft.train(config, quiet=True)


@pytest.mark.slow
def test_a_run_by_class_scores_samples_and_exports_a_pipeline(by_class, latents, tmp_path):
    assert by_class.metrics["loss"] > 0
    assert by_class.metrics["frechet_distance"] > 0
    text = (by_class.folder / "predictions-eval.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [("drawn" in line) for line in lines] == [True] * 3 + [False] * 3
    assert {line["label"] for line in lines} <= {"blue", "green", "red"}
    assert len(list((by_class.folder / "samples").glob("*.png"))) == 3
    folder = export(by_class.folder, tmp_path / "export")
    pipeline = diffusers.DiTPipeline.from_pretrained(folder)
    before = diffusers.DiTPipeline.from_pretrained(latents)
    changed = {
        name
        for name, value in pipeline.transformer.state_dict().items()
        if not torch.equal(value, before.transformer.state_dict()[name])
    }
    assert changed
    lower = ("transformer_blocks.0", "transformer_blocks.1", "pos_embed")
    assert not [name for name in changed if name.startswith(lower)]
    assert pipeline.get_label_ids(["blue", "red"]) == [0, 2], "its labels are the run's classes"
    pipeline.set_progress_bar_config(disable=True)
    # Its guidance takes class 1000 for none.
    images = pipeline([1], guidance_scale=1.0, num_inference_steps=2, output_type="np").images
    assert images.shape == (1, 16, 16, 3)
    assert "from diffusers import DiffusionPipeline" in (folder / "README.md").read_text()


def test_what_other_commands_say_of_a_pipeline(latents, pictures, tmp_path, capsys):
    config = tmp_path / "config.yaml"
    dumped = config_of(tmp_path, latents, f"images:{pictures}", task={"label": "label"}).dump()
    config.write_text(yaml.safe_dump(dumped))
    assert main(["data", "show", str(config), "--json"]) == 0
    assert '"loss_weights": 1.0' in capsys.readouterr().out
    assert main(["models", str(latents)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "as a folder that diffusers loads" in said
    assert "trains diffusion" in said


@pytest.mark.slow
def test_layers_of_a_u_net_are_not_measured(stable, prompts, tmp_path, capsys):
    config = tmp_path / "config.yaml"
    dumped = config_of(tmp_path, stable, f"jsonl:{prompts}", task={"text": "text"}).dump()
    config.write_text(yaml.safe_dump(dumped))
    assert main(["layers", str(config)]) == 2
    assert "pass on several images" in capsys.readouterr().err


def test_the_page_shows_the_images(by_class, tmp_path):
    page = write_page([by_class.folder], tmp_path / "page.html").read_text()
    assert "Generated images" in page
    assert "an image generated from scratch of its class" in page
    assert "lower half" not in page


def test_sampling_is_the_pipelines(latents, pictures, tmp_path):
    """From the same noise, with guidance: to 1e-3 of a pixel."""
    task = {"label": "label", "guidance": 3.0, "sampling_steps": 4}
    setup = build(config_of(tmp_path, latents, f"images:{pictures}", task=task))
    bound, examples = setup.bound, setup.splits["eval"].examples
    batch = examples.collate(np.arange(3)[:, None], 1)
    params = jaxft.load(str(latents)).params
    drawn = jax.jit(lambda p, b: bound.generated(p, b, setup.compute)["drawn"])(params, batch)
    keys = [jax.random.fold_in(jax.random.key(0), number) for number in range(3)]
    noise = np.stack([np.asarray(jax.random.normal(key, (3, 8, 8))) for key in keys])
    pipeline = diffusers.DiTPipeline.from_pretrained(latents)
    pipeline.scheduler.set_timesteps(4)
    x, labels = torch.tensor(noise), torch.tensor(batch["class_labels"].astype(int))
    with torch.no_grad():
        for time in pipeline.scheduler.timesteps:
            times = time.expand(6)
            both = torch.cat([labels, torch.full_like(labels, 4)])
            own, none = pipeline.transformer(torch.cat([x, x]), times, both).sample.chunk(2)
            x = pipeline.scheduler.step(none + 3.0 * (own - none), time, x).prev_sample
        expected = pipeline.vae.decode(x / pipeline.vae.config.scaling_factor).sample
    np.testing.assert_allclose(drawn, x, atol=1e-3)
    shown = bound._drawn({"drawn": np.asarray(drawn)}, 3)
    pixels = ((expected.permute(0, 2, 3, 1) + 1) * 127.5).clamp(0, 255).numpy()
    assert np.abs(shown - pixels).max() <= 0.51  # rounded to whole levels


def test_latents_are_the_autoencoders_and_computed_once(latents, pictures, tmp_path):
    config = config_of(tmp_path, latents, f"images:{pictures}", task={"label": "label"})
    examples = build(config).splits["train"].examples
    before = sorted((tmp_path / "cache").rglob("*.bin"))
    again = build(config).splits["train"].examples
    assert before
    assert sorted((tmp_path / "cache").rglob("*.bin")) == before
    vae = diffusers.AutoencoderKL.from_pretrained(latents / "vae")
    values = examples.pixels.collate(np.array([[0]]), 1)["pixel_values"]
    with torch.no_grad():
        latent = vae.encode(torch.tensor(values)).latent_dist
    np.testing.assert_allclose(again.latents.stored[0]["mean"], latent.mean, atol=2e-5)
    np.testing.assert_allclose(again.latents.stored[0]["std"], latent.std, atol=2e-5, rtol=1e-4)
    drawn = examples.latents.draw(0, EpochRandom(0, 0).of(0))
    noise = normal(EpochRandom(0, 0).of(0), drawn.shape)
    expected = (latent.mean.numpy() + latent.std.numpy() * noise) * vae.config.scaling_factor
    np.testing.assert_allclose(drawn, expected, atol=2e-5)


def test_noise_is_new_in_each_epoch_and_the_same_in_each_evaluation(pixels, pictures, tmp_path):
    task = {"timesteps": "logit_normal", "logit_mean": 1.0}
    setup = build(config_of(tmp_path, pixels, f"images:{pictures}", task=task))
    train, scored = (setup.splits[name].examples for name in ("train", "eval"))
    index = np.array([[0], [-1], [2]])
    epochs = [train.collate(index, 1, EpochRandom(7, epoch)) for epoch in (0, 0, 1)]
    np.testing.assert_array_equal(epochs[0]["sample"], epochs[1]["sample"])
    assert np.abs(epochs[0]["sample"] - epochs[2]["sample"]).max() > 0.1
    first, second = (scored.collate(index, 1, EpochRandom(7, epoch)) for epoch in (0, 1))
    np.testing.assert_array_equal(first["sample"], second["sample"])
    assert first["weights"].tolist() == [[1.0], [0.0], [1.0]]
    # x = (1 - s) data + s noise, and noise - data is to be predicted.
    level = (first["timestep"] / 1000).reshape(-1, 1, 1, 1)
    data = first["sample"] - level * first["target"]
    np.testing.assert_allclose(data[0], scored.latents.stored[0]["mean"][0], atol=1e-5)
    many = train.collate(np.arange(12)[:, None] % 12, 1, EpochRandom(0, 0))["timestep"]
    assert np.median(many) > 600  # shifted, and its logit has the mean 1


def test_numbers_of_box_and_muller_are_normal():
    numbers = normal(EpochRandom(3, 0).of(1), (20_000,))
    assert abs(numbers.mean()) < 0.03
    assert numbers.std() == pytest.approx(1, abs=0.02)
    assert (np.abs(numbers) > 1.96).mean() == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize(
    ("prediction", "weight"),
    [
        ("epsilon", lambda ratio: np.minimum(ratio, 5) / ratio),
        ("v_prediction", lambda ratio: np.minimum(ratio, 5) / (ratio + 1)),
        ("sample", lambda ratio: np.minimum(ratio, 5)),
    ],
)
def test_min_snr_weights(prediction, weight, pictures, tmp_path):
    scheduler = diffusers.DDPMScheduler(prediction_type=prediction)
    save_pixel_pipeline(tmp_path / "pipeline", scheduler)
    config = config_of(tmp_path, tmp_path / "pipeline", f"images:{pictures}", task={"min_snr": 5.0})
    examples = build(config).splits["eval"].examples
    batch = examples.collate(np.arange(6)[:, None], 1)
    kept = scheduler.alphas_cumprod.numpy()[batch["timestep"].astype(int)]
    np.testing.assert_allclose(batch["loss_weights"][:, 0], weight(kept / (1 - kept)), rtol=1e-4)


def test_weights_of_images_give_dreambooths_loss(stable, prompts, tmp_path):
    """The mean over the subject's images plus the weighted mean over those of its class."""
    rows = [json.loads(line) for line in prompts.read_text().splitlines()]
    table, prior = prompts.with_name("weighted.jsonl"), 0.7
    weighted = [row | {"weight": prior if n % 2 else 1.0} for n, row in enumerate(rows)]
    table.write_text("".join(json.dumps(row) + "\n" for row in weighted))
    task = {"text": "text", "loss_weight": "weight"}
    setup = build(config_of(tmp_path, stable, f"jsonl:{table}", task=task))
    examples = setup.splits["train"].examples
    batch = examples.collate(np.arange(8)[:, None], 1, EpochRandom(0, 0))
    is_class = batch["loss_weights"][:, 0] == np.float32(prior)
    assert 0 < is_class.sum() < 8
    error = np.random.default_rng(0).normal(size=batch["target"].shape).astype(np.float32)
    total, count = setup.bound.loss({"sample": batch["target"] + error}, batch)
    each = np.square(error).mean((1, 2, 3))
    shares = ~is_class, is_class
    wanted = sum(
        w * each[own].mean() * own.mean() for w, own in zip((1, prior), shares, strict=True)
    )
    assert float(total / count) == pytest.approx(wanted, rel=1e-5)
    bad = json.loads(table.read_text().splitlines()[3]) | {"weight": -1}
    table.write_text(table.read_text() + json.dumps(bad) + "\n")
    with pytest.raises(UserError, match=r"row \d+ has -1 in weight, and a weight is 0 or more"):
        build(config_of(tmp_path, stable, f"jsonl:{table}", task=task))


def test_a_changed_row_changes_the_fingerprint(stable, prompts, tmp_path):
    config = config_of(tmp_path, stable, f"jsonl:{prompts}", task={"text": "text"})
    examples = build(config).splits["train"].examples
    many = np.ones(5000, np.float32)
    changed = np.where(np.arange(5000) == 2500, 2, many).astype(np.float32)
    texts = replace(examples.texts, prompts=examples.texts.prompts[::-1])
    alike = [
        replace(examples, row_weights=many),
        replace(examples, row_weights=changed),
        replace(examples, class_ids=many),
        replace(examples, class_ids=changed),
        replace(examples, texts=texts),
        examples,
    ]
    assert len({one.fingerprint for one in alike}) == len(alike)


def test_dropped_conditions_are_those_of_nothing(stable, latents, prompts, pictures, tmp_path):
    for checkpoint, rows, task, name in (
        (latents, f"images:{pictures}", {"label": "label"}, "class_labels"),
        (stable, f"jsonl:{prompts}", {"text": "text"}, "encoder_hidden_states"),
    ):
        task = task | {"condition_dropout": 0.5}
        setup = build(config_of(tmp_path, checkpoint, rows, task=task))
        examples = setup.splits["train"].examples
        index = np.arange(len(examples))[:, None]
        values = np.concatenate(
            [examples.collate(index, 1, EpochRandom(0, epoch))[name] for epoch in range(8)]
        )
        none = 4 if name == "class_labels" else examples.texts.of(0)[name]
        dropped = (values == none).reshape(len(values), -1).all(1).mean()
        assert 0.3 < dropped < 0.7
        scored = setup.splits["eval"].examples.collate(np.arange(4)[:, None], 1)[name]
        assert not (scored == none).reshape(4, -1).all(1).any()


def test_states_of_prompts_are_the_text_towers(stable, prompts, tmp_path):
    config = config_of(tmp_path, stable, f"jsonl:{prompts}", task={"text": "text"})
    texts = build(config).splits["train"].examples.texts
    assert len(texts.texts) <= 4  # each prompt once, and the empty one
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(stable, safety_checker=None)
    for number, text in enumerate(texts.texts):
        with torch.no_grad():
            theirs, _ = pipeline.encode_prompt(text, "cpu", 1, False)
        ours = texts.of(number)["encoder_hidden_states"]
        np.testing.assert_allclose(ours, theirs.numpy(), atol=2e-5)


@pytest.mark.slow
def test_a_lora_is_read_by_diffusers_and_gives_the_same_image(stable, prompts, tmp_path):
    config = config_of(
        tmp_path,
        stable,
        f"jsonl:{prompts}",
        task={"text": "text", "samples": 0},
        adapter={"kind": "lora", "rank": 2, "alpha": 6, "match": [".*attention/.*/kernel"]},
        train={"length": "3 steps"},
        optimizer={"lr": 0.1},
        report={"tensorboard": False, "before": False},
    )
    run = jaxft.train(config, quiet=True)
    folder = export(run.folder, tmp_path / "lora", adapter=True)
    assert [p.name for p in folder.iterdir()] == ["pytorch_lora_weights.safetensors"]
    merged = export(run.folder, tmp_path / "merged")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(stable, safety_checker=None)
    whole = diffusers.StableDiffusionPipeline.from_pretrained(merged, safety_checker=None)

    def draw(pipe):
        pipe.set_progress_bar_config(disable=True)
        noise = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        return pipe("a red square", latents=noise, num_inference_steps=3, output_type="np").images

    plain = draw(pipeline)
    pipeline.load_lora_weights(folder)
    np.testing.assert_allclose(draw(pipeline), draw(whole), atol=1e-3)
    assert np.abs(draw(pipeline) - plain).max() > 1e-2


def test_a_prompt_that_is_too_long_for_the_text_tower(stable, prompts, tmp_path):
    rows = prompts.parent / "long.jsonl"
    text = "a red square a red square a red square"
    lines = prompts.read_text().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | {"text": text})
    rows.write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"11 tokens in text, and the text tower takes 8"):
        build(config_of(tmp_path, stable, f"jsonl:{rows}", task={"text": "text"}))
    skipped = config_of(
        tmp_path,
        stable,
        f"jsonl:{rows}",
        task={"text": "text"},
        data={"on_bad_row": "skip"},
    )
    assert sum(split.skipped for split in build(skipped).splits.values()) == 1


REFUSED = [
    ("latents", {"text": "label"}, "reads no text"),
    ("latents", {"sampler": "flow"}, "'flow' does not fit"),
    ("latents", {"label": "label", "labels": list("abcdefg")}, "7 classes, and the model has 4"),
    ("pixels", {"min_snr": 5.0}, "no signal-to-noise ratio"),
    ("pixels", {"sampling_steps": 2000}, "2000 steps of sampling"),
    ("stable", {"label": "label"}, "has no classes"),
    ("part", {}, "is no pipeline: it has no model_index.json"),
]


def test_all_rows_may_be_of_one_class(pixels, pictures, tmp_path):
    """A class is a condition, and nothing that is told from others."""
    sections = {"task": {"label": "label"}, "data": {"where": {"label": "red"}}}
    setup = build(config_of(tmp_path, pixels, f"images:{pictures}", **sections))
    batch = setup.splits["train"].examples.collate(np.array([[0]]), 1, EpochRandom(0, 0))
    assert batch["class_labels"].tolist() == [0]


@pytest.mark.parametrize(("pipeline", "task", "words"), REFUSED)
def test_what_a_pipeline_does_not_serve(pipeline, task, words, request, pictures, tmp_path):
    part = pipeline == "part"
    folder = request.getfixturevalue("pixels" if part else pipeline)
    checkpoint = folder / "transformer" if part else folder
    with pytest.raises(UserError, match=words):
        build(config_of(tmp_path, checkpoint, f"images:{pictures}", task=task))


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ({"label": "a", "text": "b"}, "label and text are two conditions"),
        ({"labels": ["a"]}, "labels needs label"),
        ({"features": "vit", "samples": 1}, "set samples to 2 or more"),
        ({"feature_size": 32}, "feature_size needs features"),
    ],
)
def test_sections_that_contradict_themselves(task, words, tmp_path):
    with pytest.raises(UserError, match=words):
        config_of(tmp_path, "none", "csv:a", task=task)


def test_other_sizes_than_the_pipelines(pixels, pictures, tmp_path):
    setup = build(config_of(tmp_path, pixels, f"images:{pictures}", task={"size": 12}))
    batch = setup.splits["train"].examples.collate(np.array([[0]]), 1)
    assert batch["sample"].shape == (1, 3, 12, 12)


def test_images_of_a_class_from_the_command_line(by_class, tmp_path, capsys):
    words = ["predict", str(by_class.folder), "--samples", "2", "--seed", "5", "--json"]
    assert main([*words, "--class", "red", "--out", str(tmp_path / "a")]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["class"] for line in lines] == ["red", "red"]
    first, second = ((tmp_path / "a" / f"red-000{n}.png").read_bytes() for n in (0, 1))
    assert first != second
    assert main([*words, "--out", str(tmp_path / "b")]) == 0  # of each class
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["class"] for line in lines] == ["blue", "blue", "green", "green", "red", "red"]
    files = [Path(line["generated"]).name for line in lines]
    assert files == [f"{name}-000{n}.png" for name in ("blue", "green", "red") for n in (0, 1)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--class", "rd"], "'rd' is no class of this model. Did you mean 'red'?"),
        (["a red square"], "The run was trained without prompts."),
        (["--samples", "1", "--top-k", "5"], "has no setting"),
    ],
)
def test_what_a_run_does_not_draw(by_class, words, message, tmp_path, capsys):
    assert main(["predict", str(by_class.folder), *words, "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
