"""Weights by which OWS samples blocks (`sampling.weights`): measured once, by their outliers."""

from __future__ import annotations

from collections import defaultdict

from rich.console import Console

from jaxft.analysis.layer_criteria.measure import measure, measured_setup, measurements
from jaxft.analysis.layer_criteria.select import scores_of
from jaxft.config.load import Config
from jaxft.device.distributed import from_first
from jaxft.layerwise.sampling import OWS
from jaxft.report.terminal.criteria import measuring_bar

CRITERION, BATCHES = "outliers", 8
LEAST = 0.01  # of the mean weight: a block without an outlier is sampled too


def choose_weights(config: Config, console: Console) -> Config:
    """Measure the outliers of each block where `sampling.method` is ows and has no weights.

    Every process measures, and all take the first one's weights.

    Args:
        config: of a new run.
        console: shows a bar while it measures, and a line for the result.

    Returns:
        The config with `sampling.weights`; the same one where none are to be measured.

    Raises:
        UserError: anything that is wrong with the config, the data or the checkpoint.

    Source: Li et al. (2024), https://arxiv.org/abs/2405.18380.
    """
    section = config.sampling
    if section.method != OWS or section.weights is not None:
        return config
    setup = measured_setup(config)
    with measuring_bar(console) as (begin, advance):
        begin(measurements(setup, BATCHES, {CRITERION}))
        measured = measure(setup, {CRITERION}, BATCHES, advance)
    scores = scores_of(measured, CRITERION, [one.name for one in measured.matrices])
    of_block: dict[str, list[float]] = defaultdict(list)
    for one in measured.matrices:
        of_block[one.block].append(scores[one.name])
    means = {block: sum(own) / len(own) for block, own in of_block.items()}
    floor = LEAST * sum(means.values()) / len(means) or 1.0
    weights = from_first(lambda: {block: max(mean, floor) for block, mean in means.items()})
    low, high = min(weights.values()), max(weights.values())
    console.print(
        f"sampling.weights: {low:.2g} to {high:.2g} for {len(weights)} blocks, by their outliers",
        highlight=False,
    )
    sampling = section.model_copy(update={"weights": weights})
    return config.model_copy(update={"sampling": sampling})
