"""Devices and compute settings of a run's model, and how its adapter is loaded."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import jax

from jaxft.config.load import Config
from jaxft.config.optimizer import SCHEDULE_FREE
from jaxft.config.sections import AdapterSection, RematSection
from jaxft.device.chips import find_chip
from jaxft.device.distributed import processes
from jaxft.device.mesh import make_mesh, param_shardings
from jaxft.device.mesh_auto import choose_mesh, state_bytes
from jaxft.device.slices import check_slices
from jaxft.errors import UserError
from jaxft.layerwise.table import LayerTable
from jaxft.models.adapters.low_rank import Adapter
from jaxft.models.load import Model
from jaxft.models.tower.dealt import check_context
from jaxft.models.tower.residuals import Remat, Residuals
from jaxft.models.tower.tower import Compute

# Up to here an unrolled step is quicker than a scanned one on CPU, to compile and to run.
UNROLLED_BLOCKS_ON_CPU = 12
PRECISIONS = {"f32": "highest", "tf32": "tensorfloat32", "bf16": None}


@dataclass(frozen=True)
class Runtime:
    """Devices of a model, and its compute settings.

    Attributes:
        mesh, shardings: the devices, and the sharding of each parameter.
        compute: precision, scan and attention, with every `auto` resolved.
        why: the reason for the mesh, where the config leaves it open.
    """

    mesh: jax.sharding.Mesh
    shardings: Mapping[str, jax.sharding.NamedSharding]
    compute: Compute
    why: str


def make_runtime(
    config: Config, model: Model, table: LayerTable, devices: Sequence | None = None
) -> Runtime:
    """Decide a run's mesh, shardings and compute settings, for training and for inference.

    Args:
        config: the run.
        model: described.
        table: its LayerTable, without phases.
        devices: the devices to run on; None for all.

    Raises:
        UserError: the devices cannot form the config's mesh.
    """
    # A later phase may train what the first does not.
    trained = model.leaves if config.phases else table.trainable
    mesh, why = build_mesh(config, model, trained, devices)
    check_context(model.towers, mesh)
    shapes = {name: leaf.shape for name, leaf in model.params.items()}
    compute = make_compute(config, mesh, model.num_depths - 2, table)
    return Runtime(mesh, param_shardings(shapes, model.axes, mesh), compute, why)


def shardings_to_read(
    config: Config, model: Model, table: LayerTable, spread: bool
) -> dict[str, jax.sharding.Sharding]:
    """Return where each parameter of a trained model is read to.

    Args:
        config: the run.
        model: described.
        table: its LayerTable without phases.
        spread: over the config's mesh, if the devices can form it; else to the first device.

    Raises:
        UserError: several processes cannot form the mesh.
    """
    try:
        if spread and jax.device_count() > 1:
            return dict(make_runtime(config, model, table).shardings)
    except UserError:
        if processes() > 1:  # no single one has the others' devices
            raise
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return dict.fromkeys(model.params, device)


def make_compute(
    config: Config, mesh: jax.sharding.Mesh, blocks: int, table: LayerTable
) -> Compute:
    """Resolve a run's compute settings; `remat: auto` is resolved with its train step."""
    return compute_for(
        mesh,
        blocks,
        table.trainable,
        precision=config.train.precision,
        scan=config.train.scan,
        remat=as_remat(config.train.remat),
        attention=config.train.attention,
    )


def compute_for(
    mesh: jax.sharding.Mesh,
    blocks: int,
    trainable: Collection[str],
    *,
    precision: str = "auto",
    scan: bool | str = "auto",
    remat: Remat = "none",
    attention: str = "auto",
) -> Compute:
    """Resolve every `auto` of the compute settings by the mesh's platform.

    Args:
        mesh: the devices.
        blocks: the number of blocks of the deepest tower.
        trainable: the names that are differentiated.
        precision: auto, f32, tf32 or bf16.
        scan: auto, True or False.
        remat, attention: see `Compute`.

    Raises:
        UserError: unknown precision.
    """
    platform = mesh.devices.flat[0].platform
    if precision == "auto":
        precision = "f32" if platform == "cpu" else "bf16"
    if precision not in PRECISIONS:
        raise UserError(f"precision: '{precision}' is not one of auto, {', '.join(PRECISIONS)}.")
    unrolled = platform == "cpu" and blocks <= UNROLLED_BLOCKS_ON_CPU
    return Compute(
        dtype="bfloat16" if precision == "bf16" else "float32",
        precision=PRECISIONS[precision],  # without "highest" a TPU rounds f32 matmuls to bf16
        scan=not unrolled if isinstance(scan, str) else scan,
        remat=remat,
        platform=platform,
        mesh=mesh,
        attention=attention,
        trainable=frozenset(trainable),
    )


def as_remat(written: str | RematSection) -> Remat:
    """Convert `train.remat`."""
    if isinstance(written, str):
        return written
    return Residuals(tuple(written.save), tuple(written.offload))


def adapter_option(section: AdapterSection) -> Adapter | str | None:
    """Return the adapter to load a model with: new matrices, a PEFT folder, or None."""
    if section.kind not in ("lora", "dora"):
        return None
    if section.checkpoint is not None:
        return section.checkpoint
    return new_adapter(section)


def new_adapter(section: AdapterSection) -> Adapter:
    """Return the low-rank matrices that a section puts beside kernels."""
    match = None if section.match is None else tuple(section.match)
    dora = section.kind == "dora"
    ranks = tuple(section.ranks.items())
    return Adapter(
        rank=section.rank,
        alpha=section.alpha,
        match=match,
        dora=dora,
        dropout=section.dropout,
        ranks=ranks,
        rslora=section.rslora,
        principal=section.init == "pissa",
        tokens=tuple(section.trainable_tokens),
    )


def build_mesh(
    config: Config, model: Model, trained: Collection[str], devices: Sequence | None
) -> tuple[jax.sharding.Mesh, str]:
    """Build the mesh; return it and the reason for it, which is empty where the config sets it.

    Args:
        config: the run.
        model: described.
        trained: the parameters that train in some phase.
        devices: the devices to run on; None for all.
    """
    section = config.mesh
    if devices is None:
        check_slices(section.slices)
    devices = jax.devices() if devices is None else list(devices)
    if section.layout == "given":
        asked = section.data, section.fsdp, section.tensor
        others = {name: getattr(section, name) for name in ("expert", "context", "slices")}
        return make_mesh(*asked, devices, **others), ""
    sizes = {name: math.prod(leaf.shape) for name, leaf in model.leaves.items()}
    narrow = 4 if config.train.precision == "f32" else 2
    state = state_bytes(sizes, trained, narrow, copies_of(config))
    chip, batch = find_chip(devices[0].device_kind), config.data.batch_size
    room = None if chip is None else chip.device_memory
    chosen, why = choose_mesh(len(devices), batch, config.train.accumulate, state, room)
    return make_mesh(*chosen, devices), f"mesh is {'x'.join(map(str, chosen))}: {why}"


def copies_of(config: Config) -> int:
    """Count the copies of the trained parameters that a run keeps: average and anchor."""
    rules = {config.optimizer.name, *(group.optimizer for group in config.groups)}
    average = config.train.ema is not None or SCHEDULE_FREE in rules
    return int(average) + int(config.regularise.l2_sp > 0)
