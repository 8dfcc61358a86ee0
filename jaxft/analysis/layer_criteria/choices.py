"""Choices that a config leaves to criteria of its layers, made once before training."""

from __future__ import annotations

from rich.console import Console

from jaxft.analysis.layer_criteria.block_weights import choose_weights
from jaxft.analysis.layer_criteria.ranks import choose_ranks
from jaxft.analysis.layer_criteria.select import choose_groups
from jaxft.config.load import Config


def make_choices(config: Config, console: Console) -> Config:
    """Choose what groups own, which ranks an adapter has, and how often blocks are sampled.

    Raises:
        UserError: see `choose_groups`, `choose_ranks` and `choose_weights`.
    """
    return choose_weights(choose_ranks(choose_groups(config, console), console), console)


def with_choices_of(earlier: Config, config: Config) -> Config:
    """Return a resumed run's config with the choices that were made when the run began.

    A changed `select`, `allocate` or `sampling` keeps the earlier choice here; `check_resume`
    refuses it.

    Args:
        earlier: the run's config.
        config: as it is resumed with.
    """
    groups = [
        new.model_copy(update={"match": old.match})
        if new.select is not None and new.match is None and old.select is not None
        else new
        for new, old in zip(config.groups, earlier.groups, strict=False)
    ]
    adapter, old = config.adapter, earlier.adapter
    if adapter.allocate is not None and not adapter.ranks and old.allocate is not None:
        adapter = adapter.model_copy(update={"ranks": old.ranks})
    groups = [*groups, *config.groups[len(groups) :]]
    sampling = config.sampling
    if sampling.weights is None and sampling.method == earlier.sampling.method:
        sampling = sampling.model_copy(update={"weights": earlier.sampling.weights})
    return config.model_copy(update={"groups": groups, "adapter": adapter, "sampling": sampling})
