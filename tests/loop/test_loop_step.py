"""State, step and batches of a loop of one's own, on a tiny BERT."""

import jax
import numpy as np
import optax
import pytest

import jaxft
from tests.support.tiny import tiny_checkpoint

TEXTS = ["a bright film", "a dull plot", "the warm scene of the story", "a flat cast"] * 5
LABELS = [1, 0, 1, 0] * 5


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """LLVM's optimizations take most of a compile and change nothing that is tested here."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")
    return jaxft.load(folder, task="text_classification", num_labels=2, dropout=0.0)


def loss_fn(apply, params, batch, key):
    logits = apply(params, batch, key)["logits"]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
    hits = (logits.argmax(-1) == batch["labels"]) * batch["weights"]
    weight = batch["weights"].sum()
    return {"loss": ((losses * batch["weights"]).sum(), weight), "accuracy": (hits.sum(), weight)}


def make_loop(model, **options):
    table = jaxft.layer_table(model, groups=[jaxft.Group("low", depth=(0, 1), freeze=True)], lr=0.1)
    tx = jaxft.optimizer(table, optax.identity())
    return table, tx, jaxft.make_step(loss_fn, tx, **options)


def test_batches_are_every_text_once_an_epoch(model):
    batches = jaxft.batches(model, TEXTS, LABELS, batch_size=8, epochs=2)
    made = list(batches)
    assert len(made) == len(batches) == 6
    first = made[:3]
    assert sum(batch["weights"].sum() for batch in first) == len(TEXTS)
    assert {batch["input_ids"].shape for batch in made} == {(8, 32)}
    counts = np.concatenate([b["attention_mask"].sum(1)[b["weights"] > 0] for b in first])
    assert sorted(counts.tolist()) == sorted([5, 5, 8, 5] * 5)
    assert any(
        (a["input_ids"] != b["input_ids"]).any() for a, b in zip(first, made[3:], strict=True)
    )
    again = jaxft.batches(model, TEXTS, LABELS, batch_size=8, epochs=2).batch(4)
    np.testing.assert_array_equal(again["input_ids"], made[4]["input_ids"])
    with pytest.raises(jaxft.UserError, match="20 texts and 3 labels"):
        jaxft.batches(model, TEXTS, LABELS[:3], batch_size=8)
    with pytest.raises(jaxft.UserError, match="the texts are one text"):
        jaxft.batches(model, TEXTS[0], batch_size=8)
    with pytest.raises(jaxft.UserError, match="batch_size is 0"):
        jaxft.batches(model, TEXTS, batch_size=0)
    with pytest.raises(jaxft.UserError, match="which is no number"):
        jaxft.batches(model, TEXTS[:2], ["good", "bad"], batch_size=2)


def test_a_preset_that_is_none_is_no_plain_decay(model):
    with pytest.raises(jaxft.UserError, match="the preset is 'auto_rgn'"):
        jaxft.layer_table(model, layer_decay=0.5, preset="auto_rgn", lr=0.1)


def test_one_text_is_not_predicted_letter_by_letter():
    with pytest.raises(jaxft.UserError, match="the inputs are one text"):
        next(jaxft.predict("runs/any", "a bright film"))


def test_a_step_is_plain_descent_of_the_trainable_leaves(model):
    table, tx, step = make_loop(model, donate=False)
    batch = jaxft.batches(model, TEXTS, LABELS, batch_size=20).batch(0)
    state = jaxft.init_state(model, table, tx)
    after, metrics = step(state, batch)
    assert metrics.keys() == {"loss", "accuracy", "weight", "grad_norm", "bad_steps"}

    def mean(trainable):
        params = {**model.params, **trainable}
        logits = model.apply(params, batch)["logits"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"]).mean()

    start = {name: model.params[name] for name in table.trainable}
    wanted = jax.tree.map(lambda p, g: p - 0.1 * g, start, jax.jit(jax.grad(mean))(start))
    for name in table.trainable:
        found = after.train.trainable[name]
        np.testing.assert_allclose(found, wanted[name], atol=1e-6, err_msg=name)
        np.testing.assert_array_equal(state.train.trainable[name], model.params[name])  # a copy
    assert after.train.opt_state.groups is not None
    assert not set(table.frozen) & set(after.train.trainable)


def test_two_micro_batches_on_eight_devices_are_one_batch_on_one(model):
    batch = jaxft.batches(model, TEXTS[:16], LABELS[:16], batch_size=16).batch(0)
    table, tx, alone = make_loop(model)
    one, _ = alone(jaxft.init_state(model, table, tx), batch)
    _, _, step = make_loop(model, accumulate=2)
    with jax.set_mesh(jaxft.make_mesh(data=2, fsdp=2, tensor=2)):
        state = jaxft.init_state(model, table, tx)
    many, _ = step(state, batch)
    kernel = many.train.trainable["blocks/1/mlp/up/kernel"]
    assert len(kernel.sharding.device_set) == 8
    for name, leaf in one.train.trainable.items():
        np.testing.assert_allclose(many.train.trainable[name], leaf, atol=1e-6, err_msg=name)
    new = jaxft.trained(model, many)
    assert new.params.keys() == model.params.keys()


def test_another_mesh_is_an_error(model):
    table, tx, _ = make_loop(model)
    other = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(other), pytest.raises(jaxft.UserError, match="has the axes batch"):
        jaxft.init_state(model, table, tx)


def test_plain_optax_serves_as_the_optimizer(model):
    table, _, _ = make_loop(model)
    tx = optax.adam(1e-3)
    state = jaxft.init_state(model, table, tx)
    batch = jaxft.batches(model, TEXTS, LABELS, batch_size=8).batch(0)
    before = np.asarray(state.params["head/kernel"])
    state, _ = jaxft.make_step(loss_fn, tx)(state, batch)
    assert np.abs(np.asarray(state.params["head/kernel"]) - before).max() == pytest.approx(
        1e-3, rel=1e-3
    )


def test_a_step_that_is_not_finite_changes_nothing_under_plain_optax(model):
    table, _, _ = make_loop(model)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    batch = dict(jaxft.batches(model, TEXTS, LABELS, batch_size=8).batch(0))
    batch["weights"] = batch["weights"] * np.nan
    state = jaxft.init_state(model, table, tx)
    before = jax.tree.map(np.asarray, (state.train.trainable, state.train.opt_state))
    state, metrics = jaxft.make_step(loss_fn, tx)(state, batch)
    assert int(metrics["bad_steps"]) == 1
    after = state.train.trainable, state.train.opt_state
    jax.tree.map(np.testing.assert_array_equal, after, before)


def with_loss(loss):
    return {"loss_fn": lambda apply, params, batch, key: loss(batch["weights"])}


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        ({"accumulate": 0}, {}, "accumulate is 0, and must be 1 or more"),
        ({"accumulate": 3}, {}, "the 8 rows of '.*' do not divide into 3 micro-batches"),
        ({}, {"texts": TEXTS[:8]}, "'texts' of the batch is no array of numbers"),
        ({}, {"scale": 2.0}, "'scale' of the batch is no array of numbers"),
        (with_loss(lambda w: w.sum()), {}, "'loss' is no pair of a sum and its weight"),
        (with_loss(lambda w: (w, w.sum())), {}, r"'loss' has the shapes \(8,\) and \(\)"),
        (with_loss(lambda w: {"ce": (w.sum(), 1)}), {}, "the loss has ce, and no 'loss'"),
    ],
)
def test_what_a_step_cannot_take_is_one_sentence(model, options, change, message):
    table, tx, _ = make_loop(model)
    batch = jaxft.batches(model, TEXTS, LABELS, batch_size=8).batch(0)
    state = jaxft.init_state(model, table, tx)
    with pytest.raises(jaxft.UserError, match=message):
        jaxft.make_step(**{"loss_fn": loss_fn, "tx": tx, **options})(state, batch | change)


def test_options_and_labels_that_are_none_are_one_sentence(model):
    table, tx, _ = make_loop(model)
    with pytest.raises(jaxft.UserError, match="remat is 'some' and scan 'auto'"):
        jaxft.init_state(model, table, tx, remat="some")
    with pytest.raises(jaxft.UserError, match="a label is 4294967297, more than int32 holds"):
        jaxft.batches(model, ["a", "b"], [2**32 + 1, 0], batch_size=2)
    with pytest.raises(jaxft.UserError, match="a label is None, which is no number"):
        jaxft.batches(model, ["a", "b"], [0, None], batch_size=2)
    with pytest.raises(jaxft.UserError, match="epochs is -1, and must be 0 or more"):
        jaxft.batches(model, ["a", "b"], batch_size=2, epochs=-1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "a rank is 0, and must be a whole number from 1"),
        ({"alpha": -1}, "alpha is -1, and must be above 0"),
        ({"dropout": 1.0}, r"dropout is 1.0, and must be in \[0, 1\)"),
        ({"match": ".*/query/kernel"}, "must be one or more patterns"),
        ({"match": ()}, "must be one or more patterns"),
    ],
)
def test_an_adapter_that_cannot_be_is_one_sentence(options, message):
    with pytest.raises(jaxft.UserError, match=message):
        jaxft.Adapter(**{"rank": 2, "alpha": 4, **options})


def test_a_table_and_a_state_of_another_model_are_one_sentence(model):
    table, tx, _ = make_loop(model)
    state = jaxft.init_state(model, table, tx)
    folder = model.source.folder
    adapted = jaxft.load(
        folder, task="text_classification", num_labels=2, adapter=jaxft.Adapter(2, 4.0)
    )
    with pytest.raises(jaxft.UserError, match="the table is of another model"):
        jaxft.init_state(adapted, table, tx)
    with pytest.raises(jaxft.UserError, match="the state is of another model"):
        jaxft.trained(adapted, state)


def test_classes_are_one_or_more_and_have_names(model):
    folder = model.source.folder
    for none in ({"labels": ()}, {"num_labels": 0}):
        with pytest.raises(jaxft.UserError, match="A head of classes needs one or more"):
            jaxft.load(folder, task="text_classification", **none)
    assert jaxft.load(folder, task="text_classification", labels=range(3)).labels == ("0", "1", "2")
