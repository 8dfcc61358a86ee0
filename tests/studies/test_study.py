"""A study is its members' own runs: same losses, fewer FLOPs, one compile; no NaN spreads."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from jaxft.config.load import override_config
from jaxft.device.mesh import batch_sharding, place_batch
from jaxft.engine.cost import count_flops
from jaxft.engine.initial_state import initial_state, load_params
from jaxft.engine.remat import phase_setups
from jaxft.errors import UserError
from jaxft.studies import parts as parts_module
from jaxft.studies.members import make_buckets, make_members
from jaxft.studies.memory import Need, chunk_sizes
from jaxft.studies.parts import make_parts
from jaxft.studies.program import step as study_step
from jaxft.studies.program.phase import Programs, begin, phases_of
from jaxft.studies.program.state import drift
from jaxft.studies.program.step import shares_trunk
from jaxft.studies.rank import mark_rows, rank, summarise_seeds
from jaxft.studies.solo import check_solo
from jaxft.training.phase import next_phase_step
from tests.support.phases import phase_of, stage_of
from tests.support.tiny import tiny_config

ONE = jax.devices()[:1]
GRID = {"layer_decay.rate": [1.0, 0.5], "optimizer.lr": [3e-3, 1e-2]}
STEPS = 50
TRUNK = [{"name": "trunk", "depth": [0, 1], "freeze": True}]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A run of 50 steps whose embeddings and first block are frozen, with dropout on."""
    return tiny_config(tmp_path_factory.mktemp("study"), groups=TRUNK, train={"length": STEPS})


def part_of(config, vary):
    (part,), _ = make_parts(make_members(config, vary), devices=ONE)
    return part


def batch_at(built, step):
    rows = built.splits["train"].examples
    batch = rows.collate(built.plan.batch(step), built.layout.row_length)
    return place_batch(batch, batch_sharding(built.mesh))


class Studied:
    """Members trained together: their losses `[steps, K]`, their states, and their stage.

    Args:
        part: who.
        programs: of their bucket.
        steps: how many.
        spoilt: a member whose head is not a number from the start.
    """

    def __init__(self, part, programs, steps, spoilt=None):
        begun = begin(part.setups, phases_of(part.setups, 0), programs)
        self.stage, self.states, self.start = begun
        if spoilt is not None:
            kernel = self.states.trainable["head/kernel"].at[spoilt].set(np.nan)
            trainable = self.states.trainable | {"head/kernel": kernel}
            self.states = replace(self.states, trainable=trainable)
        seen = []
        for step in range(steps):
            if self.stage.is_over(step):
                self.stage, self.states = self.stage.next(self.states, programs)
            batch, rates = batch_at(self.stage.setup, step), self.stage.inputs(step)
            self.states, metrics = self.stage.step(self.states, self.stage.frozen, batch, rates)
            seen.append(jax.device_get((metrics["loss"], metrics["bad_steps"])))
        self.losses, self.bad_steps = (np.array(column) for column in zip(*seen, strict=True))

    def leaves(self, member):
        """Every array of a member's state as bytes."""
        moving = (self.states.trainable, self.states.opt_state)
        return [np.asarray(leaf[member]).tobytes() for leaf in jax.tree.leaves(moving)]


def solo(built, stage, steps):
    """The losses of a run by itself, and its stage and state at the end."""
    params = load_params(built).params
    stage = stage or stage_of(built, params)
    state = initial_state(built, phase_of(built), params)
    losses = []
    for step in range(steps):
        if stage.is_over(step):
            stage, state = next_phase_step(stage, state)
        state, metrics = stage.step(state, stage.frozen, batch_at(built, step), stage.inputs(step))
        losses.append(float(metrics["loss"]))
    return np.array(losses), stage, state


@pytest.fixture(scope="module")
def programs():
    return Programs()


@pytest.fixture(scope="module")
def four(config, programs):
    """The four members of `GRID` together."""
    return Studied(part_of(config, GRID), programs, STEPS)


# ------------------------------------------------------------------------------------- one program
def test_members_end_where_their_own_runs_end(config, four):
    builds = part_of(config, GRID).setups
    stage = None
    for member, built in enumerate(builds):
        if stage is not None:  # the same program at the rates of another member
            phases = phase_setups(built)
            stage = replace(
                stage,
                setup=built,
                phases=phases,
                now=phases[0],
                multipliers=phases[0].table.multipliers(),
            )
        losses, stage, state = solo(built, stage, STEPS)
        assert losses[-5:].mean() < 0.9 * losses[:5].mean(), "its loss falls"
        np.testing.assert_allclose(four.losses[:, member], losses, rtol=1e-3)
        assert int(four.states.step[member]) == int(state.step) == STEPS
    assert len({float(loss) for loss in four.losses[-1]}) == 4, "the rates make a difference"


def test_the_trunk_runs_once_for_all(config, four):
    built = four.stage.setup
    params = load_params(built).params
    alone = stage_of(built, params)
    batch = batch_at(built, 0)
    args = (alone.frozen, batch, alone.inputs(0))
    one = count_flops(alone.step, initial_state(built, phase_of(built), params), *args)
    trunk = count_flops(lambda f, b: built.model.trunk(f, b, built.compute), alone.frozen, batch)
    stage = four.stage
    all_four = count_flops(stage.step, four.states, stage.frozen, batch, stage.inputs(0))
    assert trunk > 0
    assert all_four <= 4 * one - 2.9 * trunk
    assert all_four >= 4 * one - 3.1 * trunk, "no member's own work is left out"


def test_side_by_side_is_one_after_another(config, four, monkeypatch):
    """As an accelerator runs the members: one batch of them, the trunk without an axis for them."""
    monkeypatch.setattr(study_step, "takes_turns", lambda compute: False)
    beside = Studied(part_of(config, GRID), Programs(), 5)
    np.testing.assert_allclose(beside.losses, four.losses[:5], rtol=1e-4)
    counted = [
        count_flops(
            one.stage.step,
            one.states,
            one.stage.frozen,
            batch_at(one.stage.setup, 0),
            one.stage.inputs(0),
        )
        for one in (beside, four)
    ]
    assert counted[0] == counted[1]


def test_other_values_compile_nothing(config, four, programs):
    assert four.stage.step._cache_size() == 1
    vary = {
        "optimizer.lr": [1e-4, 2e-4],
        "layer_decay.preset": ["timm", "ulmfit"],
    }
    other = override_config(
        config,
        ["optimizer.weight_decay=0.3", "schedule={kind: wsd, warmup: 10%}", "run.seed.dropout=7"],
    )
    again = Studied(part_of(other, vary), programs, 2)
    assert again.stage.step is four.stage.step
    assert four.stage.step._cache_size() == 1
    assert not np.array_equal(again.losses, four.losses[:2])


def test_a_member_that_is_not_finite_leaves_the_others_as_they_are(config, programs, four):
    """Against a run without it in the same place, to the bit; and it is left alone itself."""
    sick = Studied(part_of(config, GRID), programs, STEPS, spoilt=2)
    for member in (0, 1, 3):
        assert sick.leaves(member) == four.leaves(member)
    assert sick.leaves(2) != four.leaves(2)
    assert sick.bad_steps[:, [0, 1, 3]].max() == 0
    assert sick.bad_steps[:5, 2].tolist() == [1, 2, 3, 3, 3]
    assert int(sick.states.step[2]) == 3, "a diverged member takes no more steps"


def test_new_leaves_of_another_seed_are_those_of_a_run(config):
    part = part_of(config, {"run.seed.init": [0, 3], "run.seed.dropout": [0, 5]})
    _, states, start = begin(part.setups, phases_of(part.setups, 0), Programs())
    for member, built in enumerate(part.setups):
        own = load_params(built).params["head/kernel"]
        np.testing.assert_array_equal(states.trainable["head/kernel"][member], own)
        assert states.key[member] == jax.random.key(built.config.run.seed.dropout)
    assert set(start.own) == {"head/kernel", "head/bias"}


@pytest.mark.slow
def test_phases_move_every_member_as_they_move_a_run(config):
    """A probe of the head, then all: its trunk ends where nothing has trained yet."""
    phases = "phases=[{until: 4, unfreeze: ['head/.*'], lr: 1e-2}, {until: 100%, depth: [2, 3]}]"
    part = part_of(
        override_config(config, [phases, "train.length=8", "groups=[]"]),
        {"optimizer.lr": [3e-3, 1e-2]},
    )
    together = Studied(part, Programs(), 8)
    losses, _, _ = solo(part.setups[1], None, 8)
    np.testing.assert_allclose(together.losses[:, 1], losses, rtol=1e-4)
    running = together.stage.setup.model, together.stage.now.compute
    assert shares_trunk(*running, frozenset(together.states.previously_trained))
    moved = drift(together.stage.setup, together.states, together.start)
    assert moved[0] == moved[1] == [0.0, 0.0]
    assert min(moved[2] + moved[3]) > 0
    assert not shares_trunk(*running, frozenset({"blocks/0/mlp/up/kernel"}))


@pytest.mark.slow
def test_drift_over_quantized_kernels(tmp_path):
    adapter = {"kind": "lora", "rank": 2, "quantize": "nf4"}
    quantized = tiny_config(tmp_path, groups=[], adapter=adapter, train={"length": 1})
    together = Studied(part_of(quantized, {"optimizer.lr": [1e-2, 1e-3]}), Programs(), 1)
    moved = drift(together.stage.setup, together.states, together.start)
    assert moved[0] == [0, 0]
    assert all(0 < low < high for high, low in (moved[depth] for depth in (1, 2, 3)))


# ---------------------------------------------------------------------------------- who is together
def test_the_grid_is_every_combination_and_a_program_is_what_numbers_leave_alone(config):
    members = make_members(config, GRID | {"run.seed.data": [0, 1]})
    assert [member.index for member in members] == list(range(8))
    assert members[-1].values == {
        "layer_decay.rate": 0.5,
        "optimizer.lr": 1e-2,
        "run.seed.data": 1,
    }
    assert members[-1].config.layer_decay.rate == 0.5
    assert members[-1].setting == {"layer_decay.rate": 0.5, "optimizer.lr": 1e-2}
    assert [[m.index for m in bucket] for bucket in make_buckets(members)] == [
        [0, 2, 4, 6],
        [1, 3, 5, 7],
    ]


@pytest.mark.parametrize(
    ("vary", "programs"),
    [
        ({"schedule": [{"kind": "cosine"}, {"kind": "wsd", "warmup": "10%"}]}, 1),
        ({"groups.0.lr_mult": [1, 3], "optimizer.weight_decay": [0.0, 0.1]}, 1),
        ({"run.seed.init": [0, 1], "run.seed.dropout": [0, 1]}, 1),
        ({"layer_decay.preset": ["timm", "ulmfit"]}, 1),
        ({"run.seed": [{"init": 1, "data": 1}, {"init": 2, "data": 2}]}, 2),
        ({"optimizer.name": ["adamw", "sgd"]}, 2),
        ({"optimizer.b1": [0.9, 0.8]}, 2),
        ({"data.batch_size": [8, 16]}, 2),
        ({"groups.0.freeze": [True, False]}, 2),
        ({"phases": ["linear_probe", "lp_ft"]}, 2),
        ({"model.dropout": [0.0, 0.1]}, 2),
    ],
)
def test_what_makes_a_program_of_its_own(config, vary, programs):
    assert len(make_buckets(make_members(config, vary))) == programs


def test_members_are_cut_into_even_chunks_that_fit():
    need = Need(shared=100, state=10, working=50, turns=True)
    assert need.of(8) == 230
    assert chunk_sizes(need, 8, 1000) == [8]
    assert chunk_sizes(need, 8, 230) == [4, 4]
    assert chunk_sizes(Need(100, 10, 50, turns=False), 8, 400) == [4, 4]
    with pytest.raises(UserError, match=r"needs 160 B of memory and 100 B are free: 100 B"):
        chunk_sizes(need, 8, 100)


# ------------------------------------------------------------------------------------- the outcome
def row(member, step, score):
    return {"member": member, "bucket": 0, "step": step, "scores": {"accuracy": score}}


def test_settings_are_ranked_by_the_mean_of_their_seeds_best(config):
    members = make_members(config, {"optimizer.lr": [1e-3, 1e-2], "run.seed.init": [0, 1, 2]})
    scores = {0: [0.5, 0.6], 1: [0.8, 0.7], 2: [0.7, 0.7], 3: [0.9], 4: [0.9], 5: [None]}
    rows = [row(m, i + 1, s) for m, all_of in scores.items() for i, s in enumerate(all_of)]
    marked = mark_rows(rows, "accuracy", lower_is_better=False)
    assert [r["step"] for r in marked if r["best"]] == [2, 1, 2, 1, 1]
    assert [r["step"] for r in marked if r["last"]] == [2, 2, 2, 1, 1, 1]
    tested = {index: {"accuracy": 0.1 * index} for index in range(6)}
    first, second = rank(members, marked, {5: 1}, "accuracy", tested, lower_is_better=False)
    assert first["members"] == [0, 1, 2]
    assert first["best"]["mean"] == pytest.approx(0.7)
    assert first["best"]["deviation"] == pytest.approx(0.1)
    assert first["best"]["low"] == pytest.approx(0.6)
    assert first["best"]["high"] == pytest.approx(0.8)
    assert first["last"]["mean"] == pytest.approx((0.6 + 0.7 + 0.7) / 3)
    assert first["test"]["mean"] == pytest.approx(0.1), "it ranks nothing"
    assert second["test"]["mean"] == pytest.approx(0.4)
    assert second["diverged"] == 1, "a setting that diverges comes last, whatever its other seeds"


def test_an_interval_is_that_of_the_mean():
    values = np.random.default_rng(1).normal(0.8, 0.02, 40)
    found = summarise_seeds(values.tolist())
    half = 1.96 * values.std(ddof=1) / np.sqrt(40)
    assert found["high"] - found["low"] == pytest.approx(2 * half, rel=0.1)
    assert summarise_seeds([0.5]) == {"mean": 0.5, "deviation": None, "low": None, "high": None}
    assert summarise_seeds([0.5, None])["mean"] is None


@pytest.mark.parametrize(
    ("vary", "sentence"),
    [
        ({"optimizer.lrr": [1]}, "unknown key 'optimizer.lrr'. Did you mean 'optimizer.lr'?"),
        ({"seed.init": [1]}, "Did you mean 'run.seed'?"),
        ({"groups.3.lr_mult": [1]}, "'groups' has items 0 to 0, not '3'"),
        ({"optimizer.lr": [-1.0]}, "'optimizer.lr' must be 0 or more"),
        ({"optimizer.lr": [1e-3, 1e-3]}, "--vary optimizer.lr: a value is given twice"),
        ({"optimizer.lr": []}, "it has no value"),
        ({"optimizer.lr": 1e-3}, "--vary optimizer.lr: its values are a float"),
        ({"optimizer.name": "lion"}, "--vary optimizer.name: its values are a str"),
        ({"run.name": ["a", "b"]}, "--vary run.name: a study has one for all of its members"),
        ({"checkpoint.best": ["loss", "f1"]}, "--vary checkpoint.best: a study has one"),
    ],
)
def test_what_cannot_be_varied(config, vary, sentence):
    with pytest.raises(UserError) as caught:
        make_members(config, vary)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("phases=auto_freeze", "phases: auto_freeze"),
        ("layer_decay.preset=auto_rgn", "layer_decay.preset: auto_rgn"),
        ("sampling.method=lisa", "sampling"),
        ("regularise.l2_sp=0.1", "regularise.l2_sp"),
    ],
)
def test_what_is_decided_during_training_takes_a_run_of_its_own(config, override, key):
    changed = override_config(config, [override, "groups=[]"])
    vary = {"optimizer.lr": [1e-3, 1e-2]}
    parts, _ = make_parts(make_members(changed, vary), devices=ONE)
    assert [len(part.members) for part in parts] == [1, 1], "they would share a program"
    sentence = f"{key} trains as a run of its own"
    with pytest.raises(UserError, match=f"--halve 2: a member with {sentence}"):
        check_solo(parts, halve=2, groups=1)
    with pytest.raises(UserError, match=f"--mesh-members 4: a member with {sentence}"):
        check_solo(parts, halve=None, groups=4)
    check_solo(parts, halve=None, groups=1)


@pytest.mark.parametrize("presets", [["mae", "auto_rgn"], ["auto_rgn", "mae"]])
def test_a_run_of_its_own_is_in_no_program_of_others(config, presets):
    members = make_members(config, {"layer_decay.preset": presets, "optimizer.lr": [1e-3, 1e-2]})
    parts, _ = make_parts(members, devices=ONE)
    alone = [part.setups[0].config.layer_decay.preset for part in parts if len(part.members) == 1]
    assert alone == ["auto_rgn", "auto_rgn"]
    assert [len(part.members) for part in parts if len(part.members) > 1] == [2]


def test_what_does_not_fit_is_told_with_its_bytes(config, monkeypatch):
    monkeypatch.setattr(parts_module, "available_bytes", lambda mesh: 10_000)
    with pytest.raises(UserError, match=r"A study's member needs \d+ kB of memory and 10.0 kB are"):
        make_parts(make_members(config, GRID), devices=ONE)
