"""Order of the positions of a row whose parts lie on several devices, N of them.

Under a causal mask late positions see more than early ones. A row of T positions is therefore cut
into 2 N chunks, and device i has chunks i and 2 N - 1 - i: each has as much to compute. Brandon et
al. (2023), https://arxiv.org/abs/2311.09431, balance it likewise, by stripes.
"""

from __future__ import annotations

import numpy as np

PER_DEVICE = 2  # chunks of a row on each device, an early and a late one


def dealt_order(length: int, devices: int) -> np.ndarray:
    """Return which position of a row is at each place, where the row is dealt to devices.

    Args:
        length: T, a multiple of 2 N.
        devices: N; each has T / N consecutive places.

    Returns:
        [T] int32; `argsort` of it is the way back.
    """
    chunks = np.arange(length, dtype=np.int32).reshape(PER_DEVICE * devices, -1)
    early, late = chunks[:devices], chunks[devices:][::-1]
    return np.stack([early, late], axis=1).reshape(length)
