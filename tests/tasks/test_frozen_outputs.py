"""What a frozen model gives for each example: equal to its own outputs, and computed once."""

import numpy as np
import pytest

from jaxft.data.sources.open import given_rows
from jaxft.models import load as registry
from jaxft.tasks.causal_lm.section import CausalLmSection
from jaxft.tasks.causal_lm.task import make
from jaxft.tasks.parts import frozen_outputs as module
from jaxft.tasks.parts.frozen_outputs import frozen_outputs
from jaxft.tasks.parts.tools import Tools
from tests.models.test_decoders import make_checkpoint

ROWS = [{"text": "the film was good"}, {"text": "dull"}, {"text": "a film of the cast " * 3}]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A Llama of random weights, described: none of its weights is read."""
    folder = tmp_path_factory.mktemp("llama")
    make_checkpoint(folder, "llama")
    return registry.describe(str(folder), registry.LoadOptions(task="causal_lm"))


def examples_of(tools):
    section = CausalLmSection(kind="causal_lm", text="text")
    return make(section).bind(tools, ()).examples(given_rows(ROWS))


def of_rows(outputs, batch):
    return {"loss": outputs["losses"].sum(-1)}


def of_positions(outputs, batch):
    return {"losses": outputs["losses"]}


def test_each_example_has_the_outputs_of_the_model_on_it_alone(model, tmp_path, monkeypatch):
    tools = Tools(model, None, tmp_path)
    examples = examples_of(tools)
    totals = frozen_outputs(tools, model, examples, of_rows, kind="losses")
    each = frozen_outputs(tools, model, examples, of_positions, kind="each", per_position=True)
    weighted = registry.load(str(model.source.folder), task="causal_lm")
    assert len(totals) == len(each) == len(examples) == 3
    for number, length in enumerate(examples.lengths):
        batch = examples.collate(np.array([[number]]), int(length))
        wanted = np.asarray(weighted(**batch)["losses"])[0]
        np.testing.assert_allclose(each[number]["losses"], wanted, rtol=1e-5, atol=1e-6)
        assert totals[number]["loss"].shape == (1,)
        np.testing.assert_allclose(totals[number]["loss"], wanted.sum(), rtol=1e-5)

    def never(*_):
        raise AssertionError("the model runs again")

    monkeypatch.setattr(module, "_rows", never)
    again = frozen_outputs(tools, model, examples, of_rows, kind="losses")
    assert [one["loss"] for one in again] == [one["loss"] for one in totals]


def test_a_plan_without_weights_has_zeros_of_the_same_shapes(model, tmp_path):
    tools = Tools(model, None, tmp_path, weights=False)
    examples = examples_of(tools)
    each = frozen_outputs(tools, model, examples, of_positions, kind="each", per_position=True)
    assert [len(one["losses"]) for one in each] == examples.lengths.tolist()
    assert not any(one["losses"].any() for one in each)
