"""The trunk cache: a step that starts where the trunk ends is the step; nothing stale is read."""

import csv
import json
import pickle
import shutil
from dataclasses import fields, replace
from functools import cached_property, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxft.config.load import parse_config
from jaxft.data.cache import Ragged
from jaxft.device.mesh import batch_sharding, place_batch
from jaxft.engine.cost import step_flops
from jaxft.engine.evaluate import Interrupted, build_eval_step, evaluate
from jaxft.engine.initial_state import load_params
from jaxft.engine.remat import phase_setups
from jaxft.engine.setup import build, objective_of
from jaxft.engine.trained import open_trained
from jaxft.engine.trunk import open_trunk
from jaxft.engine.trunk_plan import plan_trunks
from jaxft.errors import UserError
from jaxft.report.terminal.progress import Progress
from jaxft.runs.checkpoint import Checkpoints
from jaxft.training.story import train
from tests.support.families import assert_close_gradients
from tests.support.phases import phase_of
from tests.support.tiny import tiny_checkpoint, tiny_config
from tests.support.tiny_images import tiny_image_config, tiny_pictures, tiny_vit
from tests.support.xla import FUSION_EMITTERS

FULL = pytest.mark.full
ONE = jax.devices()[:1]
LOW = [{"name": "low", "depth": [0, 1], "freeze": True}]  # the embeddings and one of two blocks
SILENT = Progress(1, quiet=True)


@pytest.fixture
def usual_fusions(monkeypatch):
    """Programs fused as without the session's XLA flags: bits are compared of two programs."""
    options = {"xla_cpu_use_fusion_emitters": True} if FUSION_EMITTERS else {}
    monkeypatch.setattr(jax, "jit", partial(jax.jit, compiler_options=options))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trunk")
    tiny_config(folder)
    return folder


def config_of(folder, tmp_path, groups=LOW, data=None, **train):
    """A run whose cache is in `tmp_path`, with its trunk's output kept unless told otherwise."""
    data = {"cache": str(tmp_path / "cache")} | (data or {})
    train = {"trunk_cache": "on"} | train
    return tiny_config(folder, groups=groups, data=data, train=train)


class Opened:
    """A run that is built, its parameters, and what makes its batches."""

    def __init__(self, config, devices=ONE, change=lambda params: params):
        self.built = build(config, devices=devices)
        self.params = change(load_params(self.built).params)
        self.examples = self.built.splits["train"].examples
        (plan,) = plan_trunks(self.built, phase_setups(self.built))
        self.cached = open_trunk(self.built, self.built.compute, plan, self.params, SILENT)

    def batches(self, step=1):
        """A batch as the task makes it, and with its trunk's output."""
        index, length = self.built.plan.batch(step), self.built.layout.row_length
        return self.examples.collate(index, length), self.cached(index, length)

    def gradients(self, batch):
        """Of the batch's loss, with dropout on above the trunk."""
        trainable = {name: self.params[name] for name in phase_of(self.built).table.trainable}
        placed = place_batch(batch, batch_sharding(self.built.mesh))
        return jax.tree.map(np.asarray, self._gradients(trainable, placed))

    @cached_property
    def _gradients(self):
        objective = objective_of(self.built, phase_of(self.built).compute)

        def loss(trainable, batch):
            return objective({**self.params, **trainable}, batch, jax.random.key(3))["loss"][0]

        return jax.jit(jax.grad(loss))


def entries(tmp_path):
    return sorted(path for path in (tmp_path / "cache" / "trunk").iterdir() if path.is_dir())


def same(ours, theirs):
    return all(np.array_equal(ours[name], theirs[name]) for name in theirs)


# ------------------------------------------------------------------------ what a cached step does
@pytest.mark.slow
@pytest.mark.usefixtures("usual_fusions")
def test_in_rows_of_the_same_shape_gradients_are_bit_equal(folder, tmp_path):
    """In float32 on CPU, under a scan."""
    opened = Opened(config_of(folder, tmp_path, data={"pack": False}, scan=True))
    plain, cached = opened.batches()
    assert cached.keys() - plain.keys() == {"trunk"}
    wanted = opened.gradients(plain)
    assert same(opened.gradients(cached), wanted)
    worse = cached | {"trunk": np.nextafter(cached["trunk"], np.float32(9))}
    assert not same(opened.gradients(worse), wanted), "one unit in the last place shows"


@pytest.mark.slow
@pytest.mark.parametrize("scan", [False, pytest.param(True, marks=FULL)])
def test_in_packed_rows_gradients_are_equal_but_for_rounding(folder, tmp_path, scan):
    """Where an example lies in its row, and with what, is another order of the same sums."""
    opened = Opened(config_of(folder, tmp_path, scan=scan))
    assert opened.built.layout.segments > 1
    plain, cached = opened.batches()
    wanted = opened.gradients(plain)
    assert_close_gradients(opened.gradients(cached), wanted, 1e-5)
    other = opened.gradients(cached | {"trunk": cached["trunk"] * np.float32(1.001)})
    with pytest.raises(AssertionError):
        assert_close_gradients(other, wanted, 1e-5)


@pytest.mark.slow
def test_in_bfloat16_they_are_equal_but_for_its_rounding(folder, tmp_path):
    opened = Opened(config_of(folder, tmp_path, data={"pack": False}, precision="bf16"))
    plain, cached = opened.batches()
    assert cached["trunk"].dtype == jnp.bfloat16
    assert_close_gradients(opened.gradients(cached), opened.gradients(plain), 1e-2)


def test_on_eight_devices_it_is_the_same_step(folder, tmp_path):
    data = {"pack": False}
    one = Opened(config_of(folder, tmp_path, data=data))
    shutil.rmtree(tmp_path / "cache" / "trunk")
    config = config_of(folder, tmp_path, data=data).model_copy(
        update={"mesh": one.built.config.mesh.model_copy(update={"data": 2, "fsdp": 4})}
    )
    eight = Opened(config, devices=jax.devices())
    assert eight.built.mesh.size == 8
    wanted, found = one.batches()[1], eight.batches()[1]
    np.testing.assert_allclose(found["trunk"], wanted["trunk"], rtol=1e-5, atol=1e-5)
    assert_close_gradients(eight.gradients(found), one.gradients(wanted), 1e-5)


def test_what_it_saves_is_the_trunks_forward(folder, tmp_path):
    built = build(config_of(folder, tmp_path), devices=ONE)
    flops = step_flops(built, phase_of(built))
    (plan,) = plan_trunks(built, phase_setups(built))
    assert plan.saved == pytest.approx(1 - flops["cached"] / flops["step"])
    assert plan.split_bytes == {
        split: built.splits[split].examples.lengths.sum() * 32 * 4 for split in ("train", "eval")
    }
    opened = Opened(config_of(folder, tmp_path))
    assert opened.cached.outputs.nbytes == plan.split_bytes["train"]


def test_an_evaluation_starts_there_too(folder, tmp_path):
    opened = Opened(config_of(folder, tmp_path))
    built, rows = opened.built, opened.built.splits["eval"]
    (plan,) = plan_trunks(built, phase_setups(built))
    collate = open_trunk(built, phase_of(built).compute, plan, opened.params, SILENT, split="eval")
    step = build_eval_step(built)
    wanted = evaluate(built, step, opened.params, rows)
    found = evaluate(built, step, opened.params, rows, collate=collate)
    assert found.scores == pytest.approx(wanted.scores, rel=1e-5)
    for name, values in wanted.outcomes.items():
        np.testing.assert_allclose(found.outcomes[name], values, rtol=1e-5, err_msg=name)
    once = build(config_of(folder, tmp_path, evaluate_every="2 epochs"), devices=ONE)
    assert list(plan_trunks(once, phase_setups(once))[0].split_bytes) == ["train"], (
        "rows that are scored once"
    )


# ------------------------------------------------------------------------------- whose entry it is
def flipped(name):
    """Parameters with the lowest bit of one number of a leaf turned over."""

    def change(params):
        leaf = np.array(params[name])
        leaf.view(np.uint32).reshape(-1)[5] ^= 1
        return {**params, name: jnp.asarray(leaf)}

    return change


@pytest.mark.slow
def test_an_entry_is_found_again_and_only_by_its_own(folder, tmp_path):
    def count(change=lambda params: params, source=folder, **given):
        Opened(config_of(source, tmp_path, **given), change=change)
        return len(entries(tmp_path))

    assert count() == 1
    assert count() == 1, "the same run again"
    head = flipped("head/kernel")
    assert count(head) == 1, "what trains does not matter"
    assert count(flipped("blocks/0/mlp/up/kernel")) == 2
    assert count(flipped("embeddings/word/embedding")) == 3
    assert count(precision="bf16") == 4
    assert count(precision="tf32") == 5
    assert count(groups=[{"name": "low", "depth": [0, 2], "freeze": True}]) == 6
    assert count(data={"max_length": 6}) == 7
    other = tmp_path / "other"
    shutil.copytree(folder, other, ignore=shutil.ignore_patterns("runs", "cache"))
    file = other / "checkpoint" / "tokenizer.json"
    told = json.loads(file.read_text())
    vocabulary = told["model"]["vocab"]
    vocabulary["bright"], vocabulary["fine"] = vocabulary["fine"], vocabulary["bright"]
    file.write_text(json.dumps(told))
    assert count(source=other) == 8, "another tokenizer"


def test_a_half_written_entry_is_never_used(folder, tmp_path):
    whole = Opened(config_of(folder, tmp_path))
    index, length = whole.built.plan.batch(0), whole.built.layout.row_length
    wanted = whole.cached(index, length)["trunk"].tobytes()
    (entry,) = entries(tmp_path)

    def again():
        return Opened(config_of(folder, tmp_path)).cached(index, length)["trunk"].tobytes()

    values = entry / "trunk.bin"
    values.write_bytes(values.read_bytes()[:-4])
    assert again() == wanted, "a file that was cut"
    (entry / "COMMITTED").unlink()
    values.write_bytes(bytes(values.stat().st_size))
    assert again() == wanted, "one that was not committed"
    shutil.rmtree(entry)
    built = whole.built
    asked = iter([False, False, True])
    with pytest.raises(Interrupted):
        open_trunk(
            built,
            phase_of(built).compute,
            plan_trunks(built, phase_setups(built))[0],
            whole.params,
            SILENT,
            lambda: next(asked),
        )
    assert entries(tmp_path) == [], "a signal came while it was written"
    assert again() == wanted


def test_batches_are_made_by_other_processes_too(folder, tmp_path):
    opened = Opened(config_of(folder, tmp_path))
    sent = pickle.dumps(opened.cached)
    assert len(sent) < 100_000
    index, length = opened.built.plan.batch(2), opened.built.layout.row_length
    assert same(pickle.loads(sent)(index, length), opened.cached(index, length))


# ----------------------------------------------------------------------------------------- refusals
def test_what_cannot_be_kept_is_refused(folder, tmp_path):
    def refusal(change=lambda built: built, **given):
        built = change(build(config_of(folder, tmp_path, **given), devices=ONE))
        with pytest.raises(UserError) as caught:
            plan_trunks(built, phase_setups(built))
        return caught.value.message

    assert refusal(groups=[]) == (
        "train.trunk_cache: there is no frozen trunk to cache, since the embeddings train in "
        "every phase."
    )
    assert refusal(trunk_cache_size=1e-5) == (
        "train.trunk_cache: the trunk's output of all train and eval examples takes 109 kB "
        "(108,800 bytes), and train.trunk_cache_size allows 10.0 kB."
    )
    assert "they are read (augmentation)" in refusal(drawn_anew)


def drawn_anew(built):
    """A run whose training examples are augmented."""
    rows = built.splits["train"]
    augmented = type("Augmented", (type(rows.examples),), {"random": True})
    given = {field.name: getattr(rows.examples, field.name) for field in fields(rows.examples)}
    random = replace(rows, examples=augmented(**given))
    return replace(built, splits={**built.splits, "train": random})


def test_auto_keeps_what_pays(folder, tmp_path):
    def why_not(change=lambda built: built, **given):
        given = {"trunk_cache": "auto"} | given
        built = change(build(config_of(folder, tmp_path, **given), devices=ONE))
        (plan,) = plan_trunks(built, phase_setups(built))
        assert bool(plan.split_bytes) == (not plan.reason)
        return plan.reason

    assert why_not() == ""
    assert why_not(trunk_cache="off") == "train.trunk_cache is off"
    assert why_not(length="1 epoch") == "no example is read twice"
    assert why_not(groups=[]) == "there is no trunk: the embeddings train"
    assert why_not(drawn_anew) == "examples change each time they are read"
    stem = [{"name": "low", "depth": [0, 0], "freeze": True}]
    assert why_not(groups=stem) == "it would save only 0.0% of a step"
    assert why_not(trunk_cache_size=1e-5) == (
        "109 kB is more than train.trunk_cache_size (10.0 kB)"
    )


def test_a_full_disk_is_told_before_anything_is_written(folder, tmp_path, monkeypatch):
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(UserError, match=r"has no room for the trunk's output of 67 train examples"):
        Opened(config_of(folder, tmp_path))
    opened = Opened(config_of(folder, tmp_path, trunk_cache="auto"))
    assert opened.cached == opened.examples.collate
    assert entries(tmp_path) == []


# ------------------------------------------------------------------------------------------- images
def test_images_are_decoded_once(tmp_path):
    sections = {"data": {"cache": str(tmp_path / "cache")}, "groups": LOW}
    config = tiny_image_config(tmp_path, train={"trunk_cache": "on", "scan": True}, **sections)
    opened = Opened(config)
    plain, _ = opened.batches()
    wanted = opened.gradients(plain)
    shutil.rmtree(tmp_path / "pictures")
    index = opened.built.plan.batch(1)
    cached = opened.cached(index, opened.built.layout.row_length)
    assert plain.keys() - cached.keys() == {"pixel_values"}
    assert cached["trunk"].shape == (len(index), 17, 16)
    assert same(opened.gradients(cached), wanted)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """The config of a run on pictures and their names, but for what is frozen."""
    folder = tmp_path_factory.mktemp("pairs")
    tiny_vit(folder / "vision")
    tiny_checkpoint(folder / "text")
    tiny_pictures(folder / "pictures", each=8)
    with (folder / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "text"])
        for path in sorted((folder / "pictures").rglob("*.png")):
            writer.writerow([path.relative_to(folder), "fine film" + " story" * int(path.stem)])
    rows = f"csv:{folder / 'rows.csv'}"
    towers = {"vision": str(folder / "vision"), "text": str(folder / "text")}
    return {
        "run": {"name": "pairs", "dir": str(folder / "runs")},
        "model": {"checkpoint": towers},
        "task": {"kind": "contrastive"},
        "data": {"train": f"{rows}[:16]", "eval": f"{rows}[16:]", "batch_size": 8},
        "train": {"trunk_cache": "on", "scan": True, "length": "6 epochs"},
    }


@pytest.mark.slow
@pytest.mark.usefixtures("usual_fusions")
@pytest.mark.parametrize(
    "towers", [pytest.param("vision", marks=FULL), "text", pytest.param("(vision|text)")]
)
def test_each_tower_has_a_trunk_of_its_own(pairs, tmp_path, towers):
    config = pairs | {
        "groups": [{"name": "low", "match": f"{towers}/(embeddings|blocks/0)/.*", "freeze": True}],
        "data": pairs["data"] | {"cache": str(tmp_path / "cache")},
    }
    opened = Opened(parse_config(config))
    plain, cached = opened.batches()
    wanted = {f"{name}/trunk" for name in ("vision", "text") if name in towers}
    assert cached.keys() - plain.keys() == wanted
    assert ("pixel_values" in cached) == (towers == "text")
    assert same(opened.gradients(cached), opened.gradients(plain))
    # A row without an example brings some stream too: zeros may have no length to divide by.
    short = opened.cached(np.array([[0], [-1]]), opened.built.layout.row_length)
    assert all(np.abs(short[name][1]).max() > 0 for name in wanted)


# ------------------------------------------------------------------------------------ the whole run
PHASES = [
    {"until": 4, "unfreeze": ["head/.*"]},
    {"until": "100%", "depth": [2, 3]},
]


def run_of(folder, place, trunk_cache):
    """A run of 12 steps, the batch over 8 devices, whose boundary moves down at step 4."""
    config = config_of(folder, place, [], trunk_cache=trunk_cache, length="12 steps").dump()
    config["run"] = {"name": "tiny", "dir": str(place)}
    config["train"] |= {"evaluate_every": "12 steps", "log_every": 1}
    config["checkpoint"] |= {"every": "2 steps", "keep": 20}
    config["data"] |= {"test": None}
    config["phases"] = PHASES
    return parse_config(config)


@pytest.fixture(scope="module")
def cached_run(folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("cached")
    return train(run_of(folder, place, "on"), quiet=True).folder


def end_state(run):
    with Checkpoints(run / "checkpoints", read_only=True) as checkpoints:
        found = checkpoints.load_params("last")
    return {name: np.asarray(leaf) for name, leaf in found.items()}


def losses(run):
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["kind"] == "train"]


@pytest.mark.slow
def test_each_boundary_has_an_entry(cached_run):
    lengths = [len(Ragged(entry)) for entry in entries(cached_run.parent)]
    assert lengths == [67, 67]


@pytest.mark.slow
def test_a_run_resumed_inside_a_cached_phase_never_shows(cached_run, tmp_path):
    run = tmp_path / "tiny"
    shutil.copytree(cached_run, run)
    for later in (8, 10, 12):
        shutil.rmtree(run / "checkpoints" / str(later))
    (run / "result.json").unlink()
    config = open_trained(run, "last").run.config()
    config["run"]["dir"] = str(tmp_path)
    before = [path.stat().st_mtime_ns for path in entries(cached_run.parent)]
    resumed = train(parse_config(config), resume=True, quiet=True).folder
    assert same(end_state(resumed), end_state(cached_run))
    assert [path.stat().st_mtime_ns for path in entries(cached_run.parent)] == before


def test_a_cached_run_ends_where_one_without_does(cached_run, folder, tmp_path):
    plain = train(run_of(folder, tmp_path, "off"), quiet=True).folder
    assert not (tmp_path / "cache" / "trunk").exists()
    np.testing.assert_allclose(losses(cached_run), losses(plain), rtol=1e-4)


def test_weights_that_changed_in_the_file_are_other_weights(folder, tmp_path):
    """As a person meets it: a checkpoint that was trained on under the same name."""
    other = tmp_path / "other"
    shutil.copytree(folder, other, ignore=shutil.ignore_patterns("runs", "cache"))
    Opened(config_of(other, tmp_path))
    file = other / "checkpoint" / "model.safetensors"
    tensors = load_file(file)
    tensors["embeddings.LayerNorm.bias"] = tensors["embeddings.LayerNorm.bias"] + 1
    save_file(tensors, file, {"format": "pt"})
    Opened(config_of(other, tmp_path))
    assert len(entries(tmp_path)) == 2
