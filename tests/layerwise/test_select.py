"""Groups whose parameters are chosen by a criterion when a run starts (`groups[].select`)."""

import json

import pytest
import yaml

import jaxft
from jaxft.analysis.layer_criteria import select
from jaxft.analysis.layer_criteria.measure import Matrix, Measured
from jaxft.analysis.layer_criteria.select import choose_groups, chosen_matrices, patterns
from jaxft.cli.main import main
from jaxft.config.load import override_config, parse_config
from jaxft.config.recipe import SelectSection
from jaxft.engine.setup import build
from jaxft.errors import UserError
from jaxft.layerwise.criteria.choose import CHOICES, mean_ranks
from jaxft.planning.plan import plan
from jaxft.report.terminal.console import EscapingConsole
from jaxft.studies.members import make_buckets, make_members, make_members_choices
from tests.support.tiny import tiny_config

QUIET = EscapingConsole(quiet=True)
REST = [{"name": "top", "depth": [3, 3]}, {"name": "frozen", "match": ".*", "freeze": True}]


def selecting(folder, **section):
    chosen = {"name": "chosen", "select": {"by": "spectrum", **section}}
    return tiny_config(folder, groups=[chosen, *REST])


def measured(scores):
    """Two blocks with a matrix of each of two kinds, with their Fisher traces."""
    names = [f"blocks/{block}/{kind}/kernel" for block in (0, 1) for kind in ("a", "b")]
    matrices = [Matrix(n, (2, 2), f"{n[:8]}/", n[9:10], int(n[7]) + 1) for n in names]
    return Measured(tuple(matrices), {"fisher": dict(zip(names, scores, strict=True))}, {}, 1, 1.0)


def test_every_criterion_can_be_named():
    assert set(SelectSection.model_fields["by"].annotation.__args__) == set(CHOICES)


@pytest.mark.parametrize(
    ("per", "fraction", "scores", "expected"),
    [
        ("kind", 0.5, [2, 5, 1, 9], ["blocks/0/a/kernel", "blocks/1/b/kernel"]),
        ("model", 0.5, [2, 5, 1, 9], ["blocks/0/b/kernel", "blocks/1/b/kernel"]),
        ("model", 0.25, [2, 5, 1, 9], ["blocks/1/b/kernel"]),
        ("block", 0.5, [1, 5, 2, 9], ["blocks/1/a/kernel", "blocks/1/b/kernel"]),
    ],
)
def test_choices_per_kind_model_and_block(per, fraction, scores, expected):
    assert chosen_matrices(None, measured(scores), "fisher", fraction, per) == expected


def test_mean_ranks_are_taken_within_kinds():
    scores = {"0a": 100.0, "1a": 200.0, "0b": 2.0, "1b": 1.0, "0c": 0.0, "1c": 9.0}
    kinds, blocks = ({name: name[at] for name in scores} for at in (1, 0))
    assert mean_ranks(scores, kinds, blocks) == pytest.approx({"0": -1 / 12, "1": 1 / 12})


def test_patterns_cover_a_linear_map_or_a_whole_block():
    matrices = measured([1, 1, 1, 1]).matrices
    assert patterns(["blocks/1/a/kernel"], matrices) == ["blocks/1/a/.*"]
    assert patterns(["blocks/1/a/kernel"], matrices, "block") == ["blocks/1/.*"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two steps whose group is chosen by the gradients of its first batches."""
    config = selecting(tmp_path_factory.mktemp("select"), by="fisher", batches=2)
    section = {"length": "2 steps", "evaluate_every": "2 steps"}
    config = parse_config({**config.dump(), "train": section})
    return config, jaxft.train(config, quiet=True)


@pytest.mark.slow
def test_a_run_trains_the_choice_and_its_config_has_it(run):
    config, trained = run
    written = yaml.safe_load((trained.folder / "config.yaml").read_text())["groups"][0]
    assert written["select"] == {"by": "fisher", "fraction": 0.5, "per": "kind", "batches": 2}
    assert len(written["match"]) == 6  # one of two matrices of each of six kinds
    rows = json.loads((trained.folder / "table.json").read_text())["rows"]
    own = {row["name"] for row in rows if row["group"] == "chosen"}
    assert own == {
        name.replace(".*", part) for name in written["match"] for part in ("kernel", "bias")
    }
    assert config.groups[0].match is None  # the config that was passed in is unchanged


def test_a_resumed_run_keeps_to_its_criterion(run):
    other = run[0].dump()
    other["groups"][0]["select"]["by"] = "spectrum"
    with pytest.raises(UserError, match=r"different groups.0.select.by \(fisher -> spectrum\)"):
        jaxft.train(parse_config(other), resume=True, quiet=True)


def test_a_plan_chooses_as_the_run_does(run):
    config, trained = run
    table = json.loads((trained.folder / "table.json").read_text())
    assert plan(config).table["groups"] == table["groups"]


def test_a_resumed_run_takes_the_choice_of_its_start(run, monkeypatch):
    config, trained = run
    monkeypatch.setattr(select, "measured_setup", None)  # nothing is measured
    longer = parse_config({**config.dump(), "train": {"length": "3 steps"}})
    before = yaml.safe_load((trained.folder / "config.yaml").read_text())["groups"]
    jaxft.train(longer, resume=True, quiet=True)
    assert yaml.safe_load((trained.folder / "config.yaml").read_text())["groups"] == before


def test_a_random_choice_follows_the_seed_and_measures_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(select, "measure", None)
    config = selecting(tmp_path, by="random", per="model")

    def choice(seed):
        own = override_config(config, [f"run.seed.init={seed}"])
        return choose_groups(own, QUIET).groups[0].match

    assert choice(0) == choice(0)
    assert len({tuple(choice(seed)) for seed in range(4)}) > 1


def test_members_of_a_study_share_a_choice_where_they_can(tmp_path, monkeypatch):
    config = selecting(tmp_path)
    measure, calls = select.measure, []

    def counted(*args):
        calls.append(args)
        return measure(*args)

    monkeypatch.setattr(select, "measure", counted)
    vary = {"optimizer.lr": [1e-3, 2e-3], "groups.0.select.fraction": [0.5, 1.0]}
    members = make_members_choices(make_members(config, vary), QUIET)
    assert len(calls) == 2
    counts = [len(member.config.groups[0].match) for member in members]
    assert counts == [6, 12, 6, 12]
    assert [len(bucket) for bucket in make_buckets(members)] == [2, 2]


def test_a_choice_reaches_adapters(tmp_path):
    config = selecting(tmp_path)
    adapted = parse_config({**config.dump(), "adapter": {"kind": "lora"}})
    setup = build(choose_groups(adapted, QUIET))
    chosen = [leaf for leaf in setup.phases[0].table.leaves if leaf.group == "chosen"]
    assert {leaf.name.rpartition("/")[2] for leaf in chosen} == {"lora_a", "lora_b"}


def test_a_group_without_its_choice_is_one_sentence(tmp_path):
    config = selecting(tmp_path)
    with pytest.raises(UserError, match="Group 'chosen' has select, and its parameters have not"):
        build(config)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ("select: {by: spectral}", "groups.0.select.by"),
        ("select: {fraction: 0}", "groups.0.select.fraction"),
        ("depth: [0, 1], select: {}", "exactly one of 'match', 'depth' and 'select'"),
        (
            "select: {by: gradient_signal, batches: 1}",
            "The criterion 'gradient_signal' is not defined for 'blocks/0/",
        ),
    ],
)
def test_bad_choices_are_one_sentence(tmp_path, capsys, group, message):
    config = tiny_config(tmp_path)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config.dump()))
    assert main(["train", str(tmp_path / "c.yaml"), f"groups=[{{name: a, {group}}}]"]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.strip().splitlines()[-1].startswith("jaxft: ")
