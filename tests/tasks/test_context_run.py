"""Runs whose rows lie on several devices: scores of one device, from the config to the export."""

import json
from dataclasses import replace

import numpy as np
import pytest

from jaxft.cli.main import main
from jaxft.config.load import to_yaml
from jaxft.engine.evaluate import evaluation_plan
from jaxft.engine.setup import build
from jaxft.errors import UserError
from jaxft.training.story import train
from tests.models.test_decoders import make_checkpoint
from tests.support.tiny import tiny_config

TASK = {"kind": "causal_lm", "text": "text"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    make_checkpoint(folder, "llama")
    return str(folder)


def run_config(folder, checkpoint, **overrides):
    return tiny_config(folder, model={"checkpoint": checkpoint}, task=TASK, **overrides)


@pytest.fixture(scope="module")
def scores(checkpoint, tmp_path_factory):
    """Loss and length of the rows of a run on a mesh."""

    def of(mesh, **overrides):
        folder = tmp_path_factory.mktemp("run")
        run = train(
            run_config(
                folder,
                checkpoint,
                train={"length": "6 steps"},
                data={"pack": False},
                mesh=mesh,
                **overrides,
            ),
            quiet=True,
        )
        layout = json.loads((run.folder / "run.json").read_text())["layout"]
        result = json.loads((run.folder / "result.json").read_text())
        return result["metrics"]["loss"], layout

    return of


RECIPES = {
    "frozen": {"groups": [{"name": "trunk", "depth": [0, 1], "freeze": True}]},
    "lora": {"adapter": {"kind": "lora", "rank": 2}},
}


@pytest.mark.full
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_scores_as_on_one_device(recipe, scores):
    """Rows of training and evaluation are as long as they were, or as what divides."""
    alone, layout = scores({"data": 8}, **RECIPES[recipe])
    cut, own = scores({"data": 2, "context": 4}, **RECIPES[recipe])
    np.testing.assert_allclose(cut, alone, rtol=1e-5)
    assert own == layout | {"divide_by": 8}


def test_rows_are_rounded_up_to_what_divides(checkpoint, tmp_path):
    """In training and in evaluation, whose rows have lengths of their own."""
    config = run_config(tmp_path, checkpoint, mesh={"data": 1, "context": 8}, data={"pack": False})
    built = build(config)
    assert built.layout.divide_by == 16
    assert built.layout.row_length % 32 == 0
    plan = evaluation_plan(built.layout, built.splits["eval"].examples)
    assert {plan.row_length_at(step) % 16 for step in range(len(plan))} == {0}
    odd = run_config(tmp_path, checkpoint, mesh={"data": 1, "context": 8}, data={"row_length": 40})
    with pytest.raises(UserError, match=r"data\.row_length 40 is not a multiple of 16, twice"):
        build(odd)
    with pytest.raises(UserError, match=r"rows have 40 positions, which 16, twice the devices"):
        build(config, layout=replace(built.layout, row_length=40))


REFUSED = [
    (["mesh.context=3"], "does not divide 8 device(s)"),
    (
        ["mesh.data=1", "mesh.context=8", "train.trunk_cache='on'"],
        "train.trunk_cache: rows are divided over 8 devices (mesh.context)",
    ),
    (["mesh.context=0"], "mesh.context"),
    (["mesh={layout: auto, context: 2}"], "remove all other keys of mesh"),
    (["data.row_length=40", "mesh.data=1", "mesh.context=8"], "is not a multiple of 16"),
    (
        ["mesh.data=1", "mesh.context=8", "train.attention=ulysses"],
        "heads of keys over mesh.context x mesh.tensor = 8, which must divide them",
    ),
    (
        ["model.checkpoint=BERT", "task={kind: text_classification}", "mesh.context=2"],
        "the rate is 0.1",
    ),
]


@pytest.mark.parametrize(("override", "sentence"), REFUSED)
def test_what_is_refused(override, sentence, checkpoint, tmp_path, capsys):
    file = tmp_path / "c.yaml"
    bert = tiny_config(tmp_path).model.checkpoint
    file.write_text(to_yaml(run_config(tmp_path, checkpoint).dump()))
    override = [key.replace("BERT", bert) for key in override]
    assert main(["train", str(file), *override, "--quiet"]) == 2
    assert sentence in capsys.readouterr().err
