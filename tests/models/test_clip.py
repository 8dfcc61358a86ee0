"""Two towers in one model: what the test of every family cannot say of CLIP, SigLIP and kin."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file

from jaxft.engine.cost import count_flops
from jaxft.errors import UserError
from jaxft.models import load as registry
from jaxft.models.families.clip.text import Config as TextConfig
from jaxft.models.tower.tower import Compute, Tower
from tests.support.families import (
    Pair,
    assert_close_gradients,
    compiled,
    gradients,
    make_pair,
    outputs_of,
    random_batch,
    torch_gradients,
)
from tests.support.tiny import tiny_checkpoint
from tests.support.tiny_images import SIDE, tiny_vit

DUAL = "vision-text-dual-encoder"
TYPES = ("clip", pytest.param("siglip", marks=pytest.mark.full))


@pytest.fixture(scope="module", params=TYPES)
def pair(request, tmp_path_factory) -> Pair:
    return make_pair(request.param, "contrastive", 0, tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """A ViT's folder and a BERT's."""
    folder = tmp_path_factory.mktemp("two")
    vision, text = tiny_vit(folder / "vision"), tiny_checkpoint(folder / "text")
    return {"vision": str(vision), "text": str(text)}


def towers_of(model) -> dict[str, Tower]:
    return {name: part for name, part in model.towers.items() if isinstance(part, Tower)}


def test_scan_equals_unrolled(pair):
    """With dropout on, and the lower blocks of both towers frozen."""
    names = [name for name, depth in pair.ours.depths.items() if depth >= 2]
    results = []
    for compute in (Compute(), Compute(scan=True, remat="full")):
        compute = replace(compute, trainable=frozenset(names))
        results.append(gradients(pair, key=jax.random.key(1), compute=compute, names=names))
    assert_close_gradients(results[1], jax.tree.map(np.asarray, results[0]), 1e-6)


def test_a_block_alone_has_pytorchs_gradient(pair):
    names = [name for name in pair.ours.params if name.startswith("text/blocks/0/")]
    ours = gradients(pair, names=names, compute=Compute(trainable=frozenset(names)))
    assert_close_gradients(ours, torch_gradients(pair), 1e-4)


def test_a_frozen_block_costs_its_forward_pass_only(pair):
    """In each tower by itself: the other trains or not as it did."""
    model = pair.ours

    def forward(name, count):
        tower = replace(model.towers[name], blocks=model.towers[name].blocks[:count])
        cut = replace(model, towers={**model.towers, name: tower})
        return count_flops(cut.apply, model.params, pair.batch)

    def step(name, frozen):
        own = {n for n, depth in model.depths.items() if depth <= frozen and n.startswith(name)}
        names = [n for n in model.params if n not in own]
        compute = Compute(trainable=frozenset(names))
        return count_flops(partial(gradients, pair, compute=compute, names=names))

    for name, tower in towers_of(model).items():
        blocks = len(tower.blocks)
        block = forward(name, blocks) - forward(name, blocks - 1)
        assert block > 0
        for frozen in range(blocks - 1):
            assert step(name, frozen) - step(name, frozen + 1) == 2 * block


def test_eight_devices_compute_what_one_does(pair):
    """The scores compare each image with the texts of all devices."""
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "tensor"))
    rules = {"heads": "tensor", "mlp": "tensor", "vocab": "tensor"}

    def sharding(name, shape, axes):
        spec = [rules.get(a) if n % 2 == 0 else None for a, n in zip(axes, shape, strict=True)]
        return NamedSharding(mesh, PartitionSpec(*spec))

    many = registry.load(pair.folder, sharding=sharding)
    rows = NamedSharding(mesh, PartitionSpec("data"))
    draw = np.random.default_rng(0)
    parts = [random_batch(pair.torch, draw) for _ in range(4)]
    length = min(part["input_ids"].shape[1] for part in parts)
    batch = {n: np.concatenate([part[n] for part in parts]) for n in ("pixel_values",)}
    for name in ("input_ids", "attention_mask"):
        batch[name] = np.concatenate([part[name][:, :length] for part in parts])
    placed = {name: jax.device_put(value, rows) for name, value in batch.items()}
    whole = Pair(pair.ours, pair.torch, pair.folder, batch)
    theirs = jax.tree.map(np.asarray, gradients(whole))
    assert_close_gradients(gradients(whole, model=many, batch=placed), theirs, 1e-5)


def test_scores_are_float32_and_their_scale_whole(pair):
    params = {**pair.ours.params, "head/logit_scale": pair.ours.params["head/logit_scale"] + 0.01}
    rough = Compute(dtype="bfloat16")
    plain = compiled(pair.ours, pair.ours.params, pair.batch, compute=rough)["logits_per_image"]
    more = compiled(pair.ours, params, pair.batch, compute=rough)["logits_per_image"]
    assert plain.dtype == np.float32
    bias = pair.ours.params.get("head/logit_bias", 0.0)
    np.testing.assert_allclose(more - bias, (plain - bias) * np.exp(0.01), rtol=1e-4)


def test_depth_is_each_towers_own(pair):
    model = pair.ours
    for name, tower in towers_of(model).items():
        top = len(tower.blocks) + 1
        own = {n: d for n, d in model.depths.items() if n.startswith(f"{name}/")}
        assert set(own.values()) == set(range(top + 1))
        assert {model.tops[n] for n in own} == {top}
        assert own[f"{name}/norm/scale"] == top
    assert model.depths["head/logit_scale"] == model.tops["head/logit_scale"]
    assert model.depths["head/logit_scale"] == model.num_depths - 1
    assert "head/logit_scale" in model.no_decay


def test_one_side_alone_gives_its_embeddings(pair):
    whole = pair.ours(**pair.batch)
    image = pair.ours(pixel_values=pair.batch["pixel_values"])
    words = {name: value for name, value in pair.batch.items() if name != "pixel_values"}
    text = pair.ours(**words)
    assert set(image) == {"image_embeds"}
    assert set(text) == {"text_embeds"}
    np.testing.assert_allclose(image["image_embeds"], whole["image_embeds"], atol=1e-6)
    np.testing.assert_allclose(text["text_embeds"], whole["text_embeds"], atol=1e-6)


def test_images_of_another_size(pair, tmp_path):
    """Positions are resized on their grid, as transformers does it when asked; and exported so."""
    old = pair.torch.config.vision_config
    size = old.image_size + 2 * old.patch_size
    draw = np.random.default_rng(0)
    pixels = draw.normal(size=(3, 3, size, size)).astype(np.float32)
    batch = {**pair.batch, "pixel_values": pixels}
    ours = registry.load(pair.folder, image_size=size)
    with torch.no_grad():
        theirs = pair.torch(
            **Pair(ours, pair.torch, "", batch).torch_batch(), interpolate_pos_encoding=True
        )
    np.testing.assert_allclose(ours(**batch)["image_embeds"], theirs.image_embeds, atol=2e-5)
    exported = ours.save(tmp_path / "export")
    again = transformers.AutoModel.from_pretrained(exported, attn_implementation="eager").eval()
    for one, other in outputs_of(Pair(ours, again, str(exported), batch)):
        np.testing.assert_allclose(one, other, atol=2e-5)
    with pytest.raises(UserError, match="pixels; the model takes"):
        ours(**pair.batch)


# ------------------------------------------------------------------------- two checkpoints
def test_two_checkpoints_side_by_side(folders, tmp_path):
    """Each tower is its own checkpoint's, and the export is transformers' dual encoder."""
    model = registry.load(folders, task="contrastive")
    new = {"head/logit_scale", "head/text/kernel", "head/vision/kernel"}
    assert set(model.report.new) == new | {"vision/pooler/bias", "vision/pooler/kernel"}
    alone = {name: registry.load(folder) for name, folder in folders.items()}
    for name, value in model.params.items():
        tower, _, rest = name.partition("/")
        if tower in alone and "pooler" not in name:
            np.testing.assert_array_equal(value, alone[tower].params[rest])
    exported = model.save(tmp_path / "export")
    assert (exported / "tokenizer.json").is_file()
    assert (exported / "preprocessor_config.json").is_file()
    theirs = transformers.AutoModel.from_pretrained(exported, attn_implementation="eager").eval()
    assert type(theirs).__name__ == "VisionTextDualEncoderModel"
    draw = np.random.default_rng(0)
    batch = {
        "pixel_values": draw.normal(size=(2, 3, SIDE, SIDE)).astype(np.float32),
        "input_ids": draw.integers(4, 20, (2, 6)),
        "attention_mask": np.ones((2, 6), np.int64),
    }
    again = registry.load(str(exported))
    assert again.head == "contrastive"
    assert again.source.sha256 != model.source.sha256
    for ours in (model, again):
        for one, other in outputs_of(Pair(ours, theirs, str(exported), batch)):
            np.testing.assert_allclose(one, other, atol=2e-5)


def test_a_tower_may_come_from_a_joint_checkpoint(folders, pair):
    if pair.ours.model_type != "clip":
        return
    model = registry.load({"vision": pair.folder, "text": folders["text"]}, task="contrastive")
    kernel = "vision/blocks/0/mlp/up/kernel"
    np.testing.assert_array_equal(model.params[kernel], pair.ours.params[kernel])
    assert set(model.report.new) == {n for n in model.params if n.startswith("head/")}


def test_what_is_wrong_with_two_checkpoints(folders):
    with pytest.raises(
        UserError, match="two checkpoints are 'vision' and 'text', or 'encoder' and 'decoder'"
    ):
        registry.describe({"vision": folders["vision"]})
    with pytest.raises(UserError, match="no folder 'nowhere/at/all'"):
        registry.describe({"vision": folders["vision"], "text": "nowhere/at/all"})
    swapped = {"vision": folders["text"], "text": folders["vision"]}
    with pytest.raises(UserError, match="'bert' is not supported as the image tower of two"):
        registry.describe(swapped)


# ------------------------------------------------------------------------------- odd files
def rewritten(pair, folder, change=None, rename=lambda name: name):
    """The pair's checkpoint with another config.json and other names of tensors."""
    folder.mkdir()
    fields = json.loads((Path(pair.folder) / "config.json").read_text())
    if change is not None:
        change(fields)
    (folder / "config.json").write_text(json.dumps(fields))
    tensors = load_file(f"{pair.folder}/model.safetensors")
    named = {rename(name): value for name, value in tensors.items()}
    save_file(named, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


@pytest.mark.parametrize("end", [2, 3])
def test_a_text_is_read_at_its_end(end, tmp_path):
    """Under the number 2, which CLIP's first configs give, the end is the highest word."""
    text = make_pair("clip_text_model", None, 0, tmp_path / "source")
    folder = rewritten(text, tmp_path / "other", lambda f: f.update(eos_token_id=end))
    theirs = type(text.torch).from_pretrained(folder, attn_implementation="eager").eval()
    batch = dict(text.batch)
    batch["input_ids"] = batch["input_ids"].copy()
    batch["input_ids"][0, [4, 6, 9]] = [3, text.torch.config.vocab_size - 1, 3]
    for one, other in outputs_of(Pair(registry.load(folder), theirs, folder, batch)):
        np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.parametrize("end", [None, [2, 3]])
def test_an_end_of_text_that_is_no_one_token_is_refused(end):
    with pytest.raises(UserError, match="reads its vector at one token"):
        TextConfig.from_hf({"model_type": "clip_text_model", "eos_token_id": end})


def test_a_tower_said_twice_is_the_second(pair, tmp_path):
    """As in CLIP's first files: transformers fills in what the second leaves out."""
    if pair.ours.model_type != "clip":
        return

    def twice(fields):
        said = {k: v for k, v in fields["text_config"].items() if k != "hidden_act"}
        fields |= {"text_config_dict": said, "vision_config_dict": None}
        fields["text_config"] = {"hidden_size": 7, "length_penalty": 1.0}

    folder = rewritten(pair, tmp_path / "twice", twice)
    theirs = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    ours = registry.load(folder)
    assert ours.config.text.fields["hidden_act"] == "quick_gelu"
    for one, other in outputs_of(Pair(ours, theirs, folder, pair.batch)):
        np.testing.assert_allclose(one, other, atol=2e-5)
    exported = json.loads((ours.save(tmp_path / "export") / "config.json").read_text())
    assert "text_config_dict" not in exported
    assert exported["text_config"]["hidden_size"] == ours.config.text.fields["hidden_size"]


def test_what_a_head_does_not_read_goes_unused(pair, tmp_path):
    """A classifier is made of the image tower of a joint checkpoint; nothing unknown slips by."""
    model = registry.load(pair.folder, task="image_classification", num_labels=3)
    assert set(model.report.new) == {"head/bias", "head/kernel"}
    assert all(name.startswith(("text", "visual", "logit")) for name in model.report.unused)
    assert model(pixel_values=pair.batch["pixel_values"])["logits"].shape == (3, 3)
    odd = "text_model.encoder.layers.0.surprise"
    last = "text_model.encoder.layers.0.mlp.fc1.bias"
    folder = rewritten(pair, tmp_path / "odd", rename=lambda n: odd if n == last else n)
    with pytest.raises(UserError, match=r"lacks the tensor 'text_model\.encoder\.layers\.0\.mlp"):
        registry.describe(folder)
    with pytest.raises(UserError, match=r"holds 'text_model\.encoder\.layers\.0\.surprise'"):
        registry.describe(folder, registry.LoadOptions(task="image_classification"))


def test_what_cannot_be_compared_is_refused(pair, tmp_path):
    if pair.ours.model_type != "siglip":
        return
    folder = rewritten(
        pair, tmp_path / "no", lambda f: f["vision_config"].update(vision_use_head=False)
    )
    with pytest.raises(UserError, match="no vector to compare texts with"):
        registry.describe(folder)
