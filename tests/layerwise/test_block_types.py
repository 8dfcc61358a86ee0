"""Rates by the type of a parameter."""

import numpy as np
import pytest
from pydantic import ValidationError

from jaxft.config.recipe import LayerDecaySection
from jaxft.layerwise.block_types import block_type, type_multipliers
from jaxft.layerwise.groups import Group
from jaxft.loop.recipe import layer_table
from jaxft.models import load as registry
from tests.support.random_configs import random_config
from tests.support.tiny import tiny_checkpoint

FAMILIES = ("bert", "bart", "clip", "deberta-v2", "dinov2", "gemma2", "t5", "yolos")


@pytest.mark.parametrize(
    ("name", "depth", "expected"),
    [
        ("embeddings/word/embedding", 0, "embedding"),
        ("embeddings/norm/scale", 0, "norm"),
        ("encoder/positions/embedding", 0, "embedding"),
        ("blocks/1/position", 2, "embedding"),
        ("blocks/0/attention/query/kernel", 1, "query_key"),
        ("blocks/0/attention/distance_key/bias", 1, "query_key"),
        ("blocks/0/attention/query_norm/scale", 1, "norm"),
        ("decoder/blocks/3/cross/value/kernel", 4, "value_output"),
        ("blocks/0/attention/output/lora_a", 1, "value_output"),
        ("vision/blocks/0/mlp/gate/kernel", 1, "mlp"),
        ("blocks/0/mlp/norm/bias", 1, "norm"),
        ("blocks/0/mlp/join/layer_scale", 1, "mlp"),
        ("norm/scale", 3, "norm"),
        ("head/kernel", 3, "other"),
        ("pooler/mlp/up/kernel", 3, "other"),
    ],
)
def test_types_are_read_off_names(name, depth, expected):
    assert block_type(name, depth) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_of_a_block_has_a_type(family, tmp_path):
    random_config(family, np.random.default_rng(0)).save_pretrained(tmp_path)
    model = registry.describe(str(tmp_path), weights=False)
    types = {name: block_type(name, model.depths[name]) for name in model.leaves}
    assert "other" not in {one for name, one in types.items() if "blocks/" in name}
    assert set(types.values()) >= {"norm", "value_output", "mlp", "query_key", "embedding"}


def test_sharpness_multiplies_by_type_and_fan_in_divides_by_inputs(tmp_path):
    folder = str(tiny_checkpoint(tmp_path / "bert"))
    model = registry.load(folder, task="text_classification")

    def multipliers(preset):
        frozen = Group("frozen", match="embeddings/position/.*", freeze=True)
        table = layer_table(model, groups=[frozen], preset=preset, lr=1e-4)
        return {leaf.name: leaf.multiplier for leaf in table.leaves}

    sharp = multipliers("sharpness")
    assert sharp["embeddings/word/embedding"] == 10
    assert sharp["embeddings/position/embedding"] == 0
    assert sharp["blocks/1/attention/key/bias"] == 8
    assert sharp["blocks/1/mlp/down/kernel"] == 6
    assert sharp["blocks/0/attention/value/kernel"] == 4
    assert sharp["blocks/0/mlp/norm/scale"] == sharp["head/kernel"] == 1
    by_inputs = multipliers("fan_in")
    wide, narrow = "blocks/0/mlp/down/kernel", "blocks/0/attention/query/kernel"
    ratio = model.leaves[narrow].shape[0] / model.leaves[wide].shape[0]
    assert ratio < 1
    assert by_inputs[wide] == ratio
    others = {name for name, one in by_inputs.items() if one == 1}
    assert others == {name for name in by_inputs if "mlp/down/kernel" not in name} - {
        "embeddings/position/embedding"
    }


def test_adapters_keep_their_rates_under_fan_in():
    shapes = {
        "blocks/0/attention/query/kernel": np.zeros((8, 8)),
        "blocks/0/attention/query/lora_b": np.zeros((2, 8)),
        "blocks/0/mlp/down/kernel": np.zeros((32, 8)),
    }
    found = type_multipliers("fan_in", list(shapes), shapes, dict.fromkeys(shapes, 1))
    assert list(found.values()) == [1, 1, 0.25]


def test_experts_have_the_inputs_of_one_under_fan_in():
    shapes = {
        "blocks/0/attention/query/kernel": np.zeros((8, 8)),
        "blocks/0/mlp/experts/up/kernel": np.zeros((4, 8, 16)),
        "blocks/0/mlp/experts/down/kernel": np.zeros((4, 16, 8)),
    }
    multipliers = type_multipliers("fan_in", list(shapes), shapes, dict.fromkeys(shapes, 1))
    assert list(multipliers.values()) == [1, 1, 0.5]


@pytest.mark.parametrize("preset", ["sharpness", "fan_in"])
def test_a_decay_beside_a_preset_of_types_is_refused(preset):
    with pytest.raises(ValidationError, match=f"'rate' and preset {preset} both set"):
        LayerDecaySection(preset=preset, rate=0.9)
