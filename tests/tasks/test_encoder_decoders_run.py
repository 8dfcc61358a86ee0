"""What is asked of a model of one tower (test_families_run.py) and fits, of encoder-decoders."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxft.models.tower.tower import Compute
from tests.models.test_encoder_decoders import pair  # noqa: F401 - a fixture
from tests.models.test_families_run import (  # noqa: F401 - collected here, for this file's `classifier`
    assert_eight_devices_have_the_gradients_of_one,
    assert_scan_equals_unrolled,
    on_eight_devices,
    test_a_phase_switch_keeps_what_trained_and_starts_the_rest_afresh,
    test_adapters_attach_and_merge,
    test_eight_devices_compute_what_one_does,
    test_scan_equals_unrolled,
)
from tests.support.families import Pair, assert_close_gradients, gradients, make_pair

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def classifier(pair) -> Pair:  # noqa: F811 - the fixture
    """A pair that ends in scores of words: classes, to the tests taken over."""
    return pair


def test_bfloat16_is_as_near_to_float32_as_pytorchs(pair, tmp_path):  # noqa: F811 - the fixture
    """An unnormalised stream grows, so how near that is depends on the weights."""
    exact = np.asarray(pair.ours(**pair.batch)["logits"])
    model = pair.ours
    rough = model.apply(model.params, pair.batch, None, Compute(dtype="bfloat16"))["logits"]
    assert rough.dtype == jnp.float32
    theirs = type(pair.torch).from_pretrained(pair.folder, dtype=torch.bfloat16).eval()
    with torch.no_grad():
        theirs = theirs(**pair.torch_batch()).logits.float().numpy()
    keep = pair.keep(exact)
    ours, pytorchs = (np.linalg.norm((found - exact) * keep) for found in (rough, theirs))
    assert 0 < ours < 1.5 * pytorchs


@pytest.mark.parametrize("model_type", ["bart", "mbart"])
@pytest.mark.parametrize("head", ["text_classification", "question_answering"])
def test_a_head_that_reads_a_source_twice_runs_alike(model_type, head, tmp_path):
    """Scanned, from the trunk of a frozen encoder, and on eight devices."""
    twice = make_pair(model_type, head, 0, tmp_path)
    assert_scan_equals_unrolled(twice, "full", 2)
    assert_eight_devices_have_the_gradients_of_one(twice, *on_eight_devices(twice))
    names = [name for name in twice.ours.params if name.startswith("decoder/")]
    compute = Compute(scan=True, trainable=frozenset(names))
    streams = twice.ours.trunk(twice.ours.params, twice.batch, compute)
    assert set(streams) == {"encoder/trunk"}
    run = partial(gradients, twice, compute=compute, names=names)
    whole = jax.tree.map(np.asarray, run())
    assert_close_gradients(run(batch=twice.batch | streams), whole, 1e-5)
