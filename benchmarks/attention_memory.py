"""Temporaries of one attention's gradient on a TPU that is not there, by XLA and by splash.

`python -m benchmarks.attention_memory [NAME ...]` runs from the repository's root and takes libtpu
(Linux on x86-64) and a minute of CPU a shape; without names it compiles all.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from jaxft.models.layers.attention import AttentionOptions, attention, make_mask
from jaxft.models.layers.kernels import Kernel
from jaxft.planning.pod import TPU_SETTINGS

LENGTH = 8192
TOPOLOGY = "v5e:4x4"


@dataclass(frozen=True)
class Shape:
    """Attention of a model.

    Attributes:
        heads, groups, width: H, G and K.
        causal, window: as of a mask.
        soft_cap: bound of the scores.
    """

    heads: int
    groups: int
    width: int
    causal: bool
    window: int | None
    soft_cap: float | None = None


SHAPES = {
    "modernbert-large": Shape(16, 16, 64, causal=False, window=65),
    "gemma2-2b": Shape(8, 4, 256, causal=True, window=4096, soft_cap=50.0),
}


def temporaries(shape: Shape, kernel: Kernel | None) -> int:
    """Compile the gradient of a row's attention; return the bytes of its temporaries.

    Args:
        shape: of the attention.
        kernel: what computes it; None for XLA.
    """
    device = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGY).devices[0]
    here = SingleDeviceSharding(device)

    def loss(query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array) -> jax.Array:
        mask = make_mask(segments, causal=shape.causal, window=shape.window, kernel=kernel)
        options = AttentionOptions(shape.heads, soft_cap=shape.soft_cap)
        out = attention(query, key, value, mask, options)
        return jnp.square(out.astype(jnp.float32)).sum()

    widths = [shape.width * heads for heads in (shape.heads, shape.groups, shape.groups)]
    inputs = [
        jax.ShapeDtypeStruct((1, LENGTH, width), jnp.bfloat16, sharding=here) for width in widths
    ]
    segments = jax.ShapeDtypeStruct((1, LENGTH), jnp.int32, sharding=here)
    compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*inputs, segments).compile()
    memory = compiled.memory_analysis()
    assert memory is not None  # the compiler reports it
    return int(memory.temp_size_in_bytes)


def main() -> int:
    """Compile the attentions that are named, or all, and print a line each."""
    os.environ.update(TPU_SETTINGS)
    jax.config.update("jax_platforms", TPU_SETTINGS["JAX_PLATFORMS"])  # read when jax was imported
    names = sys.argv[1:] or list(SHAPES)
    if unknown := [name for name in names if name not in SHAPES]:
        print(f"no shape {unknown[0]}; there are {', '.join(SHAPES)}", file=sys.stderr)
        return 2
    print(f"{'attention':<18} {'XLA':>8} {'splash':>8}  GB of temporaries")
    for name in names:
        xla, splash = (temporaries(SHAPES[name], one) / 1e9 for one in (None, Kernel("splash")))
        print(f"{name:<18} {xla:8.2f} {splash:8.2f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
