"""Ranks of an adapter by a criterion (`adapter.allocate`): measured once, then matched by name."""

from __future__ import annotations

import re
from functools import partial

from rich.console import Console

from jaxft.analysis.layer_criteria.measure import measure, measured_setup, measurements
from jaxft.analysis.layer_criteria.select import scores_of
from jaxft.config.load import Config
from jaxft.device.distributed import from_first
from jaxft.engine.compute import new_adapter
from jaxft.layerwise.criteria.allocate import allocate_ranks
from jaxft.models.adapters.low_rank import choose, kernels_of
from jaxft.report.terminal.criteria import measuring_bar


def choose_ranks(config: Config, console: Console) -> Config:
    """Choose the rank of each kernel's adapter where `allocate` says how and `ranks` is empty.

    Every process measures, and all take the first one's choice.

    Args:
        config: of a new run.
        console: shows a bar while it measures, and a line for the choice.

    Returns:
        The config with the choice in `adapter.ranks`; the same one where none is to be made.

    Raises:
        UserError: anything that is wrong with the config, the data or the checkpoint.
    """
    section = config.adapter.allocate
    if section is None or config.adapter.ranks:
        return config
    setup = measured_setup(config)
    towers = setup.model.towers
    shapes = {n: (leaf.shape[0], leaf.shape[1]) for n, leaf in kernels_of(towers).items()}
    names = list(choose(towers, new_adapter(config.adapter)))
    with measuring_bar(console) as (begin, advance):
        begin(measurements(setup, section.batches, {section.by}))
        measured = measure(setup, {section.by}, section.batches, advance)
    scores = scores_of(measured, section.by, names)
    allocate = partial(allocate_ranks, scores, shapes, config.adapter.rank, section.most)
    ranks = from_first(allocate)
    console.print(
        f"adapter.ranks: {min(ranks.values())} to {max(ranks.values())} for {len(ranks)} kernels, "
        f"by {section.by}",
        highlight=False,
    )
    exact = {re.escape(name): rank for name, rank in ranks.items()}
    return config.model_copy(update={"adapter": config.adapter.model_copy(update={"ranks": exact})})
