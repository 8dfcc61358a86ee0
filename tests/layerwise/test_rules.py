"""Every update rule against its twin in optax, on a model's gradients, unrolled and scanned."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from jaxft.config.optimizer import NUMBERS, OptimizerSection
from jaxft.config.recipe import Group, LayerDecaySection, ScheduleSection
from jaxft.engine.initial_state import carry_state
from jaxft.engine.recipe import optimizer_from, table_from
from jaxft.errors import UserError
from jaxft.layerwise.defaults import is_matrix
from jaxft.layerwise.phases import within
from jaxft.layerwise.rules import scored
from jaxft.models import load as registry
from jaxft.models.tower.tower import Compute
from tests.layerwise.test_optimizer import Run, gradients_at
from tests.support.tiny import tiny_checkpoint

NEW = sorted(set(NUMBERS) - {"adamw", "sgd"})
STEPS, RATE, ADAM_RATE, DECAY = 10, 2e-3, 5e-4, 0.1
# Attention does not depend on a key's bias: its gradient is rounding, which Adam would magnify.
FROZEN = Group(name="still", match=".*/key/bias", freeze=True)


class Tiny:
    """A BERT of three equal blocks, its gradients, and a table of its leaves."""

    def __init__(self, folder: Path):
        self.model = registry.load(str(tiny_checkpoint(folder, num_hidden_layers=3)))
        model, draw = self.model, np.random.default_rng(0)
        self.batch = {"input_ids": draw.integers(1, 32, (4, 12))}
        # Blocks as unlike each other as trained ones are: else one norm for all would do.
        scales = {f"blocks/{i}/": scale for i, scale in enumerate((0.5, 1.0, 2.0))}
        model = self.model = model.with_params(
            {n: v * scales.get(n[:9], 1.0) for n, v in model.params.items()}
        )
        self.still = [name for name in model.params if name.endswith("key/bias")]
        self.start = {n: v for n, v in model.params.items() if n not in self.still}
        self.decays = {n: n not in model.no_decay for n in self.start}
        self.unrolled, self.scanned = (jax.jit(jax.grad(self.loss(scan))) for scan in (False, True))

    def loss(self, scan: bool):
        compute = Compute(scan=scan, trainable=frozenset(self.start))
        still = {name: self.model.params[name] for name in self.still}

        def loss(params):
            stream = self.model.apply({**still, **params}, self.batch, None, compute)
            weight = jnp.cos(jnp.arange(stream["last_hidden_state"].size, dtype=jnp.float32))
            pooled = jnp.sum(stream["pooler_output"] ** 2)
            return jnp.sum(stream["last_hidden_state"].ravel() * weight) + pooled

        return loss

    def run(self, name: str, gradient, **optimizer):
        """Where ten steps of a rule of ours end, and its state."""
        section = OptimizerSection(name=name, clip=None, weight_decay=DECAY, **optimizer)
        table = table_from(
            self.model.params,
            depths=self.model.depths,
            tops=self.model.tops,
            no_decay=sorted(self.model.no_decay),
            groups=[FROZEN],
            layer_decay=LayerDecaySection(),
            optimizer=section.model_copy(update={"lr": RATE}),
            schedule=ScheduleSection(),
        )
        ours = optimizer_from(table, section)

        @jax.jit
        def step(gradients, params, state):
            told = (jnp.full(1, RATE), jnp.asarray(table.multipliers()), jnp.full(1, DECAY))
            named = dict(zip(("rates", "multipliers", "weight_decay"), told, strict=True))
            updates, state = ours.update(gradients, state, params, **named)
            return optax.apply_updates(params, updates), state

        params, state = self.start, ours.init(self.start)
        for _ in range(STEPS):
            params, state = step(gradient(params), params, state)
        return params, state

    def twin(self, optimizer: optax.GradientTransformation):
        """Where ten steps of optax's end on the unrolled model."""
        params, state = self.start, optimizer.init(self.start)

        @jax.jit
        def step(gradients, params, state):
            updates, state = optimizer.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        for _ in range(STEPS):
            params, state = step(self.unrolled(params), params, state)
        return params, state

    def distance(self, one, other) -> float:
        """How far two ends are apart, as a share of the way from the start."""
        way = optax.tree.norm(optax.tree.sub(one, self.start))
        return float(optax.tree.norm(optax.tree.sub(one, other)) / way)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Tiny:
    return Tiny(tmp_path_factory.mktemp("tiny") / "checkpoint")


def optax_twin(name: str, decays: dict[str, bool]) -> optax.GradientTransformation:
    """The rule as optax has it, whole."""
    match name:
        case "lion":
            return optax.lion(RATE, weight_decay=DECAY, mask=decays)
        case "adafactor":  # which takes its decay as it is, and not times the rate
            return optax.adafactor(RATE, weight_decay_rate=RATE * DECAY, weight_decay_mask=decays)
        case "lamb":
            return optax.lamb(RATE, weight_decay=DECAY, mask=decays)
        case "lars":
            masks = {"weight_decay_mask": decays, "trust_ratio_mask": decays}
            return optax.lars(RATE, weight_decay=DECAY, **masks)
        case "muon":
            rest = optax.adamw(ADAM_RATE, weight_decay=DECAY, mask=lambda p: part(decays, p))
            return optax.partition(
                {True: contrib.muon(RATE, weight_decay=DECAY), False: rest}, matrices
            )
    averaged = optax.chain(
        optax.scale_by_rms(0.999, 1e-8, eps_in_sqrt=False, bias_correction=True),
        optax.add_decayed_weights(DECAY, decays),
        optax.scale_by_learning_rate(RATE),
    )
    return contrib.schedule_free(averaged, RATE, b1=0.9)


def matrices(params):
    return {name: is_matrix(name, leaf.shape) for name, leaf in params.items()}


def part(decays, params):
    """The mask of those leaves that optax shows of a part of all."""
    return {n: decays[n] if isinstance(leaf, jax.Array) else leaf for n, leaf in params.items()}


@pytest.mark.parametrize("name", NEW)
def test_a_rule_is_optaxs_unrolled_and_scanned(name, tiny):
    own = {"adam_lr": ADAM_RATE} if name == "muon" else {}
    wanted, _ = tiny.twin(optax_twin(name, tiny.decays))
    found, state = tiny.run(name, tiny.unrolled, **own)
    assert tiny.distance(found, wanted) < 1e-4
    scanned, _ = tiny.run(name, tiny.scanned, **own)
    # Lion takes signs, and some gradients are all but 0.
    assert tiny.distance(scanned, found) < (0.05 if name == "lion" else 0.01)
    kept = [leaf.nbytes for leaf in jax.tree.leaves(state) if leaf.ndim]
    assert sum(kept) > 0


def test_lamb_on_stacked_leaves_is_another_rule(tiny):
    """The control: what comes of one norm for all the blocks that a scan stacks."""
    names = [name.removeprefix("blocks/0/") for name in tiny.start if name.startswith("blocks/0/")]

    def stacked(tree):
        rest = {name: leaf for name, leaf in tree.items() if not name.startswith("blocks/")}
        blocks = {n: jnp.stack([tree[f"blocks/{i}/{n}"] for i in range(3)]) for n in names}
        return rest | {f"blocks/{name}": leaf for name, leaf in blocks.items()}

    def apart(tree):
        rest = {name: leaf for name, leaf in tree.items() if not name.startswith("blocks/")}
        return rest | {f"blocks/{i}/{n}": tree[f"blocks/{n}"][i] for n in names for i in range(3)}

    decays = {
        n: tiny.decays.get(n, tiny.decays.get(n.replace("blocks/", "blocks/0/")))
        for n in (stacked(tiny.start))
    }
    lamb = optax.lamb(RATE, weight_decay=DECAY, mask=decays)
    params, state = stacked(tiny.start), lamb.init(stacked(tiny.start))
    update = jax.jit(lamb.update)
    for _ in range(STEPS):
        updates, state = update(stacked(tiny.unrolled(apart(params))), state, params)
        params = optax.apply_updates(params, updates)
    ours, _ = tiny.run("lamb", tiny.scanned)
    assert tiny.distance(ours, apart(params)) > 0.05


LARGE = {"embeddings/word": (6, 4), "blocks/0/kernel": (130, 128), "blocks/0/bias": (128,)}
DEPTHS = {"embeddings/word": 0, "blocks/0/kernel": 1, "blocks/0/bias": 1}


@pytest.mark.parametrize("name", NEW)
def test_what_is_kept_is_what_the_table_says(name):
    run = Run(shapes=LARGE, depths=DEPTHS, name=name)
    run.step(gradients_at(0, LARGE))
    kept = [
        leaf.nbytes
        for path, leaf in jax.tree.leaves_with_path(run.state)
        if any(part in jax.tree_util.keystr(path) for part in LARGE)
    ]
    assert sum(kept) == sum(row["optimizer_bytes"] for row in run.table.summary())


def test_adafactor_factors_what_is_large():
    run = Run(shapes=LARGE, depths=DEPTHS, name="adafactor")
    twin, params = optax.adafactor(0.1), run.params
    state = twin.init(params)
    for step in range(3):
        run.step(gradients_at(step, LARGE), 0.1)
        updates, state = twin.update(gradients_at(step, LARGE), state, params)
        params = optax.apply_updates(params, updates)
    for name, leaf in params.items():
        np.testing.assert_allclose(run.params[name], leaf, rtol=1e-5, atol=1e-6)
    assert run.table.summary()[0]["optimizer_bytes"] < 4 * 130 * 128 / 10


@pytest.mark.full
@pytest.mark.parametrize("name", NEW)
def test_members_side_by_side_are_members_alone(name):
    """As a study on an accelerator runs them, at rates of their own."""
    own = {"adam_lr": 1e-3, "lr": 1e-3} if name == "muon" else {}
    run = Run(shapes=LARGE, depths=DEPTHS, name=name, weight_decay=DECAY, **own)
    rates = jnp.array([[1e-3], [1e-2]], jnp.float32)
    fixed = {
        "multipliers": jnp.asarray(run.table.multipliers()),
        "weight_decay": jnp.full(1, DECAY),
    }

    def step(params, state, gradients, rate):
        updates, state = run.optimizer.update(gradients, state, params, rates=rate, **fixed)
        return optax.apply_updates(params, updates), state

    many = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), (run.params, run.state))
    alone = [(run.params, run.state), (run.params, run.state)]
    for number in range(3):
        gradients = gradients_at(number, LARGE)
        many = jax.jit(jax.vmap(step, in_axes=(0, 0, None, 0)))(*many, gradients, rates)
        alone = [jax.jit(step)(*one, gradients, rates[i]) for i, one in enumerate(alone)]
    for index, (params, _) in enumerate(alone):
        for leaf, value in params.items():
            np.testing.assert_allclose(many[0][leaf][index], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NEW)
def test_a_step_that_is_not_finite_moves_nothing(name):
    run = Run(shapes=LARGE, depths=DEPTHS, name=name)
    run.step(gradients_at(0, LARGE))
    before = jax.tree.map(np.asarray, (run.params, run.state))
    bad = {n: jnp.full(shape, jnp.nan) for n, shape in LARGE.items()}
    updates, state = run.optimizer.update(
        bad,
        run.state,
        run.params,
        rates=jnp.full(1, 0.1),
        multipliers=jnp.asarray(run.table.multipliers()),
        weight_decay=jnp.zeros(1),
        finite=jnp.asarray(False),
    )
    jax.tree.map(np.testing.assert_array_equal, (run.params, state), before)
    assert not any(np.asarray(leaf).any() for leaf in updates.values())


def test_a_groups_rule_is_another_and_has_numbers_of_its_own():
    top = Group(name="top", match="blocks/.*", optimizer="lion")
    run = Run([top], shapes=LARGE, depths=DEPTHS, name="adamw", b1=0.5)
    assert OptimizerSection(name="adamw", b1=0.5).numbers("lion") == {"b1": 0.9, "b2": 0.99}
    assert OptimizerSection(name="adamw", momentum=0.5).numbers("sgd") == {"momentum": 0.5}
    assert OptimizerSection(name="muon", b1=0.5).numbers("adamw")["b1"] == 0.5
    # The numbers that `adamw` and `sgd` do not read have defaults that are not these rules' own.
    assert OptimizerSection(name="adamw").numbers("muon")["momentum"] == 0.95
    assert OptimizerSection(name="sgd").numbers("lion") == {"b1": 0.9, "b2": 0.99}
    assert OptimizerSection(name="sgd").numbers("lamb") == {"b1": 0.9, "b2": 0.999, "eps": 1e-6}
    assert OptimizerSection(name="sgd", b2=0.95).numbers("lion")["b2"] == 0.95
    assert OptimizerSection(name="lamb").eps == 1e-6
    gradients = gradients_at(0, LARGE)
    updates = run.step(gradients, 0.1)
    np.testing.assert_allclose(
        updates["blocks/0/kernel"], -0.1 * np.sign(gradients["blocks/0/kernel"]), rtol=1e-6
    )


def test_a_phase_keeps_every_rules_state_by_name():
    """The bias joins the matrix: what the matrix has stays, and the bias starts afresh."""
    for name in NEW:
        own = {"shapes": LARGE, "depths": DEPTHS, "name": name}
        run = Run(**own)
        first = within(run.table, ["blocks/0/kernel"], None, 0)
        both = within(run.table, ["blocks/0/kernel", "blocks/0/bias"], first, 1)
        section = OptimizerSection(name=name)
        start = {"blocks/0/kernel": run.params["blocks/0/kernel"]}
        optimizer = optimizer_from(first, section)
        _, before = optimizer.update(
            {n: gradients_at(0, LARGE)[n] for n in start},
            optimizer.init(start),
            start,
            rates=jnp.full(1, 0.1),
            multipliers=jnp.ones(1),
            weight_decay=jnp.zeros(1),
        )
        fresh = optimizer_from(both, section).init(
            {n: run.params[n] for n in ("blocks/0/kernel", "blocks/0/bias")}
        )
        after = by_path(carry_state(before, fresh))
        for path, leaf in by_path(before).items():
            np.testing.assert_array_equal(after[path], leaf, err_msg=f"{name} {path}")
        assert any("blocks/0/bias" in path for path in after)


def by_path(tree):
    return {jax.tree_util.keystr(p): np.asarray(v) for p, v in jax.tree.leaves_with_path(tree)}


def test_what_is_scored_is_the_average_of_where_it_was():
    """With a rate that never changes it is the plain mean of z, and the rest is as it is."""
    head = Group(name="head", match="embeddings/.*", optimizer="adamw")
    own = {"shapes": LARGE, "depths": DEPTHS, "name": "schedule_free_adamw"}
    run, was = Run([head], **own), []
    for step in range(4):
        run.step(gradients_at(step, LARGE), 0.1)
        (kept,) = [
            node
            for node in jax.tree.leaves(run.state, is_leaf=is_schedule_free)
            if is_schedule_free(node)
        ]
        was.append(kept.z["blocks/0/kernel"])
    found = scored(run.state, run.params)
    np.testing.assert_allclose(found["blocks/0/kernel"], np.mean(was, 0), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found["embeddings/word"], run.params["embeddings/word"])
    assert np.abs(found["blocks/0/kernel"] - run.params["blocks/0/kernel"]).max() > 1e-3


def is_schedule_free(node) -> bool:
    return isinstance(node, contrib.ScheduleFreeState)


@pytest.mark.parametrize(
    ("name", "shape", "is_one"),
    [
        ("blocks/0/mlp/up/kernel", (8, 4), True),
        ("decoder/blocks/0/attention/query/lora_b", (2, 4), True),
        ("blocks/0/attention/distances/table", (49, 4), False),  # relative positions of a BEiT
        ("blocks/0/mlp/experts/down/bias", (4, 8), False),  # of a gpt-oss
        ("blocks/0/mlp/experts/down/kernel", (4, 8, 4), False),
        ("head/kernel", (8, 2), False),
    ],
)
def test_muon_takes_the_matrices_of_blocks_linear_maps_alone(name, shape, is_one):
    assert is_matrix(name, shape) is is_one


def test_muon_without_a_matrix_says_so():
    shapes = {"embeddings/word": (6, 4), "head/kernel": (4, 2)}
    with pytest.raises(UserError, match="muon moves matrices of blocks, and group 'rest' has none"):
        Run(shapes=shapes, depths={"embeddings/word": 0, "head/kernel": 1}, name="muon")


@pytest.mark.parametrize(
    ("rule", "batch", "factor"), [("linear", 128, 4.0), ("sqrt", 128, 2.0), ("sqrt", 8, 0.5)]
)
def test_rates_follow_the_batch(rule, batch, factor):
    section = OptimizerSection(scale=rule, reference_batch=32, lr=1e-3)
    assert section.batch_factor(batch) == factor
    assert OptimizerSection(lr=1e-3).batch_factor(batch) == 1
    shapes = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in LARGE.items()}
    table = table_from(
        shapes,
        depths=DEPTHS,
        tops=dict.fromkeys(LARGE, 1),
        no_decay=[],
        groups=[Group(name="low", match="embeddings/.*", lr=1e-2)],
        layer_decay=LayerDecaySection(),
        optimizer=section,
        schedule=ScheduleSection(),
        batch_factor=factor,
    )
    assert [group.peak_rate for group in table.groups] == pytest.approx(
        [1e-2 * factor, 1e-3 * factor]
    )


def test_l2_sp_pulls_back_what_is_not_new():
    """Nothing at the start; then a step of the rate towards it, and none for a new leaf."""
    for name in ("sgd", "adamw", "muon"):
        run = Run(shapes=LARGE, depths=DEPTHS, name=name)
        origin = {n: leaf for n, leaf in run.params.items() if n != "embeddings/word"}
        still = {n: jnp.zeros(shape) for n, shape in LARGE.items()}

        def pulled(params, run=run, origin=origin, still=still):
            return run.optimizer.update(
                still,
                run.state,
                params,
                rates=jnp.full(1, 0.1),
                multipliers=jnp.asarray(run.table.multipliers()),
                weight_decay=jnp.zeros(1),
                anchor=origin,
                anchor_decay=jnp.float32(0.5),
            )[0]

        assert not any(np.asarray(leaf).any() for leaf in pulled(run.params).values())
        moved = {n: leaf + 1.0 for n, leaf in run.params.items()}
        steps = pulled(moved)
        np.testing.assert_allclose(steps["blocks/0/kernel"], -0.1 * 0.5, rtol=1e-4)
        np.testing.assert_allclose(steps["blocks/0/bias"], -0.1 * 0.5, rtol=1e-4)
        assert not np.asarray(steps["embeddings/word"]).any()
