"""Trained models placed on the available devices."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax

from jaxft.data.batching.packing import round_up
from jaxft.data.batching.plans import Layout
from jaxft.device.mesh import row_divisor
from jaxft.engine.compute import Runtime, make_runtime
from jaxft.engine.trained import Trained
from jaxft.errors import UserError
from jaxft.models.load import Model
from jaxft.runs.folder import RUN_FILE


@dataclass(frozen=True)
class Placed:
    """A trained run's model on the available devices, with the run's precision.

    Attributes:
        model: the model, its parameters sharded over the mesh.
        runtime: the run's mesh and precision.
        layout: the run's layout of batches, with at most the requested number of rows.
    """

    model: Model
    runtime: Runtime
    layout: Layout


def place_trained(trained: Trained, rows: int) -> Placed:
    """Place a trained model on the available devices, on the run's mesh if they can form it.

    Otherwise it computes on one device.

    Args:
        trained: the run.
        rows: the most rows of a batch; rounded up to a multiple of the mesh's row divisor.
    """
    config, model, table = trained.config, trained.model, trained.table
    try:
        runtime = make_runtime(config, model, table)
    except UserError:
        single = {"layout": "given", "data": 1, "fsdp": 1, "tensor": 1}
        alone = config.model_copy(update={"mesh": config.mesh.model_copy(update=single)})
        runtime = make_runtime(alone, model, table, jax.local_devices()[:1])
    layout = Layout(**trained.run.read_json(RUN_FILE)["layout"])
    rows = round_up(min(rows, layout.rows), row_divisor(runtime.mesh, 1))
    params = jax.device_put(model.params, dict(runtime.shardings))
    return Placed(replace(model, params=params), runtime, replace(layout, rows=rows))
