"""A config: what it accepts, what it says of a mistake, and what a resumed run may change."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from jaxft.config.data import MixedSource
from jaxft.config.errors import ALIASES
from jaxft.config.load import (
    Config,
    Duration,
    changed_keys,
    check_resume,
    describe_keys,
    load_config,
    override_config,
    parse_config,
    read_yaml,
    resolve_steps,
    schema_text,
    to_yaml,
)
from jaxft.config.phases import PhaseSection
from jaxft.config.recipe import ScheduleSection, SelectSection
from jaxft.config.sections import AllocateSection, RematSection
from jaxft.config.tasks import task_sections
from jaxft.errors import UserError

ROOT = Path(__file__).parents[2]
KINDS = list(task_sections())

MINIMAL = """\
run: {name: first}
model:
  checkpoint: some/folder
task: {kind: text_classification}
data:
  train: csv:train.csv[:90%]
  eval: csv:train.csv[90%:]
"""
FULL = (
    MINIMAL
    + """\
optimizer:
  lr: 5e-5
  clip: 1
schedule: {kind: cosine, warmup: 10%}
layer_decay: {rate: 0.8}
groups:
  - {name: head, match: "head/.*", lr_mult: 10}
  - {name: trunk, depth: [0, 3], freeze: true}
"""
)


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write `text` as c.yaml in the working directory, so that errors name just `c.yaml`."""
    monkeypatch.chdir(tmp_path)

    def write(text, name="c.yaml"):
        Path(name).write_text(text)
        return name

    return write


def mistake(path, *overrides):
    """The one sentence that loading ends in."""
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    said = str(caught.value)
    assert "\n" not in said
    return said


# ---------------------------------------------------------------------------- what it accepts


def test_each_folder_of_a_task_is_a_kind():
    folders = {path.parent.name for path in (ROOT / "jaxft/tasks").glob("*/task.py")}
    assert sorted(folders) == KINDS
    assert {"text_classification", "causal_lm", "seq2seq", "contrastive"} <= folders


def test_defaults_are_the_documented_ones(write):
    config = load_config(write(MINIMAL))
    assert config.optimizer.name == "adamw"
    assert config.optimizer.lr == 5e-5
    assert config.data.batch_size == 32
    assert config.data.pack == "auto"
    assert config.schedule.decay == Duration(20, "percent")
    assert config.train.length == Duration(3, "epochs")
    assert config.checkpoint.every == Duration(500, "steps")
    assert (config.mesh.data, config.mesh.fsdp, config.mesh.tensor) == (-1, 1, 1)
    assert config.groups == []
    assert config.data.test is None


def test_values_of_a_file_and_overrides_on_top(write):
    config = load_config(
        write(FULL),
        [
            "optimizer.lr=3e-5",
            "groups.0.lr_mult=2.5",
            "data.where.source=[imdb, no]",
            "data.test=csv:test.csv[:10%]",
            "optimizer.lr=2e-5",
        ],
    )
    assert config.optimizer.lr == 2e-5, "the later override wins"
    assert config.optimizer.clip == 1.0
    assert config.groups[0].lr_mult == 2.5
    assert config.groups[1].depth == (0, 3)
    assert config.data.where == {"source": ["imdb", "no"]}
    assert config.data.test == "csv:test.csv[:10%]"
    assert config.schedule.warmup == Duration(10, "percent")


def test_yaml_is_read_as_people_mean_it():
    """YAML 1.1 reads 5e-5 as a text, no as false, 010 as eight and 1:30 as ninety."""
    values, lines = read_yaml("a: 5e-5\nb: [no, on, 010, 1:30, 2020-01-01, ~]\n", "f")
    assert values == {"a": 5e-5, "b": ["no", "on", 10, "1:30", "2020-01-01", None]}
    assert lines[("b",)] == 2


def test_a_class_of_a_number_has_a_weight_without_quotes(write):
    text = MINIMAL.replace(
        "text_classification", "text_classification, class_weights: {0: 1, 01: 5}"
    )
    assert load_config(write(text)).task.class_weights == {"0": 1, "01": 5}
    override = load_config(write(MINIMAL), ["task.class_weights={1: 2.5}"])
    assert override.task.class_weights == {"1": 2.5}


def test_the_axis_that_takes_all_devices_leaves_one_replica_per_slice(write):
    for override, data in (("mesh={fsdp: -1}", 1), ("mesh={tensor: -1, slices: 2}", 2)):
        mesh = load_config(write(MINIMAL), [override]).mesh
        assert (mesh.data, -1 in (mesh.fsdp, mesh.tensor)) == (data, True)


def test_dump_and_yaml_give_the_config_back(write):
    config = load_config(write(FULL), ["data.where={a: '5e-5', b: ['no', 1, 2.5, true, '010']}"])
    assert parse_config(config.dump()) == config
    assert load_config(write(to_yaml(config.dump()))) == config
    assert json.loads(json.dumps(config.dump())) == config.dump()
    assert yaml.safe_load(to_yaml(config.dump())) == config.dump(), "other readers see the same"


def test_a_config_cannot_be_changed(write):
    config = load_config(write(MINIMAL))
    with pytest.raises(ValueError, match="frozen"):
        config.optimizer.lr = 1.0


def test_ulmfit_brings_its_own_rate(write):
    path = write(MINIMAL)
    assert load_config(path, ["layer_decay.preset=ulmfit"]).layer_decay.rate == 1 / 2.6
    given = load_config(path, ["layer_decay.preset=ulmfit", "layer_decay.rate=0.5"])
    assert given.layer_decay.rate == 0.5
    assert parse_config(given.dump()).layer_decay.rate == 0.5


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_the_configs_that_come_with_jaxft_are_right(path):
    assert load_config(path).run.name == path.stem


# ------------------------------------------------------------------------------- durations


@pytest.mark.parametrize(
    ("written", "duration", "text"),
    [
        (500, Duration(500, "steps"), "500 steps"),
        (10**17 + 1, Duration(10**17 + 1, "steps"), "100000000000000001 steps"),
        ("500", Duration(500, "steps"), "500 steps"),
        ("1 step", Duration(1, "steps"), "1 step"),
        ("3 epochs", Duration(3, "epochs"), "3 epochs"),
        ("1 epoch", Duration(1, "epochs"), "1 epoch"),
        ("0.5 epochs", Duration(0.5, "epochs"), "0.5 epochs"),
        ("10%", Duration(10, "percent"), "10%"),
        ("2.5 %", Duration(2.5, "percent"), "2.5%"),
        ("0.00001%", Duration(0.00001, "percent"), "0.00001%"),
    ],
)
def test_durations_are_read_and_written(written, duration, text):
    assert Duration.parse(written) == duration
    assert str(duration) == text
    assert Duration.parse(text) == duration


@pytest.mark.parametrize(
    "written", [-1, 1.5, "1.5", "-3 epochs", "3 weeks", "101%", "", True, None, [3], "1.5 steps"]
)
def test_what_is_no_duration(written):
    with pytest.raises(ValueError, match=r"duration|whole|negative"):
        Duration.parse(written)


def test_durations_resolve_to_steps():
    def steps(text, total=1000):
        return resolve_steps(Duration.parse(text), total, 250.5)

    assert steps("500") == 500
    assert steps("2 epochs") == 501
    assert steps("0.5 epochs") == 125
    assert steps("10%") == 100
    assert steps("0") == 0
    assert steps("0%") == 0
    assert steps("0.01%") == 1, "a duration above zero is at least a step"
    assert steps("3 epochs", total=None) == 752
    with pytest.raises(ValueError, match="unknown number of steps"):
        steps("10%", total=None)


# --------------------------------------------------------------------- mistakes, one sentence


def test_what_other_tools_call_a_key_is_one_of_ours():
    known = {key.name for key in describe_keys()}
    assert set(ALIASES.values()) <= known
    assert not known & set(ALIASES)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("output_dir=out", "run.name"),  # more like `optimizer`
        ("smoothing=0.1", "task.label_smoothing"),  # more like `sampling`
        ("task.label_column=y", "task.label"),  # more like `task.label_smoothing`
        ("optimizer.betas=[0.9, 0.95]", "optimizer.b1"),  # more like `optimizer.moments`
        ("adapter.target_modules=[query]", "adapter.match"),
    ],
)
def test_a_name_of_another_tool_leads_to_the_key_of_its_meaning(write, override, key):
    with pytest.raises(UserError, match=f"Did you mean '{re.escape(key)}'"):
        load_config(write(MINIMAL), [override])


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (
            "lr: 5e-5",
            "lrr: 5e-5",
            "c.yaml, line 9: unknown key 'optimizer.lrr'. Did you mean 'optimizer.lr'?",
        ),
        (
            "run: {name: first}",
            "run: {name: first}\nlr: 5e-5",
            "c.yaml, line 2: unknown key 'lr'. Did you mean 'optimizer.lr'?",
        ),
        (
            "lr: 5e-5",
            "learning_rate: 5e-5",
            "c.yaml, line 9: unknown key 'optimizer.learning_rate'. Did you mean 'optimizer.lr'?",
        ),
        (
            "lr: 5e-5",
            "rate: 5e-5",
            "c.yaml, line 9: unknown key 'optimizer.rate'. Did you mean 'optimizer.lr'?",
        ),
        (
            "lr: 5e-5",
            "wd: 0.1",
            "c.yaml, line 9: unknown key 'optimizer.wd'. Did you mean 'optimizer.weight_decay'?",
        ),
        (
            "run: {name: first}",
            "run: {name: first}\nnum_train_epochs: 3",
            "c.yaml, line 2: unknown key 'num_train_epochs'. Did you mean 'train.length'?",
        ),
        (
            "lr: 5e-5",
            "lr: fast",
            "c.yaml, line 9: 'optimizer.lr' must be a number, not the text 'fast'.",
        ),
        ("lr: 5e-5", "lr: true", "c.yaml, line 9: 'optimizer.lr' must be a number, not true."),
        ("lr: 5e-5", "lr: -1", "c.yaml, line 9: 'optimizer.lr' must be 0 or more, not -1."),
        (
            "lr: 5e-5",
            "lr: .inf",
            "c.yaml, line 9: 'optimizer.lr' must be a finite number, not inf.",
        ),
        (
            "clip: 1",
            "no_decay: [a, 1]",
            "c.yaml, line 10: 'optimizer.no_decay' must be auto or list of text, "
            "not the list ['a', 1].",
        ),
        (
            "kind: cosine",
            "kind: cosinus",
            "c.yaml, line 11: 'schedule.kind' must be constant, linear, cosine, wsd, "
            "slanted_triangular or inverse_sqrt, not the text 'cosinus'. Did you mean 'cosine'?",
        ),
        (
            "kind: cosine",
            "kind: cosine, decay: 10%",
            "c.yaml, line 11: schedule: 'decay' applies to wsd only, and kind is cosine.",
        ),
        (
            "warmup: 10%",
            "warmup: 10 days",
            "c.yaml, line 11: schedule.warmup: '10 days' is not a duration; "
            "write a number of steps (500), '3 epochs', '10%' or '1000 examples'.",
        ),
        (
            "lr_mult: 10}",
            "lr_mul: 10}",
            "c.yaml, line 14: unknown key 'groups.0.lr_mul'. Did you mean 'groups.0.lr_mult'?",
        ),
        (
            "depth: [0, 3], ",
            "",
            "c.yaml, line 15: groups.1: group 'trunk' needs exactly one of 'match', 'depth' and "
            "'select'.",
        ),
        (
            "depth: [0, 3]",
            "depth: [3, 0]",
            "c.yaml, line 15: groups.1: group 'trunk': depth [3, 0] is not [lowest, highest].",
        ),
        (
            "depth: [0, 3]",
            "depth: [3]",
            "c.yaml, line 15: 'groups.1.depth' must be a list of 2 whole numbers or null, "
            "not the list [3].",
        ),
        (
            "name: trunk",
            "name: rest",
            "c.yaml, line 15: groups.1: 'rest' is the name of the group of all remaining "
            "parameters.",
        ),
        ("name: trunk", "name: head", "c.yaml: two groups are named 'head'."),
        (
            "name: first",
            "name: a/b",
            "c.yaml, line 1: 'run.name' must be letters, digits, '.', '_' and '-', "
            "the first a letter or digit, not the text 'a/b'.",
        ),
        (
            "  checkpoint: some/folder",
            "  dropout: 0.1",
            "c.yaml, line 2: 'model.checkpoint' is missing. "
            "It is a hub id (id@revision), a folder, or package:module/path; or two of them: "
            "{vision, text} for a dual encoder, or {encoder, decoder} with cross-attention.",
        ),
        (
            "kind: text_classification",
            "kind: text_clasification",
            f"c.yaml, line 4: 'task.kind' must be {', '.join(KINDS[:-1])} or {KINDS[-1]}, "
            "not the text 'text_clasification'. Did you mean 'text_classification'?",
        ),
        (
            "  train:",
            "  where: {source: {a: 1}}\n  train:",
            "c.yaml, line 6: 'data.where.source' must be a value or list of values, not a section.",
        ),
        (
            "kind: text_classification",
            "kind: text_classification, labels: [1, 2]",
            "c.yaml, line 4: 'task.labels.0' must be text, not 1.",
        ),
        (
            "  clip: 1\n",
            "  clip: 1\nphases: [{until: 30%, unfreeze: [a], depth: [0, 1]}]\n",
            "c.yaml, line 11: phases.0: a phase selects parameters by 'unfreeze' or by 'depth', "
            "not by both.",
        ),
        (
            "  clip: 1\n",
            "  clip: 1\n  lr: 3\n",
            "c.yaml, line 11: 'optimizer.lr' appears a second time. The first is on line 9.",
        ),
        (
            "  clip: 1\n",
            "  clip: [1\n",
            "c.yaml, line 11 is not YAML: expected ',' or ']', but got ':'.",
        ),
        (
            "  clip: 1\n",
            "  clip: 1\nmesh: 3\n",
            "c.yaml, line 11: 'mesh' must be a section, not 3.",
        ),
    ],
)
def test_mistakes_in_a_file(write, old, new, sentence):
    assert old in FULL
    assert mistake(write(FULL.replace(old, new, 1))) == sentence


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "optimizer.lr",
            "'optimizer.lr' is not of the form KEY=VALUE. Write for example optimizer.lr=3e-5.",
        ),
        ("=3", "'=3' is not of the form KEY=VALUE. Write for example optimizer.lr=3e-5."),
        (
            "optimizer.lrr=3",
            "'optimizer.lrr=3' on the command line: unknown key 'optimizer.lrr'. "
            "Did you mean 'optimizer.lr'?",
        ),
        (
            "optimiser.lr=3",
            "'optimiser.lr=3' on the command line: unknown key 'optimiser'. "
            "Did you mean 'optimizer'?",
        ),
        (
            "optimizer.lr.x=3",
            "'optimizer.lr.x=3' on the command line: 'optimizer.lr' is a value, "
            "so it has no key 'x'.",
        ),
        (
            "groups.2.freeze=true",
            "'groups.2.freeze=true' on the command line: 'groups' has items 0 to 1, not '2'.",
        ),
        (
            "phases.0=3",
            "'phases.0=3' on the command line: 'phases' has no items.",
        ),
        (
            "optimizer={lr: true}",
            "'optimizer={lr: true}' on the command line: 'optimizer.lr' must be a number, "
            "not true.",
        ),
        (
            "optimizer.lr={",
            "'optimizer.lr={' on the command line is not YAML: "
            "expected the node content, but found '<stream end>'.",
        ),
        (
            "mesh.data=0",
            "'mesh.data=0' on the command line: mesh.data: "
            "an axis of the mesh has at least one device (or -1: all that remain).",
        ),
        (
            "groups.1.name=head",
            "c.yaml, with 'groups.1.name=head' on the command line: two groups are named 'head'.",
        ),
        (
            "groups.1.match=x",
            "c.yaml, line 15, with 'groups.1.match=x' on the command line: groups.1: "
            "group 'trunk' needs exactly one of 'match', 'depth' and 'select'.",
        ),
        (
            "mesh={fsdp: -1, tensor: -1}",
            "'mesh={fsdp: -1, tensor: -1}' on the command line: mesh: "
            "only one axis of the mesh can be -1 (all remaining devices).",
        ),
        (
            "train.length=10%",
            "'train.length=10%' on the command line: train.length: "
            "it must be in steps, epochs or examples, not 10%.",
        ),
        (
            "checkpoint.every=0",
            "'checkpoint.every=0' on the command line: checkpoint.every: "
            "it must be more than zero.",
        ),
        (
            "train.ema=1",
            "'train.ema=1' on the command line: 'train.ema' must be less than 1, not 1.",
        ),
        (
            "optimizer.lr=1e39",
            "'optimizer.lr=1e39' on the command line: 'optimizer.lr' must be 3.4e+38 or less, "
            "not 1e+39.",
        ),
        (
            "groups=[{name: a, match: x, lr_mult: 1e300}]",
            "'groups=[{name: a, match: x, lr_mult: 1e300}]' on the command line: "
            "'groups.0.lr_mult' must be 3.4e+38 or less, not 1e+300.",
        ),
        (
            "data.train=",
            "'data.train=' on the command line: 'data.train' must be a list of sections or text, "
            "not null.",
        ),
    ],
)
def test_mistakes_in_an_override(write, override, sentence):
    assert mistake(write(FULL + "phases: []\n"), override) == sentence


def test_files_that_are_no_config(write, tmp_path):
    assert mistake("absent.yaml") == "There is no config file 'absent.yaml'."
    assert mistake(str(tmp_path)) == f"Cannot read the config '{tmp_path}': Is a directory."
    assert mistake(write("")).startswith("c.yaml is empty.")
    assert mistake(write("- 1\n")).startswith("c.yaml holds a list, not keys.")
    assert mistake(write("a: &x [*x]\n")).startswith("c.yaml, line 1: unknown key 'a'.")
    assert mistake(write("true: a\n")).endswith("'true' cannot name a key. Put it in quotes.")
    assert mistake(write("1: a\n")).startswith("c.yaml, line 1: unknown key '1'. Known: run, ")
    assert mistake(write("? [a]\n: b\n")).startswith("c.yaml, line 1: a list or map cannot name")
    assert mistake(write("!!python/object:os.system {}\n")).startswith("c.yaml, line 1 is not YAML")
    assert mistake(write("a: !!timestamp x\n")).startswith("c.yaml, line 1 is not YAML")
    assert mistake(write("a: !!bool x\n")).startswith("c.yaml is not YAML")
    assert mistake(write("a: 1\n---\nb: 2\n")).startswith("c.yaml, line 2 is not YAML")
    Path("latin.yaml").write_bytes("run: é".encode("latin-1"))
    assert mistake("latin.yaml").startswith("latin.yaml is not UTF-8 text.")


def test_a_mapping_names_where_it_came_from():
    with pytest.raises(UserError, match=r"^runs/a/config\.yaml: 'run' is missing"):
        parse_config({}, "runs/a/config.yaml")


# ------------------------------------------------------------------------- resume and schema


def test_what_changed_is_named_key_by_key(write):
    path = write(FULL)
    old = load_config(path)
    assert changed_keys(old, load_config(path)) == []
    new = load_config(
        path, ["optimizer.lr=1e-4", "groups.0.lr_mult=3", "run.seed.data=1", "data.where.a=1"]
    )
    assert changed_keys(old, new) == [
        "run.seed.data",
        "data.where",
        "optimizer.lr",
        "groups.0.lr_mult",
    ]
    assert changed_keys(old, load_config(path, ["groups=[]"])) == ["groups"]


def test_resume_may_change_only_what_the_schema_says(write):
    path = write(FULL)
    old = load_config(path)
    check_resume(
        old,
        load_config(
            path,
            [
                "optimizer.lr=1e-4",
                "train.length=9 epochs",
                "mesh.fsdp=4",
                "groups.0.schedule={kind: constant}",
            ],
        ),
    )
    with pytest.raises(UserError) as caught:
        check_resume(
            old, load_config(path, ["data.batch_size=64", "groups.1.depth=[0, 2]", "mesh.fsdp=4"])
        )
    assert str(caught.value) == (
        "A run cannot be resumed with a different data.batch_size (32 -> 64), "
        "groups.1.depth ([0, 3] -> [0, 2]). "
        "Restore the old value, or train under another run.name."
    )


def test_a_key_of_another_kind_of_task_is_unknown(write):
    said = mistake(write(MINIMAL.replace("text_classification", "causal_lm, label: x")))
    assert said.startswith("c.yaml, line 4: unknown key 'task.label'.")
    assert "Did you mean 'task.label'" not in said


def leaves(values, prefix=""):
    """Dotted names of a dump, a mapping of columns or patterns counting as one value."""
    for name, value in values.items():
        if isinstance(value, dict) and prefix + name not in ("data.where", "adapter.ranks"):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_every_key_is_described(write):
    keys = describe_keys()
    others = [key.name for key in keys if "[]" not in key.name and key.name[:5] != "task."]
    dumped = list(leaves(load_config(write(MINIMAL)).dump()))
    inside = [f"adapter.allocate.{name}" for name in AllocateSection.model_fields]  # null here
    inside += [f"train.remat.{name}" for name in RematSection.model_fields]  # a word here
    assert [n for n in others if n not in inside] == [n for n in dumped if n[:5] != "task."]
    assert set(inside) < set(others)
    for kind, section in task_sections().items():
        own = {key.name for key in keys if key.meaning.endswith(f"({kind})")}
        inner = {name for name in own if name.count(".") > 1}  # of a section that may be null
        assert own - inner == {f"task.{name}" for name in section.model_fields} - {"task.kind"}
        assert {name.rpartition(".")[0] for name in inner} <= {"task.augment", "task.costs"}
    assert {key.name for key in keys if "[]" in key.name} == {
        *(f"groups[].{name}" for name in load_config(write(FULL)).dump()["groups"][0]),
        *(f"phases[].{name}" for name in PhaseSection.model_fields),
        *(f"groups[].schedule.{name}" for name in ScheduleSection.model_fields),
        *(f"groups[].select.{name}" for name in SelectSection.model_fields),
        *(f"phases[].schedule.{name}" for name in ScheduleSection.model_fields),
        *(f"data.train[].{name}" for name in MixedSource.model_fields),
    }
    for key in keys:
        assert key.meaning, key.name
        assert key.type not in ("", "anything"), key.name
        assert key.resume in ("may change", "fixed"), key.name
    by_name = {key.name: key for key in keys}
    assert by_name["optimizer.lr"].default == "5e-05"
    assert by_name["train.length"].default == "3 epochs"
    assert by_name["run.name"].default == "(required)"
    assert by_name["task.augment.flip"].default == "0.0"
    assert by_name["data.batch_size"].unit == "examples"
    assert by_name["data.batch_size"].resume == "fixed"
    assert by_name["mesh.data"].resume == "may change"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("optimizer.name=adamw", "optimizer.name=lion"),
        ("optimizer.name=adamw", "optimizer.name=lamb"),
        ("optimizer.name=sgd", "optimizer.name=muon"),
        ("sampling={method: lisa, moments: keep}", "sampling.method=badam"),
        ("layer_decay.preset=ulmfit", "layer_decay.preset=mae"),
        ("layer_decay.preset=heavy_tail", "layer_decay.preset=auto_rgn"),
    ],
)
def test_another_rule_or_method_takes_its_own_defaults(write, before, after):
    """Those of the one before count as not written, whatever the config was read from."""
    path = write(MINIMAL)
    overridden = override_config(load_config(path, [before]), [after])
    assert overridden == load_config(path, [before, after])
    assert parse_config(overridden.dump()) == overridden


def test_what_is_written_stays_under_another_rule(write):
    config = load_config(write(MINIMAL), ["optimizer.b2=0.999", "sampling.blocks=2"])
    config = override_config(config, ["optimizer.name=lion", "sampling.method=badam"])
    assert config.optimizer.b2 == 0.999
    assert (config.sampling.blocks, str(config.sampling.every)) == (2, "100 steps")


def test_the_schema_states_type_default_meaning_and_resume():
    schema = json.loads(schema_text())
    length = schema["$defs"]["TrainSection"]["properties"]["length"]
    assert length["default"] == "3 epochs"
    assert length["resume"] == "may change"
    assert {option["type"] for option in length["anyOf"]} == {"integer", "string"}
    assert schema["$defs"]["TextClassificationSection"]["properties"]["kind"]["const"] == (
        "text_classification"
    )
    for section in schema["$defs"].values():
        assert section["additionalProperties"] is False
        for name, key in section["properties"].items():
            assert key["description"], name
            assert "resume" in key or "$ref" in key, name


def test_the_schema_in_the_docs_is_current():
    assert (ROOT / "docs" / "schema.json").read_text() == schema_text(), "run: make docs"


def test_reading_a_config_does_not_import_jax():
    code = "import sys, jaxft.config.load; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_config_is_strict_in_python_too():
    with pytest.raises(ValueError, match="batch_size"):
        Config.model_validate({"data": {"batch_size": "32"}})
