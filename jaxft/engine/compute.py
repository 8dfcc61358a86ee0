"""How a run's model is computed: compute settings, objective and adapters, from the config."""

from __future__ import annotations

from collections.abc import Callable

import jax

from jaxft.config.load import Config
from jaxft.config.sections import AdapterSection
from jaxft.errors import UserError
from jaxft.layerwise.table import LayerTable
from jaxft.models.adapters.low_rank import Adapter, is_adapter
from jaxft.models.load import CLASS_HEADS, Model
from jaxft.models.tower.tower import Compute
from jaxft.tasks.parts.contract import Sums, Task
from jaxft.tasks.text_classification.task import TextClassification

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


AGAIN = 2**31 - 1  # folds the key of a second dropout; blocks and parts count from 0


def objective(task: Task, outputs: Callable, params, batch, key: jax.Array | None) -> Sums:
    """The loss and metrics of one batch, as sums and weights.

    Args:
        task: what is learned.
        outputs: (parameters, batch, key) -> what the model makes of the batch.
        params, batch, key: those; with a key there is dropout, and R-Drop compares two.
    """
    first = outputs(params, batch, key)
    found = {"loss": task.loss(first, batch), **task.metrics(first, batch)}
    if key is not None and isinstance(task, TextClassification) and task.section.r_drop:
        second = outputs(params, batch, jax.random.fold_in(key, AGAIN))
        found["loss"] = task.loss_of_two(first, second, batch)
    return found


def check_dropout(config: Config, model: Model) -> None:
    """Raise a UserError where two dropouts are asked for and there is none."""
    asked = getattr(config.task, "r_drop", None) is not None
    if asked and model.config == model.config.with_dropout(0.0):
        raise UserError(
            "task.r_drop compares two dropouts of a text, and this model has no dropout.",
            "Set model.dropout; 0.1 is usual.",
        )


def asked_adapter(section: AdapterSection) -> Adapter | str | None:
    """What to load a model with: new adapters, PEFT's folder of some, or none."""
    if section.kind in (None, "bitfit"):
        return None
    if section.checkpoint is not None:
        return section.checkpoint
    match = None if section.match is None else tuple(section.match)
    dora = section.kind == "dora"
    return Adapter(section.rank, section.alpha, match, dora, section.dropout)


def chosen_leaves(section: AdapterSection, model: Model) -> frozenset[str] | None:
    """What alone may train under an adapter: it, or biases, and the head; None for everything.

    The head is that of named classes, and whatever else the model ends in that is new: scores of
    words come from the checkpoint and stay.

    Raises:
        UserError: the model has none of what the section's kind trains.
    """
    if section.kind is None:
        return None
    if section.kind == "bitfit":
        own = {name for name in model.leaves if name.endswith("/bias")}
        if not own:
            raise UserError(
                f"adapter.kind: bitfit trains biases, and a {model.model_type} has none.",
                "Take lora.",
            )
    else:
        own = {name for name in model.leaves if is_adapter(name)}
        _check_kind(section, model)
    new = {name for name in model.matching.new if model.depths[name] == model.tops[name]}
    classes = {name for name in model.leaves if name.startswith("head/")}
    return frozenset(own | new | (classes if model.head in CLASS_HEADS else set()))


def _check_kind(section: AdapterSection, model: Model) -> None:
    found = {one.dora for one in model.adapted.kernels.values()} if model.adapted else set()
    if found != {section.kind == "dora"}:
        there = "dora" if True in found else "lora"
        raise UserError(
            f"adapter.kind is {section.kind}, but '{section.checkpoint}' holds {there}.",
            f"Write adapter.kind={there}.",
        )


def rate_ratios(section: AdapterSection, model: Model) -> dict[str, float]:
    """What LoRA+ multiplies rates by: parameter -> ratio.

    Source: Hayou et al. (2024), https://arxiv.org/abs/2402.12354; as in their code, what is no
    matrix goes with B.
    """
    faster = [n for n, leaf in model.leaves.items() if n.endswith("/lora_b") or len(leaf.shape) < 2]
    return dict.fromkeys(faster, section.lr_ratio)
