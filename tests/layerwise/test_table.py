"""The LayerTable: whose each parameter is, and its rate, depth and decay."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxft.config.optimizer import OptimizerSection
from jaxft.config.recipe import Group, LayerDecaySection, ScheduleSection
from jaxft.engine.recipe import table_from
from jaxft.errors import UserError
from jaxft.models.load import LoadOptions, describe
from tests.support.tiny import tiny_checkpoint

HERE = Path(__file__).parent
GOLDEN = json.loads((HERE / "golden_vitb_ld075.json").read_text())
BLOCKS = 12
# A ViT-B's parameters that the golden file names, under our names, with our depths.
VIT = {
    "cls_token": ("embeddings/class_token", 0),
    "reg_token": ("embeddings/register_tokens", 0),
    "pos_embed": ("embeddings/position", 0),
    "patch_embed.proj.weight": ("embeddings/patch/kernel", 0),
    **{
        f"blocks.{i}.attn.qkv.weight": (f"blocks/{i}/attention/query/kernel", i + 1)
        for i in range(BLOCKS)
    },
    "norm.weight": ("norm/scale", BLOCKS + 1),
    "fc_norm.weight": ("head/norm/scale", BLOCKS + 1),
    "head.weight": ("head/kernel", BLOCKS + 1),
}


def make_table(
    depths,
    groups=(),
    *,
    tops=None,
    no_decay=(),
    layer_decay=None,
    final_norms=("norm/",),
    **optimizer,
):
    shapes = {name: jax.ShapeDtypeStruct((4, 2), np.float32) for name in depths}
    return table_from(
        shapes,
        depths=depths,
        tops=tops or dict.fromkeys(depths, max(depths.values())),
        no_decay=no_decay,
        groups=groups,
        layer_decay=layer_decay or LayerDecaySection(),
        optimizer=OptimizerSection(**optimizer),
        schedule=ScheduleSection(),
        final_norms=final_norms,
    )


def vit_multipliers(**layer_decay):
    table = make_table(dict(VIT.values()), layer_decay=LayerDecaySection(**layer_decay))
    found = {leaf.name: leaf.multiplier for leaf in table.leaves}
    return {theirs: found[ours] for theirs, (ours, _) in VIT.items()}


@pytest.mark.parametrize("preset", ["timm", "mae"])
def test_layer_decay_is_the_originals(preset):
    assert set(GOLDEN[preset]) == set(VIT)
    assert vit_multipliers(preset=preset, rate=0.75) == pytest.approx(GOLDEN[preset], rel=1e-6)


def test_presets_differ_where_the_originals_do():
    assert GOLDEN["timm"]["norm.weight"] != GOLDEN["mae"]["norm.weight"]
    assert GOLDEN["timm"]["reg_token"] != GOLDEN["mae"]["reg_token"]


def test_electra_has_its_hole_below_the_head():
    found = vit_multipliers(preset="electra", rate=0.75)
    assert found["head.weight"] == 1
    assert found["blocks.11.attn.qkv.weight"] == pytest.approx(0.5625)
    assert found["blocks.0.attn.qkv.weight"] == pytest.approx(0.75**13)
    assert found["pos_embed"] == pytest.approx(0.75**14)
    assert found["pos_embed"] == pytest.approx(0.017818, abs=1e-6)


def test_ulmfit_divides_by_2_6_a_layer_unless_told_otherwise():
    found = vit_multipliers(preset="ulmfit")
    assert found["head.weight"] == 1
    for index in range(BLOCKS):
        expected = (1 / 2.6) ** (BLOCKS - index)
        assert found[f"blocks.{index}.attn.qkv.weight"] == pytest.approx(expected)
    assert vit_multipliers(preset="ulmfit", rate=0.5)["blocks.11.attn.qkv.weight"] == 0.5


def test_without_decay_every_multiplier_is_one():
    for preset in ("timm", "mae", "electra"):
        assert set(vit_multipliers(preset=preset).values()) == {1.0}


# -------------------------------------------------------------------------------- a small model
DEPTHS = {
    "embeddings/word/embedding": 0,
    **{f"blocks/{i}/{leaf}": i + 1 for i in range(11) for leaf in ("kernel", "bias")},
    "head/kernel": 12,
    "head/bias": 12,
}
TRUNK = Group(name="trunk", depth=(0, 9), freeze=True)
HEAD = Group(name="head", match="head/.*", lr_mult=10)


def owners(table):
    return {leaf.name: leaf.group for leaf in table.leaves}


def test_every_parameter_is_in_one_group_in_natural_order():
    table = make_table(DEPTHS, [HEAD, TRUNK])
    names = [leaf.name for leaf in table.leaves]
    assert sorted(names) == sorted(DEPTHS)
    assert names.index("blocks/2/bias") < names.index("blocks/10/bias")
    assert set(table.trainable) | set(table.frozen) == set(DEPTHS)
    assert not set(table.trainable) & set(table.frozen)
    assert sum(row["leaves"] for row in table.summary()) == len(DEPTHS)
    assert sum(row["parameters"] for row in table.summary()) == 8 * len(DEPTHS)


def test_the_first_match_owns():
    narrow = Group(name="biases", match=r".*/bias")
    found = owners(make_table(DEPTHS, [narrow, HEAD, TRUNK]))
    assert found["head/bias"] == found["blocks/0/bias"] == "biases"
    assert found["head/kernel"] == "head"
    assert found["blocks/0/kernel"] == found["blocks/8/kernel"] == "trunk"
    assert found["blocks/9/kernel"] == "rest"
    found = owners(make_table(DEPTHS, [HEAD, TRUNK, narrow]))
    assert found["head/bias"] == "head"
    assert found["blocks/0/bias"] == "trunk"
    assert found["blocks/10/bias"] == "biases"


def test_a_pattern_matches_the_whole_name():
    with pytest.raises(UserError, match="matches no parameter"):
        make_table(DEPTHS, [Group(name="head", match="head")])
    found = owners(make_table(DEPTHS, [Group(name="one", match="blocks/1/.*")]))
    assert [name for name, group in found.items() if group == "one"] == [
        "blocks/1/bias",
        "blocks/1/kernel",
    ]


def test_several_patterns_are_one_group():
    group = Group(name="ends", match=["embeddings/.*", "head/.*"])
    found = owners(make_table(DEPTHS, [group]))
    assert {name for name, owner in found.items() if owner == "ends"} == {
        "embeddings/word/embedding",
        "head/kernel",
        "head/bias",
    }


def test_a_pattern_that_matches_nothing_names_the_nearest():
    with pytest.raises(UserError) as caught:
        make_table(DEPTHS, [HEAD, Group(name="typo", match="haed/.*")])
    said = str(caught.value)
    assert "groups[1] (typo).match" in said
    assert "'haed/.*'" in said
    assert "head/bias" in said or "head/kernel" in said


def test_each_of_several_patterns_must_match():
    with pytest.raises(UserError, match=r"blokcs/0/\.\*"):
        make_table(DEPTHS, [Group(name="two", match=["head/.*", "blokcs/0/.*"])])


def test_a_pattern_that_is_no_expression_is_an_error():
    with pytest.raises(UserError, match="not a regular expression"):
        make_table(DEPTHS, [Group(name="odd", match="head/(")])


def test_a_group_that_owns_nothing_names_who_does():
    with pytest.raises(UserError) as caught:
        make_table(DEPTHS, [Group(name="all", match=".*"), HEAD])
    assert "groups[1] (head)" in str(caught.value)
    assert "'all'" in str(caught.value)


@pytest.mark.parametrize("depth", [(13, 13), (0, 13), (20, 30)])
def test_a_depth_outside_is_an_error(depth):
    with pytest.raises(UserError, match=r"0 \(embeddings\) to 12 \(head\)"):
        make_table(DEPTHS, [Group(name="odd", depth=depth)])


def test_a_depth_range_holds_both_ends():
    found = owners(make_table(DEPTHS, [Group(name="some", depth=(1, 2))]))
    assert [name for name, group in found.items() if group == "some"] == [
        "blocks/0/bias",
        "blocks/0/kernel",
        "blocks/1/bias",
        "blocks/1/kernel",
    ]


def test_all_frozen_is_an_error():
    with pytest.raises(UserError, match="nothing would be trained"):
        make_table(DEPTHS, [Group(name="all", match=".*", freeze=True)])


def test_a_rate_that_float32_does_not_hold_is_an_error():
    fast = Group(name="fast", match="head/.*", lr_mult=1e20)
    with pytest.raises(UserError, match=r"learning rate of 'head/.* is 1e\+40, .* group 'fast'\."):
        make_table(DEPTHS, [fast], lr=1e20)


def test_the_trunk_is_the_frozen_prefix():
    """A frozen block above the lowest trained one is no trunk: gradients go through it."""
    groups = [
        Group(name="low", depth=(0, 2), freeze=True),
        Group(name="high", depth=(5, 6), freeze=True),
    ]
    table = make_table(DEPTHS, groups)
    assert table.trunk() == tuple(n for n in table.frozen if DEPTHS[n] <= 2)
    assert set(table.frozen) - set(table.trunk()) == {n for n, d in DEPTHS.items() if d in (5, 6)}
    bias_only = [Group(name="weights", match=".*(kernel|embedding)", freeze=True)]
    assert make_table(DEPTHS, bias_only).trunk() == ("embeddings/word/embedding",)
    assert make_table(DEPTHS).trunk() == ()


def test_rates_multiply_and_a_group_has_its_own():
    groups = [
        TRUNK,
        HEAD,
        Group(name="tenth", depth=(10, 10), lr=0.5, weight_decay=0.3, optimizer="sgd"),
    ]
    decay = LayerDecaySection(rate=0.5)
    table = make_table(DEPTHS, groups, layer_decay=decay, lr=0.25, weight_decay=0.1)
    leaf = {row["name"]: row for row in table.rows()}
    assert leaf["head/kernel"]["multiplier"] == 10
    assert leaf["head/kernel"]["peak_rate"] == 2.5
    assert leaf["blocks/9/kernel"]["multiplier"] == 0.25
    assert leaf["blocks/9/kernel"]["peak_rate"] == 0.125
    assert leaf["blocks/10/kernel"]["peak_rate"] == 0.125
    assert leaf["blocks/0/kernel"]["multiplier"] == leaf["blocks/0/kernel"]["peak_rate"] == 0
    assert [group.name for group in table.training_groups] == ["head", "tenth", "rest"]
    np.testing.assert_allclose(table.weight_decays(), [0.1, 0.3, 0.1])
    np.testing.assert_allclose(table.fastest(table.multipliers()), [10, 0.25, 0.5])
    named = dict(zip(table.trainable, table.multipliers(), strict=True))
    assert named["blocks/9/bias"] == 0.25
    assert named["head/bias"] == 10


def test_the_summary_counts_moments_of_trained_leaves_only():
    table = make_table(DEPTHS, [TRUNK, Group(name="head", match="head/.*", optimizer="sgd")])
    rows = {row["name"]: row for row in table.summary()}
    assert rows["trunk"]["optimizer_bytes"] == 0
    assert rows["trunk"]["depths"] == [0, 9]
    assert rows["head"]["optimizer_bytes"] == 2 * 8 * 4  # two leaves, a float32 sum each
    assert rows["rest"]["optimizer_bytes"] == 4 * 8 * 8  # four leaves, two float32 moments each
    assert rows["trunk"]["trainable"] is False
    assert rows["trunk"]["schedule"] is rows["trunk"]["optimizer"] is None


# Two towers, of four blocks and of two, and what joins them.
TWO = {
    "vision/embeddings/patch/kernel": (0, 5),
    **{f"vision/blocks/{i}/mlp/up/kernel": (i + 1, 5) for i in range(4)},
    "vision/norm/scale": (5, 5),
    "text/embeddings/word/embedding": (0, 3),
    **{f"text/blocks/{i}/mlp/up/kernel": (i + 1, 3) for i in range(2)},
    "text/norm/scale": (3, 3),
    "head/vision/kernel": (5, 5),
    "head/logit_scale": (5, 5),
}


def two_towers(groups=(), **layer_decay):
    depths = {name: depth for name, (depth, _) in TWO.items()}
    tops = {name: top for name, (_, top) in TWO.items()}
    norms = ("vision/norm/", "text/norm/")
    decay = LayerDecaySection(**layer_decay)
    return make_table(depths, groups, tops=tops, layer_decay=decay, final_norms=norms)


@pytest.mark.parametrize(("preset", "norm"), [("mae", 1.0), ("timm", 0.5)])
def test_each_tower_decays_over_its_own_depth(preset, norm):
    found = {leaf.name: leaf.multiplier for leaf in two_towers(preset=preset, rate=0.5).leaves}
    assert [found[f"vision/blocks/{i}/mlp/up/kernel"] for i in range(4)] == [
        1 / 16,
        1 / 8,
        0.25,
        0.5,
    ]
    assert [found[f"text/blocks/{i}/mlp/up/kernel"] for i in range(2)] == [0.25, 0.5]
    assert found["vision/embeddings/patch/kernel"] == 1 / 32
    assert found["text/embeddings/word/embedding"] == 1 / 8
    assert found["vision/norm/scale"] == found["text/norm/scale"] == norm
    assert found["head/vision/kernel"] == found["head/logit_scale"] == 1.0


def test_a_range_of_depths_means_each_tower():
    """And what belongs to no tower lies as deep as the deepest."""
    frozen = two_towers([Group(name="low", depth=(0, 1), freeze=True)]).frozen
    assert set(frozen) == {name for name, (depth, _) in TWO.items() if depth < 2}
    top = two_towers([Group(name="top", depth=(5, 5))])
    owned = {leaf.name for leaf in top.leaves if leaf.group == "top"}
    assert owned == {"vision/norm/scale", "head/vision/kernel", "head/logit_scale"}


# ------------------------------------------------------------------------------- weight decay
@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tiny_checkpoint(tmp_path_factory.mktemp("tiny"))
    return describe(str(folder), LoadOptions(task="text_classification", labels=("bad", "good")))


def bert_table(bert, no_decay="auto"):
    return table_from(
        bert.params,
        depths=bert.depths,
        tops=bert.tops,
        no_decay=sorted(bert.no_decay),
        groups=[],
        layer_decay=LayerDecaySection(),
        optimizer=OptimizerSection(weight_decay=0.1, no_decay=no_decay),
        schedule=ScheduleSection(),
    )


def undecayed(table):
    return [row["name"] for row in table.rows() if row["weight_decay"] == 0]


def test_what_of_bert_does_not_decay(bert):
    """Biases, norms and positions; the file is the list, so that a change of it is seen."""
    listed = (HERE / "no_decay_bert.txt").read_text().splitlines()
    assert undecayed(bert_table(bert)) == listed
    decayed = set(bert.params) - set(listed)
    assert all(name.endswith(("kernel", "word/embedding", "type/embedding")) for name in decayed)


def test_patterns_replace_the_list(bert):
    assert undecayed(bert_table(bert, ["head/.*"])) == ["head/bias", "head/kernel"]
    assert undecayed(bert_table(bert, [])) == []
    with pytest.raises(UserError, match=r"optimizer\.no_decay: the pattern 'haed/\.\*'"):
        bert_table(bert, ["haed/.*"])


def test_berts_depths_run_from_its_embeddings_to_its_head(bert):
    table = bert_table(bert)
    depth = {leaf.name: leaf.depth for leaf in table.leaves}
    assert depth["embeddings/norm/scale"] == 0
    assert depth["blocks/1/mlp/up/kernel"] == 2
    assert depth["pooler/kernel"] == depth["head/kernel"] == bert.num_depths - 1 == 3
