"""Where the eval rows lie: principal components, whose stream it is, and what is drawn of it."""

from dataclasses import replace

import numpy as np
import pytest

from jaxft.analysis.eval_embeddings import eval_embeddings, plane
from jaxft.data.batching.eval_plans import plan_eval
from jaxft.engine.initial_state import load_params
from jaxft.engine.setup import build, make_task
from jaxft.models import load as registry
from tests.support.launch import cache  # noqa: F401 a fixture
from tests.support.tiny import tiny_config
from tests.support.tiny_images import tiny_image_config

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture(scope="module")
def built(tmp_path_factory, cache):  # noqa: F811 the fixture above
    """A run whose rows are packed."""
    return build(tiny_config(tmp_path_factory.mktemp("points")))


@pytest.fixture(scope="module")
def reference(built):
    """The mean of the last hidden state of each eval row, padded, without a head: `[rows, D]`."""
    model = registry.load(built.config.model.checkpoint, task="embedding")
    examples = built.splits["eval"].examples
    batch = examples.collate(np.arange(len(examples))[:, None], int(examples.lengths.max()))
    mask = (batch["segment_ids"] > 0).astype(np.int32)
    ids = {name: batch[name] for name in ("input_ids", "token_type_ids")}
    stream = np.asarray(model(**ids, attention_mask=mask)["last_hidden_state"])
    return (stream * mask[..., None]).sum(1) / mask.sum(1)[:, None]


def test_a_plane_has_the_first_principal_components():
    draw = np.random.default_rng(0)
    turned, _ = np.linalg.qr(draw.normal(size=(5, 5)))
    points = draw.normal(size=(300, 5)) * [9, 4, 1, 0.1, 0.1] @ turned + 7
    found = plane(points)
    values = np.linalg.eigvalsh(np.cov(points, rowvar=False))[::-1]
    assert found["explained"] == pytest.approx((values / values.sum())[:2])
    assert [np.var(found[axis], ddof=1) for axis in "xy"] == pytest.approx(values[:2], rel=1e-3)
    assert abs(np.corrcoef(found["x"], found["y"])[0, 1]) < 1e-3
    assert plane(points)["x"] == plane(points[:, ::-1])["x"]  # whichever way a direction points


def test_few_points_lie_somewhere():
    assert plane(np.array([[3.0], [5.0]]))["y"] == [0, 0]
    assert plane(np.ones((1, 4)))["explained"] == [0, 0]


def test_the_points_are_of_the_last_blocks_stream(built, reference):
    found = eval_embeddings(built, load_params(built).params)
    wanted = plane(reference)
    for axis in "xy":
        np.testing.assert_allclose(found[axis], wanted[axis], atol=2e-4)
    assert found["explained"] == pytest.approx(wanted["explained"], rel=1e-4)
    labels = [built.label_names[int(n)] for n in built.splits["eval"].examples.labels]
    assert found["labels"] == labels
    apart = np.linalg.norm(reference[:, None] - reference[None], axis=-1)
    np.fill_diagonal(apart, np.inf)
    same = np.array(labels)[apart.argmin(1)] == np.array(labels)
    assert found["alike"] == pytest.approx(same.mean())
    shares = [labels.count(name) for name in set(labels)]
    pairs = sum(n * (n - 1) for n in shares)
    assert found["guessing"] == pytest.approx(pairs / (len(labels) * (len(labels) - 1)))


def test_many_rows_are_chosen_evenly(built, reference, monkeypatch):
    monkeypatch.setattr("jaxft.analysis.eval_embeddings.MOST", 4)
    found = eval_embeddings(built, load_params(built).params)
    chosen = np.linspace(0, len(built.splits["eval"].examples) - 1, 4).round().astype(int)
    np.testing.assert_allclose(found["x"], plane(reference[chosen])["x"], atol=2e-4)


def test_a_picture_is_the_mean_of_its_patches(tmp_path):
    built = build(tiny_image_config(tmp_path, train={"length": "1 steps"}))
    model = load_params(built)
    found = eval_embeddings(built, model.params)
    examples = built.splits["eval"].examples
    assert len(found["x"]) == len(examples)
    plain = registry.load(built.config.model.checkpoint)
    index = plan_eval(examples.lengths, len(examples), 1, None).batch(0)
    pixels = examples.collate(index, 1)["pixel_values"]
    # ViT's own output is normalised after the last block; its points are not, but lie alike.
    stream = np.asarray(plain(pixel_values=pixels)["last_hidden_state"]).mean(1)
    assert np.isfinite(found["x"]).all()
    apart = abs(np.corrcoef(found["x"], plane(stream[np.argsort(index[:, 0])])["x"])[0, 1])
    assert apart > 0.9


def test_a_number_has_no_class(built):
    section = built.config.task.model_copy(update={"problem": "regression"})
    task = make_task(built.config.model_copy(update={"task": section}))
    other = replace(built, bound=task.bind(built.bound.tools, ()))
    assert eval_embeddings(other, {}) is None
