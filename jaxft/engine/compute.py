"""How a run's model is computed, with every `auto` decided from what the mesh is made of."""

from __future__ import annotations

import jax

from jaxft.config.load import Config
from jaxft.layerwise.table import LayerTable
from jaxft.models.tower.tower import Compute

# Up to here an unrolled step is quicker than a scanned one on CPU, to compile and to run.
UNROLLED_BLOCKS_ON_CPU = 12
PRECISIONS = {"f32": "highest", "tf32": "tensorfloat32", "bf16": None}


def make_compute(
    config: Config, mesh: jax.sharding.Mesh, blocks: int, table: LayerTable
) -> Compute:
    """How the model runs, with every `auto` decided from the mesh's platform."""
    platform = mesh.devices.flat[0].platform
    precision = config.train.precision
    if precision == "auto":
        precision = "f32" if platform == "cpu" else "bf16"
    scan = config.train.scan
    if scan == "auto":
        scan = platform != "cpu" or blocks > UNROLLED_BLOCKS_ON_CPU
    return Compute(
        dtype="bfloat16" if precision == "bf16" else "float32",
        precision=PRECISIONS[precision],  # without "highest" a TPU rounds f32 matmuls to bf16
        scan=scan,
        remat=config.train.remat,  # what `auto` comes to, the train step's own maker decides
        platform=platform,
        mesh=mesh,
        attention=config.train.attention,
        trainable=frozenset(table.trainable),
    )
