"""Models that predict, placed on the available devices."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax

from jaxft.config.load import Config
from jaxft.data.batching.packing import round_up
from jaxft.data.batching.plans import Layout
from jaxft.device.distributed import processes
from jaxft.device.mesh import AXES, position_divisor, row_divisor
from jaxft.engine.compute import Runtime, make_runtime
from jaxft.engine.trained import Trained
from jaxft.errors import UserError
from jaxft.layerwise.table import LayerTable
from jaxft.models.load import Model
from jaxft.runs.folder import RUN_FILE


@dataclass(frozen=True)
class Placed:
    """A model on the available devices, with the precision of its config.

    Attributes:
        model: the model, its parameters sharded over the mesh.
        runtime: the mesh and the precision.
        layout: the layout of batches, with at most the requested number of rows.
    """

    model: Model
    runtime: Runtime
    layout: Layout


def place_trained(trained: Trained, rows: int) -> Placed:
    """Place the model of a run, in the run's layout of batches; see `place_model`.

    Args:
        trained: the run.
        rows: the most rows of a batch.
    """
    layout = Layout(**trained.run.read_json(RUN_FILE)["layout"])
    layout = replace(layout, rows=min(rows, layout.rows))
    return place_model(trained.config, trained.model, trained.table, layout)


def place_model(config: Config, model: Model, table: LayerTable, layout: Layout) -> Placed:
    """Place a model on the available devices, on the config's mesh if they can form it.

    Otherwise it computes on one device, if there is one process.

    Args:
        config: the mesh and the precision.
        model: with its parameters.
        table: its LayerTable without phases.
        layout: of batches; their rows are rounded up to a multiple of the mesh's row divisor.
    """
    try:
        runtime = make_runtime(config, model, table)
    except UserError:
        if processes() > 1:
            raise
        single: dict[str, Any] = dict.fromkeys((*AXES, "slices"), 1) | {"layout": "given"}
        alone = config.model_copy(update={"mesh": config.mesh.model_copy(update=single)})
        runtime = make_runtime(alone, model, table, jax.local_devices()[:1])
    rows = round_up(layout.rows, row_divisor(runtime.mesh, 1))
    step = position_divisor(runtime.mesh)
    length = round_up(layout.row_length, step)
    params = jax.device_put(model.params, dict(runtime.shardings))
    layout = replace(layout, rows=rows, row_length=length, divide_by=step)
    return Placed(replace(model, params=params), runtime, layout)
