"""Blocks sampled by data: the gradients of the ordinary program, for what the blocks cost."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.engine.cost import count_flops
from jaxft.layerwise.sampling import Blocks, Choice
from jaxft.models.load import Model, load
from jaxft.models.tower.tower import Compute, Tower
from tests.support.executed_flops import executed_flops
from tests.support.families import make_pair
from tests.support.tiny import tiny_checkpoint

BLOCKS = 5


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Model:
    folder = tiny_checkpoint(
        tmp_path_factory.mktemp("bert"),
        num_hidden_layers=BLOCKS,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return load(str(folder), task="text_classification", labels=("bad", "good"))


BATCH = {
    "input_ids": jnp.asarray([[2, 5, 6, 7, 8, 3], [2, 9, 10, 3, 0, 0]], jnp.int32),
    "attention_mask": jnp.asarray([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]], jnp.int32),
}


class Program:
    """The gradient of a loss by some parameters: under the model's names, or a choice's."""

    def __init__(self, model: Model, batch: dict, chosen: tuple | dict, ends: bool):
        towers = [one for one in model.towers.values() if isinstance(one, Tower)]
        of = []
        for tower in towers:
            names = tuple(map(tower.block_prefix, range(len(tower.blocks))))
            by_map = chosen if isinstance(chosen, dict) else {None: chosen}
            of += [(Blocks(tower.prefix, names, path), own) for path, own in by_map.items()]
        self.choice, self.model, self.batch = Choice(tuple(of)), model, batch
        slots, depths, tops = self.choice.slots, model.depths, model.tops
        whole = tuple(slots) if not isinstance(chosen, dict) else tuple(f"{one}/" for one in slots)
        self.trained = [
            name
            for name in model.params
            if name.startswith(whole) or (ends and depths[name] in (0, tops[name]))
        ]
        self.names = self.choice.names(list(model.params))
        self.values = {name: jnp.asarray(value) for name, value in model.params.items()}

    def gradient(self, compute: Compute, trained: dict, fixed: dict) -> dict:
        def loss(trained: dict) -> jax.Array:
            outputs = self.model.apply({**fixed, **trained}, self.batch, None, compute)
            return sum(jnp.square(one).mean() for one in outputs.values())

        return jax.grad(loss)(trained)

    def ordinary(self, compute: Compute) -> tuple[Compute, dict, dict]:
        compute = replace(compute, trainable=frozenset(self.trained))
        trained = {name: self.values[name] for name in self.trained}
        return compute, trained, {n: v for n, v in self.values.items() if n not in trained}

    def sampled(self, compute: Compute) -> tuple[Compute, dict, dict]:
        compute, trained, fixed = self.ordinary(compute)
        named = [
            {self.names.get(name, name): value for name, value in part.items()}
            for part in (trained, fixed)
        ]
        orders = {name: jnp.asarray(order) for name, order in self.choice.positions.items()}
        return replace(compute, trainable=frozenset(named[0])), named[0], named[1] | orders

    def check(self, compute: Compute, tolerance: float = 3e-6) -> None:
        own, trained, fixed = self.ordinary(compute)
        expected = jax.jit(lambda a, b: self.gradient(own, a, b))(trained, fixed)
        own, trained, fixed = self.sampled(compute)
        actual = jax.jit(lambda a, b: self.gradient(own, a, b))(trained, fixed)
        scale = max(float(jnp.abs(one).max()) for one in expected.values())
        for name, value in expected.items():
            np.testing.assert_allclose(
                actual[self.names.get(name, name)], value, rtol=0, atol=tolerance * scale
            )


@pytest.mark.parametrize(
    ("chosen", "ends", "remat"),
    [((1, 3), True, "none"), ((1, 3), False, "none"), ((0,), False, "full"), ((4,), True, "dots")],
)
def test_gradients_are_those_of_the_ordinary_program(bert, chosen, ends, remat):
    Program(bert, BATCH, chosen, ends).check(Compute(remat=remat))


# Two linear maps, each of blocks of its own; the third is of none of these blocks.
MAPS = {"attention/query": (1, 3), "mlp/up": (0, 3)}


@pytest.mark.parametrize("ends", [True, False])
def test_gradients_of_linear_maps_chosen_one_by_one(bert, ends):
    Program(bert, BATCH, MAPS, ends).check(Compute())


def test_products_of_linear_maps_chosen_one_by_one_have_their_names(bert):
    """By which `train.remat` keeps them."""
    program = Program(bert, BATCH, MAPS, True)
    own, trained, fixed = program.sampled(Compute())
    text = str(jax.make_jaxpr(lambda a, b: program.gradient(own, a, b))(trained, fixed))
    for name in ("product", "attention/query", "mlp/up", "mlp/down"):
        assert f"name[name={name}]" in text


@pytest.mark.slow
def test_executed_flops_of_linear_maps_are_those_of_what_trains(bert):
    program = Program(bert, BATCH, MAPS, True)
    compute, trained, fixed = program.ordinary(Compute())
    needed = count_flops(lambda a, b: program.gradient(compute, a, b), trained, fixed)
    own, trained, fixed = program.sampled(Compute())
    assert executed_flops(lambda a, b: program.gradient(own, a, b), trained, fixed) == needed


@pytest.mark.parametrize("model_type", ["llama", "t5"])
def test_other_families_and_two_towers(model_type, tmp_path):
    head = {"llama": "causal_lm", "t5": "seq2seq"}[model_type]
    pair = make_pair(model_type, head, 0, tmp_path)
    batch = {name: jnp.asarray(value) for name, value in pair.batch.items()}
    Program(pair.ours, batch, (1,), True).check(Compute(), 1e-5)


@pytest.mark.parametrize(("chosen", "ends"), [((1, 3), False), ((4,), False), ((2, 3), True)])
def test_executed_flops_are_those_of_what_trains(bert, chosen, ends):
    """Forward, the input gradient above the lowest block that trains, and the sampled weights'."""
    program = Program(bert, BATCH, chosen, ends)
    compute, trained, fixed = program.ordinary(Compute())
    needed = count_flops(lambda a, b: program.gradient(compute, a, b), trained, fixed)
    own, trained, fixed = program.sampled(Compute())
    assert executed_flops(lambda a, b: program.gradient(own, a, b), trained, fixed) == needed


def test_no_gradient_of_a_block_that_does_not_train_exists(bert):
    """No array of the program has the shape of all blocks' gradients, but the stored values."""
    program = Program(bert, BATCH, (1, 3), False)
    own, trained, fixed = program.sampled(Compute())
    text = str(jax.make_jaxpr(lambda a, b: program.gradient(own, a, b))(trained, fixed))
    # One matrix of the model is 32 x 64; the carry of the backward scan has the two sampled ones.
    made = [line for line in text.splitlines() if f"f32[{BLOCKS},32,64] = broadcast_in_dim" in line]
    assert "f32[2,32,64] = broadcast_in_dim" in text
    assert not made
