"""What is asked of a model of one tower (test_families_run.py) and fits, of encoder-decoders."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxft.models.tower.tower import Compute
from tests.models import test_encoder_decoders as of_two_towers
from tests.models.test_encoder_decoders import (
    encoder_decoders,
    pair,  # noqa: F401 - a fixture
)
from tests.models.test_families_run import (  # noqa: F401 - collected here, for this file's `classifier`
    assert_eight_devices_compute_what_one_does,
    assert_frozen_blocks_cost_their_forward_pass,
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
    assert_eight_devices_compute_what_one_does(twice, *on_eight_devices(twice))
    names = [name for name in twice.ours.params if name.startswith("decoder/")]
    compute = Compute(scan=True, trainable=frozenset(names))
    streams = twice.ours.trunk(twice.ours.params, twice.batch, compute)
    assert set(streams) == {"encoder/trunk"}
    run = partial(gradients, twice, compute=compute, names=names)
    whole = jax.tree.map(np.asarray, run())
    assert_close_gradients(run(batch=twice.batch | streams), whole, 1e-5)


def test_an_encoder_alone_runs_alike(tmp_path):
    """T5's under the head of tags: scanned, frozen for free, and on eight devices."""
    tags = make_pair("t5", "token_classification", 0, tmp_path)
    assert_scan_equals_unrolled(tags, "full", 2)
    assert_frozen_blocks_cost_their_forward_pass(tags)
    assert_eight_devices_compute_what_one_does(tags, *on_eight_devices(tags))


@pytest.mark.parametrize("seed", range(1, 10))
@pytest.mark.parametrize("which", encoder_decoders())
def test_more_configs_run_alike(which, seed, tmp_path):
    """Nine more drawn configs of each model type or pair: all that a loop asks of a model."""
    drawn = make_pair(*which, seed, tmp_path)
    assert_scan_equals_unrolled(drawn, "full", 2)
    assert_eight_devices_compute_what_one_does(drawn, *on_eight_devices(drawn))
    of_two_towers.test_a_frozen_encoder_costs_its_forward_pass_only(drawn)
    for upper in (0, 1):
        of_two_towers.test_starting_where_the_trunks_end_equals_the_whole(drawn, upper)
    test_a_phase_switch_keeps_what_trained_and_starts_the_rest_afresh(drawn)
    test_adapters_attach_and_merge(drawn)
