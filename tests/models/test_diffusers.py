"""Parts of pipelines of `diffusers` against PyTorch's: denoisers and the autoencoder."""

import json
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxft.engine.cost import FORWARD, INPUT, WEIGHT, count_flops, tally_flops
from jaxft.errors import UserError
from jaxft.models import load as registry
from jaxft.models.family import ComposedFamily, leaves_of
from jaxft.models.layers.vision import Convolution
from jaxft.models.tower.tower import Compute, Part
from tests.models.test_config_fields import VALUES
from tests.support.diffusers_parts import CONFIGS, make_part, random_torch

WEIGHTS = "diffusion_pytorch_model.safetensors"


def kinds(*slow):
    """All kinds of parts, those named with `--full` alone: they take seconds each."""
    return [pytest.param(k, marks=pytest.mark.full if k in slow else ()) for k in CONFIGS]


KINDS = kinds("unet-xl")
DIT_ALONE = kinds(*(k for k in CONFIGS if k != "dit"))


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def part(kind, tmp_path_factory):
    return make_part(kind, tmp_path_factory.mktemp(kind))


def test_outputs_are_pytorchs(part):
    assert_same_outputs(part)


def test_outputs_of_sdxls_are_pytorchs(tmp_path):
    assert_same_outputs(make_part("unet-xl", tmp_path))


def assert_same_outputs(part) -> None:
    ours, theirs = part.ours(**part.batch), part.theirs()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        expected = theirs[name].detach().numpy()
        np.testing.assert_allclose(value, expected, atol=2e-5, rtol=2e-5)


def weighted(outputs):
    """A scalar that each number of each output enters with a weight of its own."""
    total = 0.0
    for value in outputs.values():
        weight = np.cos(np.arange(np.prod(value.shape), dtype=np.float32)).reshape(value.shape)
        total = (
            total + (value * (weight if isinstance(value, jax.Array) else to_torch(weight))).sum()
        )
    return total


def to_torch(value):
    import torch

    return torch.tensor(value)


def gradients(model, batch, compute=None, key=None):
    run = partial(model.apply, compute=compute or Compute())
    return jax.jit(jax.grad(lambda params: weighted(run(params, batch, key))))(model.params)


def test_gradients_are_pytorchs(part):
    part.torch.zero_grad()
    weighted(part.theirs()).backward()
    theirs = {name: value.grad.numpy() for name, value in part.torch.named_parameters()}
    stored = part.torch.state_dict()  # a buffer in it is a fixed table, which does not train
    theirs |= {n: np.zeros_like(v) for n, v in part.torch.named_buffers() if n in stored}
    whole = np.sqrt(sum(np.square(value).sum() for value in theirs.values()))
    part.gradients = gradients(part.ours, part.batch)
    for name, value in part.gradients.items():
        line = part.ours.hf_names[name]
        expected = np.moveaxis(theirs[line.hf], 0, -1) if line.transpose else theirs[line.hf]
        # A key's bias moves all scores of a query alike, and a convolution's before a norm of few
        # channels nearly nothing: their gradients are rounding.
        small = np.linalg.norm(expected) <= 1e-6 * whole
        most = 1e-6 * whole if small else 1e-4 * np.linalg.norm(expected)
        assert np.linalg.norm(np.asarray(value) - expected) <= most, name


def test_every_name_is_accounted_for_both_ways(part):
    stored = load_file(part.folder / WEIGHTS)
    assert set(part.ours.names) == set(part.ours.params)
    assert sorted(part.ours.names.values()) == sorted(stored)
    assert part.ours.report.loaded == tuple(part.ours.params)
    assert part.ours.report.new == part.ours.report.unused == ()


def test_export_is_the_checkpoint_bit_for_bit(part, tmp_path):
    part.ours.save(tmp_path)
    before, after = load_file(part.folder / WEIGHTS), load_file(tmp_path / WEIGHTS)
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert value.dtype == after[name].dtype
        assert value.tobytes() == after[name].tobytes(), name
    read = [json.loads((folder / "config.json").read_text()) for folder in (part.folder, tmp_path)]
    assert read[0] == {name: read[1].get(name) for name in read[0]}
    assert not {"model_type", "architectures", "dtype"} & read[1].keys()


def test_export_of_changed_weights_loads_in_diffusers(part, tmp_path):
    model = part.ours.with_params({n: value * 0.9 for n, value in part.ours.params.items()})
    loaded = type(part.torch).from_pretrained(model.save(tmp_path)).eval()
    theirs = part.theirs(loaded)
    for name, value in model(**part.batch).items():
        expected = theirs[name].detach().numpy()
        np.testing.assert_allclose(value, expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("kind", kinds("unet-1.5", "unet-xl"), indirect=True, scope="module")
def test_a_field_of_another_kind(part):
    family = registry.families()[part.ours.model_type]
    fields, faults, counts, described = dict(part.ours.fields), [], [0, 0], []
    for field in sorted(fields.keys() - {"model_type"}):
        for value in VALUES:
            try:
                counts[is_read(family, {**fields, field: value}, described)] += 1
            except Exception as error:
                faults.append(f"{field} = {str(value)[:40]}: {type(error).__name__}: {error}")
    assert not faults, "\n".join(faults)
    assert min(counts) > 20


def is_read(family, fields, described) -> bool:
    """Whether a config is read and its towers are described, once; else it is refused."""
    try:
        if isinstance(family, ComposedFamily):
            family = family.compose(fields, registry.families(), False)
        if (config := family.config.from_hf(fields)) not in described:
            leaves_of(family.towers(config, "diffusion", None))
            described.append(config)
    except UserError as error:
        sentence = str(error)
    else:
        return True
    assert sentence.startswith("config.json")
    assert len(sentence) < 400
    return False


@pytest.mark.parametrize("kind", DIT_ALONE, indirect=True, scope="module")
def test_blocks_recomputed_or_scanned_have_the_same_gradients(part):
    again = gradients(part.ours, part.batch, Compute(scan=True, remat="full"))
    for name, value in part.gradients.items():
        np.testing.assert_allclose(again[name], value, atol=1e-4, rtol=1e-4, err_msg=name)


def test_depth_is_the_place_in_the_u(tmp_path):
    part = make_part("unet-1.5", tmp_path)
    depths = {part.ours.names[name]: depth for name, depth in part.ours.depths.items()}
    assert depths["conv_in.weight"] == depths["time_embedding.linear_1.weight"] == 0
    assert depths["down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q.weight"] == 1
    assert depths["down_blocks.0.downsamplers.0.conv.weight"] == 1
    assert depths["mid_block.resnets.1.conv1.weight"] == 3
    assert depths["up_blocks.0.upsamplers.0.conv.weight"] == 5
    assert depths["up_blocks.1.resnets.1.conv1.weight"] == 7
    assert depths["conv_out.weight"] == part.ours.num_depths - 1 == 8


def test_a_dit_scans_over_its_blocks_and_has_one_depth_each(tmp_path):
    part = make_part("dit", tmp_path)
    (tower,) = part.ours.towers.values()
    assert len({id(block) for block in tower.blocks}) == 1
    assert part.ours.depths["blocks/2/attention/query/kernel"] == 3
    # The top reads the embedding of the first block, which is one parameter.
    frozen = Compute(trainable=frozenset({"output/kernel"}))
    jaxpr = str(
        jax.make_jaxpr(partial(part.ours.apply, compute=replace(frozen, scan=True)))(
            part.ours.params, part.batch
        )
    )
    assert "length=3" in jaxpr


@pytest.mark.parametrize(("side", "stride"), [(3, 1), (3, 2), (1, 1)])
def test_the_flops_of_a_convolution_are_counted(side, stride):
    """Forward, and as much for each of the two gradients."""
    part = Part(Convolution(4, 6, side, stride))
    values = {name: jnp.ones(leaf.shape) for name, leaf in part.leaves.items()}
    x = jnp.ones((2, 8, 8, 4))

    def run(values, x):
        return jnp.square(part.bind(values)(x)).sum()

    forward = 2 * 2 * (8 // stride) ** 2 * 4 * 6 * side**2
    assert count_flops(run, values, x) == forward
    assert count_flops(jax.grad(run), values, x) == 2 * forward
    tally = tally_flops(jax.grad(run, (0, 1)), values, x)
    assert sorted(of for _, of in tally) == sorted([FORWARD, INPUT, WEIGHT])
    assert set(tally.values()) == {forward}


def test_older_names_of_an_autoencoders_attention(tmp_path):
    from safetensors.torch import save_file

    model = random_torch("vae")
    model.save_pretrained(tmp_path)
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for name, value in model.state_dict().items():
        for own, other in older.items():
            name = name.replace(f".{own}.", f".{other}.")
        state[name] = value.contiguous()
    save_file(state, tmp_path / WEIGHTS)
    ours = registry.load(str(tmp_path))
    assert len(ours.report.loaded) == len(state)


BAD = [
    ("unet-1.5", {"down_block_types": ["AttnDownBlock2D", "DownBlock2D"]}, "AttnDownBlock2D"),
    ("unet-1.5", {"addition_embed_type": "image"}, 'addition_embed_type "image"'),
    ("unet-1.5", {"block_out_channels": [8, 18]}, "18 does not divide into 4 groups"),
    ("vae", {"up_block_types": ["AttnUpDecoderBlock2D"] * 2}, "AttnUpDecoderBlock2D"),
    ("dit", {"activation_fn": "geglu"}, 'activation_fn "geglu"'),
    ("dit", {"attention_head_dim": 3, "num_attention_heads": 1}, "a multiple of 4"),
]


@pytest.mark.parametrize(("kind", "changed", "words"), BAD)
def test_configs_that_are_refused(kind, changed, words, tmp_path):
    name, config = CONFIGS[kind]
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": name, **config, **changed}))
    with pytest.raises(UserError, match=words):
        registry.describe(str(tmp_path), weights=False)


@pytest.mark.parametrize(
    ("kind", "changed", "words"),
    [
        ("dit", {"sample": np.zeros((1, 3, 8, 6))}, "8 x 6; a DiT takes squares"),
        ("dit", {"sample": np.zeros((1, 2, 8, 8))}, "2 channels; the model takes 3"),
        ("unet-1.5", {"sample": np.zeros((1, 3, 8, 7))}, "8 x 7; the model takes multiples of 2"),
        ("vae", {"pixel_values": np.zeros((1, 3, 16, 15))}, "16 x 15; the autoencoder"),
    ],
)
def test_images_that_do_not_fit(kind, changed, words, tmp_path):
    part = make_part(kind, tmp_path)
    rows = {name: jnp.asarray(value[:1]) for name, value in part.batch.items()}
    with pytest.raises(UserError, match=words):
        jax.eval_shape(part.ours.apply, part.ours.params, rows | changed)
