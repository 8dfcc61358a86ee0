"""Update rules: the state that each has, and the direction that it makes of gradients.

A rule says where in its arithmetic weight decay and the rate come (LAMB decays before its trust
ratio, LARS sums up steps that have their rate already); their values come with each step. The
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

Advance = Callable[..., optax.ScaleByAdamState]
Leaves = dict[str, Any]  # name -> array; leaves of other groups are `optax.MaskedNode`


@dataclass(frozen=True)
class Terms:
    """Values of one step for the rule of one group, and the functions that apply them.

    Attributes:
        rate: the group's rate, without multipliers.
        decayed: directions, parameters -> directions with weight decay added.
        rated: directions -> updates: -rate x multiplier x direction.
        guarded: next state, old state -> the next one, or the old one after a step that is not
            finite.
        decays: name -> True where weight decay acts.
    """

    rate: jax.Array
    decayed: Callable[[Leaves, Leaves], Leaves]
    rated: Callable[[Leaves], Leaves]
    guarded: Callable[[Any, Any], Any]
    decays: Mapping[str, bool]


@dataclass(frozen=True)
class Rule:
    """An update rule without its rate.

    Attributes:
        init: parameters -> state.
        update: gradients, state, parameters, terms -> updates, the next state.
    """

    init: Callable[[Leaves], Any]
    update: Callable[[Leaves, Any, Leaves, Terms], tuple[Leaves, Any]]


def make_rule(name: str, numbers: Mapping[str, float]) -> Rule:
    """Make a rule by its name.

    Args:
        name: a key of `RULES`.
        numbers: all of its numbers, such as b1, b2 and eps.
    """
    return RULES[name](**numbers)


def _adam_moments(b1: float, b2: float, eps: float) -> tuple[Advance, Callable[..., Leaves]]:
    """Adam's next state and its direction, as `optax.scale_by_adam` computes them."""

    def advance(gradients: Leaves, state: optax.ScaleByAdamState) -> optax.ScaleByAdamState:
        return optax.ScaleByAdamState(
            count=optax.safe_increment(state.count),
            mu=optax.tree.update_moment(gradients, state.mu, b1, 1),
            nu=optax.tree.update_moment_per_elem_norm(gradients, state.nu, b2, 2),
        )

    def direction(state: optax.ScaleByAdamState) -> Leaves:
        # A scalar's reciprocal, since a division of every element costs a pass of its own.
        mean, square = 1 / (1 - b1**state.count), 1 / (1 - b2**state.count)
        directions: Leaves = jax.tree.map(
            lambda mu, nu: (mu * mean) / (_root(nu * square) + eps), state.mu, state.nu
        )
        return directions

    return advance, direction


@jax.custom_jvp
def _root(squares: jax.Array) -> jax.Array:
    return jnp.sqrt(squares)


@_root.defjvp
def _root_derivative(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Differentiate the root; it has no slope where an element never had a gradient: 0 there."""
    root = _root(primals[0])
    nonzero = root > 0
    return root, jnp.where(nonzero, tangents[0] / (2 * jnp.where(nonzero, root, 1.0)), 0.0)


def _adamw(b1: float, b2: float, eps: float) -> Rule:
    """AdamW."""
    advance, direction = _adam_moments(b1, b2, eps)

    def update(gradients: Leaves, state: Any, params: Leaves, terms: Terms) -> tuple[Leaves, Any]:
        state = terms.guarded(advance(gradients, state), state)
        return terms.rated(terms.decayed(direction(state), params)), state

    return Rule(optax.scale_by_adam(b1, b2, eps).init, update)


def _lamb(b1: float, b2: float, eps: float) -> Rule:
    """LAMB: AdamW's direction, scaled to the norm of its leaf's weights."""
    advance, direction = _adam_moments(b1, b2, eps)

    def update(gradients: Leaves, state: Any, params: Leaves, terms: Terms) -> tuple[Leaves, Any]:
        state = terms.guarded(advance(gradients, state), state)
        decayed = terms.decayed(direction(state), params)
        return terms.rated(_trusted(decayed, params, 1.0)), state

    return Rule(optax.scale_by_adam(b1, b2, eps).init, update)


def _sgd(momentum: float) -> Rule:
    """SGD, with momentum as in `optax.trace`."""
    trace = optax.trace(momentum)

    def update(gradients: Leaves, state: Any, params: Leaves, terms: Terms) -> tuple[Leaves, Any]:
        state = terms.guarded(trace.update(gradients, state)[1], state)
        return terms.rated(terms.decayed(state.trace, params)), state

    def plain(gradients: Leaves, state: Any, params: Leaves, terms: Terms) -> tuple[Leaves, Any]:
        return terms.rated(terms.decayed(gradients, params)), state

    if not momentum:
        return Rule(lambda params: optax.EmptyState(), plain)
    return Rule(trace.init, update)


def _lars(momentum: float) -> Rule:
    """LARS: momentum of steps of 0.001 of their leaf's norm; leaves without decay as in SGD."""
    trace = optax.trace(momentum)

    def update(gradients: Leaves, state: Any, params: Leaves, terms: Terms) -> tuple[Leaves, Any]:
        decayed = terms.decayed(gradients, params)
        # As its authors have it, biases and norms are left as they are.
        scaled = {
            name: _trusted(leaf, params[name], 0.001) if terms.decays.get(name) else leaf
            for name, leaf in decayed.items()
        }
        steps, after = trace.update(terms.rated(scaled), state)
        return steps, terms.guarded(after, state)

    return Rule(trace.init, update)


def _trusted(directions: Any, params: Any, share: float) -> Any:
    """Directions that are `share` as long as their leaf, or as they are where either is 0."""
    ratio = optax.scale_by_trust_ratio(trust_coefficient=share)
    return ratio.update(directions, ratio.init(params), params)[0]


def _lion(b1: float, b2: float) -> Rule:
    """Lion: the sign of a momentum."""
    return descends(optax.scale_by_lion(b1, b2))


def _adafactor() -> Rule:
    """Adafactor: factored second moments, no momentum; steps relative to the weights' norm."""
    return descends(
        optax.chain(
            optax.scale_by_factored_rms(),
            optax.clip_by_block_rms(1.0),
            optax.scale_by_param_block_rms(),
        )
    )


def _muon(momentum: float, **adam: float) -> Rule:
    """Muon: momentum orthogonalised by Newton-Schulz; AdamW's numbers are for the other leaves."""
    del adam
    matrix = contrib.MuonDimensionNumbers(reduction_axis=0, output_axis=1)  # kernels are [I, O]
    direction = contrib.scale_by_muon(
        beta=momentum,
        weight_dimension_numbers=lambda leaves: jax.tree.map(lambda leaf: matrix, leaves),
    )

    def wide(leaf: jax.Array) -> jax.Array:
        inside, outside = leaf.shape
        return leaf * float(max(1.0, outside / inside) ** 0.5)

    return descends(optax.chain(direction, optax.stateless(lambda d, p: jax.tree.map(wide, d))))


def _schedule_free(b1: float, b2: float, eps: float) -> Rule:
    """Schedule-free AdamW: gradients at a point between its iterate and the iterates' average."""
    squares = optax.scale_by_rms(b2, eps, eps_in_sqrt=False, bias_correction=True)

    def around(terms: Terms | None) -> optax.GradientTransformationExtraArgs:
        def step(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
            assert terms is not None, "only a step descends"
            directions, state = squares.update(gradients, state, params)
            return terms.rated(terms.decayed(directions, params)), state

        base = optax.GradientTransformation(squares.init, step)
        rate = 0.0 if terms is None else lambda count: terms.rate
        return contrib.schedule_free(base, rate, b1)

    def update(gradients: Leaves, state: Any, params: Leaves, terms: Terms) -> tuple[Leaves, Any]:
        steps, after = around(terms).update(gradients, state, params)
        return steps, terms.guarded(after, state)

    return Rule(around(None).init, update)


def descends(direction: optax.GradientTransformation) -> Rule:
    """Make the rule that descends along an optax transformation's output, with decay on top.

    Args:
        direction: gradients -> directions, neither negated nor scaled by a rate, such as
            `optax.scale_by_adam()`.
    """

    def update(gradients: Leaves, state: Any, params: Leaves, terms: Terms) -> tuple[Leaves, Any]:
        directions, after = direction.update(gradients, state, params)
        return terms.rated(terms.decayed(directions, params)), terms.guarded(after, state)

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
    """Take the parameters to score: of those that a schedule-free rule moves, their average.

    Args:
        opt_state: the whole optimizer's state.
        params: the trained parameters.
    """
    kind = contrib.ScheduleFreeState
    result = dict(params)
    for part in jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, kind)):
        if isinstance(part, kind):
            own = {n: z for n, z in part.z.items() if not isinstance(z, optax.MaskedNode)}
            result |= contrib.schedule_free_eval_params(
                part._replace(z=own), {name: params[name] for name in own}
            )
    return result
