"""`jaxft tune-rates`: what it learns is what it writes, and what it cannot do is one sentence."""

import json
import re

import numpy as np
import pytest

from jaxft.cli.main import main
from jaxft.config.load import load_config, parse_config
from jaxft.engine.recipe import make_table, model_options
from jaxft.layerwise.optimizer import rule_of
from jaxft.models.load import LoadOptions, describe
from jaxft.studies.tuning.groups import tuned_config
from jaxft.studies.tuning.tune import Tuned
from tests.support.tiny import tiny_config

FROZEN = {"name": "trunk", "depth": [0, 0], "freeze": True}
HEAD = {"name": "head", "match": "head/.*", "lr_mult": 5, "weight_decay": 0.0}


@pytest.mark.slow
def test_what_it_writes_has_the_rates_that_it_learned(tmp_path, capsys):
    still = {"name": "still", "match": "blocks/0/.*", "lr_mult": 0}
    config = tiny_config(tmp_path, groups=[HEAD, FROZEN, still], layer_decay={"rate": 0.8})
    file, new = tmp_path / "run.yaml", tmp_path / "new.yaml"
    file.write_text(json.dumps(config.dump()))
    options = ["--steps", "3", "--rounds", "2", "--draws", "2", "--eval-batches", "1"]
    assert main(["tune-rates", str(file), *options, "--json", "--write", str(new)]) == 0
    out, err = capsys.readouterr()
    tuned = json.loads(out)
    assert "6 trainings of 3 steps, each with 3 derivatives" in err
    assert "before training: eval loss" in err
    assert tuned["depths"] == [1, 2, 3]
    np.testing.assert_allclose(tuned["base"][:2], [0, 0.8])
    assert tuned["loss_after"] < tuned["loss_before"]
    for draw in tuned["draws"]:
        first, moved = np.array(draw["logs"][0]), np.array(draw["logs"][1])
        # Each depth moves against its derivative.
        assert (np.sign(moved - first) == -np.sign(draw["derivatives"][0])).all()
    low, learned, high = (np.array(tuned[key]) for key in ("low", "multipliers", "high"))
    assert (low <= learned).all()
    assert (learned <= high).all()

    before, after = (make_table(one, described(one)) for one in (config, load_config(str(new))))
    factors = dict(zip(tuned["depths"], tuned["learned"], strict=True))
    assert after.trainable == before.trainable
    for old, leaf in zip(before.leaves, after.leaves, strict=True):
        assert leaf.trainable == old.trainable
        if leaf.trainable:
            assert leaf.multiplier == pytest.approx(old.multiplier * factors[leaf.depth], rel=1e-3)
            assert leaf.decays == old.decays
    heads = [group for group in after.groups if group.name.startswith("head-")]
    assert {group.weight_decay for group in heads} == {0.0}


@pytest.mark.slow
def test_rates_that_undo_the_checkpoint_are_named(tmp_path, capsys):
    config = tiny_config(tmp_path, optimizer={"lr": 0.5})
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(config.dump()))
    options = ["--steps", "2", "--rounds", "1", "--draws", "2", "--eval-batches", "1"]
    assert main(["tune-rates", str(file), *options]) == 0
    _, err = capsys.readouterr()
    assert err.count("the config's own rates do not lower the eval loss in these steps") == 1


LORA = {"kind": "lora", "rank": 2, "lr_ratio": 16}
TOP = [
    {"name": "chosen", "match": "blocks/1/.*"},
    {"name": "top", "match": "(pooler|head)/.*"},
    {"name": "frozen", "match": ".*", "freeze": True},
]


@pytest.mark.parametrize(
    "sections",
    [
        {"layer_decay": {"rate": 0.5}},
        {"groups": TOP},
        {"groups": [{"name": "norms", "match": ".*/norm/.*", "lr_mult": 2}, FROZEN]},
        {"adapter": LORA},
        {"optimizer": {"name": "muon", "lr": 1e-2}},
        {"optimizer": {"name": "muon", "lr": 1e-2, "adam_lr": 1e-4}},
    ],
    ids=["decay", "frozen-last", "frozen-depth", "lora-plus", "muon", "muon-adam-lr"],
)
def test_factors_of_one_leave_every_rate_and_rule(tmp_path, sections):
    config = tiny_config(tmp_path, **sections)
    model = describe(config.model.checkpoint, model_options(config, ("0", "1")))
    before = make_table(config, model)
    depths = sorted({leaf.depth for leaf in before.leaves if leaf.trainable})
    ones = (1.0,) * len(depths)
    ones = Tuned(tuple(depths), ones, ones, ones, ones, ones, 1.0, 1.0, 1, ())
    after = make_table(parse_config(tuned_config(config, before.leaves, ones)), model)
    for one, other in zip(moves(before), moves(after), strict=True):
        assert other == (*one[:2], pytest.approx(one[2], rel=1e-3))


def moves(table):
    """Name, rule and peak rate of each parameter; no rule of what is frozen."""
    groups = {group.name: group for group in table.groups}
    for leaf in table.leaves:
        group = groups[leaf.group]
        rule = rule_of(leaf, group.algorithm) if leaf.trainable else None
        yield leaf.name, rule, group.peak_rate * leaf.multiplier


def described(config):
    options = LoadOptions(task="text_classification", labels=("0", "1"))
    return describe(config.model.checkpoint, options)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--steps", "0"], "--steps must be at least 1, not 0."),
        (["--draws", "1"], "--draws must be at least 2, not 1."),
        (["phases=auto_freeze"], "phases: the rates of one phase are learned at a time"),
        (["regularise.l2_sp=0.1"], "Pass regularise={}."),
        (["layer_decay={preset: auto_rgn}"], "layer_decay.preset: auto_rgn measures"),
        (["--write", "run.yaml"], "--write: run.yaml exists."),
    ],
)
def test_what_has_no_derivative_is_one_sentence(tmp_path, monkeypatch, capsys, words, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(json.dumps(tiny_config(tmp_path).dump()))
    assert main(["tune-rates", "run.yaml", *words]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert sum(sentence in line for line in errors) == 1
    for override in re.findall(r"pass (\S+=\S+)\.", errors[-1], re.IGNORECASE):
        load_config("run.yaml", [override])  # the mend is one
