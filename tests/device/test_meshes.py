"""Every family trains on eight devices as on one, however the mesh cuts it: twenty steps of losses.

`tests/engine/test_step_model.py` has BERT on 2 x 2 x 2 in every run of the tests, and
`tests/models/test_families_run.py` each family's gradients there; this is all the rest.
"""

from functools import cache, partial
from types import SimpleNamespace
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.config.optimizer import OptimizerSection
from jaxft.config.recipe import Group, LayerDecaySection, ScheduleSection
from jaxft.device.mesh import batch_sharding, make_mesh, place_batch
from jaxft.engine.initial_state import frozen_params, initial_state, state_shardings
from jaxft.engine.recipe import optimizer_from, table_from
from jaxft.engine.step import StepInputs, make_train_step
from jaxft.models import load as registry
from jaxft.models.layers.partition import partition
from jaxft.models.tower.tower import Compute
from tests.support.families import FAMILIES, Pair, architectures, make_pair, names_of

MESHES = [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)]
NAMES = get_args(OptimizerSection.model_fields["name"].annotation)
STEPS, ROWS = 20, 8
# Under 1e-3 a contrastive loss of random towers doubles in a step, and so does what was rounded.
RATES = {"contrastive": 1e-4}
HEADS = (
    *("text_classification", "image_classification", "causal_lm", "contrastive", "masked_lm"),
    *("seq2seq", "captioning", "object_detection", "vision_language"),
)
pytestmark = pytest.mark.full


def one_of_each_family() -> list:
    """The last model type of each family's file, under the first head that it has of `HEADS`."""
    last = {family.name: name for name, family in FAMILIES.items()}
    found = []
    for name in last.values():
        name = names_of([name])[0]  # two families in one model go by the name of their pair
        heads = architectures(name)
        head = next((head for head in HEADS if head in heads), None)
        found.append(pytest.param((name, head), id=f"{name}-{head}"))
    return found


@pytest.fixture(scope="module", params=one_of_each_family())
def pair(request, tmp_path_factory) -> Pair:
    return make_pair(*request.param, 0, tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def alone(pair):
    """The losses on one device, by optimizer and trunk."""
    return cache(partial(losses, pair, (1, 1, 1)))


def losses(pair: Pair, sizes: tuple[int, int, int], name: str, trunk: bool) -> np.ndarray:
    """The losses of the first steps, all leaves training or those above the first block."""
    mesh = make_mesh(*sizes, jax.devices()[: int(np.prod(sizes))])
    shardings = {
        n: jax.sharding.NamedSharding(mesh, partition(value.shape, pair.ours.axes[n], mesh))
        for n, value in pair.ours.params.items()
    }
    model = registry.load(pair.folder, sharding=lambda name, shape, axes: shardings[name])
    section = OptimizerSection(name=name, clip=1.0, weight_decay=0.1)
    groups = [Group(name="trunk", depth=(0, 1), freeze=True)] if trunk else []
    table = table_from(
        model.params,
        depths=model.depths,
        tops=model.tops,
        no_decay=sorted(model.no_decay),
        groups=groups,
        layer_decay=LayerDecaySection(),
        optimizer=section,
        schedule=ScheduleSection(),
    )
    compute = Compute(trainable=frozenset(table.trainable), mesh=mesh)
    built = SimpleNamespace(
        mesh=mesh,
        shardings=shardings,
        model=model,
        compute=compute,
        phases=(SimpleNamespace(table=table),),
        config=SimpleNamespace(run=SimpleNamespace(seed=SimpleNamespace(dropout=0))),
    )
    now = SimpleNamespace(
        table=table,
        optimizer=optimizer_from(table, section),
        compute=compute,
        phase=SimpleNamespace(index=0),
        averages=False,
    )
    frozen = frozen_params(built, now, model.params)
    step = make_train_step(
        partial(objective, model, compute),
        now.optimizer,
        accumulate=1,
        ema=None,
        state_shardings=state_shardings(built, now),
        frozen_shardings={n: shardings[n] for n in frozen},
        mesh=mesh,
    )
    batch = {n: np.concatenate([value] * ROWS)[:ROWS] for n, value in pair.batch.items()}
    placed = place_batch(batch, batch_sharding(mesh))
    rates = StepInputs(
        np.full(len(table.training_groups), RATES.get(pair.ours.head, 1e-3), np.float32),
        table.multipliers(),
        table.weight_decays(),
    )
    state, found = initial_state(built, now, model.params), []
    for _ in range(STEPS):
        state, metrics = step(state, frozen, placed, rates)
        found.append(float(metrics["loss"]))
    return np.array(found)


def objective(model, compute, params, batch, key):
    """A loss of every output: each example's squared distance from something that it is not."""
    outputs = model.apply(params, batch, key, compute)
    total = 0.0
    for value in jax.tree.leaves(outputs):
        if value.shape[:1] == (ROWS,):
            wanted = jnp.cos(jnp.arange(value[0].size)).reshape(value.shape[1:])
            total += jnp.square(value - wanted).mean(range(1, value.ndim)).sum()
    return {"loss": (total, jnp.float32(ROWS))}


@pytest.mark.parametrize("trunk", [False, True], ids=["full", "trunk"])
@pytest.mark.parametrize("name", [name for name in ("adamw", "lamb") if name in NAMES])
@pytest.mark.parametrize("sizes", MESHES, ids=lambda sizes: "x".join(map(str, sizes)))
def test_losses_are_those_of_one_device(pair, alone, sizes, name, trunk):
    wanted = alone(name, trunk)
    found = losses(pair, sizes, name, trunk)
    assert len(set(wanted.tolist())) == STEPS, "it learns"
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
