"""What changes from one training step to the next, as one value."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a resumed run needs, and nothing that never changes.

    Frozen parameters are not in it: they go beside it, so that no update, average or checkpoint
    ever sees them.

    Attributes:
        step: updates done so far, int32 scalar; it is also the position in the data.
        trainable: the trained parameters, name -> array.
        opt_state: the optimizer's state for `trainable`.
        key: the key that each step's dropout key is folded from.
        average: what is scored in place of `trainable` (same names): their moving average, or
            that of a schedule-free rule; None where neither is asked for.
        settled: the parameters that an earlier phase trained and this one does not, in float32.
        bad_steps: steps in a row whose loss or gradient was not finite, int32 scalar.
    """

    step: jax.Array
    trainable: dict[str, jax.Array]
    opt_state: Any
    key: jax.Array
    average: dict[str, jax.Array] | None
    settled: dict[str, jax.Array]
    bad_steps: jax.Array
