"""Sampled blocks in the loop: the choice of a period, and one compiled step under all choices.

The state has the model's own names: in the loop, in checkpoints and in evaluations. The step is
compiled for names by storage position (`models.tower.sampled`), to which the state is renamed as it
enters and from which as it leaves; no array moves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import numpy as np

from jaxft.config.phases import IN_TURN
from jaxft.device.mesh import replicated
from jaxft.engine.initial_state import state_shardings
from jaxft.engine.remat import widest, with_remat
from jaxft.engine.setup import PhaseSetup, Setup, phase_setup
from jaxft.engine.state import TrainState
from jaxft.engine.step import StepInputs
from jaxft.layerwise.phases import WHOLE, Phase
from jaxft.layerwise.sampling import (
    Blocks,
    Choice,
    Sampling,
    choose_blocks,
    program_choice,
    sampled_towers,
)
from jaxft.models.tower.tower import Tower
from jaxft.training.sampling.scores import Events, scores_at

KIND = "sampling"  # of the events
Step = Callable[..., tuple[TrainState, dict[str, jax.Array]]]


@dataclass(frozen=True, eq=False)
class SampledRun:
    """Sampling of a run, and the program that serves all its choices.

    Attributes:
        setup: the run, with the shardings of the towers' orders.
        sampling: the rule.
        towers: the towers whose blocks are sampled.
    """

    setup: Setup
    sampling: Sampling
    towers: tuple[Blocks, ...]

    def choice(self, period: int, scores: Mapping[str, float] | None = None) -> Choice:
        """Choose the blocks of a period; see `Sampling.choose`."""
        return choose_blocks(self.sampling, self.towers, period, scores)

    def phase(self, choice: Choice) -> PhaseSetup:
        """Set up training of the blocks of a choice, under the model's own names.

        Its index is 1: the run's one phase, in which all blocks train, counts as before it, so
        that the state has every block, those that do not train as previously trained.
        """
        (whole,) = self.setup.phases
        table = choice.table(whole.table)
        return phase_setup(self.setup, Phase(1, whole.start, whole.stop, WHOLE, table))

    @cached_property
    def program_choice(self) -> Choice:
        """Name the blocks as the program does: the first of each tower train."""
        return program_choice(self.choice(0))

    @cached_property
    def program(self) -> PhaseSetup:
        """Set up the program."""
        return with_remat(self.setup, self.phase(self.program_choice))

    @property
    def orders(self) -> tuple[str, ...]:
        """Name the towers' orders, of which every device has all."""
        return tuple(blocks.order for blocks in self.towers)

    @cached_property
    def fresh_optimizer(self) -> Callable[[Any], Any]:
        """Compile the optimizer's initial state, under the program's names."""
        shardings = state_shardings(self.setup, self.program)
        return jax.jit(self.program.optimizer.init, out_shardings=shardings.opt_state)


def sampled_run(setup: Setup) -> SampledRun | None:
    """Return how a run samples blocks; None where it does not.

    Raises:
        UserError: see `sampled_towers`.
    """
    section = setup.config.sampling
    if section.method is None:
        return None
    sampling = Sampling(
        method=section.method,
        blocks=section.blocks,
        every=setup.length.sample_every,
        order=section.order if section.method in IN_TURN else None,
        keep=section.moments == "keep",
        seed=setup.config.run.seed.dropout,
        weights=section.weights,
    )
    towers = [
        (
            Blocks(one.prefix, tuple(map(one.block_prefix, range(len(one.blocks))))),
            len(set(map(id, one.blocks))) == 1,
        )
        for one in setup.model.towers.values()
        if isinstance(one, Tower)
    ]
    chosen = sampled_towers(sampling, towers, setup.phases[0].table)
    orders = {blocks.order: replicated(setup.mesh) for blocks in chosen}
    setup = replace(setup, shardings={**setup.shardings, **orders})
    return SampledRun(setup, sampling, chosen)


def dearest(setup: Setup, phases: Sequence[PhaseSetup]) -> tuple[Setup, PhaseSetup]:
    """Return the phase whose step costs most, and the run as that is compiled for.

    Of sampled blocks these are the first ones: all blocks above them pass gradients on.

    Args:
        setup: the run.
        phases: each of its phases.
    """
    run = sampled_run(setup)
    return (setup, widest(phases)) if run is None else (run.setup, run.program)


def abstract_orders(setup: Setup) -> dict[str, jax.ShapeDtypeStruct]:
    """Describe the orders of a run's sampled towers; none where blocks are not sampled."""
    run = sampled_run(setup)
    return {
        blocks.order: jax.ShapeDtypeStruct(
            (len(blocks.names),), np.int32, sharding=setup.shardings[blocks.order]
        )
        for blocks in (run.towers if run else ())
    }


def sampling_line(setup: Setup) -> str:
    """Describe in one line how a run samples blocks; empty where it does not."""
    section, every = setup.config.sampling, setup.length.sample_every
    if section.method is None:
        return ""
    blocks = "one block" if section.blocks == 1 else f"{section.blocks} blocks"
    steps = "step" if every == 1 else f"{every:,} steps"
    return f"{section.method} trains {blocks} of a tower at a time, others every {steps}"


@dataclass(frozen=True, eq=False)
class Period:
    """Training of the blocks of one choice.

    Attributes:
        run: the run.
        index: the period, from 0.
        scores: see `Sampling.choose`.
    """

    run: SampledRun
    index: int
    scores: Mapping[str, float] | None = None

    @cached_property
    def choice(self) -> Choice:
        """Choose its blocks."""
        return self.run.choice(self.index, self.scores)

    @cached_property
    def setup(self) -> PhaseSetup:
        """Set up training of its blocks, under the model's own names."""
        return self.run.phase(self.choice)

    @cached_property
    def names(self) -> dict[str, str]:
        """Map the model's names of parameters of sampled towers to the program's."""
        return self.choice.names(list(self.run.setup.model.params))

    @cached_property
    def program_names(self) -> dict[str, str]:
        """Map the program's names to the model's."""
        return {new: old for old, new in self.names.items()}

    @cached_property
    def order(self) -> np.ndarray:
        """Positions in the program of what trains: `[leaves]`, in the order of the table.

        Chosen blocks come in one order under both names; linear maps of several blocks do not.
        """
        own = {name: index for index, name in enumerate(self.run.program.table.trainable)}
        return np.array([own[self.names.get(name, name)] for name in self.setup.table.trainable])

    @cached_property
    def orders(self) -> dict[str, jax.Array]:
        """Place the towers' orders on the devices."""
        return {
            name: jax.device_put(order, self.run.setup.shardings[name])
            for name, order in self.choice.positions.items()
        }

    @property
    def costed(self) -> PhaseSetup:
        """A period whose step costs what this one's does: its lowest blocks, and the top ones.

        Where anything below a tower's blocks trains, it makes no difference which of them do. Of
        linear maps chosen one by one it is the dearest choice.
        """
        if self.run.sampling.by_map:
            return self.run.program
        leaves = self.run.setup.phases[0].table.leaves
        stem = any(leaf.trainable and leaf.depth == 0 for leaf in leaves)

        def like(blocks: Blocks, chosen: tuple[int, ...]) -> tuple[int, ...]:
            count = len(blocks.names)
            top = range(count - len(chosen) + 1, count)
            return tuple(sorted({0 if stem else min(chosen), *top}))

        return self.run.phase(Choice(tuple((one, like(one, at)) for one, at in self.choice.of)))

    def bind(self, step: Step) -> Step:
        """Return the program's step under the model's names."""

        def run(
            state: TrainState, frozen: Mapping[str, jax.Array], batch: Any, inputs: StepInputs
        ) -> tuple[TrainState, dict[str, jax.Array]]:
            renamed = self.to_program(replace(state, idle={}))
            if self.run.sampling.by_map:
                multipliers = np.empty_like(inputs.multipliers)
                multipliers[self.order] = inputs.multipliers
                inputs = replace(inputs, multipliers=multipliers)
            new, metrics = step(renamed, {**frozen, **self.orders}, batch, inputs)
            if self.run.sampling.by_map:
                metrics = {**metrics, "grad_norms": metrics["grad_norms"][self.order]}
            return replace(self.to_model(new), idle=state.idle), metrics

        return run

    def to_program(self, state: TrainState) -> TrainState:
        """Rename the parameters of a state to the program's names."""
        return _renamed_state(state, self.names)

    def to_model(self, state: TrainState) -> TrainState:
        """Rename the parameters of a state to the model's names."""
        return _renamed_state(state, self.program_names)


def period_before(run: SampledRun, step: int, events: Events) -> Period:
    """Return the period of the step that ends at `step`; of the first one at step 0.

    Args:
        run: the run.
        step: steps done.
        events: the event log so far.
    """
    index = run.sampling.period(max(step - 1, 0))
    begins = index * run.sampling.every
    return Period(run, index, scores_at(begins, events) if run.sampling.by_map else None)


def choice_event(choice: Choice) -> dict[str, Any]:
    """Describe a choice for the event log: the blocks that train, with their indices."""
    chosen = [index for _, indices in choice.of for index in indices]
    return {
        "blocks": {
            name.rstrip("/"): index for name, index in zip(choice.slots, chosen, strict=True)
        }
    }


def _renamed_state(state: TrainState, names: Mapping[str, str]) -> TrainState:
    return replace(
        state,
        trainable=_renamed(state.trainable, names),
        opt_state=_renamed(state.opt_state, names),
        previously_trained=_renamed(state.previously_trained, names),
    )


def _renamed(tree: Any, names: Mapping[str, str]) -> Any:
    """Rename the keys of all dicts in a tree of dicts and tuples."""
    if isinstance(tree, dict):
        return {names.get(key, key): _renamed(value, names) for key, value in tree.items()}
    if isinstance(tree, tuple):
        parts = [_renamed(part, names) for part in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    return tree
