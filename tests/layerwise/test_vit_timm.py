"""Layer decay against timm's, parameter by parameter, on a timm model of the same shape."""

import re
from functools import partial

import pytest

from jaxft.config.optimizer import OptimizerSection
from jaxft.config.recipe import LayerDecaySection, ScheduleSection
from jaxft.engine.recipe import table_from
from jaxft.models import load as registry
from tests.models.test_vit import make

SHAPE = {"img_size": 12, "patch_size": 3, "embed_dim": 12, "depth": 4, "num_heads": 2}
# Our names -> timm's.
NAMES = (
    (r"embeddings/class_token", "cls_token"),
    (r"embeddings/distillation_token", "dist_token"),
    (r"embeddings/register_tokens", "reg_token"),
    (r"embeddings/position", "pos_embed"),
    (r"embeddings/patch/(.*)", r"patch_embed.proj.\1"),
    (r"blocks/(\d+)/attention/norm/(.*)", r"blocks.\1.norm1.\2"),
    (r"blocks/(\d+)/attention/(?:query|key|value)/(.*)", r"blocks.\1.attn.qkv.\2"),
    (r"blocks/(\d+)/attention/output/(.*)", r"blocks.\1.attn.proj.\2"),
    (r"blocks/(\d+)/attention/join/layer_scale", r"blocks.\1.ls1.gamma"),
    (r"blocks/(\d+)/mlp/norm/(.*)", r"blocks.\1.norm2.\2"),
    (r"blocks/(\d+)/mlp/up/(.*)", r"blocks.\1.mlp.fc1.\2"),
    (r"blocks/(\d+)/mlp/down/(.*)", r"blocks.\1.mlp.fc2.\2"),
    (r"blocks/(\d+)/mlp/join/layer_scale", r"blocks.\1.ls2.gamma"),
    (r"(norm|head)/(.*)", r"\1.\2"),
)


def timms_name(ours: str) -> str:
    for pattern, theirs in NAMES:
        if match := re.fullmatch(pattern, ours):
            return re.sub(r"(kernel|scale)$", "weight", match.expand(theirs))
    raise AssertionError(ours)


def timms_scales(theirs) -> dict[str, tuple[float, float]]:
    """Each parameter of a timm model: how its rate is scaled, and its weight decay."""
    # Here, because it takes seconds and `make test` collects this file too.
    from timm.optim import param_groups_layer_decay

    named = {id(value): name for name, value in theirs.named_parameters()}
    groups = param_groups_layer_decay(
        theirs,
        weight_decay=0.05,
        layer_decay=0.75,
        no_weight_decay_list=theirs.no_weight_decay(),
    )
    return {
        named[id(value)]: (group["lr_scale"], group["weight_decay"])
        for group in groups
        for value in group["params"]
    }


def our_scales(model) -> dict[str, tuple[float, float]]:
    """The same of a model of ours, by our names."""
    table = table_from(
        model.params,
        depths=model.depths,
        tops=model.tops,
        no_decay=sorted(model.no_decay),
        groups=(),
        layer_decay=LayerDecaySection(preset="timm", rate=0.75),
        optimizer=OptimizerSection(weight_decay=0.05),
        schedule=ScheduleSection(),
    )
    return {leaf.name: (leaf.multiplier, 0.05 * leaf.decays) for leaf in table.leaves}


def make_timms(model_type: str):
    """timm's model of that type."""
    from timm.models import VisionTransformer, deit

    kinds = {
        "vit": VisionTransformer,
        "deit": deit.VisionTransformerDistilled,
        "dinov2_with_registers": partial(VisionTransformer, reg_tokens=4, init_values=1.0),
    }
    return kinds[model_type](num_classes=3, **SHAPE)


@pytest.mark.full
@pytest.mark.parametrize("model_type", ["vit", "deit", "dinov2_with_registers"])
def test_layer_decay_is_timms(model_type, tmp_path):
    expected = timms_scales(make_timms(model_type))
    make(model_type, tmp_path, image_size=12, patch_size=3, num_hidden_layers=4)
    ours = {
        timms_name(name): scales
        for name, scales in our_scales(registry.describe(str(tmp_path))).items()
        if name != "embeddings/mask_token"  # timm's have none
    }
    # DeiT's second head is of the architecture with a teacher.
    assert set(ours) == {name for name in expected if not name.startswith("head_dist")}
    for name, values in ours.items():
        assert values == pytest.approx(expected[name]), name
