"""Models that read images among their words: part by part, frozen, from trunks, as they write."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.numpy import load_file
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.models.idefics3.modeling_idefics3 import Idefics3VisionEmbeddings

from jaxft.engine.cost import count_flops
from jaxft.errors import UserError
from jaxft.models import load as registry
from jaxft.models.adapters.low_rank import Adapter, is_adapter
from jaxft.models.families.clip.tiles import MOST_SIDE, ROUNDED
from jaxft.models.generate.decode import Generator
from jaxft.models.generate.settings import Settings
from jaxft.models.load_adapters import save_adapter
from jaxft.models.tower.run import run_tower
from jaxft.models.tower.tower import Compute, Part
from tests.models.test_families_run import (
    Stop,
    assert_eight_devices_compute_what_one_does,
    assert_scan_equals_unrolled,
    on_eight_devices,
    table_of,
)
from tests.support.families import (
    FAMILIES,
    Pair,
    assert_close_gradients,
    gradients,
    make_pair,
    outputs_of,
    torch_gradients,
)
from tests.support.small_vlm import PIECES, TILE, write_llava

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
HEAD = "vision_language"
QUICK = ("idefics3",)


def kinds() -> list:
    """Every model type with the head; those that compute what another does are of `--full`."""
    own = [name for name, family in FAMILIES.items() if HEAD in family.model_types[name]]
    return [pytest.param(n, marks=() if n in QUICK else pytest.mark.full) for n in own]


@pytest.fixture(scope="module", params=kinds())
def pair(request, tmp_path_factory) -> Pair:
    """A pair for each model type."""
    return make_pair(request.param, HEAD, 0, tmp_path_factory.mktemp("source"))


def of(pair: Pair, *starts: str) -> list[str]:
    """The names of parameters that start so."""
    return [name for name in pair.ours.params if name.startswith(starts)]


def test_hidden_states_are_pytorchs_after_every_part(pair):
    """The last that PyTorch gives of the text has been through the top."""
    with torch.no_grad():
        theirs = pair.torch(**pair.torch_batch(), output_hidden_states=True)
    vision, text = pair.ours.towers["vision"], pair.ours.towers["text"]
    vectors = run_tower(vision, pair.ours.params, pair.batch)["last_hidden_state"]
    batch = text.input_of(pair.batch, vectors)
    streams = theirs["hidden_states"][:-1]
    assert len(streams) == len(text.blocks)
    for count, expected in enumerate(streams):
        part = replace(text, blocks=text.blocks[:count], top=Part(Stop()))
        stream = np.asarray(jax.jit(partial(run_tower, part))(pair.ours.params, batch)["stream"])
        keep = pair.keep(stream)
        np.testing.assert_allclose(stream * keep, expected.numpy() * keep, atol=2e-5)


@pytest.mark.parametrize("start", ["vision/blocks/0/", "vision/connector/", "text/blocks/0/"])
def test_a_part_alone_has_pytorchs_gradient(pair, start):
    """That of the image tower gets it through a decoder that is wholly frozen."""
    names, theirs = of(pair, start), torch_gradients(pair)
    for scan, remat in ((False, "none"), (True, "full")):
        compute = Compute(trainable=frozenset(names), scan=scan, remat=remat)
        ours = gradients(pair, compute=compute, names=names)
        assert all(np.linalg.norm(theirs[name]) > 0 for name in names)
        assert_close_gradients(ours, theirs, 1e-4)


@pytest.mark.parametrize("frozen", [0, 2])
def test_scan_equals_unrolled(pair, frozen):
    assert_scan_equals_unrolled(pair, "full", frozen)


@pytest.mark.slow
def test_eight_devices_compute_what_one_does(pair):
    both = assert_eight_devices_compute_what_one_does(pair, *on_eight_devices(pair))
    np.testing.assert_allclose(*(outputs["logits"] for outputs in both), atol=1e-5)


def test_each_tower_has_depths_and_groups_of_its_own(pair):
    """The connector is the top of the image tower."""
    depths, (vision, text) = pair.ours.depths, pair.ours.towers.values()
    assert {depths[n] for n in of(pair, "vision/connector/", "vision/norm/")} == {vision.last}
    assert {depths[n] for n in of(pair, "text/norm/")} == {text.last}
    assert {depths[n] for n in of(pair, "vision/embeddings/", "text/embeddings/")} == {0}
    table = table_of(pair)
    assert set(table.trainable) == set(pair.ours.params)
    assert pair.ours.final_norms == ("vision/norm/", "text/norm/")


def test_the_image_tower_has_a_trunk_where_nothing_in_it_trains(pair):
    vision, text = pair.ours.towers["vision"], pair.ours.towers["text"]

    def trunks(names):
        compute = Compute(trainable=frozenset(names))
        return vision.frozen_blocks(compute), text.frozen_blocks(compute)

    whole = len(vision.blocks)
    assert trunks(of(pair, "vision/connector/")) == (whole, None)
    assert trunks(of(pair, "text/blocks/1/", "text/norm")) == (whole, 1)
    assert trunks(of(pair, "vision/blocks/1/")) == (1, None)
    assert trunks(of(pair, "vision/embeddings/")) == (None, None)


@pytest.mark.parametrize("start", ["vision/connector/", "text/blocks/1/"])
def test_starting_where_the_trunks_end_equals_the_whole(pair, start):
    names = of(pair, start)
    compute = Compute(scan=True, trainable=frozenset(names))
    run = partial(gradients, pair, key=jax.random.key(1), compute=compute, names=names)
    streams = jax.jit(partial(pair.ours.trunk, compute=compute))(pair.ours.params, pair.batch)
    assert set(streams) == {"vision/trunk", *["text/trunk"] * start.startswith("text")}
    assert {len(stream) for stream in streams.values()} == {3}  # a row is an example's
    whole = jax.tree.map(np.asarray, run())
    assert_close_gradients(run(batch=pair.batch | streams), whole, 1e-5)
    assert max(np.linalg.norm(value) for value in whole.values()) > 0


def test_a_frozen_image_tower_costs_its_forward_pass_only(pair):
    """A step above it costs what one does that is given its output, and that output."""
    model, names = pair.ours, of(pair, "text/")
    compute = Compute(trainable=frozenset(names))
    trunk = partial(model.trunk, compute=compute)
    (stream,) = jax.eval_shape(trunk, model.params, pair.batch).values()
    given = pair.batch | {"vision/trunk": np.zeros(stream.shape, stream.dtype)}

    def step(batch):
        return count_flops(partial(gradients, pair, batch=batch, compute=compute, names=names))

    forward = count_flops(trunk, model.params, pair.batch)
    assert forward > 0
    assert step(pair.batch) - step(given) == forward


def test_texts_are_pytorchs_token_by_token(pair):
    """Prompts of differing lengths, each beside its image; greedily, and by beams."""
    mask, pixels = pair.batch["attention_mask"], pair.batch["pixel_values"]
    prompts = [ids[: own.sum()] for ids, own in zip(pair.batch["input_ids"], mask, strict=True)]
    length = max(map(len, prompts))
    ids, shown = np.zeros((3, length), np.int64), np.zeros((3, length), np.int64)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :], shown[row, length - len(prompt) :] = prompt, 1
    more = {}
    if "token_type_ids" in pair.batch:  # Gemma 3's of an image; all of PaliGemma's prompt is prefix
        types = (ids == pair.ours.config.image_token_id) * (not pair.ours.config.prefix)
        more = {"token_type_ids": torch.tensor(types.astype(np.int64))}
    for beams in (1, 3):
        settings = Settings(max_new_tokens=6, num_beams=beams)
        ours = Generator(pair.ours).generate(
            [p.tolist() for p in prompts], settings, images={"pixel_values": pixels}
        )
        theirs = pair.torch.generate(
            input_ids=torch.tensor(ids),
            attention_mask=torch.tensor(shown),
            pixel_values=torch.tensor(pixels),
            **more,
            max_new_tokens=6,
            num_beams=beams,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert ours == theirs[:, length:].tolist()


def test_adapters_of_the_decoder_are_pefts(pair, tmp_path):
    """The file does in PyTorch what the matrices, and the connector beside them, do here."""
    matched = Adapter(2, 4.0, (r"text/blocks/.*/(query|down)/kernel",))
    model = registry.load(pair.folder, adapter=matched)
    own = [name for name in model.params if is_adapter(name)]
    assert own
    assert all(name.startswith("text/blocks/") for name in own)
    shaken = {
        name: value + 0.1 * jax.random.normal(jax.random.key(0), value.shape)
        if is_adapter(name)
        else value
        for name, value in model.params.items()
    }
    also = of(pair, "vision/connector/")
    if pair.ours.model_type == "gemma3":  # whose connector has it beside a norm, in no module
        with pytest.raises(UserError, match="PEFT cannot store"):
            save_adapter(model, tmp_path / "none", pair.folder, also)
        also = []
    model = model.with_params(shaken | {name: 1.5 * shaken[name] for name in also})
    save_adapter(model, tmp_path / "adapter", pair.folder, also)
    base = AutoModelForImageTextToText.from_pretrained(pair.folder, attn_implementation="eager")
    theirs = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        expected = theirs(**pair.torch_batch()).logits.numpy()
    ours = np.asarray(model(**pair.batch)["logits"])
    keep = pair.keep(ours)
    np.testing.assert_allclose(ours * keep, expected * keep, atol=2e-5)
    ((plain, _),) = outputs_of(pair)
    assert np.abs(plain - ours * keep).max() > 1e-3


@pytest.fixture(scope="module")
def llava(tmp_path_factory) -> Path:
    """A LLaVA that reads the output of the first of its image tower's two blocks."""
    return write_llava(tmp_path_factory.mktemp("llava"))


def test_what_a_llava_does_not_read_stays_as_it_is_and_is_exported(llava, tmp_path):
    """Its image tower's last block and norm: PyTorch gives them no gradient, nor a decay."""
    model = registry.load(llava)
    unread = ("vision/blocks/1/", "vision/norm/")
    names = [name for name in model.params if name.startswith(unread)]
    assert not any(model.leaves[name].decay for name in names)
    moved = {n: v + 1 if n in names else v for n, v in model.params.items()}
    text = [[PIECES.index("<image>")] * 16 + [40, 41]]
    pixels = np.random.default_rng(0).normal(size=(1, 3, TILE, TILE)).astype(np.float32)
    batch = {"input_ids": np.array(text), "pixel_values": pixels}
    outputs = [np.asarray(m(**batch)["logits"]) for m in (model, model.with_params(moved))]
    np.testing.assert_array_equal(*outputs)
    model.save(tmp_path)
    stored, exported = (load_file(one / "model.safetensors") for one in (llava, tmp_path))
    assert exported.keys() == stored.keys()
    assert all((exported[name] == stored[name]).all() for name in stored)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"vision_feature_layer": [-2, -1]}, "vision_feature_layer is [-2, -1], and must be one"),
        ({"vision_feature_layer": -3}, "or from -2 to -1."),
        ({"vision_feature_select_strategy": "cls"}, "vision_feature_select_strategy"),
        ({"projector_hidden_act": "gelo"}, "projector_hidden_act 'gelo' is not supported."),
        ({"vision_config": {"model_type": "pixtral"}}, "a 'pixtral' is not supported as the image"),
        ({"text_config": {"model_type": "opt"}}, "a 'opt' is not supported as the decoder of a"),
    ],
)
def test_a_llava_that_does_not_fit_is_refused(changed, said, llava, tmp_path):
    fields = json.loads((llava / "config.json").read_text())
    for name, value in changed.items():
        fields[name] = {**fields[name], **value} if isinstance(value, dict) else value
    (tmp_path / "config.json").write_text(json.dumps(fields))
    (tmp_path / "model.safetensors").symlink_to(llava / "model.safetensors")
    with pytest.raises(UserError) as caught:
        registry.load(tmp_path)
    assert said in caught.value.message


def test_patches_have_the_places_that_transformers_finds_for_them():
    """By fractions of a side: sides whose fractions float32 rounds otherwise are refused."""
    for side in range(1, MOST_SIDE + 1):
        config = AutoConfig.for_model("idefics3_vision", image_size=2 * side, patch_size=2)
        config.hidden_size, config.num_channels = 1, 1
        embeddings = Idefics3VisionEmbeddings(config)
        with torch.no_grad():
            embeddings.patch_embedding.weight.zero_()
            embeddings.patch_embedding.bias.zero_()
            embeddings.position_embedding.weight.copy_(torch.arange(side**2.0)[:, None])
            pixels, mask = torch.zeros(1, 1, 2 * side, 2 * side), torch.ones(1, side, side)
            places = embeddings(pixels, mask.bool())[0, :, 0].numpy()
        assert np.array_equal(places, np.arange(side**2)) == (side not in ROUNDED)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"scale_factor": 7}, "scale_factor is 7, which does not divide the"),
        ({"image_token_id": 10_000}, "image_token_id is 10000; the decoder has"),
        ({"model_type": "gemma3", "mm_tokens_per_image": 5}, "'llama' is not supported as the"),
        ({"text_config": {"model_type": "gpt2"}}, "'gpt2' is not supported as the decoder of"),
        ({"vision_config": None}, "vision_config is null, and no object."),
        ({"vision_config": {"image_size": 38, "patch_size": 2}}, "give 19 patches a side"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(changed, said, tmp_path):
    pair = make_pair("idefics3", HEAD, 0, tmp_path)
    path = tmp_path / "config.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields | changed))
    with pytest.raises(UserError, match=said):
        registry.describe(pair.folder, weights=False)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"mm_tokens_per_image": 7}, "mm_tokens_per_image is 7, which does not divide the"),
        (
            {"vision_config": {"vision_use_head": True}},
            "vision_use_head of the image tower is true",
        ),
    ],
)
def test_a_gemma3_that_does_not_fit_is_refused(changed, said, tmp_path):
    pair = make_pair("gemma3", HEAD, 0, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(UserError, match=said):
        registry.describe(pair.folder, weights=False)


def test_images_of_another_form_are_refused(tmp_path):
    pair = make_pair("idefics3", HEAD, 0, tmp_path)
    for pixels, said in (
        (pair.batch["pixel_values"][:, 0], "The images have 4 dimensions"),
        (pair.batch["pixel_values"][..., 1:, :], "The tiles are "),
    ):
        with pytest.raises(UserError, match=said):
            pair.ours(**pair.batch | {"pixel_values": pixels})
    with pytest.raises(UserError, match=r"model\.image_size: 8 is not the size that idefics3"):
        registry.load(pair.folder, image_size=8)
