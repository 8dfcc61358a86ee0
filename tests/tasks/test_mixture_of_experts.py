"""A mixture of experts that learns next tokens: its loss, a run on a mesh, and its groups."""

import json

import jax
import numpy as np
import pytest
import torch
import transformers

from jaxft.cli.main import main
from jaxft.config.load import to_yaml
from jaxft.data.sources.open import given_rows
from jaxft.export.export import export
from jaxft.models import load as registry
from jaxft.models.load import LoadOptions, describe
from jaxft.models.values import with_values
from jaxft.tasks.causal_lm.section import CausalLmSection as Section
from jaxft.tasks.causal_lm.task import make
from jaxft.tasks.parts.tools import Tools
from jaxft.training.story import train
from tests.models.test_decoders import make_checkpoint
from tests.support.tiny import tiny_config

TASK = {"kind": "causal_lm", "text": "text"}
TEXTS = ["the film was bright", "a dull plot in a grim scene", "the cast is warm"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixture")
    make_checkpoint(folder, "qwen3_moe")
    return str(folder)


def run_config(folder, checkpoint, **overrides):
    return tiny_config(
        folder,
        model={"checkpoint": checkpoint} | overrides.pop("model", {}),
        task=TASK,
        **overrides,
    )


def test_the_loss_and_its_gradient_are_transformers_with_that_of_the_routers(checkpoint):
    """Of padded rows; the loss of an evaluation, which makes the perplexity, is without it."""
    options = LoadOptions(task="causal_lm", router_aux_loss_coef=0.5)
    model = with_values(describe(checkpoint, options))
    task = make(Section(**TASK)).bind(Tools(model, None, None), ())
    examples = task.examples(given_rows([{"text": text} for text in TEXTS]))
    batch = examples.collate(np.array([[0], [1], [2]]), int(examples.lengths.max()))

    def loss(params):
        total, weight = task.objective(model.apply, params, batch, None)["loss"]
        return total / weight

    value, gradient = jax.jit(jax.value_and_grad(loss))(model.params)
    plain, weight = task.loss(model(**batch), batch)

    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint, attn_implementation="eager", experts_implementation="eager"
    ).eval()
    theirs.router_aux_loss_coef = 0.5
    labels = np.full_like(batch["targets"], -100)
    labels[:, 1:] = np.where(batch["targets"] == -1, -100, batch["targets"])[:, :-1]
    inputs = {
        "input_ids": batch["input_ids"],
        "attention_mask": batch["segment_ids"],
        "labels": labels,
    }
    inputs = {name: torch.tensor(array.astype(np.int64)) for name, array in inputs.items()}
    outputs = theirs(**inputs, output_router_logits=True)
    outputs.loss.backward()
    np.testing.assert_allclose(value, outputs.loss.item(), rtol=1e-5)
    np.testing.assert_allclose(
        plain / weight, outputs.loss.item() - 0.5 * outputs.aux_loss.item(), rtol=1e-5
    )
    kernel = theirs.model.layers[1].mlp.gate.weight.grad.numpy().T
    distance = np.linalg.norm(np.asarray(gradient["blocks/1/mlp/router/kernel"]) - kernel)
    assert distance <= 1e-4 * np.linalg.norm(kernel)


@pytest.mark.slow
def test_a_run_on_a_mesh_with_experts_is_that_of_one_device_and_is_handed_back(
    checkpoint, tmp_path
):
    """Routers frozen by a group, the loss of the routers on."""
    scores, folders = [], []
    for number, mesh in enumerate(({"data": 2, "expert": 4}, {"data": 1, "fsdp": 4, "expert": 2})):
        (tmp_path / str(number)).mkdir()
        config = run_config(
            tmp_path / str(number),
            checkpoint,
            model={"router_aux_loss_coef": 0.01},
            train={"length": "6 steps"},
            groups=[{"name": "routers", "match": ".*/mlp/router/kernel", "freeze": True}],
            mesh=mesh,
        )
        run = train(config, quiet=True)
        scores.append(json.loads((run.folder / "result.json").read_text())["metrics"]["loss"])
        folders.append(export(run.folder))
    np.testing.assert_allclose(*scores, rtol=1e-4)
    start, ours = registry.load(checkpoint), registry.load(str(folders[0]))
    for name, value in ours.params.items():
        same = np.array_equal(value, start.params[name])
        assert same is ("/router/" in name), name
    fields = json.loads((folders[0] / "config.json").read_text())
    assert fields["output_router_logits"] is False  # with it, transformers cannot generate
    plain = {"attn_implementation": "eager", "experts_implementation": "eager"}
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folders[0], **plain).eval()
    ids = np.random.default_rng(0).integers(1, 250, (2, 9))
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(ours(input_ids=ids)["logits"], expected, atol=2e-5)
    assert theirs.generate(torch.tensor(ids), max_new_tokens=2).shape == (2, 11)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (["mesh.data=1", "mesh.expert=8"], "4 experts do not divide over 8 devices."),
        (
            ["task={kind: text_classification}", "model.router_aux_loss_coef=0.1"],
            "model.router_aux_loss_coef is for the task causal_lm, and this one is",
        ),
        (["model.router_aux_loss_coef=0"], "model.router_aux_loss_coef"),
        (
            ["model.router_aux_loss_coef=0.1", "sampling={method: lisa, blocks: 1}"],
            "sampling: the load-balancing loss of experts reads all blocks at once",
        ),
        (
            ["adapter={kind: lora, match: ['.*/experts/up/kernel']}"],
            "matches experts or routers, which have no adapters.",
        ),
    ],
)
def test_what_is_refused(override, sentence, checkpoint, tmp_path, capsys):
    file = tmp_path / "c.yaml"
    file.write_text(to_yaml(run_config(tmp_path, checkpoint).dump()))
    assert main(["train", str(file), *override, "--quiet"]) == 2
    assert sentence in capsys.readouterr().err


def test_a_model_without_experts_has_no_loss_of_routers(tmp_path, capsys):
    make_checkpoint(tmp_path / "llama", "llama")
    file = tmp_path / "c.yaml"
    config = run_config(tmp_path, str(tmp_path / "llama"), model={"router_aux_loss_coef": 0.1})
    file.write_text(to_yaml(config.dump()))
    assert main(["train", str(file), "--quiet"]) == 2
    assert "a llama has no experts" in capsys.readouterr().err
