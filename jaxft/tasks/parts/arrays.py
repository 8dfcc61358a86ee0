"""Types of what passes between a model and a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

Params = Mapping[str, jax.Array]
Batch = Mapping[str, Any]
Outputs = Mapping[str, jax.Array]
Outcomes = Mapping[str, np.ndarray]
Facts = Mapping[str, Any]  # numbers and names, as JSON holds them
Sum = tuple[jax.Array, jax.Array]  # a sum and its weight
Sums = dict[str, Sum]
# The model's outputs for a batch; dropout is on if there is a key.
Apply = Callable[[Params, Batch, jax.Array | None], Outputs]
