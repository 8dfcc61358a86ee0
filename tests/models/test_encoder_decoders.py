"""How every encoder-decoder runs: against PyTorch part by part, frozen, from its trunks, scanned.

What is asked of a model of one tower too is in tests/tasks/test_encoder_decoders_run.py.
"""

import json
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
import torch
from transformers.models.t5.modeling_t5 import T5Attention

from jaxft.engine.cost import count_flops
from jaxft.errors import UserError
from jaxft.models import load as registry
from jaxft.models.layers.batch import decoder_batch
from jaxft.models.layers.relative import bucket_table
from jaxft.models.tower.run import run_tower
from jaxft.models.tower.tower import Compute, Part
from tests.models.test_families_run import Stop
from tests.support.families import (
    FAMILIES,
    OWN_PAIRS,
    Pair,
    architectures,
    assert_close_gradients,
    gradients,
    make_pair,
    names_of,
    torch_gradients,
)
from tests.support.random_configs import random_config


def encoder_decoders() -> list:
    """(model type or pair, head) of each: T5 and a pair of either kind are always tested."""
    quick = ("t5", OWN_PAIRS[0], OWN_PAIRS[-1])
    return [
        pytest.param((name, head), id=name, marks=() if name in quick else pytest.mark.full)
        for name in names_of(FAMILIES)
        for head in ("seq2seq", "captioning")
        if head in architectures(name)
    ]


@pytest.fixture(scope="module", params=encoder_decoders())
def pair(request, tmp_path_factory) -> Pair:
    """A pair that ends in scores of words, one for each model type."""
    return make_pair(*request.param, 0, tmp_path_factory.mktemp("source"))


def of(pair: Pair, *starts: str) -> list[str]:
    """The names of parameters that start so."""
    return [name for name in pair.ours.params if name.startswith(starts)]


def test_hidden_states_are_pytorchs_after_every_part(pair):
    """The last that PyTorch gives has been through the top."""
    with torch.no_grad():
        theirs = pair.torch(**pair.torch_batch(), output_hidden_states=True)
    encoded = np.asarray(theirs.encoder_last_hidden_state)
    batches = {"encoder": pair.batch, "decoder": decoder_batch(pair.batch, encoded)}
    for name, batch in batches.items():
        tower = pair.ours.towers[name]
        streams = theirs[f"{name}_hidden_states"][:-1]
        assert len(streams) == len(tower.blocks)
        for count, expected in enumerate(streams):
            part = replace(tower, blocks=tower.blocks[:count], top=Part(Stop()))
            run = jax.jit(partial(run_tower, part))
            stream = np.asarray(run(pair.ours.params, batch)["stream"])
            keep = pair.keep(stream)
            np.testing.assert_allclose(stream * keep, expected.numpy() * keep, atol=2e-5)


@pytest.mark.parametrize("start", ["encoder/blocks/0/", "decoder/blocks/0/"])
def test_a_first_block_alone_has_pytorchs_gradient(pair, start):
    """That of the encoder gets it through a decoder that is wholly frozen."""
    names = of(pair, start)
    theirs = torch_gradients(pair)
    for scan, remat in ((False, "none"), (True, "full")):
        compute = Compute(trainable=frozenset(names), scan=scan, remat=remat)
        ours = gradients(pair, compute=compute, names=names)
        assert set(ours) == set(names)
        assert all(np.linalg.norm(theirs[name]) > 0 for name in names)
        assert_close_gradients(ours, theirs, 1e-4)


def test_a_decoder_has_a_trunk_where_nothing_below_trains(pair):
    encoder, decoder = pair.ours.towers["encoder"], pair.ours.towers["decoder"]
    upper = of(pair, "decoder/blocks/1/", "decoder/norm")

    def trunks(names):
        compute = Compute(trainable=frozenset(names))
        return encoder.frozen_blocks(compute), decoder.frozen_blocks(compute)

    assert trunks(upper) == (len(encoder.blocks), 1)
    # M2M-100's decoder has nothing of its own below its blocks.
    stem = any(pair.ours.depths[name] == 0 for name in of(pair, "decoder/"))
    assert trunks(of(pair, "decoder/")) == (len(encoder.blocks), None if stem else 0)
    # The decoder's blocks read what trains, though none of theirs does.
    assert trunks([*of(pair, "encoder/blocks/1/"), *upper]) == (1, None)
    assert trunks(of(pair, "encoder/")) == (None, None)
    # Of T5 these are the word embeddings, which the decoder's stem reads too.
    lowest = [n for n in of(pair, "encoder/") if pair.ours.depths[n] == 0]
    assert trunks(lowest[:1]) == (None, None)


@pytest.mark.slow
@pytest.mark.parametrize("upper", [0, 1])
def test_starting_where_the_trunks_end_equals_the_whole(pair, upper):
    """A frozen encoder under the decoder, or under a part of it; with dropout above."""
    names = [n for n in of(pair, "decoder/") if pair.ours.depths[n] >= 2 * upper]
    compute = Compute(scan=True, trainable=frozenset(names))
    run = partial(gradients, pair, key=jax.random.key(1), compute=compute, names=names)
    streams = jax.jit(partial(pair.ours.trunk, compute=compute))(pair.ours.params, pair.batch)
    # M2M-100's decoder has no stem of its own: it is frozen with the words.
    stem = any(pair.ours.depths[name] == 0 for name in names)
    assert set(streams) == {"encoder/trunk", *["decoder/trunk"] * (not stem)}
    whole = jax.tree.map(np.asarray, run())
    assert_close_gradients(run(batch=pair.batch | streams), whole, 1e-5)
    # A norm would take a shift of all numbers of a position away again.
    other = {name: stream[..., ::-1] for name, stream in streams.items()}
    moved = jax.tree.map(np.asarray, run(batch=pair.batch | other))
    reads = "decoder/blocks/1/cross/value/kernel"
    assert not np.allclose(moved[reads], whole[reads], rtol=1e-3)


def test_a_frozen_encoder_costs_its_forward_pass_only(pair):
    """A step above it costs what one does that is given its output, and that output."""
    model = pair.ours
    names = of(pair, "decoder/")
    compute = Compute(trainable=frozenset(names))
    trunk = partial(model.trunk, compute=compute)
    streams = jax.eval_shape(trunk, model.params, pair.batch)
    given = pair.batch | {n: np.zeros(s.shape, s.dtype) for n, s in streams.items()}

    def step(batch, names=names):
        compute = Compute(trainable=frozenset(names))
        return count_flops(partial(gradients, pair, batch=batch, compute=compute, names=names))

    forward = count_flops(trunk, model.params, pair.batch)
    assert forward > 0
    above = step(pair.batch)
    assert above - step(given) == forward
    # No gradient reaches the pixels: the map of the patches costs a pass less on the way back.
    kernel = model.params.get("encoder/embeddings/patch/kernel", np.zeros((0, 0)))
    unread = 2 * pair.batch.get("pixel_values", np.zeros(0)).size * kernel.shape[-1]
    full = step(pair.batch, names=list(model.params))
    assert full - above >= 2 * forward - unread


def test_a_packed_pair_of_texts_is_read_as_each_alone(pair):
    """Sources and targets of one row, told apart by their segments."""
    if "input_ids" not in pair.batch:
        return  # images are not packed
    alone, batch = pair.ours(**pair.batch)["logits"], pair.batch
    starts, packed = {}, {}
    for side in ("", "decoder_"):
        lengths = batch[f"{side}attention_mask"].sum(1)
        starts[side] = np.concatenate([[0], np.cumsum(lengths)])
        rows = zip(batch[f"{side}input_ids"], lengths, strict=True)
        packed[f"{side}input_ids"] = np.concatenate([row[:n] for row, n in rows])[None]
        packed[f"{side}segment_ids"] = np.repeat(np.arange(1, 4), lengths)[None]
        types = batch.get(f"{side}token_type_ids", np.zeros_like(batch[f"{side}input_ids"]))
        rows = zip(types, lengths, strict=True)
        packed[f"{side}token_type_ids"] = np.concatenate([row[:n] for row, n in rows])[None]
        packed[f"{side}position_ids"] = np.concatenate([np.arange(n) for n in lengths])[None]
    together = pair.ours(**packed)["logits"][0]
    for row, (start, end) in enumerate(
        zip(starts["decoder_"], starts["decoder_"][1:], strict=False)
    ):
        np.testing.assert_allclose(together[start:end], alone[row, : end - start], atol=1e-5)


@pytest.mark.parametrize("part", ["cross_attention_hidden_size", "alone"])
def test_a_decoder_of_trocr_without_its_encoder_is_refused(part, tmp_path):
    """It reads a source of one width, and is no model by itself."""
    config = random_config("vit+trocr", np.random.default_rng(0))
    config.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    fields = json.loads(file.read_text())
    if part == "alone":
        fields, problem = fields["decoder"], "a trocr is a part of other models"
    else:
        fields["decoder"][part], problem = 6, "cross_attention_hidden_size is 6"
    file.write_text(json.dumps(fields))
    with pytest.raises(UserError, match=problem):
        registry.describe(str(tmp_path), weights=False)


def test_parts_of_old_files_repeat_what_says_nothing(tmp_path):
    """Each part's config had every field of transformers; one that says something is refused."""
    random_config("vit+trocr", np.random.default_rng(0)).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    fields = json.loads(file.read_text())
    old = {"tie_encoder_decoder": False, "bad_words_ids": None, "no_repeat_ngram_size": 0}
    fields["decoder"] |= old | {"is_encoder_decoder": False}
    fields["encoder"] |= old | {"is_decoder": False, "add_cross_attention": False}
    fields["encoder"] |= {"cross_attention_hidden_size": None, "tie_word_embeddings": True}
    file.write_text(json.dumps(fields))
    model = registry.describe(str(tmp_path), weights=False)
    assert {name.split("/")[0] for name in model.params} == {"encoder", "decoder"}
    fields["encoder"]["add_cross_attention"] = True
    file.write_text(json.dumps(fields))
    with pytest.raises(UserError, match="add_cross_attention"):
        registry.describe(str(tmp_path), weights=False)


def test_a_batch_without_targets_is_refused(pair):
    batch = {name: value for name, value in pair.batch.items() if not name.startswith("decoder_")}
    with pytest.raises(UserError, match="no decoder_input_ids"):
        pair.ours(**batch)


def test_a_t5gemma_that_classifies_by_its_decoder_is_refused(tmp_path):
    """And one that is made of a model that writes is exported as an encoder that classifies."""
    pair = make_pair("t5gemma", "seq2seq", 0, tmp_path / "source")
    model = registry.load(pair.folder, task="text_classification", num_labels=3)
    assert all(name.startswith("encoder/") for name in model.params)
    assert all(name.startswith(("model.decoder.", "lm_head.")) for name in model.report.unused)
    path = model.save(tmp_path / "export") / "config.json"
    fields = json.loads(path.read_text())
    assert fields["is_encoder_decoder"] is False
    path.write_text(json.dumps(fields | {"is_encoder_decoder": True}))
    with pytest.raises(UserError, match="with is_encoder_decoder classifies by its decoder"):
        registry.load(str(tmp_path / "export"))


@pytest.mark.parametrize("both_ways", [True, False])
@pytest.mark.parametrize(("buckets", "furthest"), [(32, 128), (8, 18), (12, 100), (64, 1000)])
def test_distances_fall_into_pytorchs_buckets(buckets, furthest, both_ways):
    back = np.arange(-furthest, furthest + 1)
    theirs = T5Attention._relative_position_bucket(
        torch.tensor(-back), bidirectional=both_ways, num_buckets=buckets, max_distance=furthest
    )
    ours = bucket_table(buckets, furthest, both_ways)
    np.testing.assert_array_equal(ours, theirs.numpy())
    assert ours.max() == buckets - 1
