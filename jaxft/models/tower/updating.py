"""Parameters of blocks that are updated where their gradient is computed, in the backward pass.

A block's parameters and the optimizer's state of each enter the loss together; what comes back in
place of their gradients are their new values. The gradients of a block, or of a piece of a scan,
are then gone before those of the blocks below it are computed.

Source: Lv et al. (2023), https://arxiv.org/abs/2306.09782 (LOMO).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import jax
from jax import lax

from jaxft.models.tower.tower import Params

# (name -> gradient), those parameters -> their new values and states, as parameters are, and the
# squared norm of each gradient.
Update = Callable[[dict[str, jax.Array], "dict[str, Updating]"], "dict[str, Updating]"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Updating:
    """Parameter with what its update reads.

    Attributes:
        value: the parameter.
        state: the optimizer's arrays of numbers for it.
        norm: 0; of what comes back, the squared norm of the gradient.
        update: makes new values of gradients.
    """

    value: jax.Array
    state: tuple[jax.Array, ...]
    norm: jax.Array
    update: Update = field(metadata={"static": True})


def run_updating(
    run: Callable[[Params, Any], Any], names: Iterable[str], params: Params, stream: Any
) -> Any:
    """Run blocks whose parameters may be `Updating`, and update those in the backward pass.

    Args:
        run: `(parameters, stream)` to an output, by the values of the blocks' parameters.
        names: of the blocks' parameters.
        params: the flat dict. Every one that is `Updating` is read by these blocks alone.
        stream: [B, T, D].
    """
    own: Any = {name: params[name] for name in names}
    updating = {name: value for name, value in own.items() if isinstance(value, Updating)}
    if not updating:
        return run(params, stream)
    fixed = {name: value for name, value in own.items() if name not in updating}

    def plain(values: Params, stream: Any) -> Any:
        return run({**fixed, **values}, stream)

    values = {name: one.value for name, one in updating.items()}
    # What the blocks read besides (a mask, a table of positions) may have a gradient of its own.
    closed, read = jax.closure_convert(plain, values, stream)
    return _updated_run(closed, updating, stream, read)


def _updated_run(
    closed: Callable[..., Any], updating: dict[str, Updating], stream: Any, read: Any
) -> Any:
    """Run `closed(values, stream, *read)`, with a backward pass that returns new parameters."""

    @jax.custom_vjp
    def run(updating: dict[str, Updating], stream: Any, read: Any) -> Any:
        return closed({name: one.value for name, one in updating.items()}, stream, *read)

    def forward(updating: dict[str, Updating], stream: Any, read: Any) -> tuple[Any, Any]:
        values = {name: one.value for name, one in updating.items()}
        out, pull = jax.vjp(closed, values, stream, *read)
        return out, (pull, updating)

    def backward(saved: Any, slope: Any) -> tuple[Any, ...]:
        pull, updating = saved
        gradients, stream, *read = pull(slope)
        update = next(iter(updating.values())).update
        # The blocks below wait, so that no more than these gradients exist at once.
        return *lax.optimization_barrier((update(gradients, updating), stream)), read

    run.defvjp(forward, backward)
    return run(updating, stream, read)
