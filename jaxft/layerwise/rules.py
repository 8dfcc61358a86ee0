"""Each update rule: what it keeps of the gradients, and what it makes of them.

A rule says where in its arithmetic weight decay and the rate come (LAMB decays before its trust
ratio, LARS sums up steps that have their rate already); what they are is the step's to say. The
arithmetic is optax's. Norms are per leaf: a block's parameters are leaves of their own, however
the blocks are computed.

Source: AdamW, https://arxiv.org/abs/1711.05101; Lion, https://arxiv.org/abs/2302.06675; Adafactor,
https://arxiv.org/abs/1804.04235; LAMB, https://arxiv.org/abs/1904.00962; LARS,
https://arxiv.org/abs/1708.03888; Muon, https://kellerjordan.github.io/posts/muon; schedule-free
AdamW, https://arxiv.org/abs/2405.15682.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from jaxft.config.optimizer import OptimizerSection

Leaves = dict[str, Any]  # name -> array; leaves of other groups are `optax.MaskedNode`


@dataclass(frozen=True)
class Told:
    """What a step tells the rule of one group.

    Attributes:
        rate: the group's rate, without multipliers.
        decayed: directions, parameters -> directions with weight decay on them.
        rated: directions -> steps: -rate x multiplier x direction.
        kept: the next state, the state -> the one that is to be kept.
        decays: which leaves decay.
    """

    rate: jax.Array
    decayed: Callable[[Leaves, Leaves], Leaves]
    rated: Callable[[Leaves], Leaves]
    kept: Callable[[Any, Any], Any]
    decays: Mapping[str, bool]


@dataclass(frozen=True)
class Rule:
    """An update rule without its rate.

    Attributes:
        init: parameters -> state.
        update: gradients, state, parameters, what is told -> steps, the next state.
    """

    init: Callable[[Leaves], Any]
    update: Callable[[Leaves, Any, Leaves, Told], tuple[Leaves, Any]]


def make_rule(section: OptimizerSection, name: str) -> Rule:
    """The rule of that name with its numbers."""
    return RULES[name](**section.numbers(name))


def _adam_moments(b1: float, b2: float, eps: float) -> tuple[Callable, Callable]:
    """Adam's next state, and what it descends along: as `optax.scale_by_adam` has them."""

    def advance(gradients, state):
        return optax.ScaleByAdamState(
            count=optax.safe_increment(state.count),
            mu=optax.tree.update_moment(gradients, state.mu, b1, 1),
            nu=optax.tree.update_moment_per_elem_norm(gradients, state.nu, b2, 2),
        )

    def direction(state):
        # A scalar's reciprocal, since a division of every element costs a pass of its own.
        mean, square = 1 / (1 - b1**state.count), 1 / (1 - b2**state.count)
        return jax.tree.map(
            lambda mu, nu: (mu * mean) / (jnp.sqrt(nu * square) + eps), state.mu, state.nu
        )

    return advance, direction


def _adamw(b1: float, b2: float, eps: float) -> Rule:
    """AdamW."""
    advance, direction = _adam_moments(b1, b2, eps)

    def update(gradients, state, params, told):
        state = told.kept(advance(gradients, state), state)
        return told.rated(told.decayed(direction(state), params)), state

    return Rule(optax.scale_by_adam(b1, b2, eps).init, update)


def _lamb(b1: float, b2: float, eps: float) -> Rule:
    """AdamW's direction, as long as its leaf's weights are."""
    advance, direction = _adam_moments(b1, b2, eps)

    def update(gradients, state, params, told):
        state = told.kept(advance(gradients, state), state)
        decayed = told.decayed(direction(state), params)
        return told.rated(_trusted(decayed, params, 1.0)), state

    return Rule(optax.scale_by_adam(b1, b2, eps).init, update)


def _sgd(momentum: float) -> Rule:
    """Gradient descent, with momentum as `optax.trace` has it."""
    trace = optax.trace(momentum)

    def update(gradients, state, params, told):
        state = told.kept(trace.update(gradients, state)[1], state)
        return told.rated(told.decayed(state.trace, params)), state

    def plain(gradients, state, params, told):
        return told.rated(told.decayed(gradients, params)), state

    if not momentum:
        return Rule(lambda params: optax.EmptyState(), plain)
    return Rule(trace.init, update)


def _lars(momentum: float) -> Rule:
    """Momentum of steps of 0.001 of their leaf's weights; those that do not decay as in SGD."""
    trace = optax.trace(momentum)

    def update(gradients, state, params, told):
        decayed = told.decayed(gradients, params)
        # As its authors have it, biases and norms are left as they are.
        scaled = {
            name: _trusted(leaf, params[name], 0.001) if told.decays.get(name) else leaf
            for name, leaf in decayed.items()
        }
        steps, after = trace.update(told.rated(scaled), state)
        return steps, told.kept(after, state)

    return Rule(trace.init, update)


def _trusted(directions: Any, params: Any, share: float) -> Any:
    """Directions that are `share` as long as their leaf, or as they are where either is 0."""
    ratio = optax.scale_by_trust_ratio(trust_coefficient=share)
    return ratio.update(directions, ratio.init(params), params)[0]


def _lion(b1: float, b2: float) -> Rule:
    """The sign of a momentum."""
    return _descends(optax.scale_by_lion(b1, b2))


def _adafactor() -> Rule:
    """Adam without momentum, whose squares are two vectors a matrix; steps relative to weights."""
    return _descends(
        optax.chain(
            optax.scale_by_factored_rms(),
            optax.clip_by_block_rms(1.0),
            optax.scale_by_param_block_rms(),
        )
    )


def _muon(momentum: float, **adam: float) -> Rule:
    """A momentum with all its singular values near 1; AdamW's numbers are the other leaves'."""
    del adam
    matrix = contrib.MuonDimensionNumbers(reduction_axis=0, output_axis=1)  # kernels are [I, O]
    direction = contrib.scale_by_muon(
        beta=momentum,
        weight_dimension_numbers=lambda leaves: jax.tree.map(lambda leaf: matrix, leaves),
    )

    def wide(leaf: jax.Array) -> jax.Array:
        inside, outside = leaf.shape
        return leaf * max(1.0, outside / inside) ** 0.5

    return _descends(optax.chain(direction, optax.stateless(lambda d, p: jax.tree.map(wide, d))))


def _schedule_free(b1: float, b2: float, eps: float) -> Rule:
    """AdamW whose gradients are taken between where it goes and the average of where it was."""
    squares = optax.scale_by_rms(b2, eps, eps_in_sqrt=False, bias_correction=True)

    def around(told: Told | None) -> optax.GradientTransformationExtraArgs:
        def step(gradients, state, params=None):
            assert told is not None, "only a step descends"
            directions, state = squares.update(gradients, state, params)
            return told.rated(told.decayed(directions, params)), state

        base = optax.GradientTransformation(squares.init, step)
        rate = 0.0 if told is None else lambda count: told.rate
        return contrib.schedule_free(base, rate, b1)

    def update(gradients, state, params, told):
        steps, after = around(told).update(gradients, state, params)
        return steps, told.kept(after, state)

    return Rule(around(None).init, update)


def _descends(direction: optax.GradientTransformation) -> Rule:
    """The rule that descends along what an optax transformation gives, decay on top."""

    def update(gradients, state, params, told):
        directions, after = direction.update(gradients, state, params)
        return told.rated(told.decayed(directions, params)), told.kept(after, state)

    return Rule(direction.init, update)


RULES: Mapping[str, Callable[..., Rule]] = {
    "adamw": _adamw,
    "sgd": _sgd,
    "lion": _lion,
    "adafactor": _adafactor,
    "lamb": _lamb,
    "lars": _lars,
    "muon": _muon,
    "schedule_free_adamw": _schedule_free,
}


def scored(opt_state: Any, params: Leaves) -> Leaves:
    """What is scored of the parameters: of those that a schedule-free rule moves, their average.

    Args:
        opt_state: the whole optimizer's state.
        params: the trained parameters.
    """
    kind = contrib.ScheduleFreeState
    found = dict(params)
    for part in jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, kind)):
        if isinstance(part, kind):
            own = {n: z for n, z in part.z.items() if not isinstance(z, optax.MaskedNode)}
            found |= contrib.schedule_free_eval_params(
                part._replace(z=own), {name: params[name] for name in own}
            )
    return found
