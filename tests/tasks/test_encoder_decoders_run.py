"""What is asked of a model of one tower (test_families_run.py) and fits, of encoder-decoders."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxft.models.tower.tower import Compute
from tests.models.test_encoder_decoders import pair  # noqa: F401 - a fixture
from tests.models.test_families_run import (  # noqa: F401 - collected here, for this file's `classifier`
    test_a_phase_switch_keeps_what_trained_and_starts_the_rest_afresh,
    test_adapters_attach_and_merge,
    test_eight_devices_compute_what_one_does,
    test_scan_equals_unrolled,
)
from tests.support.families import Pair

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
