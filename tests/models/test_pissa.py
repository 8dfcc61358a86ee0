"""PiSSA: adapters that start at a kernel's largest components, in place of these."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
from transformers import AutoModelForSequenceClassification

import jaxft
from jaxft.engine.trained import open_checkpoints, open_trained
from jaxft.errors import UserError
from jaxft.export.export import export
from jaxft.models.adapters.low_rank import Adapter
from jaxft.models.adapters.starts import principal_components
from jaxft.runs.folder import open_run
from jaxft.tasks.text_classification.task import make
from jaxft.training.story import train
from tests.support.families import auto_class, make_pair
from tests.support.tiny import tiny_config

PISSA = {"kind": "lora", "rank": 2, "alpha": 4.0, "init": "pissa"}
QUERY = "blocks/0/attention/query/"

pytestmark = [
    # PEFT asks transformers for what transformers no longer likes to be asked.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return make_pair("bert", "text_classification", 0, tmp_path_factory.mktemp("bert"))


def config_of(folder, steps=4, precision="f32", **sections):
    return tiny_config(
        folder,
        adapter=PISSA,
        optimizer={"lr": 1e-2, "clip": None},
        schedule={"kind": "constant"},
        train={"length": f"{steps} steps", "evaluate_every": 2, "precision": precision},
        checkpoint={"every": 2},
        **sections,
    )


def test_its_product_is_the_truncated_decomposition():
    random = np.random.default_rng(0)
    kernel = (
        random.normal(size=(40, 24))
        @ np.diag(0.8 ** np.arange(24))
        @ np.linalg.qr(random.normal(size=(24, 24)))[0].astype(np.float32)
    )
    a, b = principal_components(jnp.asarray(kernel, jnp.float32), rank=5, scale=2.5)
    left, values, right = np.linalg.svd(kernel)
    truncated = left[:, :5] * values[:5] @ right[:5]
    np.testing.assert_allclose(2.5 * (a @ b), truncated, atol=4e-3 * values[0])  # bfloat16
    lengths = np.linalg.norm(a, axis=0)
    np.testing.assert_allclose(lengths, np.sqrt(values[:5] / 2.5), rtol=4e-3)
    np.testing.assert_allclose(np.linalg.norm(b, axis=1), lengths, rtol=4e-3)


@pytest.mark.slow
def test_it_starts_as_the_checkpoint_and_moves_as_pefts(bert):
    """The sum of both products moves alike; each column's sign is free."""
    model = jaxft.load(bert.folder, adapter=Adapter(2, 4.0, principal=True))
    np.testing.assert_allclose(
        model(**bert.batch)["logits"], bert.ours(**bert.batch)["logits"], atol=1e-6
    )
    slopes = jax.grad(lambda params: jnp.square(model.apply(params, bert.batch)["logits"]).sum())(
        model.params
    )
    base = auto_class("bert", "text_classification").from_pretrained(bert.folder)
    asked = peft.LoraConfig(
        r=2, lora_alpha=4, target_modules=["query", "value"], init_lora_weights="pissa"
    )
    theirs = peft.get_peft_model(base, asked).eval()
    theirs(**bert.torch_batch()).logits.square().sum().backward()
    layer = theirs.base_model.model.bert.encoder.layer[0].attention.self.query
    a, b = (getattr(layer, f"lora_{one}")["default"].weight for one in "AB")
    wanted = (b.grad @ a + b @ a.grad).detach().numpy().T
    ours = (
        model.params[f"{QUERY}lora_a"] @ slopes[f"{QUERY}lora_b"]
        + slopes[f"{QUERY}lora_a"] @ model.params[f"{QUERY}lora_b"]
    )
    np.testing.assert_allclose(ours, wanted, atol=2e-2 * np.abs(wanted).max())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pissa")


@pytest.fixture(scope="module")
def run(folder):
    return train(config_of(folder), quiet=True)


@pytest.mark.slow
def test_a_checkpoint_holds_both_matrices_and_not_their_starts(run):
    trained = open_trained(run.folder)
    with open_checkpoints(
        open_run(run.folder), trained.config, make(trained.config.task), read_only=True
    ) as checkpoints:
        stored = checkpoints.load_params(trained.step)
    leaves = {name.rpartition("/")[2] for name in stored}
    assert {"lora_a", "lora_b"} <= leaves
    assert not leaves & {"start_a", "start_b"}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_what_did_not_move_leaves_the_kernel_as_it_was(folder, precision):
    config = config_of(folder, 2, precision, run={"name": precision, "dir": str(folder / "still")})
    still = config.model_copy(
        update={"optimizer": config.optimizer.model_copy(update={"lr": 1e-30})}
    )
    exported = jaxft.load(str(export(train(still, quiet=True).folder)))
    before = jaxft.load(str(folder / "checkpoint"), task="text_classification", num_labels=2)
    name = f"{QUERY}kernel"
    np.testing.assert_allclose(exported.params[name], before.params[name], atol=1e-7)


@pytest.mark.slow
def test_a_resumed_run_is_the_run(run, folder):
    half = config_of(folder, 2, run={"name": "half", "dir": str(folder / "runs")})
    train(half, quiet=True)
    resumed = train(
        half.model_copy(update={"train": config_of(folder).train}), resume=True, quiet=True
    )
    one, other = (open_trained(at.folder, "last").model for at in (run, resumed))
    for name, value in one.params.items():
        np.testing.assert_array_equal(value, other.params[name], err_msg=name)


def test_exported_alone_it_is_an_adapter_of_twice_the_rank(run):
    trained = open_trained(run.folder).model
    alone = export(run.folder, adapter=True)
    about = json.loads((alone / "adapter_config.json").read_text())
    assert (about["r"], about["lora_alpha"], about["init_lora_weights"]) == (4, 8, True)
    base = AutoModelForSequenceClassification.from_pretrained(run.folder / "base")
    theirs = peft.PeftModel.from_pretrained(base, alone).eval()
    ids = np.array([[2, 4, 15, 16, 3]])
    with torch.no_grad():
        logits = theirs(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(logits, trained(input_ids=ids)["logits"], atol=1e-5)
    merged = jaxft.load(str(export(run.folder)))
    np.testing.assert_allclose(merged(input_ids=ids)["logits"], logits, atol=1e-5)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"kind": "dora"}, r"adapter: 'init' is pissa, which is for kind lora"),
        ({"quantize": "nf4"}, r"adapter: 'quantize' is nf4 and 'init' pissa: .* set init: lora"),
        ({"kind": "bitfit"}, r"adapter: '\w+' applies to lora and dora only"),
        ({"init": "svd"}, r"'adapter.init' must be lora or pissa"),
    ],
)
def test_what_cannot_start_so_is_refused(tmp_path, more, message):
    with pytest.raises(UserError, match=message):
        tiny_config(tmp_path, adapter=PISSA | more)
