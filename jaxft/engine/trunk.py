"""Trunk cache: the output of the frozen lower blocks for each example, computed once.

A phase that has a trunk and reads its examples more than once first runs the trunk over each of
them and stores its output on disk; batches then contain that output, and the step starts where the
trunk ends. A cache entry is keyed by the trunk's weights, so runs that share them share it.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from jaxft.data.batching.eval_plans import EvalPlan, plan_eval
from jaxft.data.batching.loader import Collate, batches
from jaxft.data.batching.plans import Layout
from jaxft.data.cache import Ragged, build_or_open, cache_key, is_built
from jaxft.device.mesh import batch_sharding, my_rows, place_batch, replicated
from jaxft.engine.evaluate import Interrupted
from jaxft.engine.inputs import data_cache
from jaxft.engine.setup import Setup
from jaxft.engine.trunk_plan import WORTH, TrunkPlan, is_packed
from jaxft.errors import UserError
from jaxft.models.model import Model
from jaxft.models.tower.run import TRUNK
from jaxft.models.tower.tower import Compute, Tower
from jaxft.numbers import share, size
from jaxft.report.terminal.progress import Progress
from jaxft.runs.leaves import checksum
from jaxft.tasks.parts.examples import Examples

REPORT_EVERY = 5.0  # seconds
RAW = "uint16"  # storage type of bfloat16, which numpy does not know


@dataclass(frozen=True, eq=False)
class CachedBatches:
    """Batches of a task, each with the trunk's output for its examples.

    Args:
        examples: read by the task; without images where the cached output replaces those.
        outputs: the trunk's outputs, an entry of the cache.
        indices: `[examples]`, the index of each example's output in it.
    """

    examples: Examples
    outputs: Ragged
    indices: np.ndarray

    def __call__(self, index: np.ndarray, row_length: int) -> dict[str, np.ndarray]:
        """Collate a batch as `Examples.collate` does, with `trunk` [R, T, D] of each tower.

        Args:
            index: `[rows, segments]` example numbers, -1 for none.
            row_length: positions a row.
        """
        batch, meta = self.examples.collate(index, row_length), self.outputs.meta
        for field, name in meta["names"].items():
            stream = np.zeros((len(index), *self._row(field, row_length)), meta["stored"])
            for row, numbers in enumerate(index):
                indices = self.indices[numbers[numbers >= 0]]
                if not meta["packed"]:
                    # A row without an example gets any output: zeros would be divided by length 0.
                    stream[row] = self.outputs[int(indices[0]) if len(indices) else 0][field][0]
                    continue
                begin = 0
                for entry in indices:
                    values = self.outputs[int(entry)][field]
                    stream[row, begin : begin + len(values)] = values
                    begin += len(values)
            batch[name] = stream.view(jnp.dtype(meta["dtype"]))
        return batch

    def _row(self, field: str, row_length: int) -> tuple[int, ...]:
        """Return the positions and width of a row."""
        one = self.outputs[0][field].shape[1:]
        return (row_length, *one) if self.outputs.meta["packed"] else one


def open_trunk(
    setup: Setup,
    compute: Compute,
    plan: TrunkPlan,
    params: Mapping[str, jax.Array],
    progress: Progress,
    interrupted: Callable[[], bool] = lambda: False,
    split: str = "train",
) -> Collate:
    """Return what makes a split's batches in a phase: with the trunk's output if it is cached.

    The output is computed and stored unless the cache has it already.

    Args:
        setup: the run.
        compute: the model's compute settings in the phase.
        plan: of the phase.
        params: values of at least the trunk's parameters.
        progress: shows messages.
        interrupted: called before each batch that the trunk runs on; True stops it.
        split: whose batches.

    Raises:
        Interrupted: `interrupted` returned True; nothing is stored.
        UserError: the disk is full, or cannot be written to.
    """
    examples = setup.splits[split].examples
    if split not in plan.split_bytes:
        if plan.saved >= WORTH and split == "train":
            progress.message(f"The trunk runs in every step, since {plan.reason}.")
        return examples.collate
    batches_of, order = _in_rows(setup.layout, examples)
    leaves = trunk_leaves(setup.model, compute, params)
    root, key = _root(setup.config.data.cache), _key(setup, compute, examples, leaves, order)
    nbytes = plan.split_bytes[split]
    output = f"the trunk's output of {len(examples):,} {split} examples, {size(nbytes)}"
    ready = is_built(root, key)
    everywhere = _everywhere(ready)
    if not everywhere and not _everywhere(_has_room(root, nbytes)):
        sentence = f"train.trunk_cache: {root} has no room for {output}."
        if setup.config.train.trunk_cache == "on":
            raise UserError(sentence, "Free some space, or set data.cache to another folder.")
        progress.message(f"{sentence} It is computed each time.")
        return examples.collate
    saved = f"; a step saves {share(plan.saved)} of its FLOPs" if split == "train" else ""
    progress.message(f"{'found' if everywhere else 'storing'} {output}{saved}")
    meta = _meta(setup, compute)

    def build() -> Any:
        return _run(setup, compute, examples, batches_of, leaves, progress, interrupted), meta

    if ready and not everywhere:  # another process needs it, and cannot run the trunk alone
        for _ in build()[0]:
            pass
    outputs = build_or_open(root, key, build)
    read = examples.without(examples.inputs) if _has_images(setup.model, outputs) else examples
    return CachedBatches(read, outputs, np.argsort(order))


def _has_images(model: Model, outputs: Ragged) -> bool:
    """Return whether the cached outputs include those of the tower that reads images."""
    reader = model.towers.get("vision", model.towers.get("encoder"))
    return isinstance(reader, Tower) and reader.prefix + TRUNK in outputs.meta["names"].values()


def _in_rows(shape: Layout, examples: Examples) -> tuple[EvalPlan, np.ndarray]:
    """Plan batches laid out like the run's, and return the order of their examples."""
    plan = plan_eval(examples.lengths, shape.rows, shape.row_length, shape.segments)
    order = np.concatenate([plan.batch(number).ravel() for number in range(len(plan))])
    return plan, order[order >= 0]


def trunk_leaves(
    model: Model, compute: Compute, params: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
    """Select the parameters of each tower's trunk, in the compute type."""
    leaves: dict[str, jax.Array] = {}
    for tower in model.towers.values():
        blocks = tower.frozen_blocks(compute) if isinstance(tower, Tower) else None
        if isinstance(tower, Tower) and blocks is not None:
            names = [name for name, depth in tower.depths.items() if depth <= blocks]
            # A decoder's trunk reads the whole encoder, with which it may share embeddings.
            names += [] if tower.reads is None else list(tower.reads.leaves)
            leaves |= {name: params[name].astype(compute.dtype) for name in names}
    return leaves


def _root(cache: str | None) -> Path:
    """Return the folder of entries; each process has its own, since all write at once."""
    root = data_cache(cache) / "trunk"
    if jax.process_count() > 1:
        root /= f"process-{jax.process_index()}-of-{jax.process_count()}"
    return root


def _key(
    setup: Setup,
    compute: Compute,
    examples: Examples,
    leaves: Mapping[str, jax.Array],
    order: np.ndarray,
) -> str:
    """Return a cache key of everything that the trunk's output depends on."""
    beside = {} if setup.model.adapted is None else setup.model.adapted.kernels
    return cache_key(
        kind="trunk",
        jaxft=version("jaxft"),
        model=repr(setup.model.config.with_dropout(0.0)),  # a trunk has none
        adapters={name: repr(one) for name, one in beside.items() if name in leaves},
        boundary=_blocks(setup.model, compute),
        leaves=checksum(dict(leaves)),
        compute=[compute.dtype, compute.precision, compute.platform],
        examples=examples.fingerprint,
        row_length=setup.layout.row_length,
        order=hashlib.sha256(order.tobytes()).hexdigest(),
    )


def _meta(setup: Setup, compute: Compute) -> dict[str, Any]:
    """Describe an entry: the tower of each field, and how to read its bytes."""
    dtype, blocks = jnp.dtype(compute.dtype), _blocks(setup.model, compute)
    prefixes = [prefix for prefix, count in blocks.items() if count is not None]
    return {
        "names": {f"{p}{TRUNK}".replace("/", "-"): p + TRUNK for p in prefixes},
        "blocks": blocks,
        "dtype": dtype.name,
        "stored": RAW if dtype == jnp.bfloat16 else dtype.name,
        "packed": is_packed(setup.layout),
    }


def _blocks(model: Model, compute: Compute) -> dict[str, int | None]:
    """Count the blocks in each tower's trunk; None without one."""
    return {
        tower.prefix: tower.frozen_blocks(compute)
        for tower in model.towers.values()
        if isinstance(tower, Tower)
    }


def _run(
    setup: Setup,
    compute: Compute,
    examples: Examples,
    plan: EvalPlan,
    leaves: dict[str, jax.Array],
    progress: Progress,
    interrupted: Callable[[], bool],
) -> Iterator[dict[str, np.ndarray]]:
    """Yield each example's output in the plan's order: field -> `[length, D]` or `[1, T, D]`."""
    rows, meta = batch_sharding(setup.mesh), _meta(setup, compute)
    run = jax.jit(
        partial(setup.model.trunk, compute=compute),
        in_shardings=({name: setup.argument_shardings[name] for name in leaves}, rows),
        out_shardings=replicated(setup.mesh),  # every process keeps all of it
    )
    reported, done, (mine, blocks) = time.monotonic(), 0, my_rows(setup.mesh)
    for number, batch in enumerate(
        batches(
            plan,
            examples.collate,
            0,
            len(plan),
            process_index=mine,
            process_count=blocks,
            workers=setup.config.data.workers,
            prefetch=setup.config.data.prefetch,
        )
    ):
        if interrupted():
            raise Interrupted
        if not number or time.monotonic() - reported > REPORT_EVERY:
            reported = time.monotonic()
            progress.doing(f"running the trunk once: {done:,} of {len(examples):,} examples")
        streams = jax.device_get(run(leaves, place_batch(batch, rows)))
        index = plan.batch(number)
        done += int((index >= 0).sum())
        fields = {
            field: streams[name].view(meta["stored"]) for field, name in meta["names"].items()
        }
        yield from _cut(fields, index, examples.lengths, meta["packed"])


def _cut(
    fields: dict[str, np.ndarray], index: np.ndarray, lengths: np.ndarray, packed: bool
) -> Iterator[dict[str, np.ndarray]]:
    """Yield each example's part of a batch's streams `[R, T, D]`."""
    for row, numbers in enumerate(index):
        begin = 0
        for number in numbers[numbers >= 0]:
            end = begin + int(lengths[number])
            yield {
                field: stream[row, begin:end] if packed else stream[row : row + 1]
                for field, stream in fields.items()
            }
            begin = end


def _everywhere(here: bool) -> bool:
    """Return whether the value is true in all processes."""
    if jax.process_count() == 1:
        return here
    return bool(multihost_utils.process_allgather(np.array(here)).all())


def _has_room(root: Path, nbytes: int) -> bool:
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    return shutil.disk_usage(root).free > nbytes
